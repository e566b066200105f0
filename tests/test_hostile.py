"""Folders that try to run code or to write elsewhere: a third of benchmarks/torture_hostile.py."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("onnx")
TORTURE = Path(__file__).parent.parent / "benchmarks" / "torture_hostile.py"


@pytest.mark.slow
def test_hostile_folders_run_no_code_and_write_nothing_elsewhere_and_the_hook_sees_what_would():
    done = subprocess.run([sys.executable, TORTURE, "--every", "3"], capture_output=True, text=True, timeout=300)
    results = [json.loads(line.removeprefix("RESULT ")) for line in done.stdout.splitlines() if line[:6] == "RESULT"]
    assert done.returncode == 0 and len(results) == 7, done.stdout + done.stderr
    assert [result for result in results if not result["holds"]] == [], done.stdout
