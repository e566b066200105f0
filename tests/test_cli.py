"""The command line from end to end in real processes, its exit codes and every message it prints for a mistake."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

import warm
from fusemix import terminal

ENCODERS = """
import os, time
import numpy as np

def colours(images):
    time.sleep(float(os.environ.get("SLOW", 0)))
    return [np.asarray(image.resize((4, 4)), dtype=float).ravel() / 255 for image in images]

def letters(texts):
    return [[text.count(chr(97 + i)) for i in range(26)] for text in texts]

def paths(files):
    return [[len(str(f.read_bytes())), f.suffix == ".bin"] for f in files]
"""


def hear_ctrl_c():
    """A shell tells what it starts in the background to ignore Ctrl-C; the tests may have been started that way."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def fusemix(*words, cwd, code=0, **environment):
    done = warm.run(list(map(str, words)), cwd, {**os.environ, **environment})
    assert code is None or done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def place(world, tmp_path_factory) -> Path:
    """A folder in which extract, fit and index have run."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "enc.py").write_text(ENCODERS)
    table = world / "table.csv"
    fusemix(
        "extract", table, "--image", "photo=enc.py:colours", "--text", "title=enc.py:letters", "-o", "l", cwd=folder
    )
    fusemix("fit", "l", "-o", "m", "--epochs", "20", "--dim", "16", "-q", cwd=folder)
    fusemix("index", "m", "l", "-o", "i", cwd=folder)
    return folder


def test_evaluate_prints_one_json_object(place):
    result = json.loads(fusemix("evaluate", "m", "l", "--json", cwd=place).stdout)
    assert (result["split"], result["rows"]) == ("test", 50)
    assert set(result) == {"split", "rows", "retrieval", "uncorrected", "baselines", "notes"}


def test_evaluate_prints_a_table_and_writes_a_report(place):
    out = fusemix("evaluate", "m", "l", "--split", "val", "--report", "r.html", cwd=place).stdout
    assert "split 'val', 30 pairs" in out and "used to choose" in out
    assert "data:image/png;base64" in (place / "r.html").read_text()


def test_search_by_text_and_by_file_with_the_users_own_encoders(place, world):
    hits = json.loads(
        fusemix("search", "i", "red above blue", "-k", 3, "--text", "enc.py:letters", "--json", cwd=place).stdout
    )
    assert len(hits) == 3 and Path(hits[0]["path"]).is_file()
    lines = fusemix(
        "search", "i", world / "005.png", "-k", 2, "--image", "enc.py:colours", cwd=place
    ).stdout.splitlines()
    assert "005.png" in lines[0] and len(lines) == 2


def test_a_search_that_would_run_code_says_what_to_pass(place):
    error = fusemix("search", "i", "red", cwd=place, code=2).stderr
    assert "--text enc.py:letters" in error


def test_extract_counts_exactly_and_a_second_run_does_nothing(place, world):
    words = (
        "extract",
        world / "table.csv",
        "--image",
        "photo=enc.py:colours",
        "--text",
        "title=enc.py:letters",
        "-o",
        "l",
    )
    out = fusemix(*words, cwd=place).stdout
    assert "image: 120 distinct items = 120 encoded + 0 failed" in out
    assert "pairs: 240 rows, 240 with every latent (train 160, val 30, test 50)" in out
    assert json.loads(fusemix(*words, "--json", cwd=place).stdout)["modalities"]["text"] == {
        "items": 240, "encoded": 240, "failed": 0, "reasons": {}, "empty_cells": 0,
    }  # fmt: skip


def test_any_word_names_a_modality(place):
    (place / "a.bin").write_bytes(b"123")
    (place / "b.bin").write_bytes(b"12345678")
    (place / "t.csv").write_text("blob,title\na.bin,short\nb.bin,longer thing\na.bin,tiny\n")
    fusemix("extract", "t.csv", "--blob", "blob=enc.py:paths", "--text=title=enc.py:letters", "-o", "lb", cwd=place)
    out = json.loads(
        fusemix("fit", "lb", "-o", "mb", "--epochs", "1", "--json", "--val", "none", cwd=place, code=0).stdout
    )
    assert set(out["items"]) == {"blob", "text"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("extract", "none.csv", "--image", "a=hog", "--text", "b=minilm", "-o", "x"), "none.csv: no such file"),
        (
            ("extract", "t.csv", "--image", "phto=hog", "--text", "title=minilm", "-o", "x"),
            "no column 'phto'; found: photo",
        ),
        (("extract", "t.csv", "--image", "photo", "--text", "title=minilm", "-o", "x"), "no encoder for 'image'"),
        (
            ("extract", "t.csv", "--image", "photo=hog", "--text", "title=minilm", "--sede", "0", "-o", "x"),
            "did you mean 'seed'",
        ),
        (("fit", "nothing", "-o", "x"), "holds no latents"),
        (("evaluate", "nothing", "l"), "holds no model"),
        (("evaluate", "m", "nothing"), "holds no latents"),
        (("search", "nothing", "red"), "holds no index"),
        (("fit", "l", "-o", "x", "--val", "test"), "split named 'test'"),
        (("fit", "l", "-o", "x", "--val", "dev"), "there is no split 'dev'; found"),
        (("fit", "l", "-o", "x", "--dropout", "1.5"), "dropout is a probability"),
        (("fit", "l", "-o", "x", "--recipe", "papre"), "did you mean 'paper'"),
        (("evaluate", "m", "l", "--split", "tets"), "did you mean 'test'"),
        (("search", "i", "none.jpg", "--image", "enc.py:colours"), "none.jpg: missing: no file none.jpg"),
        (("search", "i", " "), "nothing to search for: the query is empty"),
        (("fit", "l", "-o", "l"), "l holds something else (latents); write the model into another folder"),
        (("index", "m", "l", "-o", "m"), "m holds something else (fusemix-model-10); write the index into another"),
        (
            ("extract", "t.csv", "--image", "hog", "--text", "title=minilm", "-o", "x"),
            "(wanted --image COLUMN=ENCODER)",
        ),
        (
            ("extract", "t.csv", "--image", "photo=enc.py:colours", "--text", "title=enc.py:letters", "-o", "t.csv"),
            "t.csv cannot be the output folder: File exists",
        ),
        (("extrct",), "No such command"),
    ],
)
def test_a_users_mistake_exits_with_2_and_says_what_to_do(place, words, message):
    (place / "t.csv").write_text("photo,title\na.png,one\nb.png,two\n")
    Image.new("RGB", (2, 2)).save(place / "a.png")
    done = fusemix(*words, cwd=place, code=2)
    assert message in done.stderr.replace("\n", " ") and "Traceback" not in done.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_leaves_a_good_store_and_the_command_that_goes_on(place, world, number, code):
    words = [
        "extract",
        str(world / "table.csv"),
        "--image",
        "photo=enc.py:colours",
        "--text",
        "title=enc.py:letters",
        "-o",
        f"stopped-{code}",
    ]
    run = subprocess.Popen(
        [sys.executable, "-m", "fusemix", *words],
        cwd=place,
        env={**os.environ, "SLOW": "0.5"},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hear_ctrl_c,
    )
    while not (place / f"stopped-{code}" / "pairs.parquet").exists():
        time.sleep(0.05)
    time.sleep(0.3)
    run.send_signal(number)
    _, error = run.communicate(timeout=60)
    assert run.returncode == code, error
    assert "to go on: fusemix extract" in error and "Traceback" not in error
    out = fusemix(*words, cwd=place).stdout
    assert "120 encoded + 0 failed" in out


def test_too_many_failures_exit_with_3_and_what_failed_can_be_mended_and_tried_again(tmp_path):
    (tmp_path / "enc.py").write_text(ENCODERS)
    lines = ["blob,title", *(f"{i}.bin,number {i}" for i in range(40)), ",nothing"]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    for i in range(37):
        (tmp_path / f"{i}.bin").write_bytes(bytes(i + 1))
    words = ("extract", "t.csv", "--blob", "blob=enc.py:paths", "--text", "title=enc.py:letters", "-o", "l")
    error = fusemix(*words, cwd=tmp_path, code=3).stderr
    assert "blob: 3 of the first 40 items failed, more than 5%: missing 3; such as 37.bin (no file" in error
    assert "--max-failed" in error and "Traceback" not in error
    out = fusemix(*words, "--max-failed", 0.1, cwd=tmp_path).stdout
    assert "blob: 40 distinct items = 37 encoded + 3 failed\n  missing " in out
    assert "skipped 1 empty cell\n" in out and "pairs: 41 rows, 37 with every latent" in out
    assert "l/failed.parquet; once mended, try them again with --retry-failed" in out
    for i in range(37, 40):
        (tmp_path / f"{i}.bin").write_bytes(bytes(i + 1))
    assert "40 encoded + 0 failed" in fusemix(*words, "--retry-failed", cwd=tmp_path).stdout


def test_a_dry_run_says_what_it_would_cost_and_writes_nothing(place, world):
    words = ("extract", world / "table.csv", "--image", "photo=enc.py:colours", "--text", "title=enc.py:letters")
    before = sorted(place.iterdir())
    out = fusemix(*words, "-o", "dry", "--dry-run", cwd=place).stdout
    assert "240 rows; nothing was written" in out
    assert "image: 120 distinct items x 48 numbers by enc:colours, 1 shard, " in out
    assert "text: 240 distinct items x 26 numbers by enc:letters" in out and " free, " in out
    cost = json.loads(fusemix(*words, "-o", "dry", "--dry-run", "--json", cwd=place).stdout)
    assert sorted(place.iterdir()) == before
    fusemix(*words, "-o", "wet", "-q", cwd=place)
    for name, forecast in cost["modalities"].items():
        real = sum(path.stat().st_size for path in (place / "wet" / name).rglob("*") if path.is_file())
        assert 0.5 * real < forecast["disk_bytes"] < 2 * real, name
        assert forecast["failed"] == 0 and forecast["seconds"] >= 0


def test_a_misspelt_name_of_a_modality_or_pooling_is_told(place, world):
    words = ("extract", world / "table.csv", "--image", "photo=enc.py:colours", "--text", "title=enc.py:letters")
    error = fusemix(*words, "-o", "x", "--pooling", "imgae=cls", cwd=place, code=2).stderr
    assert "a pooling is given for 'imgae'" in error and "did you mean 'image'?" in error
    error = fusemix(*words, "-o", "x", "--decode", "image", cwd=place, code=2).stderr
    assert "--decode image: wanted NAME=VALUE, NAME being a modality" in error
    error = fusemix(*words, "--image", "maker=enc.py:letters", "-o", "x", cwd=place, code=2).stderr
    assert "--image photo=enc.py:colours and --image maker=enc.py:letters: 'image' is given twice" in error
    error = fusemix(*words, "-o", "x", "--pooling", "image=cls", "--pooling", "image=mean", cwd=place, code=2).stderr
    assert "--pooling image=cls and --pooling image=mean: 'image' is given twice" in error
    error = fusemix(*words, "-o", "x", "--engine", "rya", cwd=place, code=2).stderr
    assert "did you mean 'ray'?" in error


def test_help_and_version_come_without_torch():
    code = (
        "import sys; sys.argv = ['fusemix', '--help']\n"
        "from fusemix.cli import main\n"
        "try: main()\nexcept SystemExit as stop: assert not stop.code\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for verb in ("demo", "extract", "fit", "evaluate", "index", "search"):
        assert verb in done.stdout


def test_a_log_gets_a_line_a_minute_and_one_at_the_end(capsys, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: clock[0])
    with terminal.Bars(quiet=False) as bars:
        for second in range(0, 201, 10):
            clock[0] = 1000.0 + second
            bars("extract image", 40 + 3 * second, 640, "2 failed" if second > 50 else "")
    assert capsys.readouterr().err.splitlines() == [
        "extract image: 220 of 640, 3.0/s, 2 min left, 2 failed",
        "extract image: 400 of 640, 3.0/s, 80.0 s left, 2 failed",
        "extract image: 580 of 640, 3.0/s, 20.0 s left, 2 failed",
        "extract image: 640 done in 3 min, 2 failed",
    ]
