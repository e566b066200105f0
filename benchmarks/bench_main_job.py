"""The goals of the main job, measured: the demo's accuracy, time and memory, and how soon `--help` answers.

python benchmarks/bench_main_job.py
"""

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from goals import leave, result


def main() -> None:
    """Run the demo in a process of its own, in an empty folder, and print a RESULT line per goal."""
    fusemix = Path(sys.executable).with_name("fusemix")
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        out = subprocess.run([fusemix, "demo", "--json"], cwd=folder, check=True, capture_output=True, text=True).stdout
        seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    found = json.loads(out)
    for way, scores in found["retrieval"].items():
        cca = found["baselines"]["cca"][way]
        print(
            f"{way}: R@1 {scores['R@1']:.1f} (cca {cca['R@1']:.1f}), R@10 {scores['R@10']:.1f} (cca {cca['R@10']:.1f})"
        )
    ways = list(found["retrieval"].values())
    result("demo: least R@1 of both directions", min(s["R@1"] for s in ways), ">= 42", lambda v: v >= 42)
    result("demo: least R@10 of both directions", min(s["R@10"] for s in ways), ">= 73", lambda v: v >= 73)
    result("demo: seconds", round(seconds, 1), "<= 120", lambda v: v <= 120)
    result("demo: peak memory, GiB", round(peak, 2), "< 2", lambda v: v < 2)
    times = []
    for _ in range(7):
        started = time.perf_counter()
        subprocess.run([fusemix, "--help"], check=True, capture_output=True)
        times.append(time.perf_counter() - started)
    result("fusemix --help: seconds, median of 7", round(statistics.median(times), 3), "< 0.5", lambda v: v < 0.5)


if __name__ == "__main__":
    main()
    leave()
