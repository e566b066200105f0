"""The hyper-parameters of a fit, in scikit-learn's way: the constructor keeps them, and settings follow from them."""

from dataclasses import replace
from typing import Any, Self

from fusemix.config import FitConfig, paper, scaled
from fusemix.errors import DataError, choices

SETTINGS = (
    "adapter",
    "dim",
    "depth",
    "dropout",
    "alpha",
    "batch_size",
    "epochs",
    "lr",
    "patience",
    "minutes",
    "precision",
)
PARAMETERS = (*SETTINGS, "lock", "settings", "recipe", "seed", "device")
AUTO_PATIENCE = 8  # validations of 50 without a gain that end the training of a fit that also tries other ways


class Parameters:
    """Arguments of `FuseMix`.

    Hyper-parameters left at None come from the recipe. Attributes that end in `_` are there after `fit`.

    Args:
        dim: S, width of the shared space that a network lands in; a closed form has a width of its own.
        adapter: what maps latents into the shared space: "mlp", the trained network of FuseMix; "cca", "ridge" or
            "procrustes", closed forms that are there in seconds; "both", a network and CCA whose scores are added;
            "auto" tries all that and keeps what validation likes best.
        depth: residual blocks per adapter; 0 is a LayerNorm and a linear map.
        dropout: inside the blocks, in [0, 1).
        alpha: lam ~ Beta(alpha, alpha); 0 turns mixing off.
        batch_size: pairs in the loss; with mixing twice as many are loaded.
        epochs: passes over the pairs.
        lr: peak learning rate.
        patience: stop when so many validations in a row brought no gain; 0 never stops early.
        minutes: that a fit may take; a network is trained for fewer epochs where all of them would take longer, so that
            the same seed may give other weights. None sets no limit.
        precision: "float32", "bfloat16", or "auto", what the device multiplies fastest natively.
        lock: a modality whose latents are the shared space as they are, bit for bit; the other one learns to land in
            it, and can then condition what was made for these latents, see `condition`. None locks neither.
        settings: any others of `config.FitConfig` by name, such as {"noise": 0.5, "mixing": "sample"}.
        recipe: "auto" is adapter="auto", with a network as "scaled" trains it; "scaled" trains a network alone, and
            sets what is None by the number of pairs (`config.scaled` says how and why); "paper" is the released run
            (`config.paper`).
        seed: the same seed gives the same weights on the same machine.
        device: a torch device; None takes CUDA where there is one.
    """

    def __init__(
        self, dim: int | None = None, *, adapter: str | None = None, depth: int | None = None,
        dropout: float | None = None, alpha: float | None = None, batch_size: int | None = None,
        epochs: int | None = None, lr: float | None = None, patience: int | None = None, minutes: float | None = None,
        precision: str | None = None, lock: str | None = None, settings: dict[str, Any] | None = None,
        recipe: str = "auto", seed: int = 0, device: str | None = None,
    ) -> None:  # fmt: skip
        self.dim = dim
        self.adapter = adapter
        self.depth = depth
        self.dropout = dropout
        self.alpha = alpha
        self.batch_size = batch_size
        self.epochs = epochs
        self.lr = lr
        self.patience = patience
        self.minutes = minutes
        self.precision = precision
        self.lock = lock
        self.settings = settings
        self.recipe = recipe
        self.seed = seed
        self.device = device

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the constructor's arguments; with it `sklearn.base.clone` works."""
        return {name: getattr(self, name) for name in PARAMETERS}

    def set_params(self, **params: Any) -> Self:
        """Change constructor arguments."""
        for name, value in params.items():
            if name not in PARAMETERS:
                raise DataError(f"FuseMix has no parameter {name!r}; {choices(name, PARAMETERS)}")
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        given = [f"{name}={value!r}" for name, value in self.get_params().items() if value is not None]
        return f"FuseMix({', '.join(given)})"

    def config(self, pairs: int) -> FitConfig:
        """Return the settings that a fit on this many pairs would use."""
        alpha = 1.0 if self.alpha is None else self.alpha
        recipes = {
            "auto": lambda: replace(
                scaled(pairs, self.seed, self.batch_size, alpha),
                adapter="auto",
                refine=True,
                patience=AUTO_PATIENCE,
            ),
            "scaled": lambda: scaled(pairs, self.seed, self.batch_size, alpha),
            "paper": lambda: paper(self.seed),
        }
        if self.recipe not in recipes:
            raise DataError(f"no recipe {self.recipe!r}; {choices(self.recipe, recipes)}")
        given = {name: getattr(self, name) for name in SETTINGS if getattr(self, name) is not None}
        config = recipes[self.recipe]().changed({**given, **(self.settings or {})})
        return config if config.adapter in ("auto", "both") else replace(config, refine=False)
