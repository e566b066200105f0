"""The demo: the whole job on real data that needs no download (`data.symbols`), from drawing to search and report."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from fusemix.data.latents import Latents
from fusemix.data.pairs import read_pairs
from fusemix.data.symbols import write_symbols
from fusemix.evaluate import Evaluation
from fusemix.extraction import extract
from fusemix.model import FuseMix
from fusemix.progress import Progress, silent
from fusemix.report import Example, write_report
from fusemix.search.previews import with_previews

QUERIES = ("arrow pointing to the left", "playing card", "chess piece", "number in a circle", "box drawing lines")
T = TypeVar("T")


@dataclass(frozen=True)
class Demo:
    """What the demo made.

    Attributes:
        folder: holds symbols.csv, images/, latents/, model/, index/ and report.html.
        evaluation: on the symbols that were never trained on.
        examples: five queries and their answers among those symbols.
        seconds: time of each stage.
        commands: what to type next.
    """

    folder: Path
    evaluation: Evaluation
    examples: list[Example]
    seconds: dict[str, float]
    commands: list[str]


def run_demo(
    folder: str | Path,
    *,
    limit: int | None = None,
    epochs: int | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Demo:
    """Draw symbols, extract latents, fit, evaluate, index, search and report.

    Args:
        folder: to write; latents that are already there are used again.
        limit: number of pictures, for a quicker look; None draws all of them.
        epochs: of the fit; None follows the recipe.
        seed: of the fit.
        progress: called often.
    """
    folder = Path(folder)
    seconds: dict[str, float] = {}

    def timed(stage: str, work: Callable[[], T]) -> T:
        started = time.perf_counter()
        result = work()
        seconds[stage] = time.perf_counter() - started
        return result

    table = timed("draw", lambda: write_symbols(folder, limit, progress))
    pairs = read_pairs(table, image="image", text="text")
    latents = timed(
        "extract", lambda: extract(pairs, image="hog", text="minilm", out=folder / "latents", progress=progress)
    )
    train, val, test = latents.split()
    model = timed("fit", lambda: FuseMix(epochs=epochs, seed=seed).fit(train, val=val, progress=progress))
    model.save(folder / "model")
    evaluation = timed("evaluate", lambda: model.evaluate(test))
    examples = timed("search", lambda: _answer(model, latents, test, folder, progress))
    commands = [
        f"fusemix serve {folder}/index",
        f'fusemix search {folder}/index "smiling face"',
        f"fusemix evaluate {folder}/model {folder}/latents --split test",
        f"fusemix extract {folder}/symbols.csv --image image=hog --text text=minilm -o my-latents",
        "fusemix fit my-latents -o my-model",
    ]
    write_report(folder / "report.html", "Symbols and their names", model, evaluation, examples, seconds, commands)
    return Demo(folder, evaluation, examples, seconds, commands)


def _answer(model: FuseMix, latents: Latents, test: Latents, folder: Path, progress: Progress) -> list[Example]:
    """Index all symbols for the user, and answer the example queries among the unseen ones only."""
    with_previews(model.index(latents["image"]), progress).save(folder / "index")
    unseen = model.index(test["image"])
    names = dict(
        zip(
            test.table["image"].to_pylist(),
            zip(test.table["symbol"].to_pylist(), test.table["text"].to_pylist(), strict=True),
            strict=True,
        )
    )
    examples = []
    for query in QUERIES:
        hits = unseen.search(query, k=6)
        examples.append(Example(query, hits, [f"{names[hit.id][0]} {names[hit.id][1]}" for hit in hits]))
    return examples
