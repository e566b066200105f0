"""One shared space, and every model that lands in it: what any of them can embed can be searched by, and for."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from fusemix.align.adapters import AnyAdapter, Locked
from fusemix.align.hubness import Hubs
from fusemix.data.store import difference
from fusemix.encoders import Encoder
from fusemix.errors import DataError, MismatchError, choices
from fusemix.queries import modality_of
from fusemix.state import Side


class Model(Protocol):
    """What a space needs of a fitted model."""

    @property
    def sides_(self) -> Mapping[str, Side]:
        """What it knows of each modality."""
        ...

    @property
    def adapters_(self) -> Mapping[str, AnyAdapter]:
        """What embeds the latents of each modality."""
        ...

    @property
    def facts_(self) -> Mapping[str, Any]:
        """What its fit says of itself."""
        ...

    @property
    def hubs_(self) -> Hubs | None:
        """What corrects hubs; None corrects none."""
        ...

    def embed(self, items: Sequence[Any], modality: str | None = None) -> NDArray[np.float32]:
        """Embed raw items, (n, S) unit norm."""
        ...

    def embed_latents(self, modality: str, latents: ArrayLike) -> NDArray[np.float32]:
        """Embed latents (n, D), (n, S) unit norm."""
        ...

    def encoder(self, modality: str) -> Encoder:
        """Return the frozen encoder of a modality."""
        ...

    def use_encoder(self, modality: str, encoder: Any = None, *, decode: Any = None) -> Any:
        """Encode raw items of a modality with this encoder and this decoder."""
        ...

    def save(self, folder: str | Path) -> None:
        """Write the model."""
        ...


class Space:
    """The models of one shared space, as if they were one.

    Several models share a space where all of them embed a modality of one encoder in the very same way: one was fitted
    onto the other (`FuseMix.fit(onto=...)`), or all with the same locked modality (`FuseMix(lock=...)`). So pictures
    and sounds meet that were never trained together.

    Args:
        models: one, or several of which each shares a modality with one before it.

    Attributes:
        models: the same.
        sides_: what is known of each modality of all of them.

    Raises:
        MismatchError: models of different spaces, or two meanings of one word for a modality.
    """

    def __init__(self, models: Sequence[Model]) -> None:
        self.models = list(models)
        self.sides_: dict[str, Side] = {}
        self._homes: dict[str, Model] = {}
        for place, model in enumerate(self.models):
            if place:
                _check_shared(self.models[:place], model)
            for name, side in model.sides_.items():
                if name in self.sides_:
                    _check_same(name, self.sides_[name], side)
                self.sides_.setdefault(name, side)
                self._homes.setdefault(name, model)

    @property
    def modalities_(self) -> tuple[str, ...]:
        """All modalities, in the user's words."""
        return tuple(self.sides_)

    @property
    def facts_(self) -> Mapping[str, Any]:
        """Facts of the first model's fit."""
        return self.models[0].facts_

    @cached_property
    def corrected(self) -> tuple[str, ...]:
        """The modalities whose queries have the hubs among other items corrected.

        A row of an index has a column for each of them at its end, and so has a query: their product is what the
        correction takes from the cosine. Only a model that joins two modalities knows of the hubs among them: pictures
        and sounds of different models are not corrected for each other (`docs/recall.md` has what it would cost).
        """
        known = {name for model in self.models if model.hubs_ is not None for name in model.sides_}
        return tuple(name for name in self.modalities_ if name in known)

    def as_rows(self, modality: str, embedded: Tensor) -> Tensor:
        """Append the columns (N, M) of items of a modality to their embeddings (N, S)."""
        if not self.corrected:
            return embedded
        columns = torch.zeros(len(embedded), len(self.corrected))
        for model in self.models:
            if model.hubs_ is not None and modality in model.sides_:
                bias = model.hubs_.bias(modality, embedded)
                for name in model.sides_:
                    if name != modality:
                        columns[:, self.corrected.index(name)] = -bias
        return torch.cat([embedded, columns.to(embedded)], dim=1)

    def as_queries(self, modality: str | None, embedded: NDArray[np.float32]) -> NDArray[np.float32]:
        """Append the columns (Q, M) of queries of a modality to their embeddings (Q, S); None corrects nothing."""
        asked = np.array([name == modality for name in self.corrected], dtype=np.float32)
        return np.concatenate([embedded, np.tile(asked, (len(embedded), 1))], axis=1)

    def home(self, modality: str) -> Model:
        """Return the model that embeds a modality.

        Raises:
            DataError: none does.
        """
        if modality not in self._homes:
            raise DataError(f"no modality {modality!r} in this space; {choices(modality, self._homes)}")
        return self._homes[modality]

    def embed(self, items: Sequence[Any], modality: str | None = None) -> NDArray[np.float32]:
        """Encode raw items and embed them, (n, S) unit norm; arguments and errors as of `FuseMix.embed`."""
        if modality is None and len(items):
            modality = modality_of(items[0], self.sides_)
        if modality in self.sides_ and self.sides_[modality].kind == "text":  # a name of a file is one, too
            items = [str(item) if isinstance(item, Path) else item for item in items]
        return (self.home(modality) if modality is not None else self.models[0]).embed(items, modality)

    def embed_latents(self, modality: str, latents: ArrayLike) -> NDArray[np.float32]:
        """Embed latents (n, D) of one modality, (n, S) unit norm."""
        return self.home(modality).embed_latents(modality, latents)

    def encoder(self, modality: str) -> Encoder:
        """Return the frozen encoder of a modality, loaded on first use; errors as of `FuseMix.use_encoder`."""
        return self.home(modality).encoder(modality)

    def use_encoder(self, modality: str, encoder: Any = None, *, decode: Any = None) -> Self:
        """Encode raw items of a modality with this encoder, see `FuseMix.use_encoder`."""
        self.home(modality).use_encoder(modality, encoder, decode=decode)
        return self

    def joined(self, other: Model) -> "Space":
        """Return this space with one more model."""
        return Space([*self.models, other])


def _check_shared(models: Sequence[Model], other: Model) -> None:
    """Hold a model to the space of others.

    Raises:
        MismatchError: it embeds no modality as one of them does, or locks a different encoder.
    """
    mine = _locked_side(other)
    for model in models:
        theirs = _locked_side(model)
        if mine is not None and theirs is not None and (differs := _difference(theirs, mine)):
            raise MismatchError(f"the models are locked to different encoders, so they share no space: {differs}")
    if not any(_embed_one_alike(model, other) for model in models):
        raise MismatchError(
            "two models share a space only where both embed one modality in the very same way: fit one onto the other "
            "with `fusemix fit --onto MODEL`, or each with the same `--lock MODALITY`, on latents of one encoder"
        )


def _locked_side(model: Model) -> Side | None:
    return next((model.sides_[name] for name, side in model.adapters_.items() if isinstance(side, Locked)), None)


def _embed_one_alike(one: Model, other: Model) -> bool:
    return any(
        _difference(one.sides_[x], other.sides_[y]) is None and one.adapters_[x].embeds_like(other.adapters_[y])
        for x in one.sides_
        for y in other.sides_
    )


def _check_same(name: str, one: Side, other: Side) -> None:
    if differs := _difference(one, other):
        raise MismatchError(f"both models have a modality {name!r}, by different encoders: {differs}; rename one")


def _difference(one: Side, other: Side) -> str | None:
    """Say in what two latent spaces differ; of latents without an encoder only the width is known."""
    differs = (
        difference(one.encoder, other.encoder)
        or difference(one.decode, other.decode, "decode")
        or difference(one.dim, other.dim, "width")
    )
    return differs.lstrip() if differs else None
