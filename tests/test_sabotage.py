"""Green must mean something: bugs are planted, and the tests of durable.py turn red."""

import subprocess
import sys
from pathlib import Path

import torture_sabotage


def test_bugs_that_are_planted_turn_the_tests_red():
    """The small form of benchmarks/torture_sabotage.py, which plants them everywhere."""
    script = Path(__file__).parents[1] / "benchmarks" / "torture_sabotage.py"
    done = subprocess.run([sys.executable, script, "--small"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout.count("# caught: ") == 3, done.stdout + done.stderr


def test_the_place_of_every_bug_is_still_in_the_source():
    for bug in torture_sabotage.BUGS:
        text = (torture_sabotage.ROOT / "src" / "fusemix" / bug.file).read_text()
        assert text.count(bug.old) == 1 and bug.new != bug.old, bug.name
