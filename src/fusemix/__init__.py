"""Make your own CLIP from any frozen encoders you trust, with the pairs you have, on one machine, in minutes.

Nothing heavy is imported before it is used: `import fusemix` loads none of torch, transformers and their like.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from fusemix.data.latents import Latents, open_latents
    from fusemix.data.media import ItemError
    from fusemix.data.pairs import Pairs, read_pairs
    from fusemix.encoders import Encoder, load_encoder
    from fusemix.evaluate import Evaluation
    from fusemix.extraction import extract
    from fusemix.generation import Generator
    from fusemix.inspection import Inspection, inspect
    from fusemix.matches import Probe
    from fusemix.migration import Migration, migrate
    from fusemix.model import FuseMix
    from fusemix.probing import probe
    from fusemix.search.hit import Hit
    from fusemix.search.index import Index
    from fusemix.search.opening import open_index
    from fusemix.sound import Sound
    from fusemix.studies import study
    from fusemix.subsets import Subset, select
    from fusemix.zeroshot import Classification, class_embeddings, zero_shot

_HOME = {
    "Classification": "fusemix.zeroshot",
    "Encoder": "fusemix.encoders",
    "Evaluation": "fusemix.evaluate",
    "FuseMix": "fusemix.model",
    "Generator": "fusemix.generation",
    "Hit": "fusemix.search.hit",
    "Index": "fusemix.search.index",
    "Inspection": "fusemix.inspection",
    "ItemError": "fusemix.data.media",
    "Latents": "fusemix.data.latents",
    "Migration": "fusemix.migration",
    "Pairs": "fusemix.data.pairs",
    "Probe": "fusemix.matches",
    "Sound": "fusemix.sound",
    "Subset": "fusemix.subsets",
    "class_embeddings": "fusemix.zeroshot",
    "extract": "fusemix.extraction",
    "inspect": "fusemix.inspection",
    "load_encoder": "fusemix.encoders",
    "migrate": "fusemix.migration",
    "open_index": "fusemix.search.opening",
    "open_latents": "fusemix.data.latents",
    "probe": "fusemix.probing",
    "read_pairs": "fusemix.data.pairs",
    "select": "fusemix.subsets",
    "study": "fusemix.studies",
    "zero_shot": "fusemix.zeroshot",
}

__all__ = [
    "Classification",
    "Encoder",
    "Evaluation",
    "FuseMix",
    "Generator",
    "Hit",
    "Index",
    "Inspection",
    "ItemError",
    "Latents",
    "Migration",
    "Pairs",
    "Probe",
    "Sound",
    "Subset",
    "class_embeddings",
    "extract",
    "inspect",
    "load_encoder",
    "migrate",
    "open_index",
    "open_latents",
    "probe",
    "read_pairs",
    "select",
    "study",
    "zero_shot",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'fusemix' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
