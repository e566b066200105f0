"""One HTML file that shows what a model found: pictures, bars, curves, and what was used."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from fusemix.align.metrics import CUTOFFS
from fusemix.curves import draw_curves, new_figure
from fusemix.data.latents import Latents
from fusemix.evaluate import Evaluation
from fusemix.model import FuseMix
from fusemix.page import inline, thumbnail, write_page
from fusemix.search.hit import Hit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {
    "chance": "#b8bec9", "ridge": "#8fa3c4", "cca": "#5b78ad", "fusemix, hubs uncorrected": "#f0a27e",
    "fusemix": "#d9480f",
}  # fmt: skip


@dataclass(frozen=True)
class Example:
    """One query with its answers.

    Attributes:
        query: the text.
        hits: what came back.
        labels: a caption for each hit.
    """

    query: str
    hits: list[Hit]
    labels: list[str]


def write_report(
    path: Path,
    title: str,
    model: FuseMix,
    evaluation: Evaluation,
    examples: Sequence[Example],
    seconds: dict[str, float],
    commands: Sequence[str] = (),
) -> None:
    """Write the report.

    Args:
        path: of the HTML file.
        title: heading.
        model: what was fitted.
        evaluation: what it reached.
        examples: queries with hits; hits that are pictures are shown.
        seconds: time of each stage.
        commands: what to type next.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    plots = [(recall_bars(evaluation), "Recall on the split, by method; the line on a bar is the 95 % interval.")]
    if model.facts_["best_epoch"] is not None:
        curves = draw_curves(model.history_, model.facts_["best_epoch"])
        plots.append(
            (curves, "Training loss, validation recall and learning rate; the dot is the epoch that was kept.")
        )
    figures = "".join(
        f"<figure>{inline(figure)}<figcaption>{escape(text)}</figcaption></figure>" for figure, text in plots
    )
    answers = f"<h2>Queries</h2>{''.join(_example(e) for e in examples)}" if examples else ""
    after = f"<h2>Next</h2><pre>{escape(chr(10).join(commands))}</pre>" if commands else ""
    body = (
        f"{answers}<h2>Retrieval</h2>{_table(evaluation)}"
        f'<h2>Curves</h2><div class="plots">{figures}</div>'
        f"<h2>What was used</h2>{_used(model, seconds)}{after}"
    )
    write_page(path, title, evaluation.caption(), body)


def split_examples(model: FuseMix, latents: Latents, count: int = 5, k: int = 6) -> list[Example]:
    """Ask `count` texts of these pairs, evenly spread, for the items that they go with; none without texts."""
    text = next((name for name in latents if latents.items[name].kind == "text"), None)
    if text is None:
        return []
    other = next(name for name in latents.modalities if name != text)
    texts, index = latents[text], model.index(latents[other])
    rows = np.linspace(0, len(texts) - 1, min(count, len(texts))).astype(int)
    embedded = model.embed_latents(text, texts.latents[torch.from_numpy(rows)])
    queries = torch.from_numpy(index.space.as_queries(text, embedded))
    examples = []
    for row, hits in zip(rows, index.hits(*index.search_embeddings(queries, k)), strict=True):
        labels = [hit.text or hit.id for hit in hits]
        examples.append(Example(str(texts.values[row] or texts.ids[row]), hits, labels))
    return examples


def recall_bars(evaluation: Evaluation) -> "Figure":
    """Draw R@1, R@5 and R@10 of every method in both directions."""
    figure = new_figure(6.4, 4.2)
    methods = evaluation.methods
    width = 0.8 / len(methods)
    axes = figure.subplots(1, len(evaluation.retrieval), sharey=True)
    for ax, way in zip(axes, evaluation.retrieval, strict=True):
        for place, (name, ways) in enumerate(methods.items()):
            s = ways[way]
            where = [i + (place - (len(methods) - 1) / 2) * width for i in range(len(CUTOFFS))]
            heights = [s.recall[k] for k in CUTOFFS]
            ax.bar(where, heights, 0.95 * width, color=COLOURS.get(name, "#888"), label=name)
            for x, k in zip(where, CUTOFFS, strict=True):
                if k in s.interval:
                    ax.plot([x, x], s.interval[k], color="#1c2330", linewidth=0.9)
        ax.set_title(way.replace("->", " → "), fontsize=10)
        ax.set_xticks(range(len(CUTOFFS)), [f"R@{k}" for k in CUTOFFS])
        ax.set_ylim(0, 100)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("% of queries")
    axes[0].legend(frameon=False, fontsize=8, loc="upper left")
    return figure


def _example(example: Example) -> str:
    hits = "".join(
        f'<div class="hit">{thumbnail(hit.path)}<div class="label">{escape(label)}</div>'
        f'<div class="meta">{hit.score:.3f}</div></div>'
        for hit, label in zip(example.hits, example.labels, strict=True)
    )
    return f'<div class="query">“{escape(example.query)}”</div><div class="hits">{hits}</div>'


def _table(evaluation: Evaluation) -> str:
    head, *rows = evaluation.table()
    lines = ["<tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in head) + "</tr>"]
    for row in rows:
        own = ' class="own"' if row[1] == "fusemix" else ""
        lines.append(f"<tr{own}>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>")
    notes = "".join(f'<p class="note">Note: {escape(note)}.</p>' for note in evaluation.notes)
    return f"<table>{''.join(lines)}</table>{notes}"


def _used(model: FuseMix, seconds: dict[str, float]) -> str:
    facts, config = model.facts_, model.config_
    entries = {
        name: f"{side.encoder.get('name', 'arrays')} ({side.dim} numbers), frozen"
        for name, side in model.sides_.items()
    }
    entries["pairs"] = f"{facts['pairs']:,} to train, {facts['judged'] or facts['val_pairs']:,} to choose by"
    tried = ", ".join(f"{what} {recall:.1f}" for what, recall in facts["tried"].items())
    entries["chosen"] = facts["chosen"] + (f" (of mean R@1, 5, 10 on pairs to choose by: {tried})" if tried else "")
    entries["adapters"] = f"{facts['dim']} shared dimensions, {facts['parameters']:,} numbers learned"
    if facts["best_epoch"] is not None:
        blocks = "1 residual block" if config.depth == 1 else f"{config.depth} residual blocks"
        mixing = f"lam ~ Beta({config.alpha:g}, {config.alpha:g}), one a batch" if config.alpha else "no mixing"
        entries["network"] = (
            f"{blocks} each, batches of {facts['batch_size']}, {mixing}, epoch {facts['best_epoch']} of {config.epochs}"
        )
    entries["time"] = ", ".join(f"{stage} {value:.1f} s" for stage, value in seconds.items())
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in entries.items()) + "</dl>"
