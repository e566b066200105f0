"""Whatever the disk does to an item has a reason of its own, also where a library swallows the error."""

import errno
import io
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from fusemix.data import media
from fusemix.data.images import load_image
from fusemix.data.media import ItemError, Span, is_file, opened
from fusemix.data.sounds import load_sound
from fusemix.data.videos import load_frames
from fusemix.errors import DataError


def reason_of(source, load=load_image):
    with pytest.raises(ItemError) as caught:
        load(source)
    return caught.value.reason


@pytest.fixture
def broken_disk():
    """Call it with n: from the n-th read on, the disk gives errors."""
    left = [0]

    def read(real, *arguments):
        left[0] -= 1
        if left[0] <= 0:
            raise OSError(errno.EIO, "Input/output error")
        return real(*arguments)

    class Raw(io.FileIO):
        def readinto(self, buffer):
            return read(super().readinto, buffer)

        def readall(self):
            return read(super().readall)

    media._Disk.__bases__ = (Raw,)
    yield lambda n: left.__setitem__(0, n)
    media._Disk.__bases__ = (io.FileIO,)


def test_the_bytes_of_an_item_come_from_a_file_a_part_of_one_or_memory(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(b"0123456789")
    for source, content in ((path, b"0123456789"), (Span(path, 2, 3), b"234"), (b"abc", b"abc")):
        with opened(source) as file:
            assert file.read() == content
            file.seek(1)
            assert file.read(1) == content[1:2]


def test_what_holds_no_bytes_has_no_content(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(b"")
    (tmp_path / "a.tar").write_bytes(bytes(1024))
    for source in (path, b"", Span(tmp_path / "a.tar", 512, 0)):
        for load in (load_image, load_sound, load_frames):
            assert reason_of(source, load) == "no content"


def test_a_part_that_its_file_does_not_have_is_truncated(tmp_path):
    (tmp_path / "a.tar").write_bytes(bytes(1024))
    assert reason_of(Span(tmp_path / "a.tar", 1000, 25)) == "truncated"
    assert reason_of(Span(tmp_path / "b.tar", 0, 1)) == "missing"


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.jpg")
    assert reason_of(tmp_path / "a.jpg") == "missing"


def test_names_that_no_disk_can_hold_are_missing(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    for name in ("no", "x" * 5000, "nul\0", "circle", "file/b", ""):
        assert reason_of(tmp_path / name) == "missing"
        assert not is_file(tmp_path / name)


@pytest.mark.parametrize("where", ["stat", "open"])
def test_a_file_that_may_not_be_read_is_a_matter_of_access(tmp_path, monkeypatch, where):
    path = tmp_path / "a.png"
    Image.new("RGB", (4, 4)).save(path)

    def refuse(*arguments, **options):
        raise PermissionError(errno.EACCES, "Permission denied")

    if where == "stat":
        monkeypatch.setattr(Path, "stat", refuse)
    else:
        monkeypatch.setattr("fusemix.data.media._Disk.__init__", refuse)
    for load in (load_image, load_sound, load_frames):
        assert reason_of(path, load) == "no access"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_disk_that_fails_while_a_library_reads_is_found_out(tmp_path, broken_disk):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 300, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    Image.new("RGB", (300, 200)).save(tmp_path / "a.webp")
    soundfile.write(tmp_path / "a.wav", np.zeros(100_000), 16_000)
    soundfile.write(tmp_path / "a.flac", np.random.default_rng(0).normal(0, 0.1, 100_000), 16_000)
    calls = (("a.png", load_image, 3), ("a.webp", load_image, 2), ("a.wav", load_sound, 3), ("a.flac", load_sound, 3))
    for name, load, reads in calls:
        for n in range(1, reads + 1):
            broken_disk(n)
            assert reason_of(tmp_path / name, load) == "no access", (name, n)


def test_the_same_file_fails_with_the_same_words_every_time():
    content = io.BytesIO()
    soundfile.write(content, np.zeros(100), 8000, format="WAV")
    damaged = content.getvalue().replace(b"fmt ", b"fmx ")
    for source, load in ((damaged, load_sound), (b"\x89PNG\r\n\x1a\n" + bytes(30), load_image)):
        words = set()
        for _ in range(3):
            with pytest.raises(ItemError) as caught:
                load(bytes(bytearray(source)))
            words.add(str(caught.value))
        assert len(words) == 1 and "0x" not in words.pop()


def test_a_reason_is_one_of_the_closed_set():
    with pytest.raises(DataError, match="'no contents' is no reason; found: empty, .*; did you mean 'no content'"):
        ItemError("no contents", "an empty scan")
