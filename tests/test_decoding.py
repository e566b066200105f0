"""Decoding in processes of their own: whatever a decoder does, it costs one item and no other."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fusemix.data import decoding
from fusemix.data.decoding import Decoders
from fusemix.data.media import ItemError

# The shipped worker with one more form, "evil": the first word of a file says what its decoder does.
EVIL = """
import os, time
import numpy as np
from fusemix.data import worker

def evil(source):
    word = source.read_text().split()[0]
    if word == "crash":
        os.abort()
    if word == "exit":
        os._exit(0)
    if word == "hang":
        time.sleep(1000)
    if word == "eat":
        np.ones(1 << 33, np.uint8)
    if word == "print":
        print("a library that prints", flush=True)
    return {}, [np.zeros((2, 2, 3), np.uint8)]

worker.FORMS["evil"] = evil
worker.main()
"""


@pytest.fixture
def evil(tmp_path, monkeypatch):
    (tmp_path / "evil.py").write_text(EVIL)
    monkeypatch.setattr(decoding, "COMMAND", [sys.executable, str(tmp_path / "evil.py")])
    monkeypatch.setattr(decoding, "TIMEOUT", 2.0)
    return tmp_path


def outcome(future):
    try:
        return future.result().size
    except ItemError as error:
        return error.reason


def test_a_decoder_that_crashes_hangs_or_swallows_memory_costs_one_item(evil):
    fates = {"crash": "decoder crashed", "exit": "decoder crashed", "hang": "timed out", "eat": "too large"}
    words = ["good", "crash", "good", "hang", "print", "eat", "good", "exit", "good", "crash", "crash", "good"]
    for i, word in enumerate(words):
        (evil / f"{i}.txt").write_text(word)
    with Decoders(2) as decoders:
        found = [outcome(future) for future in [decoders.submit("evil", evil / f"{i}.txt") for i in range(len(words))]]
    assert found == [fates.get(word, (2, 2)) for word in words]


def test_what_comes_back_is_what_was_in_the_file(tmp_path):
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 255, (20 + i, 30, 3), dtype=np.uint8) for i in range(9)]
    for i, picture in enumerate(pixels):
        Image.fromarray(picture).save(tmp_path / f"{i}.png")
    with Decoders(3) as decoders:
        futures = [decoders.submit("image", tmp_path / f"{i}.png") for i in range(9)]
        futures += [decoders.submit("image", (tmp_path / f"{i}.png").read_bytes()) for i in range(9)]
        for future, picture in zip(futures, pixels * 2, strict=True):
            np.testing.assert_array_equal(np.asarray(future.result()), picture)


def test_the_users_own_decoder_may_raise_anything(tmp_path):
    def own(path):
        if path.name == "bad":
            raise KeyError("no pixels")
        return path.name

    with Decoders() as decoders:
        good, bad = (decoders.submit_call(own, tmp_path / name) for name in ("good", "bad"))
        assert good.result() == "good"
        with pytest.raises(ItemError, match="KeyError: 'no pixels'") as caught:
            bad.result()
    assert caught.value.reason == "decode failed"


def children(pid):
    lines = subprocess.run(["ps", "-eo", "pid,ppid,stat,args"], capture_output=True, text=True).stdout.splitlines()[1:]
    rows = [line.split(None, 3) for line in lines]
    return [int(row[0]) for row in rows if int(row[1]) == pid and "fusemix.data.worker" in row[3]]


@pytest.mark.skipif(sys.platform != "linux", reason="reads ps")
def test_no_worker_outlives_its_parent_however_that_ends(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom fusemix.data.decoding import Decoders\n"
        "with Decoders(2) as d:\n    d.submit('image', Path(sys.argv[1])).result()\n    print('on', flush=True)\n"
        "    time.sleep(float(sys.argv[2]))\n"
    )
    for seconds, stop in ((0, None), (60, signal.SIGKILL), (60, signal.SIGINT)):
        parent = subprocess.Popen(
            [sys.executable, "-c", code, tmp_path / "a.png", str(seconds)],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert parent.stdout.readline() == b"on\n"
        workers = children(parent.pid) if stop else []
        assert bool(workers) == bool(stop)
        if stop:
            os.kill(parent.pid, stop)
        parent.wait(20)
        parent.stdout.close()
        for _ in range(100):
            if not any(Path(f"/proc/{pid}").exists() for pid in workers):
                break
            time.sleep(0.05)
        assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
