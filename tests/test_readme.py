"""The README runs: its commands and its Python, in an empty folder, on a part of the symbols."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

import warm
from fusemix.data.media import Reason
from fusemix.data.symbols import write_symbols

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


BRIEF = """
from dataclasses import replace
from fusemix import parameters
whole = parameters.scaled
parameters.scaled = lambda *words: replace(whole(*words), epochs=20)
"""
"""The default settings, but a tenth of the epochs."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("readme")
    write_symbols(place / "fusemix-demo", limit=100)
    return place


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def run(line, cwd, fresh=False):
    """Run a command; where other tests start its verb in a fresh process, a fork does."""
    name, *words = shlex.split(line)
    assert name == "fusemix"
    env = {**os.environ, "COLUMNS": "120"}
    if fresh:
        command = [sys.executable, "-m", "fusemix", *words]
        done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    else:
        done = warm.run(words, cwd, env, BRIEF)
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_commands_run(folder):
    lines = blocks("sh")[0].strip().splitlines()
    assert len(lines) == 5
    for line in lines:
        last = run(line, folder, fresh=line.split()[1] in ("evaluate", "index"))
    assert "fusemix-demo/images/u" in last.replace("\n", "") and len(last.splitlines()) == 10
    assert (folder / "report.html").is_file()


def test_the_commands_about_data_run(tmp_path):
    write_symbols(tmp_path / "fusemix-demo", limit=200)
    for line in [blocks("sh")[0].splitlines()[0], *blocks("sh")[1].strip().splitlines()]:  # extract, then the others
        last = run(line, tmp_path)
    assert "fits in all" in last and (tmp_path / "inspection" / "report.html").is_file()


def test_the_python_runs_in_ten_lines(folder):
    code = blocks("python")[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    done = warm.python(["-c", code], folder, dict(os.environ), BRIEF)
    assert done.returncode == 0, done.stderr
    assert "text->image" in done.stdout and "Hit(id='images/u" in done.stdout


def test_the_array_line_runs():
    import numpy as np

    import fusemix as fm

    line = re.search(r"`(Zx, Zy = .*?)`", README)
    assert line is not None
    rng = np.random.default_rng(0)
    scope = {"fm": fm, "X": rng.normal(size=(30, 6)), "Y": rng.normal(size=(30, 5))}
    exec(line[1], scope)
    assert scope["Zx"].shape == scope["Zy"].shape == (30, 5), "CCA has as many directions as the narrower side"


def test_every_figure_of_the_results_table_is_in_results_md():
    results = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    table = re.search(r"## Results\n(.*?)\n## ", README, flags=re.DOTALL)
    assert table is not None
    figures = re.findall(r"\d+\.\d+", table[1])
    assert figures and all(figure in results for figure in figures)


def test_every_file_of_the_map_is_there_and_every_module_is_in_the_map():
    files = README[README.index("## Files") :]
    modules = {path.name for path in (ROOT / "src" / "fusemix").rglob("*.py")} - {"__init__.py", "__main__.py"}
    assert set(re.findall(r"(\w+\.py)", files)) == modules


def test_links_point_at_files():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).is_file(), target


def test_the_page_on_extraction_names_every_reason_and_no_other():
    page = (ROOT / "docs" / "extraction.md").read_text()
    rows = page.split("| reason | meaning |\n|---|---|\n")[1].split("\n\n")[0].splitlines()
    assert [row.split("|")[1].strip() for row in rows] == list(get_args(Reason))
