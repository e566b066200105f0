"""Zero-shot labels of sounds and of emoji: accuracy and mean per class, beside chance, the most frequent class, CCA and a probe.

    python recipes/classify/table.py SOUNDS EMOJI [--folds 5] [--seeds 0,1,2] [--out FOLDER]

SOUNDS and EMOJI are what run.sh extracted. Every item is named once per seed, by a model that was not trained on it; no
epoch is chosen: each fit keeps its last one. Four trials:

- sounds, classes heard: folds of recordings. The captions are "label: title", so the *names* of all 50 classes were seen in
  training, with other recordings: no labels are trained on, but zero-shot in the strict sense this is not.
- sounds, classes never heard: folds of classes. No clip and no caption of ten classes is trained on; their clips are named
  among these ten. This is the strict form.
- the same clips, named among all 50 classes: those that were trained on attract them.
- emoji: pictures with their names are trained on, and never the group that an emoji belongs to; "flag: Chad" says a group all
  the same. Variants of one emoji (man running, woman running) can be in different folds.

The templates were fixed beforehand.
"""

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import fusemix as fm
from fusemix import durable
from fusemix.curves import rendered
from fusemix.encoders import load_encoder
from fusemix.judgement import Judgement, draw_confusion
from fusemix.zeroshot import class_embeddings, zero_shot

SOUND = ("{}", "the sound of {}", "a recording of {}")
EMOJI = ("{}", "a picture of {}", "an emoji of {}")
Rows = NDArray[np.int64]


class Fold(NamedTuple):
    """What one model is trained on and measured on.

    Attributes:
        train, test: rows of the latents.
        names: classes to choose from.
    """

    train: Rows
    test: Rows
    names: list[str]


class Words:
    """Texts as one method embeds them; MiniLM encodes each of them once.

    Args:
        follow: latents (n, 384) to embeddings (n, S).
    """

    encoder = load_encoder("minilm", "text")
    known: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, follow: Callable[[Any], Any]) -> None:
        self.follow = follow

    def embed(self, items: Sequence[str], modality: str | None = None) -> Any:
        """Embed texts, (n, S)."""
        new = [text for text in dict.fromkeys(items) if text not in self.known]
        if new:
            self.known.update(zip(new, np.asarray(self.encoder.encode(new), dtype=np.float32), strict=True))
        return self.follow(np.stack([self.known[text] for text in items]))


def main() -> None:
    """Fit, name, and print a Markdown table and the RESULT lines of each trial."""
    parser = argparse.ArgumentParser()
    parser.add_argument("sounds")
    parser.add_argument("emoji")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--out", type=Path, help="folder for the pictures of confusions")
    given = parser.parse_args()
    seeds = [int(seed) for seed in given.seeds.split(",")]
    sounds, emoji = fm.open_latents(given.sounds), fm.open_latents(given.emoji)
    label, kind = (words(latents, column) for latents, column in ((sounds, "label"), (emoji, "kind")))
    recording, each = words(sounds, "source_id"), np.arange(len(emoji))

    def heard(seed: int) -> Iterator[Fold]:
        return folds(recording, label, given.folds, seed)

    def unheard(seed: int) -> Iterator[Fold]:
        return (fold._replace(names=sorted(set(label[fold.test]))) for fold in folds(label, label, given.folds, seed))

    trials = {
        "sounds, classes heard": (sounds, label, SOUND, heard),
        "sounds, classes never heard, among these": (sounds, label, SOUND, unheard),
        "sounds, classes never heard, among all": (sounds, label, SOUND, lambda s: folds(label, label, given.folds, s)),
        "emoji groups": (emoji, kind, EMOJI, lambda s: folds(each, kind, given.folds, s)),
    }
    for name, trial in trials.items():
        run(name, *trial, seeds, given.out)


def words(latents: fm.Latents, column: str) -> NDArray[np.str_]:
    """Return a column as texts, (N,)."""
    return np.array([str(value) for value in latents.table[column].to_pylist()])


def folds(together: NDArray[Any], truth: NDArray[np.str_], count: int, seed: int) -> Iterator[Fold]:
    """Deal rows into folds; equal values of `together` stay in one."""
    codes = np.unique(together, return_inverse=True)[1]
    fold_of = (np.random.default_rng(seed).permutation(codes.max() + 1) % count)[codes]
    for fold in range(count):
        test = fold_of == fold
        yield Fold(np.flatnonzero(~test), np.flatnonzero(test), sorted(set(truth)))


def run(
    name: str, latents: fm.Latents, truth: NDArray[np.str_], templates: Sequence[str],
    deal: Callable[[int], Iterator[Fold]], seeds: Sequence[int], out: Path | None,
) -> None:  # fmt: skip
    """Do one trial with every seed; print its table and its RESULT lines."""
    started, found = time.perf_counter(), defaultdict[str, list[tuple[float, float]]](list)
    for seed in seeds:
        parts = defaultdict[str, list[Judgement]](list)
        for fold in deal(seed):
            for method, judged in one_fold(latents, truth, templates, fold, seed).items():
                parts[method].append(judged)
        for method, judgements in parts.items():
            found[method].append(pooled(judgements))
        for method in ("chance", "most frequent"):
            found[method].append(baseline(parts["FuseMix"], method))
        if out is not None and seed == seeds[0] and len({tuple(each.names) for each in parts["FuseMix"]}) == 1:
            whole = joined(parts["FuseMix"])
            durable.write(
                out / f"{name.replace(', ', '-').replace(' ', '-')}.png", rendered(draw_confusion(whole), "png")
            )
            print(f"# {name}, seed {seed}\n{whole}", flush=True)
    print(f"\n| {name} ({len(truth):,} items, {len(seeds)} seeds) | accuracy | mean per class |\n|---|---|---|")
    for method in sorted(found, key=lambda method: np.mean(found[method], axis=0)[0]):
        cells = [spread(values) for values in zip(*found[method], strict=True)]
        print(f"| {method} | {' | '.join(cells)} |")
    print(f"\n{(time.perf_counter() - started) / 60:.1f} minutes")
    ours, chance, always = (np.mean(found[method], axis=0) for method in ("FuseMix", "chance", "most frequent"))
    result(f"{name}: accuracy, %", ours[0], max(3 * chance[0], always[0]), "3 x chance, and the most frequent class")
    result(f"{name}: mean per class, %", ours[1], 3 * chance[1], "3 x chance")


def one_fold(
    latents: fm.Latents, truth: NDArray[np.str_], templates: Sequence[str], fold: Fold, seed: int
) -> dict[str, Judgement]:
    """Fit on one part and name the other by every method."""
    modality = latents.modalities[0]
    raw = latents[modality].numpy()[latents.rows[modality]].astype(np.float32)
    model = fm.FuseMix(seed=seed).fit(latents.take(fold.train))
    forms = {name.upper() if name == "cca" else name: form for name, form in model.baselines_.items()}
    methods = {
        "FuseMix": (lambda x: model.embed_latents(modality, x), lambda y: model.embed_latents("text", y)),
        **{name: (torch_out(form.embed_x), torch_out(form.embed_y)) for name, form in forms.items()},
    }
    right, found = truth[fold.test], {}
    for name, (of_item, of_text) in methods.items():
        embedded = of_item(raw[fold.test])
        classes = class_embeddings(Words(of_text), fold.names, templates)
        found[name] = judge(zero_shot(embedded, classes, fold.names, right))
        if name == "FuseMix":
            bare = class_embeddings(Words(of_text), fold.names)
            found["FuseMix, the name alone"] = judge(zero_shot(embedded, bare, fold.names, right))
    if set(right) <= set(truth[fold.train]):
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
        said = probe.fit(raw[fold.train], truth[fold.train]).predict(raw[fold.test])
        places = {name: i for i, name in enumerate(fold.names)}
        codes = (np.array([places[name] for name in names]) for names in (right, said))
        found["linear probe, trained on labels"] = Judgement(fold.names, *codes, None, 0)
    return found


def torch_out(embed: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Let a closed form take arrays."""
    import torch

    return lambda array: embed(torch.from_numpy(array))


def judge(found: Any) -> Judgement:
    """Return the judgement of what was named with its truth."""
    assert found.judgement is not None
    return found.judgement


def joined(parts: Sequence[Judgement]) -> Judgement:
    """Put folds with the same classes together."""
    right, said = (np.concatenate([getattr(part, side) for part in parts]) for side in ("right", "said"))
    return Judgement(parts[0].names, right, said, sum(part.in_five or 0 for part in parts) or None, 0)


def pooled(parts: Sequence[Judgement]) -> tuple[float, float]:
    """Accuracy over the items of all folds, and the mean over the classes of all folds, in percent."""
    hits = sum(int((part.right == part.said).sum()) for part in parts)
    by_class = defaultdict[str, list[bool]](list)
    for part in parts:
        for right, said in zip(part.right.tolist(), part.said.tolist(), strict=True):
            by_class[part.names[right]].append(right == said)
    mean = float(np.mean([np.mean(each) for each in by_class.values()]))
    return 100 * hits / sum(part.judged for part in parts), 100 * mean


def baseline(parts: Sequence[Judgement], method: str) -> tuple[float, float]:
    """Return the same of a baseline, weighted by the items of each fold."""
    if method == "most frequent" and len({tuple(part.names) for part in parts}) == 1:
        parts = [joined(parts)]  # one class for all of them: that of a single fold would be known from what is measured
    weights = [part.judged for part in parts]
    figures = [[part.baselines[method][key] for key in ("accuracy", "mean_per_class")] for part in parts]
    accuracy, mean = np.average(figures, axis=0, weights=weights)
    return float(accuracy), float(mean)


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation over seeds."""
    return f"{np.mean(values):.1f}" + (f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else "")


def result(name: str, figure: float, floor: float, what: str) -> None:
    """Print a goal."""
    goal = {"name": name, "figure": round(float(figure), 1), "target": f"> {floor:.1f} ({what})"}
    print("RESULT", json.dumps({**goal, "holds": bool(figure > floor)}), flush=True)


if __name__ == "__main__":
    main()
