"""Zero-shot labels of sounds and of emoji: accuracy and mean per class, beside chance, the most frequent class and CCA.

    python recipes/classify/table.py SOUNDS EMOJI [--folds 5] [--seeds 0] [--out FOLDER]

SOUNDS and EMOJI are what run.sh extracted. Every item is named once per seed, by a model that was not trained on it; no
epoch is chosen: each fit keeps its last one. Four trials:

- sounds, classes heard: folds of recordings. The captions are "label: title", so the names of all classes were seen in
  training, with other recordings: no labels are trained on, but zero-shot in the strict sense this is not.
- sounds, classes never heard: folds of classes. Of ten classes no clip and no caption is trained on, and their clips
  are named among these ten. This is the strict form.
- the same clips, named among all 50 classes: those that were trained on attract them.
- emoji: pictures with their names are trained on, and never the group that an emoji belongs to; "flag: Chad" says a
  group all the same. Variants of one emoji (man running, woman running) can be in different folds.

The templates were fixed beforehand. A linear probe on the same latents, trained on labels, shows what could be reached.
"""

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
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
# Pairs this few need neither a wide block nor many passes, as in recipes/sounds_to_emoji: a fit takes seconds.
FIT: dict[str, Any] = {"epochs": 40, "settings": {"expansion": 1}}
BASELINES = ("chance", "most frequent")
PROBE = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
Rows = NDArray[np.int64]
Embed = Callable[[Any], Any]


class Fold(NamedTuple):
    """What one model is trained on and measured on.

    Attributes:
        train, test: rows of the latents.
        choices: name of a trial to the classes that it chooses from.
    """

    train: Rows
    test: Rows
    choices: dict[str, list[str]]


class Words:
    """Texts as one method embeds them; MiniLM encodes each of them once.

    Args:
        follow: latents (n, 384) to embeddings (n, S).
    """

    encoder = load_encoder("minilm", "text", pooling="mean")
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
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--out", type=Path, help="folder for the pictures of confusions")
    given = parser.parse_args()
    sounds, emoji = fm.open_latents(given.sounds), fm.open_latents(given.emoji)
    label, kind = (words(latents, column) for latents, column in ((sounds, "label"), (emoji, "kind")))
    recording = words(sounds, "source_id")
    never = "sounds, classes never heard, among "
    run(sounds, label, SOUND, {"sounds, classes heard": None}, recording, given)
    run(sounds, label, SOUND, {f"{never}these": "test", f"{never}all": None}, label, given)
    run(emoji, kind, EMOJI, {"emoji groups": None}, np.arange(len(emoji)), given)


def words(latents: fm.Latents, column: str) -> NDArray[np.str_]:
    """Return a column as texts, (N,)."""
    return np.array([str(value) for value in latents.table[column].to_pylist()])


def folds(
    truth: NDArray[np.str_], trials: dict[str, str | None], together: NDArray[Any], count: int, seed: int
) -> Iterator[Fold]:
    """Deal rows into folds; equal values of `together` stay in one. A trial chooses among all classes or its own."""
    codes = np.unique(together, return_inverse=True)[1]
    fold_of = (np.random.default_rng(seed).permutation(codes.max() + 1) % count)[codes]
    for fold in range(count):
        test = np.flatnonzero(fold_of == fold)
        choices = {name: sorted(set(truth if among is None else truth[test])) for name, among in trials.items()}
        yield Fold(np.flatnonzero(fold_of != fold), test, choices)


def run(
    latents: fm.Latents, truth: NDArray[np.str_], templates: Sequence[str], trials: dict[str, str | None],
    together: NDArray[Any], given: argparse.Namespace,
) -> None:  # fmt: skip
    """Do trials that share their fits, with every seed; print their tables and RESULT lines."""
    started = time.perf_counter()
    found = {name: defaultdict[str, list[tuple[float, float]]](list) for name in trials}
    seeds = [int(seed) for seed in given.seeds.split(",")]
    for seed in seeds:
        parts = {name: defaultdict[str, list[Judgement]](list) for name in trials}
        for fold in folds(truth, trials, together, given.folds, seed):
            for (name, method), judged in one_fold(latents, truth, templates, fold, seed).items():
                parts[name][method].append(judged)
            print(f"# {', '.join(trials)}, seed {seed}: {time.perf_counter() - started:.0f} s", flush=True)
        for name, methods in parts.items():
            ours = methods["FuseMix"]
            figures = {method: pooled(each) for method, each in methods.items()}
            for method, values in {**figures, **{each: baseline(ours, each) for each in BASELINES}}.items():
                found[name][method].append(values)
            if given.out is not None and seed == seeds[0] and len({tuple(each.names) for each in ours}) == 1:
                show(name, joined(ours), given.out)
    for name, methods in found.items():
        report(name, methods, len(truth), len(seeds))
    print(f"{(time.perf_counter() - started) / 60:.1f} minutes", flush=True)


def show(name: str, whole: Judgement, out: Path) -> None:
    """Print what is confused, and draw it."""
    path = out / f"{name.replace(', ', '-').replace(' ', '-')}.png"
    durable.write(path, rendered(draw_confusion(whole), "png"))
    print(f"\n{path}\n{whole}\n", flush=True)


def report(name: str, methods: dict[str, list[tuple[float, float]]], items: int, seeds: int) -> None:
    """Print the table of a trial and its RESULT lines."""
    print(f"\n| {name} ({items:,} items, seeds: {seeds}) | accuracy, % | mean per class, % |\n|---|---|---|")
    for method in sorted(methods, key=lambda method: np.mean(methods[method], axis=0)[0]):
        cells = [spread(values) for values in zip(*methods[method], strict=True)]
        print(f"| {method} | {' | '.join(cells)} |")
    ours, chance, always = (np.mean(methods[method], axis=0) for method in ("FuseMix", *BASELINES))
    floor = max((3 * chance[0], "3 x chance"), (always[0], "always the most frequent class"))
    result(f"{name}: accuracy, %", ours[0], *floor)
    result(f"{name}: mean per class, %", ours[1], 3 * chance[1], "3 x chance")


def one_fold(
    latents: fm.Latents, truth: NDArray[np.str_], templates: Sequence[str], fold: Fold, seed: int
) -> dict[tuple[str, str], Judgement]:
    """Fit on one part and name the other, by trial and method."""
    modality = latents.modalities[0]
    raw = latents[modality].numpy()[latents.rows[modality]].astype(np.float32)
    model = fm.FuseMix(seed=seed, **FIT).fit(latents.take(fold.train))
    methods: dict[str, tuple[Embed, Embed]] = {
        "FuseMix": (lambda x: model.embed_latents(modality, x), lambda y: model.embed_latents("text", y))
    }
    for name, form in model.baselines_.items():
        methods[name] = torch_out(form.embed_x), torch_out(form.embed_y)
    right, found = truth[fold.test], {}
    for trial, names in fold.choices.items():
        for name, (of_item, of_text) in methods.items():
            for given, more in ((templates, ""), (("{}",), ", the name alone")):
                classes = class_embeddings(Words(of_text), names, given)
                judged = zero_shot(of_item(raw[fold.test]), classes, names, right).judgement
                assert judged is not None
                found[trial, name + more] = judged
        if set(right) & set(truth[fold.train]):
            said = PROBE.fit(raw[fold.train], truth[fold.train]).predict(raw[fold.test])
            places = ([names.index(name) for name in each] for each in (right, said))
            found[trial, "linear probe, trained on labels"] = Judgement(names, *map(np.array, places), None, 0)
    return found


def torch_out(embed: Embed) -> Embed:
    """Let a closed form take arrays."""
    return lambda array: embed(torch.from_numpy(array))


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
