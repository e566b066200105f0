"""Decoding in processes of their own: whatever a decoder does, it costs one item and no other."""

import importlib.util
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Event

import numpy as np
import pytest
from PIL import Image

from fusemix.data import decoding
from fusemix.data.decoding import Decoders
from fusemix.data.media import ItemError, Span
from fusemix.errors import FusemixError
from fusemix.sound import Sound

# The shipped worker with one more form, "evil": the first word of a file says what its decoder does.
EVIL = """
import os, sys, time
import numpy as np
from fusemix.data import worker

used = []

def evil(source):
    if used:
        os.abort()
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
        print("and complains", file=sys.stderr, flush=True)
    if word == "poison":
        used.append(1)
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


def test_a_decoder_that_leaves_damage_behind_costs_no_other_item(evil):
    words = ["good", "poison", "good", "good", "poison", "crash", "good", "poison", "poison", "good"]
    for i, word in enumerate(words):
        (evil / f"{i}.txt").write_text(word)
    with Decoders(1) as decoders:
        found = [outcome(future) for future in [decoders.submit("evil", evil / f"{i}.txt") for i in range(len(words))]]
    assert found == ["decoder crashed" if word == "crash" else (2, 2) for word in words]


def test_a_worker_that_was_killed_while_it_was_idle_is_replaced(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    with Decoders(1) as decoders:
        for _ in range(3):
            assert decoders.submit("image", tmp_path / "a.png").result().size == (4, 4)
            decoders._workers[0]._process.kill()


def test_nothing_that_a_decoder_prints_reaches_the_terminal(evil, capfd):
    (evil / "a.txt").write_text("print")
    with Decoders(1) as decoders:
        assert outcome(decoders.submit("evil", evil / "a.txt")) == (2, 2)
    assert capfd.readouterr() == ("", "")


def test_leaving_by_an_exception_waits_for_nobody(evil, monkeypatch):
    monkeypatch.setattr(decoding, "TIMEOUT", 60.0)
    (evil / "a.txt").write_text("hang")
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt), Decoders(2) as decoders:
        futures = [decoders.submit("evil", evil / "a.txt") for _ in range(20)]
        time.sleep(0.5)
        raise KeyboardInterrupt
    assert time.monotonic() - started < 20
    assert all(future.done() for future in futures)


def test_leaving_waits_for_what_was_submitted(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    with Decoders(2) as decoders:
        futures = [decoders.submit("image", tmp_path / "a.png") for _ in range(20)]
    assert all(future.result().size == (4, 4) for future in futures)


def test_a_worker_that_does_not_start_says_why(monkeypatch, tmp_path):
    monkeypatch.setattr(decoding, "COMMAND", [sys.executable, "-c", "import sys; sys.exit('no such module: numpy')"])
    with Decoders(1) as decoders, pytest.raises(FusemixError, match="no such module: numpy"):
        decoders.submit("image", tmp_path / "a.png").result()


def test_a_library_that_does_not_load_is_no_fault_of_the_items(tmp_path, monkeypatch):
    (tmp_path / "soundfile.py").write_text("raise ImportError('libsndfile.so: no such file')")
    (tmp_path / "a.wav").write_bytes(b"RIFF    WAVE")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Decoders(1) as decoders, pytest.raises(FusemixError, match="libsndfile.so: no such file"):
        decoders.submit("audio", tmp_path / "a.wav").result()


def test_a_script_may_go_to_another_folder(tmp_path, monkeypatch):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "b.tar").write_bytes(bytes(512) + (tmp_path / "a.png").read_bytes())
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with Decoders(1) as decoders:
        with pytest.raises(ItemError):
            decoders.submit("image", Path("a.png")).result()
        monkeypatch.chdir(tmp_path)
        assert decoders.submit("image", Path("a.png")).result().size == (4, 4)
        size = (tmp_path / "a.png").stat().st_size
        assert decoders.submit("image", Span(Path("b.tar"), 512, size)).result().size == (4, 4)


def test_a_script_without_a_main_guard_runs_once(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "numpy.py").write_text("raise SystemExit('the folder of the script is not imported from')")
    (tmp_path / "script.py").write_text(
        "import sys\nfrom pathlib import Path\nsys.path.pop(0)\nfrom fusemix.data.decoding import Decoders\n"
        "print('run')\nwith Decoders(2) as d:\n    print(d.submit('image', Path('a.png')).result().size)\n"
    )
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "run\n(4, 4)\n"


def test_every_form_comes_back_whole(tmp_path):
    av, soundfile = pytest.importorskip("av"), pytest.importorskip("soundfile")
    soundfile.write(tmp_path / "a.wav", np.linspace(-1, 1, 1000), 8000, subtype="FLOAT")
    with av.open(tmp_path / "a.mp4", "w") as container:
        stream = container.add_stream("mpeg4", rate=24)
        stream.width, stream.height = 64, 48
        for _ in range(4):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode())
    with Decoders(1) as decoders:
        sound = decoders.submit("audio", tmp_path / "a.wav").result()
        assert isinstance(sound, Sound) and sound.rate == 8000
        np.testing.assert_allclose(sound.samples, np.linspace(-1, 1, 1000), atol=1e-6)
        assert sound.samples.flags.writeable  # torch warns of others
        assert [frame.size for frame in decoders.submit("video", tmp_path / "a.mp4").result()] == [(64, 48)] * 8


@pytest.mark.parametrize(("name", "options"), [("a.jpg", {}), ("a.webp", {"quality": 1, "method": 0})])
def test_a_picture_at_the_limit_fits_the_memory_of_a_worker(tmp_path, name, options):
    Image.new("RGBA" if name == "a.webp" else "RGB", (8000, 5000)).save(tmp_path / name, **options)
    with Decoders(1) as decoders:
        assert decoders.submit("image", tmp_path / name).result().size == (8000, 5000)


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

    for name in ("good", "bad"):
        (tmp_path / name).touch()
    with Decoders() as decoders:
        good, bad = (decoders.submit_call(own, tmp_path / name) for name in ("good", "bad"))
        assert good.result() == "good"
        with pytest.raises(ItemError, match="KeyError: 'no pixels'") as caught:
            bad.result()
    assert caught.value.reason == "decode failed"


def children(pid, name="fusemix.data.worker"):
    lines = subprocess.run(
        ["ps", "-ww", "-eo", "pid,ppid,stat,args"], capture_output=True, text=True
    ).stdout.splitlines()[1:]
    rows = [line.split(None, 3) for line in lines]
    return [int(row[0]) for row in rows if int(row[1]) == pid and name in row[3]]


@pytest.mark.skipif(sys.platform != "linux", reason="reads ps")
def test_a_decoder_of_ones_own_that_hangs_costs_one_item_and_a_minute(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "TIMEOUT", 0.5)
    for name in ("good", "hang"):
        (tmp_path / name).write_text(name)
    forever = Event()

    def own(path):
        return forever.wait() if path.name == "hang" else path.read_text()

    with Decoders(2) as decoders:
        futures = [decoders.submit_call(own, tmp_path / name) for name in ("hang", "good", "hang", "good", "none")]
        found = [future.exception() or future.result() for future in futures]
    assert [getattr(value, "reason", value) for value in found] == ["timed out", "good", "timed out", "good", "missing"]
    forever.set()


def test_a_process_ends_although_a_decoder_of_the_users_hangs(tmp_path):
    (tmp_path / "hang.py").write_text(HANG)
    started = time.monotonic()
    done = subprocess.run([sys.executable, tmp_path / "hang.py"], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["hangs"] and "KeyboardInterrupt" in done.stderr
    assert time.monotonic() - started < 30


HANG = """
import threading
from pathlib import Path
from fusemix.data.decoding import Decoders

begun = threading.Event()

def own(path):
    begun.set()
    threading.Event().wait()

with Decoders(1) as decoders:
    decoders.submit_call(own, Path(__file__))
    begun.wait()
    print("hangs", flush=True)
    raise KeyboardInterrupt
"""


def test_what_is_decoded_ahead_of_its_turn_has_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "AHEAD_BYTES", 2000)
    (tmp_path / "a").write_text("")
    begun = []

    def own(path):
        begun.append(1)
        return np.zeros(1000, np.uint8)

    with Decoders(1) as decoders:
        turns = [[decoders.submit_call(own, tmp_path / "a", turn) for _ in range(4)] for turn in range(3)]
        for future in turns[0]:
            future.result()  # its turn: whatever it takes
        time.sleep(0.2)
        assert len(begun) == 4
        decoders.let_go(0)
        decoders.take_turn(1)
        for future in turns[1]:
            future.result()
        time.sleep(0.2)
        assert len(begun) == 8
    assert len(begun) == 12 and all(future.done() for future in turns[2])


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
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # background jobs ignore it
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


@pytest.mark.skipif(sys.platform != "linux", reason="reads ps")
def test_a_worker_that_hangs_does_not_outlive_a_killed_parent_for_long(evil):
    (evil / "a.txt").write_text("hang")
    code = (
        "import sys\nfrom pathlib import Path\nfrom fusemix.data import decoding\nfolder = Path(sys.argv[1])\n"
        "decoding.COMMAND, decoding.TIMEOUT = [sys.executable, str(folder / 'evil.py')], 1.0\n"
        "with decoding.Decoders(1) as d:\n    d.submit('evil', folder / 'a.txt')\n    d._threads.submit(int).result()\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, evil])
    workers = []
    while not workers and parent.poll() is None:
        workers = children(parent.pid, "evil.py")
    assert workers
    time.sleep(0.7)
    parent.kill()
    parent.wait()
    started = time.monotonic()
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() - started < 20
        time.sleep(0.05)


@pytest.fixture
def torture(monkeypatch):
    for name in ("av", "soundfile"):
        pytest.importorskip(name)
    path = Path(__file__).parent.parent / "benchmarks" / "torture_media.py"
    spec = importlib.util.spec_from_file_location("torture_media", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(decoding, "TIMEOUT", module.LIMIT)
    return module


def test_mutated_cut_and_clean_media_have_the_outcomes_they_should(torture, tmp_path, capsys):
    rng = random.Random(1)
    held = [
        torture.mutated(tmp_path, 200, rng),
        torture.truncated(tmp_path, torture.EIGHT, 1, rng),
        torture.truncated(tmp_path, torture.MORE, 1, rng),
        torture.clean(tmp_path, 68, rng),
    ]
    assert all(held), capsys.readouterr().out
