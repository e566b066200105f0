"""How the default recipe was chosen: what each setting does on held-out training data, never on a val or test split.

    python recipes/flickr8k/choose.py LATENTS DEMO

LATENTS is what run.sh extracted: fits on 1,000 training images are judged on 500 other training images. DEMO is the
folder of `fusemix demo`: fits on its training symbols are judged on its validation symbols, which the demo itself uses
to choose an epoch. No epoch is chosen here: each fit keeps its last.
"""

import sys
from dataclasses import replace

import numpy as np
import torch

import fusemix as fm
from fusemix.config import FitConfig, scaled
from fusemix.evaluate import score
from fusemix.fit import fit_adapters
from fusemix.progress import silent
from fusemix.training.validation import embed


def variants(default: FitConfig) -> dict[str, FitConfig]:
    """Return the default and its neighbours, one change each."""
    return {
        "default": default,
        "no input dropout": replace(default, input_dropout=0.0),
        "latents not standardised": replace(default, standardize=False),
        "dropout 0.6 inside, as published": replace(default, dropout=0.6),
        "half the epochs": replace(default, epochs=default.epochs // 2),
        "learning rate 1e-3": replace(default, lr=1e-3),
        "two blocks": replace(default, depth=2),
        "blocks as wide as the latents": replace(default, width=0),
    }


def judge(name: str, train: fm.Latents, held: fm.Latents, config: FitConfig) -> None:
    """Fit and print R@1 and R@10 both ways on the held-out pairs."""
    fitted = fit_adapters(train, None, config, torch.device("cpu"), silent)
    scores = score(lambda modality, latents: embed(fitted.adapters[modality], latents), held)
    cells = [f"{scores[way].recall[k]:.1f}" for way in scores for k in (1, 10)]
    print(f"| {name} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Print one table per data set."""
    photographs, symbols = fm.open_latents(sys.argv[1]).only("train"), fm.open_latents(f"{sys.argv[2]}/latents")
    images = np.random.default_rng(1).permutation(np.unique(photographs.rows["image"]))
    parts = (images[:500], images[500:1500])
    held, chosen = (photographs.take(np.isin(photographs.rows["image"], part)) for part in parts)
    cases = {"photographs": (chosen, held), "symbols": (symbols.only("train"), symbols.only("val"))}
    for name, (train, measured) in cases.items():
        print(f"\n| {name}, {len(train):,} pairs | text->image R@1 | R@10 | image->text R@1 | R@10 |")
        print("|---|---|---|---|---|")
        for variant, config in variants(scaled(len(train), seed=0)).items():
            judge(variant, train, measured, config)


if __name__ == "__main__":
    main()
