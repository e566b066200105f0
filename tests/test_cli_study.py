"""`fusemix study` in a real process: what it says, what it would cost, and Ctrl-C."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from test_cli import fusemix, hear_ctrl_c
from test_studies import stored

ASKED = ("--only", "quantity", "--sizes", "24,60", "--seeds", "2", "--jobs", "1")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("studies")
    stored(folder, "l")
    return folder


def test_it_says_what_it_found_and_where(place):
    done = fusemix("study", "l", "-o", "s", *ASKED, "--steps", "2", cwd=place)
    assert "8 of 8 fits" in done.stderr or "12 of 12 fits" in done.stderr
    assert "on the 40 pairs (40 x items and 40 y items) of the split 'val'" in done.stdout
    assert "more pairs are worth about" in done.stdout
    assert done.stdout.strip().endswith("report: s/report.html; every point: s/study.csv")
    again = json.loads(fusemix("study", "l", "-o", "s", *ASKED, "--steps", "2", "--json", "-q", cwd=place).stdout)
    assert len(again["points"]) == 6 and again["findings"][0]["verdict"] in done.stdout


def test_a_forecast_writes_nothing(place):
    said = fusemix("study", "l", "-o", "none", *ASKED, "--dry-run", cwd=place).stdout
    assert "quantity: 12 fits" in said and "12 fits in all" in said and "nothing was written" in said
    assert not (place / "none").exists()
    found = json.loads(fusemix("study", "l", "-o", "none", *ASKED, "--dry-run", "--json", cwd=place).stdout)
    assert found["fits"] == 12 and found["by_study"] == {"quantity": 12} and found["seconds"] >= 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--only", "batches"), "no study 'batches'; found: quantity, "),
        (("--sizes", "1k"), "--sizes 1k: wanted whole numbers with commas between, such as 1000,4000"),
        (("--pairs", "100000"), "100,000 pairs cannot be trained on: there are 72"),
        (("--source", "writer"), "no column 'writer' in these latents; found: x, y, split"),
    ],
)
def test_mistakes_are_told(place, words, said):
    done = fusemix("study", "l", "-o", "none", *words, cwd=place, code=2)
    assert said in done.stderr and not (place / "none").exists()


def test_ctrl_c_ends_all_processes_and_the_same_command_goes_on(place):
    words = [sys.executable, "-m", "fusemix", "study", "l", "-o", "cut", *ASKED, "--steps", "40"]
    env = {**os.environ, "COLUMNS": "200"}
    with subprocess.Popen(
        words, cwd=place, env=env, stderr=subprocess.PIPE, text=True, preexec_fn=hear_ctrl_c, start_new_session=True
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "study: 2 of" in line:
                break
        os.killpg(process.pid, signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait(20) == 130, rest
    assert "to go on: fusemix study l -o cut" in rest and "Traceback" not in rest
    done = len((place / "cut" / "trials.jsonl").read_text().splitlines())
    assert 2 <= done < 12
    deadline = time.monotonic() + 10
    while _lives(process.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _lives(process.pid)
    assert "12 of 12 fits" in fusemix("study", "l", "-o", "cut", *ASKED, "--steps", "40", cwd=place).stderr


def test_a_killed_study_leaves_no_process_behind(place):
    words = [sys.executable, "-m", "fusemix", "study", "l", "-o", "killed", *ASKED, "--steps", "40"]
    with subprocess.Popen(words, cwd=place, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "study: 1 of" in line:
                break
        process.kill()
    deadline = time.monotonic() + 10
    while _lives(process.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _lives(process.pid)


def _lives(group):
    """Tell whether any process of a group is there."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
