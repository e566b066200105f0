"""One shared space, and every model that lands in it: what any of them can embed can be searched by, and for."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

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
    def locked(self) -> str:
        """The modality whose latents are the space; a DataError where none is."""
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

    Several models share a space where each was fitted with the same locked modality (`FuseMix(lock=...)`): its latents,
    which none of them touched, are the space. So pictures and sounds meet that were never trained together.

    Args:
        models: one, or several that are locked to the same encoder.

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
        for model in self.models:
            if model is not self.models[0]:
                _check_shared(self.models[0], model)
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
        """The modalities whose queries have the hubs among other items corrected; none where there are several models.

        A row of an index has a column for each of them at its end, and so has a query: their product is what the
        correction takes from the cosine.
        """
        return self.modalities_ if len(self.models) == 1 and self.models[0].hubs_ is not None else ()

    def as_rows(self, modality: str, embedded: Tensor) -> Tensor:
        """Append the columns (N, M) of items of a modality to their embeddings (N, S)."""
        if not self.corrected:
            return embedded
        hubs = self.models[0].hubs_
        assert hubs is not None, "corrected says so"
        bias = -hubs.bias(modality, embedded)
        columns = [torch.zeros_like(bias) if name == modality else bias for name in self.corrected]
        return torch.cat([embedded, torch.stack(columns, dim=1).to(embedded)], dim=1)

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


def _check_shared(first: Model, other: Model) -> None:
    """Hold two models to one space.

    Raises:
        MismatchError: one locks no modality, or they lock different ones.
    """
    try:
        mine, theirs = first.sides_[first.locked], other.sides_[other.locked]
    except DataError as error:
        raise MismatchError(
            "two models share a space only where both were fitted with the same locked modality: fit each with "
            "`fusemix fit --lock MODALITY` on latents of one and the same encoder"
        ) from error
    if differs := _difference(mine, theirs):
        raise MismatchError(f"the models are locked to different encoders, so they share no space: {differs}")


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
