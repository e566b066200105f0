"""Sounds and captions in five folds of recordings: R@1/5/10 both ways and class-level precision at 1, several seeds.

    python recipes/sounds/table.py LATENTS [--folds 5] [--seeds 0,1,2] [--recordings 100]

LATENTS is what run.sh extracted (modalities sound and text, columns label and source_id). Every recording is measured
once, by a model that was trained on the other four fifths, or on so many recordings of them. The
captions are weak ("dog: rose bark"), so class-level precision at 1 counts any caption of the right class as right.
"""

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import fusemix as fm

WAYS = {"text->sound": ("text", "sound"), "sound->text": ("sound", "text")}
Figures = dict[str, list[float]]  # R@1, R@5, R@10, class P@1, in percent


def main() -> None:
    """Fit, measure and print a Markdown table and the RESULT lines."""
    parser = argparse.ArgumentParser()
    parser.add_argument("latents")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--recordings", type=int, help="train on so many")
    given = parser.parse_args()
    started = time.perf_counter()
    latents = fm.open_latents(given.latents)
    recordings = np.unique(latents.table["source_id"].to_numpy(zero_copy_only=False).astype(str), return_inverse=True)[
        1
    ]
    runs: dict[str, list[Figures]] = defaultdict(list)
    for seed in map(int, given.seeds.split(",")):
        parts: dict[str, list[tuple[int, Figures]]] = defaultdict(list)
        # Whole recordings go to a fold; every seed deals them anew.
        place = np.random.default_rng(seed).permutation(recordings.max() + 1)[recordings]
        fold_of = place % given.folds
        for fold in range(given.folds):
            train, test = latents.take(fold_of != fold), latents.take(fold_of == fold)
            if given.recordings:
                places = place[fold_of != fold]
                train = train.take(np.isin(places, np.unique(places)[: given.recordings]))
            model = fm.FuseMix(seed=seed).fit(train)
            print(f"# seed {seed}, fold {fold}: {model.facts_['chosen']}, hubs {model.facts_['hubs']}", flush=True)
            for name, figures in measure(model, test).items():
                parts[name].append((len(test), figures))
        for name, folds in parts.items():
            weights = [count for count, _ in folds]
            runs[name].append(
                {
                    way: np.average([figures[way] for _, figures in folds], axis=0, weights=weights).tolist()
                    for way in WAYS
                }
            )
        print(f"# seed {seed}: {time.perf_counter() - started:.0f} s", flush=True)
    print("| method | " + " | ".join(f"{way} R@1 | R@5 | R@10 | class P@1" for way in WAYS) + " |")
    print("|---|" + "---|" * 8)
    for name, found in runs.items():
        cells = [spread([figures[way][i] for figures in found]) for way in WAYS for i in range(4)]
        print(f"| {name} | {' | '.join(cells)} |")
    for way, goal in (("text->sound", 66), ("sound->text", 80)):
        figure = float(np.mean([figures[way][3] for figures in runs["FuseMix"]]))
        result = {
            "name": f"sounds: class precision at 1, {way}", "figure": round(figure, 1), "target": f">= {goal}",
            "holds": figure >= goal,
        }  # fmt: skip
        print("RESULT", json.dumps(result))


def measure(model: fm.FuseMix, test: fm.Latents) -> dict[str, Figures]:
    """Measure the model, its CCA and chance on the pairs of one fold."""
    relevant, classes = truth(test)
    methods: dict[str, Callable[[str], Tensor]] = {
        "CCA": lambda name: embed_by_cca(model, name, test[name].latents),
        "FuseMix": lambda name: torch.from_numpy(model.embed_latents(name, test[name].latents)),
    }
    if model.hubs_ is not None:
        methods["FuseMix, hubs corrected"] = methods["FuseMix"]
    found: dict[str, Figures] = {"chance": {}}
    for way, (query, _) in WAYS.items():
        of_query = relevant if query == "text" else relevant.T
        same = classes[query][:, None] == classes["sound" if query == "text" else "text"][None, :]
        size, right = of_query.shape[1], of_query.sum(axis=1)
        # The best of `right` relevant items is among the first k of `size` in random order.
        at = [1 - np.prod([(size - right - i).clip(0) / (size - i) for i in range(k)], axis=0) for k in (1, 5, 10)]
        found["chance"][way] = [100 * float(value.mean()) for value in (*at, same.mean(axis=1))]
        for name, embed in methods.items():
            other = "sound" if query == "text" else "text"
            gallery = embed(other)
            scores = embed(query) @ gallery.T
            if name == "FuseMix, hubs corrected" and model.hubs_ is not None:
                scores = scores - model.hubs_.bias(other, gallery)
            order = scores.argsort(dim=1, descending=True, stable=True).numpy()
            hit = np.take_along_axis(of_query, order, axis=1)
            recalls = [100 * float(hit[:, :k].any(axis=1).mean()) for k in (1, 5, 10)]
            first = np.take_along_axis(same, order[:, :1], axis=1)
            found.setdefault(name, {})[way] = [*recalls, 100 * float(first.mean())]
    return found


def truth(test: fm.Latents) -> tuple[NDArray[np.bool_], dict[str, NDArray[np.str_]]]:
    """Which sound belongs to which caption, (texts, sounds); and the class of every item."""
    place = {name: np.unique(test.rows[name], return_inverse=True)[1] for name in ("text", "sound")}
    relevant = np.zeros((len(test["text"]), len(test["sound"])), dtype=bool)
    relevant[place["text"], place["sound"]] = True
    labels = test.table["label"].to_numpy(zero_copy_only=False).astype(str)
    classes = {}
    for name in ("text", "sound"):
        classes[name] = np.empty(len(test[name]), dtype=labels.dtype)
        classes[name][place[name]] = labels
    return relevant, classes


def embed_by_cca(model: fm.FuseMix, name: str, latents: Tensor) -> Tensor:
    """Embed with the closed form that was fitted beside the adapters."""
    form = model.baselines_["cca"]
    return form.embed_x(latents) if name == model.modalities_[0] else form.embed_y(latents)


def spread(values: list[float]) -> str:
    """Mean and standard deviation over seeds."""
    return f"{np.mean(values):.1f}" + (f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else "")


if __name__ == "__main__":
    main()
