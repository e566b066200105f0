"""A fitted model as a folder: adapters, baselines, hashed ids of what it has seen, canaries, facts, and its card."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from fusemix import durable
from fusemix.align.adapters import AnyAdapter, adapter_of
from fusemix.align.closed_form import CLOSED_FORMS, ClosedForm
from fusemix.align.hubness import Hubs
from fusemix.config import FitConfig
from fusemix.data.latents import ItemLatents
from fusemix.data.store import difference
from fusemix.errors import DataError, MismatchError, StoreError

FORMAT = "fusemix-model-10"


@dataclass(frozen=True)
class Side:
    """What a model knows of one modality: enough to take queries and to refuse latents of another encoder.

    Attributes:
        kind: what raw items are, see `data.pairs.Kind`.
        dim: D, width of the latents.
        encoder: fingerprint.
        source: how to load the encoder again.
        decode: fingerprint of the user's own decoder; None for ours.
    """

    kind: str
    dim: int
    encoder: dict[str, Any]
    source: str
    decode: dict[str, Any] | None = None

    @classmethod
    def of(cls, items: ItemLatents) -> "Side":
        """Return what a model keeps of the items that it is fitted on."""
        return cls(items.kind, items.rows.shape[1], items.encoder, items.source, items.decode)

    def check(self, items: ItemLatents) -> None:
        """Refuse latents of another encoder than the model was fitted on.

        Raises:
            MismatchError: encoder, decoder or width differ; it names what does.
        """
        differs = difference(self.encoder, items.encoder) or difference(self.decode, items.decode, "decode")
        if differs:
            raise MismatchError(
                f"the {items.modality} latents come from another encoder than the model was fitted on: {differs}; "
                "extract them with the same encoder, or fit again"
            )
        if items.rows.shape[1] != self.dim:
            raise MismatchError(
                f"the model takes {items.modality} latents of width {self.dim}, got {items.rows.shape[1]}"
            )


@dataclass(frozen=True)
class State:
    """All that a fit leaves, see `FuseMix`."""

    params: dict[str, Any]
    modalities: tuple[str, str]
    sides: dict[str, Side]
    config: FitConfig
    adapters: dict[str, AnyAdapter]
    baselines: dict[str, ClosedForm]
    history: list[dict[str, float]]
    facts: dict[str, Any]
    seen: dict[str, Tensor]
    canaries: dict[str, Tensor]
    hubs: Hubs | None

    def save(self, folder: Path) -> None:
        """Write the folder; facts.json last, so that a half-written model is no model.

        Raises:
            StoreError: the folder holds something else.
        """
        claim(folder)
        weights = {f"{name}/{key}": value for name, a in self.adapters.items() for key, value in a.state_dict().items()}
        maps = {
            f"{name}/{key}": value for name, form in self.baselines.items() for key, value in form.to_tensors().items()
        }
        facts = {
            "format": FORMAT,
            "params": self.params,
            "config": self.config.to_dict(),
            "modalities": list(self.modalities),
            "sides": {name: asdict(side) for name, side in self.sides.items()},
            "facts": self.facts,
            "history": self.history,
            "hubs": None if self.hubs is None else self.hubs.strength,
        }
        content = (json.dumps(facts, indent=2, default=lambda number: number.item()) + "\n").encode()
        (folder / "facts.json").unlink(missing_ok=True)
        durable.write(folder / "adapters.safetensors", _bytes(weights))
        durable.write(folder / "baselines.safetensors", _bytes(maps))
        durable.write(folder / "seen.safetensors", _bytes(self.seen))
        durable.write(folder / "canaries.safetensors", _bytes(self.canaries))
        banks = {} if self.hubs is None else {name: bank.half() for name, bank in self.hubs.banks.items()}
        durable.write(folder / "hubs.safetensors", _bytes(banks))
        durable.write(folder / "README.md", self.card().encode())
        durable.write(folder / "facts.json", content)

    @classmethod
    def load(cls, folder: Path) -> "State":
        """Read the folder; runs no code of it.

        Raises:
            StoreError: no model there, or a damaged one; it names the file.
        """
        try:
            saved = json.loads((folder / "facts.json").read_bytes())
            if saved.get("format") != FORMAT:
                raise StoreError(f"{folder} is no model of format {FORMAT}; make one with `fusemix fit`")
            config = FitConfig.from_dict(saved["config"])
            sides = {name: Side(**side) for name, side in saved["sides"].items()}
            weights = load_file(folder / "adapters.safetensors")
            adapters = {
                name: adapter_of(
                    _part(weights, name), sides[name].dim, config, foreign=name == saved["facts"]["onto"]
                ).eval()
                for name in saved["modalities"]
            }
            maps = load_file(folder / "baselines.safetensors")
            known = CLOSED_FORMS if maps else ()  # none were fitted to latents that are very wide
            baselines = {name: ClosedForm.from_tensors(_part(maps, name)) for name in known}
            first, second = saved["modalities"]
            seen = load_file(folder / "seen.safetensors")
            canaries = load_file(folder / "canaries.safetensors")
            banks = {name: bank.float() for name, bank in load_file(folder / "hubs.safetensors").items()}
            hubs = Hubs(float(saved["hubs"]), banks) if banks else None
            given = saved["params"], (first, second), sides, config
            return cls(*given, adapters, baselines, saved["history"], saved["facts"], seen, canaries, hubs)
        except FileNotFoundError as error:
            message = f"{folder} holds no model ({error.filename} is missing); make one with `fusemix fit`"
            raise StoreError(message) from error
        except (SafetensorError, DataError, RuntimeError, ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{folder}: the model is damaged or was made by another version: {error}") from error

    def card(self) -> str:
        """Return the model card, in Markdown."""
        first, second = self.modalities
        facts, width = self.facts, self.sides[first].dim
        encoders = "\n".join(
            f"- {name}: `{side.encoder.get('name', 'arrays')}`, {side.dim} numbers" for name, side in self.sides.items()
        )
        settings = "\n".join(f"- {name}: {value}" for name, value in self.config.to_dict().items())
        subset = facts.get("subset")
        picked = f", picked by {subset['by']} from {subset['n']:,}" if subset else ""
        epoch = "" if facts["best_epoch"] is None else f"; epoch {facts['best_epoch']} of the training"
        judges = "no validation split chose"
        if facts["judged"]:
            judges = f"chosen on {facts['judged']:,} pairs of {facts['judges']}"
        elif facts["chosen_on"]:
            judges = f"chosen on {facts['val_pairs']:,} pairs of {', '.join(facts['chosen_on'])}"
        tried = "".join(f"\n- {what}: {recall:.1f}" for what, recall in facts["tried"].items())
        if tried:
            tried = f" Mean R@1, 5, 10 of both ways on the pairs that chose:\n{tried}"
        if self.hubs is not None:
            without = facts["hubs"]["uncorrected"]
            tried += f"\n\nHubs are corrected by {self.hubs.strength:g}"
            tried += "." if without is None else f"; without, {without:.1f}."
        hub = facts["onto"]
        landed = f" {first} lands in the space of another model, which embeds {hub} in the same way." if hub else ""
        return f"""# {first} and {second} in one space

Adapters fitted with fusemix (after FuseMix, arXiv 2312.10144) to the latents of two frozen encoders:

{encoders}

{facts["pairs"]:,} pairs of {", ".join(facts["trained_on"])}{picked}; {facts["parameters"]:,} numbers \
learned{epoch}; {judges}; {facts["seconds"]:g} s.

What they are: {facts["chosen"]}.{landed}{tried}

## Settings

{settings}

## Use

```python
import fusemix as fm

model = fm.FuseMix.load("FOLDER")
model.embed_latents("{first}", latents)  # (N, {width}) -> (N, {facts["dim"]})
```

The licences of the encoders and of the data pass on to these adapters.
"""


def claim(folder: Path) -> None:
    """Make sure that a model can be written into a folder.

    Raises:
        StoreError: it holds something else.
    """
    durable.claim(folder, FORMAT, "model")


def _bytes(tensors: dict[str, Tensor]) -> bytes:
    content: bytes = save({key: value.contiguous() for key, value in tensors.items()})
    return content


def _part(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """Return the tensors under `name/`, without the prefix."""
    return {key.removeprefix(f"{name}/"): value for key, value in tensors.items() if key.startswith(f"{name}/")}
