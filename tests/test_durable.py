"""A file is whole or absent, whatever fails in the middle of writing it."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fusemix import durable


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def broken_disk(*_):
    raise OSError(28, "No space left on device")


def test_what_was_written_is_read_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "new" / "folder" / "a.bin"
    durable.write(path, b"content")
    assert path.read_bytes() == b"content"
    assert names_in(path.parent) == ["a.bin"]


def test_writing_again_replaces_the_old_content(tmp_path):
    for content in (b"a long old content", b"new", b""):
        durable.write(tmp_path / "a.bin", content)
        assert (tmp_path / "a.bin").read_bytes() == content


@pytest.mark.parametrize(("owner", "method"), [(os, "fsync"), (Path, "replace")])
def test_a_failure_before_the_commit_keeps_the_old_file_and_leaves_no_other(tmp_path, monkeypatch, owner, method):
    path = tmp_path / "a.bin"
    durable.write(path, b"old")
    monkeypatch.setattr(owner, method, broken_disk)
    with pytest.raises(OSError, match="No space left") as caught:
        durable.write(path, b"new")
    assert caught.value.filename == str(path) and caught.value.errno == 28
    assert path.read_bytes() == b"old"
    assert names_in(tmp_path) == ["a.bin"]


@pytest.mark.parametrize(("owner", "method"), [(os, "fsync"), (Path, "replace")])
def test_a_failure_before_the_commit_of_a_new_file_leaves_the_folder_empty(tmp_path, monkeypatch, owner, method):
    monkeypatch.setattr(owner, method, broken_disk)
    with pytest.raises(OSError, match="No space left"):
        durable.write(tmp_path / "a.bin", b"new")
    assert names_in(tmp_path) == []


@pytest.mark.parametrize(
    "spoil",
    [lambda file: os.pwrite(file, b"X", 1), lambda file: os.ftruncate(file, 2), lambda file: os.pwrite(file, b"X", 9)],
)
def test_a_read_back_that_differs_keeps_the_old_file_and_names_the_disk(tmp_path, monkeypatch, spoil):
    path = tmp_path / "a.bin"
    durable.write(path, b"old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", spoil)
        with pytest.raises(OSError, match="what was read back differs from what was written; check the"):
            durable.write(path, b"new")
    assert path.read_bytes() == b"old"
    assert names_in(tmp_path) == ["a.bin"]


@pytest.mark.skipif(os.name != "posix", reason="only POSIX syncs folders")
def test_a_failure_after_the_commit_raises_and_leaves_the_new_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "a.bin"
    durable.write(path, b"old")
    fsync, calls = os.fsync, []

    def second_fails(descriptor):
        calls.append(descriptor)
        return fsync(descriptor) if len(calls) == 1 else broken_disk()

    monkeypatch.setattr(os, "fsync", second_fails)
    with pytest.raises(OSError, match="No space left"):
        durable.write(path, b"new")
    assert path.read_bytes() == b"new"
    assert names_in(tmp_path) == ["a.bin"]


def test_leftovers_of_killed_writers_are_removed_and_all_other_files_stay(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    mine, gone = f"{durable.HOST}.{os.getpid()}", f"{durable.HOST}.{dead.pid}"
    killed = [f".a.bin.{mine}.tmp", f".shard-00000.safetensors.{gone}.tmp"]
    kept = [f".b.bin.{durable.HOST}.{os.getppid()}.tmp", f".c.bin.otherhost.{dead.pid}.tmp", "a.bin", "mine.tmp", ".x"]
    for name in killed + kept:
        (tmp_path / name).write_bytes(b"x")
    durable.remove_leftovers(tmp_path)
    assert names_in(tmp_path) == sorted(kept)
    durable.remove_leftovers(tmp_path / "no such folder")


def test_a_leftover_of_another_machine_goes_after_a_day(tmp_path):
    path = tmp_path / ".a.bin.otherhost.7.tmp"
    path.write_bytes(b"x")
    long_ago = time.time() - durable.FOREIGN_LEFTOVER_SECONDS - 60
    os.utime(path, (long_ago, long_ago))
    durable.remove_leftovers(tmp_path)
    assert names_in(tmp_path) == []
