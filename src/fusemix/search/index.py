"""An index: embeddings of items of any modality, the space they lie in, and everything one may search them by."""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor

from fusemix.data.latents import ItemLatents
from fusemix.data.store import difference
from fusemix.errors import DataError, MismatchError, StoreError, choices
from fusemix.queries import modality_of
from fusemix.search import filters
from fusemix.search.approximate import Approximate
from fusemix.search.columns import joined, joined_previews, own, taken, telling
from fusemix.search.exact import nearest
from fusemix.search.folder import Content, read, write
from fusemix.search.hit import Found, Hit, hit
from fusemix.search.query import ItemId, Term, combine, numbers, terms_of, unit
from fusemix.search.space import Space

_KEY = ("modality", "id")  # of an item
_WRONG = (ValueError, KeyError, TypeError, AttributeError)  # what facts of another form raise


@dataclass(frozen=True, eq=False)
class Index:
    """Items that can be searched; never changed: `add` and `remove` give another one.

    Attributes:
        vectors: (N, S + M), float32 or float16: embeddings, and what corrects hubs, see `Space.as_rows`.
        items: columns modality, id and value (file name or text), N rows.
        columns: the user's own columns, N rows; of an item in several pairs those of the first.
        found: what the items of each modality are.
        space: embeds queries.
        previews: N small pictures or sounds, or None where there is none, see `search.previews`; None has none at all.
        approximate: proposes rows instead of looking at all, see `approximately`.
        generation: how often the folder has been written.
    """

    vectors: Tensor
    items: pa.Table
    columns: pa.Table
    found: dict[str, Found]
    space: Space
    previews: pa.ChunkedArray | None = None
    approximate: Approximate | None = None
    generation: int = 0

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def dim(self) -> int:
        """S, width of the shared space."""
        return self.vectors.shape[1] - len(self.space.corrected)

    @property
    def embeddings(self) -> Tensor:
        """(N, S), unit norm, float32 or float16."""
        return self.vectors[:, : self.dim]

    @classmethod
    def of(cls, space: Space, *items: ItemLatents, dtype: str = "float32") -> "Index":
        """Embed the items of one or several modalities.

        Args:
            space: what embeds them.
            items: such as `latents["image"]`; of the same item twice the latter counts.
            dtype: of the rows, "float32" or "float16": half the memory, scores to three digits.

        Raises:
            DataError: no items, or another dtype.
            MismatchError: latents of another encoder than the model's.
        """
        if dtype not in ("float32", "float16"):
            raise DataError(f"no rows of {dtype!r}; {choices(dtype, ('float32', 'float16'))}")
        if not items:
            raise DataError("an index needs the items of a modality at least, such as latents['image']")
        parts = [cls._part(space, each, getattr(torch, dtype)) for each in items]
        whole = parts[0]
        for part in parts[1:]:
            whole = whole._with(part)
        return whole

    @classmethod
    def _part(cls, space: Space, items: ItemLatents, dtype: torch.dtype) -> "Index":
        name = items.modality
        model = space.home(name)
        space.sides_[name].check(items)
        blocks = list(items.rows.blocks(1 << 16)) or [torch.zeros(0, items.rows.shape[1])]
        embedded = [torch.as_tensor(model.embed_latents(name, block)) for block in blocks]
        vectors = torch.cat([space.as_rows(name, block).to(dtype) for block in embedded])
        names = pa.array([name] * len(items), pa.string())
        table = items.items.select(["id", "value"]).add_column(0, "modality", names)
        return cls(vectors, table, own(items), {name: Found(items.kind, items.root)}, space)

    @cached_property
    def keys(self) -> list[tuple[str, str]]:
        """N times (modality, id)."""
        return list(zip(*(self.items[name].to_pylist() for name in _KEY), strict=True))

    @cached_property
    def row_of(self) -> dict[tuple[str, str], int]:
        """The row of each (modality, id)."""
        return {key: row for row, key in enumerate(self.keys)}

    @cached_property
    def telling(self) -> pa.Table:
        """The user's columns that say more of the items than their ids and values, N rows."""
        return telling(self.columns, self.items)

    def search(
        self, query: Any, k: int = 10, modality: str | None = None, *, where: Sequence[str] = (), exact: bool = False
    ) -> list[Hit]:
        """Find the items nearest to one query.

        Args:
            query: a string is text, a Path a file, a PIL image an image, a Sound a sound, a list of PIL images a video,
                an ItemId an item of this index, an array (S,) a vector of the shared space (such as sums and
                differences of what `embed` returns); or a list of `Term`.
            k: how many hits, at most N.
            modality: what the query is, where its type does not tell; with it, an array is a latent (D,).
            where: conditions on the columns of the items, such as "price < 20", all of which must hold; see `filters`.
            exact: look at all items also where the index is approximate.

        Raises:
            DataError: a query that no modality takes, a condition that is none, or k below 1.
        """
        queries = torch.from_numpy(self.embed_queries([terms_of(query, modality)]))
        return self.hits(*self.search_embeddings(queries, k, self.rows(where), exact=exact))[0]

    def embed(self, query: Any, modality: str | None = None) -> NDArray[np.float32]:
        """Embed one query, (S,) unit norm; arguments and errors as of `search`."""
        embedded: NDArray[np.float32] = self.embed_queries([terms_of(query, modality)])[0, : self.dim]
        return embedded

    def embed_queries(self, queries: Sequence[Sequence[Term]]) -> NDArray[np.float32]:
        """Embed many queries, (Q, S + M) as `vectors` are; raw items of a modality go through its encoder together.

        Raises:
            DataError: a query of no terms, a term that cannot be used, or terms that cancel.
        """
        vectors: dict[int, NDArray[np.float32]] = {}
        raw: dict[str, list[Term]] = {}
        for term in (term for terms in queries for term in terms):
            if isinstance(term.value, ItemId):
                vectors[id(term)] = self._item(term)
            elif isinstance(term.value, (np.ndarray, Tensor)):
                vectors[id(term)] = self._vector(term)
            else:
                raw.setdefault(term.modality or modality_of(term.value, self.space.sides_), []).append(term)
        for name, terms in raw.items():
            embedded = self.space.as_queries(name, self.space.embed([term.value for term in terms], name))
            vectors.update(zip(map(id, terms), embedded, strict=True))
        if not all(queries):
            raise DataError("nothing to search for: the query has no terms")
        parts = [combine([t.weight for t in terms], [vectors[id(t)] for t in terms], self.dim) for terms in queries]
        return np.stack(parts) if parts else np.empty((0, self.vectors.shape[1]), np.float32)

    def rows(self, where: Sequence[str], among: str | None = None) -> Tensor | None:
        """Return the rows (M,) that fulfil every condition and are of the modality `among`; None for all rows."""
        if not where and among is None:
            return None
        held = filters.mask(self._filtered, where)
        if among is not None:
            if among not in self.found:
                raise DataError(f"the index holds no {among!r}; {choices(among, self.found)}")
            held &= np.asarray(pc.equal(self.items["modality"], among), dtype=bool)
        return torch.from_numpy(np.flatnonzero(held))

    def search_embeddings(
        self, queries: Tensor, k: int, among: Tensor | None = None, *, exact: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Find the nearest rows for many queries at once.

        Args:
            queries: (Q, S + M) float32, such as `embed_queries` gives; or (Q, S), which corrects no hubs.
            k: hits per query.
            among: (M,) rows that are looked at, rising, such as `rows` gives; None for all. With it, search is exact.
            exact: look at all rows also where the index is approximate.

        Returns:
            Scores (Q, k), falling, and rows (Q, k); k is at most N. Equal scores come in order of their rows.
        """
        if k < 1:
            raise DataError(f"k must be at least 1, got {k}")
        queries = self._padded(queries)
        if self.approximate is None or exact or among is not None:
            return nearest(self.vectors, queries, k, among)
        return self.approximate.search(self.vectors, queries, k)

    def hits(self, scores: Tensor, rows: Tensor) -> list[list[Hit]]:
        """Turn what `search_embeddings` returns, (Q, k) each, into a list of hits per query."""
        return [self.hits_of(order, each) for each, order in zip(scores.tolist(), rows.tolist(), strict=True)]

    def add(self, *items: ItemLatents) -> "Index":
        """Return an index that also holds these items; one of the same id takes the place of the one that was there.

        Previews of what was there are kept; the approximate rows are gone, see `approximately`.

        Raises:
            MismatchError: latents of another encoder than the model's.
        """
        new = Index.of(self.space, *items, dtype=str(self.vectors.dtype).removeprefix("torch."))
        return self._with(new)

    def remove(self, ids: str | ItemId | Sequence[str | ItemId]) -> "Index":
        """Return an index without these items.

        Raises:
            DataError: an item that is not there.
        """
        each_id = [ids] if isinstance(ids, (str, ItemId)) else ids
        gone = {self.keys[self.row(ItemId(each) if isinstance(each, str) else each)] for each in each_id}
        return self._without(gone)

    def take(self, rows: NDArray[np.int64]) -> "Index":
        """Return an index of these rows, in this order."""
        chosen = pa.array(rows)
        return replace(
            self,
            vectors=self.vectors[torch.from_numpy(rows)],
            items=self.items.take(chosen),
            columns=taken(self.columns, chosen),
            previews=self.previews.take(chosen) if self.previews is not None else None,
            approximate=None,
        )

    def approximately(self, queries: Tensor | None = None, recall: float = 0.95) -> "Index":
        """Return an index that looks at a part of the rows: for millions of items, see `search.approximate`.

        Args:
            queries: of `embed_queries`, to measure recall on, best of the modality that one will search by; by default
                items of the index itself, which is easier than what comes from another modality.
            recall: recall@10 against exact search to reach, in (0, 1].

        Raises:
            DataError: fewer items than that pays for.
            MissingExtraError: faiss is not installed.
        """
        asked = self._padded(queries) if queries is not None else None
        return replace(self, approximate=Approximate.build(self.vectors, asked, recall))

    def save(self, folder: str | Path) -> "Index":
        """Write a folder that needs nothing else; an index that is there, and may be served, is replaced in one step.

        Returns:
            The index with its new generation.

        Raises:
            StoreError: the folder holds something else.
        """
        near = self.approximate
        content = Content(
            self.vectors, self.items, self.columns, self.previews, near.to_bytes() if near is not None else None
        )
        found = {
            name: {"kind": each.kind, "root": str(each.root), "encoder": self.space.sides_[name].encoder}
            for name, each in self.found.items()
        }
        facts = {"items": len(self), "modalities": found, "approximate": near.facts if near is not None else None}
        return replace(self, generation=write(Path(folder), content, self.space.models, facts))

    @classmethod
    def load(cls, folder: Path, facts: Mapping[str, Any], space: Space) -> "Index":
        """Open the generation that `facts` name; see `opening.open_index`.

        Raises:
            StoreError: a damaged index.
            MismatchError: the models are not those that embedded the items.
        """
        try:
            content = read(folder, facts)
            found = {name: Found(each["kind"], Path(each["root"])) for name, each in facts["modalities"].items()}
            encoders = {name: each["encoder"] for name, each in facts["modalities"].items()}
            near = Approximate.of(content.cells, facts["approximate"], content.vectors) if content.cells else None
        except (SafetensorError, pa.ArrowException, OSError, RuntimeError, *_WRONG) as error:
            raise StoreError(f"{folder}: the index is damaged ({error}); make it again with `fusemix index`") from error
        for name, encoder in encoders.items():
            if differs := difference(encoder, space.sides_[name].encoder if name in space.sides_ else {}):
                raise MismatchError(f"{folder}: the {name} items were embedded by another model: {differs.lstrip()}")
        return cls(*content[:3], found, space, content.previews, near, int(facts["generation"]))

    def row(self, item: ItemId) -> int:
        """Return the row of an item.

        Raises:
            DataError: there is none, or several modalities have one of this id.
        """
        found = {name: row for name in self.found if (row := self.row_of.get((name, item.id))) is not None}
        if item.modality is not None and item.modality not in found:
            of = f" of the modality {item.modality!r}; {choices(item.modality, found or self.found)}"
            raise DataError(f"the index holds no item {item.id!r}{of}")
        if not found:
            near = get_close_matches(item.id, [id_ for _, id_ in self.keys[:1000]], n=1)
            some = f"it has such as {self.keys[0][1]!r}" if self.keys else "it is empty"
            hint = f"did you mean {near[0]!r}?" if near else some
            raise DataError(f"the index holds no item {item.id!r}; {hint}")
        if len(found) > 1 and item.modality is None:
            raise DataError(
                f"{len(found)} items have the id {item.id!r}, of {' and '.join(found)}; say which: "
                "--from MODALITY in a search, --modality MODALITY in a removal, ItemId(id, modality) in Python"
            )
        return found[item.modality or next(iter(found))]

    def _padded(self, queries: Tensor) -> Tensor:
        """Let queries (Q, S) correct no hubs: (Q, S + M); those that say whether they do stay.

        Raises:
            DataError: queries of another width.
        """
        if queries.shape[1] not in (self.dim, self.vectors.shape[1]):
            raise DataError(f"the index holds embeddings of {self.dim} numbers, the queries have {queries.shape[1]}")
        return torch.nn.functional.pad(queries, (0, self.vectors.shape[1] - queries.shape[1]))

    def _item(self, term: Term) -> NDArray[np.float32]:
        item = ItemId(term.value.id, term.value.modality or term.modality)
        row = self.row(item)
        embedded: NDArray[np.float32] = self.embeddings[row : row + 1].float().numpy()
        query: NDArray[np.float32] = self.space.as_queries(self.keys[row][0], embedded)[0]
        return query

    def _vector(self, term: Term) -> NDArray[np.float32]:
        value = term.value.detach().cpu().float().numpy() if isinstance(term.value, Tensor) else term.value
        if term.modality is None:
            embedded = unit(value, self.dim)[None]
        else:
            width = self.space.home(term.modality).sides_[term.modality].dim
            latent = numbers(value, width, f"a latent of {term.modality!r}")
            embedded = self.space.embed_latents(term.modality, latent[None])
        query: NDArray[np.float32] = self.space.as_queries(term.modality, embedded)[0]
        return query

    @cached_property
    def _filtered(self) -> pa.Table:
        """What conditions are about: the user's columns, and modality and id unless they have such of their own."""
        table = self.columns
        for name in _KEY:
            if name not in table.column_names:
                table = table.append_column(name, self.items[name])
        return table

    def hits_of(self, rows: Sequence[int], scores: Sequence[float]) -> list[Hit]:
        """Describe items by their rows."""
        order = pa.array(rows, pa.int64())
        items, columns = self.items.take(order).to_pylist(), taken(self.telling, order).to_pylist()
        found = [self.found[item["modality"]] for item in items]
        return [hit(*one) for one in zip(found, items, columns, scores, strict=True)]

    def _without(self, keys: Container[tuple[str, str]]) -> "Index":
        keep = [row for row, key in enumerate(self.keys) if key not in keys]
        return self.take(np.array(keep, dtype=np.int64)) if len(keep) < len(self) else self

    def _with(self, other: "Index") -> "Index":
        """Return an index of both; of an item that both hold, only the other's stays."""
        return self._without(other.row_of)._followed_by(other)

    def _followed_by(self, other: "Index") -> "Index":
        for name in {name for name, _ in self.keys} & {*other.found}:
            if self.found[name].root != other.found[name].root:
                raise DataError(
                    f"the {name} items lie in {self.found[name].root}, the new ones in {other.found[name].root}; "
                    "extract them with the same --root"
                )
        return replace(
            self,
            vectors=torch.cat([self.vectors, other.vectors]),
            items=pa.concat_tables([self.items, other.items]),
            columns=joined(self.columns, other.columns),
            found={**self.found, **other.found},
            previews=joined_previews(self.previews, other.previews, (len(self), len(other))),
            approximate=None,
        )
