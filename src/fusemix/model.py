"""FuseMix, the one object a user holds: fit, transform, embed, evaluate, index, save, load."""

import time
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL.Image import Image
from torch import Tensor

from fusemix.align.adapters import AnyAdapter
from fusemix.align.closed_form import ClosedForm
from fusemix.align.folds import fit_closed_forms
from fusemix.align.hubness import Hubs
from fusemix.config import FitConfig
from fusemix.curves import write_curves
from fusemix.data.latents import ItemLatents, Latents, as_latents
from fusemix.data.rows import LatentRows
from fusemix.encoders import Encoder
from fusemix.errors import DataError, MismatchError, NotFittedError, choices
from fusemix.evaluate import Evaluation, chance, few, score, score_landing
from fusemix.fit import locked
from fusemix.fuse import Fused, foresee_networks, fuse
from fusemix.generation import Draw, Generator, generate
from fusemix.onto import Onto, Target, fuse_onto
from fusemix.parameters import Parameters
from fusemix.progress import Progress, silent
from fusemix.queries import QueryEncoder, modality_of
from fusemix.ranks import join_ranks, ranks
from fusemix.search.index import Index
from fusemix.search.space import Space
from fusemix.seen import note_seen, overlap
from fusemix.state import Side, State, claim
from fusemix.training import checkpoint
from fusemix.training.checks import check_validation
from fusemix.training.device import find_device
from fusemix.training.forecast import Forecast
from fusemix.training.journal import Track
from fusemix.training.validation import embed, in_blocks
from fusemix.unpaired import without_partners


class FuseMix(Parameters):
    """Two frozen latent spaces fused into one by small adapters (arXiv 2312.10144).

    Its arguments are those of `Parameters`. Attributes that end in `_` are there after `fit`.

    Attributes:
        modalities_: the two modalities, in the user's words.
        adapters_: adapter of each.
        config_: all settings of the fit.
        history_: one record per epoch.
        baselines_: ridge and CCA, fitted on the same pairs.
        hubs_: what corrects hubs in a search; None corrects none.
        sides_: encoder facts of each modality.
        facts_: pairs, splits, best epoch, temperature, seconds.
        seen_: hashed ids of the items that were trained on or chose the epoch, so that `evaluate` can tell.
        canaries_: what each encoder made of its canary items, so that one which changed unseen is refused.
    """

    modalities_: tuple[str, str]
    adapters_: dict[str, AnyAdapter]
    config_: FitConfig
    history_: list[dict[str, float]]
    baselines_: dict[str, ClosedForm]
    hubs_: Hubs | None
    sides_: dict[str, Side]
    facts_: dict[str, Any]
    seen_: dict[str, Tensor]
    canaries_: dict[str, Tensor]
    _query_encoders: dict[str, QueryEncoder]

    def fit(
        self,
        x: Latents | ArrayLike,
        y: ArrayLike | None = None,
        *,
        val: Latents | tuple[ArrayLike, ArrayLike] | None = None,
        unpaired: Sequence[Latents] | Mapping[str, ArrayLike] = (),
        onto: "FuseMix | None" = None,
        out: str | Path | None = None,
        track: Track | None = None,
        progress: Progress = silent,
    ) -> Self:
        """Join the two latent spaces, and fit ridge and CCA beside.

        Under torchrun every process calls this; the batch is shared among them, and the first one has the baselines
        and writes.

        Args:
            x: latents of pairs; or an array (N, Dx), whose equal rows are one item, see `Latents.from_arrays`.
            y: array (N, Dy) whose row i belongs to row i of x.
            val: pairs that choose; of a network alone the epoch, and with an empty set or None that is the last one.
                Otherwise a tenth of the training groups is held out where none, or fewer than 20 groups, are given.
            unpaired: items without partners, as arrays (n, D) by modality, or as latents, of which those of the splits
                val and test, and those that are in `val`, are not looked at.
            onto: a fitted model that has one of the two modalities: the other one learns to land in its space, which
                stays as it is, bit for bit; both models then search in one space, see `search.space.Space`.
            out: folder for metrics.jsonl, curves and checkpoints. An interrupted fit goes on where it was when it is
                called again; `save` into the same folder ends it.
            track: called with every record of metrics.jsonl, see `tracking.tracker`.
            progress: called after every step.

        Raises:
            DataError: shapes or values that cannot be fitted, fewer than two pairs, or validation on a test split.
            DivergedError: the loss became NaN or infinite; it names the batch.
            MismatchError: `out` holds an interrupted fit of other settings or pairs.
            StoreError: `out` holds something else.
        """
        started = time.perf_counter()
        train = as_latents(x, y)
        val = as_latents(*val) if isinstance(val, tuple) else val
        if val is not None and not len(val):
            val = None
        join_ranks()
        folder = Path(out) if out is not None else None
        if folder is not None:
            claim(folder)
        config = self.config(len(train))
        others, device = without_partners(unpaired, train), find_device(self.device)
        written: Any = {"out": folder, "track": track}
        if onto is not None:
            fused = fuse_onto(self._onto(onto, train, val, unpaired), device, progress, **written)
        else:
            config = locked(config, train, self.lock, self.dim)
            fused = fuse(train, val, config, device, progress, unpaired=others, **written)
        first, second = fused.adapters
        self.modalities_ = (first, second)
        self._query_encoders = {}
        self.adapters_, self.config_ = fused.adapters, fused.config
        self.hubs_ = Hubs(fused.strength, fused.banks) if fused.banks else None
        self.history_ = fused.trained.history if fused.trained is not None else []
        self.sides_ = {name: Side.of(train.items[name]) for name in train.modalities}
        canaries = {name: train.items[name].canaries for name in train.modalities}
        self.canaries_ = {name: latents for name, latents in canaries.items() if latents is not None}
        self.baselines_ = _baselines(fused, progress)
        width = self.embed_latents(first, torch.zeros(1, self.sides_[first].dim)).shape[1]
        if self.dim not in (None, width):
            fused.notes.append(f"dim={self.dim} is the width of a network; {fused.facts()['chosen']} is {width} wide")
        self.seen_ = note_seen(train, val, others if fused.learned else {})
        self.facts_ = {
            **_counts(train, val),
            "dim": width,
            "parameters": sum(side.numbers for side in fused.adapters.values()),
            **fused.facts(),
            "seconds": round(time.perf_counter() - started + (fused.trained.earlier if fused.trained else 0.0), 1),
        }
        if folder is not None and fused.trained and ranks()[0] == 0 and find_spec("matplotlib") is not None:
            write_curves(fused.trained.history, fused.trained.best_epoch, folder)
        return self

    def forecast(
        self,
        x: Latents | ArrayLike,
        y: ArrayLike | None = None,
        *,
        val: Latents | tuple[ArrayLike, ArrayLike] | None = None,
        onto: "FuseMix | None" = None,
    ) -> list[Forecast]:
        """Say what each network of a fit would cost at most, in time, memory and FLOPs; trains nothing.

        Closed forms, and the choice among all, take seconds to minutes more; where they are all, the list is empty.
        Arguments as of `fit`.

        Raises:
            DataError: pairs that cannot be fitted, or validation pairs that do not go with them.
        """
        train = as_latents(x, y)
        val = as_latents(*val) if isinstance(val, tuple) else val
        if val is not None:
            check_validation(train, val)
        device = find_device(self.device)
        if onto is not None:
            to = self._onto(onto, train, val)
            return foresee_networks(to.train, to.val, to.config, device)
        return foresee_networks(train, val, locked(self.config(len(train)), train, self.lock, self.dim), device)

    def transform(self, x: ArrayLike, y: ArrayLike) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Embed latents (N, Dx) and (M, Dy) of the two modalities: (N, S) and (M, S), unit norm."""
        first, second = self._fitted().modalities_
        return self.embed_latents(first, x), self.embed_latents(second, y)

    def fit_transform(self, x: ArrayLike, y: ArrayLike) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Fit on arrays and embed them."""
        return self.fit(x, y).transform(x, y)

    def score(self, x: ArrayLike, y: ArrayLike) -> float:
        """Return the mean R@1 of both directions, in [0, 1]; row i of x belongs to row i of y."""
        ways = self.evaluate(x, y).retrieval.values()
        return float(np.mean([scores.recall[1] for scores in ways])) / 100

    def embed_latents(self, modality: str, latents: ArrayLike | Tensor) -> NDArray[np.float32]:
        """Embed latents (N, D) of one modality: (N, S), unit norm."""
        embedded: NDArray[np.float32] = self._embed_tensor(modality, torch.as_tensor(latents)).numpy()
        return embedded

    def embed(self, items: Sequence[Any], modality: str | None = None) -> NDArray[np.float32]:
        """Encode raw items with the frozen encoder and embed them: (n, S), unit norm.

        Args:
            items: strings (texts), Paths (files), PIL images, Sounds, or lists of PIL images (videos).
            modality: which modality they are; by default the one that takes items of this type.

        Raises:
            DataError: a file that cannot be used, or no modality that takes such items.
            EncoderError: the encoder does not load, or only by running code that a folder names.
            MismatchError: the encoder is not the one that the model was fitted on.
        """
        return self._encoded(items, modality, self.embed_latents)

    @property
    def locked(self) -> str:
        """The modality whose latents are the shared space; a DataError where none was locked."""
        if self._fitted().config_.lock == "none":
            raise DataError("no modality of this model is locked; fit one with FuseMix(lock=...) or `fit --lock`")
        return self.modalities_["xy".index(self.config_.lock)]

    def condition_latents(self, modality: str, latents: ArrayLike | Tensor) -> NDArray[np.float32]:
        """Bring latents (N, D) into the locked space, in its own units: (N, S). Those of the locked modality stay.

        Raises:
            DataError: no modality of this model was locked.
        """
        _ = self.locked  # which raises where none is
        found: NDArray[np.float32] = self._embed_tensor(modality, torch.as_tensor(latents), condition=True).numpy()
        return found

    def condition(self, items: Sequence[Any], modality: str | None = None) -> NDArray[np.float32]:
        """Encode raw items and bring them into the locked space: (n, S). Arguments and errors as of `embed`."""
        return self._encoded(items, modality, self.condition_latents)

    def generate(
        self, items: Sequence[Any], generator: str | Generator | Draw, modality: str | None = None, *, n: int = 1,
        seed: int = 0, steps: int | None = None, guidance: float | None = None, progress: Progress = silent,
    ) -> list[list[Image]]:  # fmt: skip
        """Draw n pictures for each raw item with a generator that the locked space conditions, see `generation`."""
        conditions = self.condition(items, modality)
        side = self.sides_[self.locked]
        return generate(generator, side.kind, side.encoder, conditions, n, seed, steps, guidance, progress)

    def encoder(self, modality: str) -> Encoder:
        """Return the frozen encoder of a modality, loaded on first use and held to the model's fingerprint."""
        return self._query_encoder(modality).encoder

    def use_encoder(self, modality: str, encoder: Any = None, *, decode: Any = None) -> Self:
        """Encode raw items of a modality with this encoder, and decode their files with this decoder.

        Args:
            modality: of the model.
            encoder: anything `load_encoder` takes; None is the one that the model names.
            decode: your own decoder, or its name, of a modality that was extracted with one.

        Raises:
            EncoderError: it does not load.
            MismatchError: its fingerprint, or what it makes of the canary items, is not what the model was fitted on.
        """
        self._query_encoder(modality).use(encoder, decode)
        return self

    def evaluate(self, x: Latents | ArrayLike, y: ArrayLike | None = None) -> Evaluation:
        """Measure retrieval both ways, beside chance, ridge and CCA.

        Args:
            x: latents of pairs; or an array (N, Dx), for a model that was fitted on arrays.
            y: array (N, Dy) whose row i belongs to row i of x.

        Raises:
            DataError: no pairs.
            MismatchError: latents of other encoders or modalities than the model's.
        """
        latents = as_latents(x, y)
        self._fitted()._check(latents)
        if not len(latents):
            raise DataError("there are no pairs to evaluate on")
        baselines = {name: score(self._baseline_embed(form), latents) for name, form in self.baselines_.items()}
        uncorrected = score(self._embed_tensor, latents)
        retrieval = score(self._embed_tensor, latents, hubs=self.hubs_) if self.hubs_ is not None else uncorrected
        condition = partial(self._embed_tensor, condition=True)
        close = score_landing(condition, latents, self.locked) if self.config_.lock != "none" else None
        return Evaluation(
            latents.split_name,
            len(latents),
            retrieval,
            {"chance": chance(latents), **baselines},
            [*([str(close)] if close else []), *overlap(self.seen_, latents), *few(retrieval)],
            close,
            uncorrected if self.hubs_ is not None else None,
        )

    def index(self, *items: ItemLatents, dtype: str = "float32") -> Index:
        """Embed the items of one or several modalities, such as `latents["image"]`, for search; see `Index.of`."""
        return Index.of(Space([self._fitted()]), *items, dtype=dtype)

    def save(self, folder: str | Path) -> None:
        """Write the model as a folder, see `state`."""
        self._fitted()
        state = State(
            self.get_params(), self.modalities_, self.sides_, self.config_, self.adapters_, self.baselines_,
            self.history_, self.facts_, self.seen_, self.canaries_, self.hubs_,
        )  # fmt: skip
        state.save(Path(folder))
        checkpoint.clear(Path(folder))

    @classmethod
    def load(cls, folder: str | Path) -> "FuseMix":
        """Open what `save` wrote; runs no code of the folder.

        Raises:
            StoreError: no model there, or a damaged one; it names the file.
        """
        state = State.load(Path(folder))
        model = cls().set_params(**state.params)
        model.modalities_, model.sides_, model.config_ = state.modalities, state.sides, state.config
        model.adapters_, model.baselines_ = state.adapters, state.baselines
        model.history_, model.facts_, model.seen_ = state.history, state.facts, state.seen
        model.canaries_, model.hubs_, model._query_encoders = state.canaries, state.hubs, {}
        return model

    def _onto(self, model: "FuseMix", train: Latents, val: Latents | None, unpaired: Any = ()) -> Onto:
        """Return what is fitted where pairs land in the space of another model."""
        if unpaired or self.lock is not None:
            raise DataError("onto keeps a space as it is: it goes with neither lock nor unpaired items")
        target = Target(model._fitted().sides_, model.adapters_)
        return Onto.of(train, val, target, self.config(len(train)), self.dim)

    def _fitted(self) -> Self:
        if not hasattr(self, "adapters_"):
            raise NotFittedError("this FuseMix is not fitted yet: call fit, or FuseMix.load")
        return self

    def _side(self, modality: str) -> Side:
        sides = self._fitted().sides_
        if modality not in sides:
            raise DataError(f"the model has no modality {modality!r}; {choices(modality, sides)}")
        return sides[modality]

    def _query_encoder(self, modality: str) -> QueryEncoder:
        if modality not in self._query_encoders:
            self._query_encoders[modality] = QueryEncoder(modality, self._side(modality), self.canaries_.get(modality))
        return self._query_encoders[modality]

    def _encoded(self, items: Sequence[Any], modality: str | None, follow: Any) -> NDArray[np.float32]:
        """Encode raw items, then do something with the latents."""
        if isinstance(items, (str, Path)):
            raise DataError(f"wanted a list of items, got one {type(items).__name__}: put it in brackets")
        if not len(items):
            return np.empty((0, self._fitted().facts_["dim"]), dtype=np.float32)
        modality = modality or modality_of(items[0], self._fitted().sides_)
        found: NDArray[np.float32] = follow(modality, self._query_encoder(modality).encode(items))
        return found

    def _check(self, latents: Latents) -> None:
        """Refuse latents that are not of this model's encoders."""
        if set(latents.modalities) != set(self.modalities_):
            raise MismatchError(
                f"the model joins {' and '.join(self.modalities_)}, "
                f"these latents are of {' and '.join(latents.modalities)}"
            )
        for items in latents.items.values():
            self._side(items.modality).check(items)

    def _embed_tensor(self, modality: str, latents: Tensor | LatentRows, condition: bool = False) -> Tensor:
        """(N, D) -> (N, S) on the CPU, in blocks; unit norm, unless it is to condition a generator."""
        dim = self._side(modality).dim
        if len(latents.shape) != 2 or latents.shape[1] != dim:
            raise DataError(f"{modality}: wanted latents of shape (N, {dim}), got {tuple(latents.shape)}")
        adapter = self.adapters_[modality]
        return in_blocks(adapter.condition, latents, torch.device("cpu")) if condition else embed(adapter, latents)

    def _baseline_embed(self, form: ClosedForm) -> Any:
        maps = dict(zip(self.modalities_, (form.embed_x, form.embed_y), strict=True))
        return lambda modality, rows: torch.cat([maps[modality](block) for block in rows.blocks()])


def _baselines(fused: Fused, progress: Progress) -> dict[str, ClosedForm]:
    """Fit ridge and CCA, in the first process; none where latents are too wide for them."""
    if fused.folds is None or ranks()[0] != 0:
        return {}
    progress("fit baselines", 0, 1)
    forms = fit_closed_forms(fused.folds)
    progress("fit baselines", 1, 1)
    return forms


def _counts(train: Latents, val: Latents | None) -> dict[str, Any]:
    """Return what a fit has seen, for its facts."""
    return {
        "pairs": len(train),
        "items": {name: len(train[name]) for name in train.modalities},
        "trained_on": sorted(set(train.splits.tolist())),
        "chosen_on": sorted(set(val.splits.tolist())) if val is not None else [],
        "val_pairs": len(val) if val is not None else 0,
    }
