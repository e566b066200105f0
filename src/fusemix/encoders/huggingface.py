"""Loading frozen models of the transformers library: where they lie, what they weigh, and the facts that name them.

Only safetensors weights are read and no code of a model's folder is ever run. Images go through the PIL preprocessing
of transformers and sounds through its numpy preprocessing, so neither torchvision nor torchaudio is needed.
"""

import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from enum import Enum
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from fusemix.encoders.base import hash_json
from fusemix.errors import EncoderError, choices

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TOWERS = {"image": "vision_model", "text": "text_model", "audio": "audio_model"}
# Towers saved by themselves that AutoModel does not list.
UNLISTED = {
    "clap_audio_model": "ClapAudioModel", "siglip_text_model": "SiglipTextModel",
    "siglip2_text_model": "Siglip2TextModel",
}  # fmt: skip
# What a file says of its making or of training heads, and what changes from one version of transformers to the next.
IMMATERIAL = {
    "_attn_implementation", "_commit_hash", "_name_or_path", "architectures", "auto_map", "dtype", "id2label",
    "label2id", "name_or_path", "output_attentions", "output_hidden_states", "problem_type", "processor_class",
    "return_dict", "task_specific_params", "torch_dtype", "transformers_version", "use_cache",
}  # fmt: skip
LONG_TEXT, LONG_REASON = 256, 300
OFFLINE = ("hog", "minilm")  # encoders that need neither a folder nor the hub
FORMS_OF_SPEC = (
    "hog, minilm, a transformers or sentence-transformers folder or hub id, an ONNX file, timm:NAME, "
    "open_clip:MODEL/PRETRAINED, diffusers:PIPELINE, module:function, file.py:function, a .npy file, or several "
    "of them as A+B"
)


@dataclass(frozen=True)
class Checkpoint:
    """Where a model lies.

    Attributes:
        place: full path of a folder, so that it is found from anywhere, or a hub id.
        revision: branch, tag or commit of a hub id; None is its main branch.
        subfolder: part of the place that holds the model.
        main: the file that makes it a model.
    """

    place: str
    revision: str | None = None
    subfolder: str = ""
    main: str = "config.json"

    @classmethod
    def of(
        cls, spec: str, main: str = "config.json", what: str = "encoder", forms: str = FORMS_OF_SPEC
    ) -> "Checkpoint":
        """Read a folder, a hub id or `id@revision`; `what` it is to be, and its `forms`, are for the error.

        Raises:
            EncoderError: a revision of a folder, or neither a folder nor a model of the hub.
        """
        if Path(spec).is_dir():
            return cls(str(Path(spec).resolve()), main=main)
        near = get_close_matches(spec, OFFLINE) if what == "encoder" else []
        if near:
            raise EncoderError(f"no encoder {spec!r}; did you mean {near[0]!r}? (an encoder is {forms})")
        place, _, revision = spec.partition("@")
        if revision and Path(place).is_dir():
            raise EncoderError(
                f"{place!r} is a folder, which has no revision {revision!r}; only hub ids have revisions"
            )
        found = cls(place, revision or None, main=main)
        if found.find(main) is None:
            raise EncoderError(
                f"no {what} {spec!r}: no such folder in {Path.cwd()}, and no such model on the hub (or the hub was "
                f"not reached, and the model is not in its cache); wanted {forms}"
            )
        return found

    @property
    def is_folder(self) -> bool:
        """Tell a folder from a hub id."""
        return Path(self.place).is_dir()

    @property
    def name(self) -> str:
        """The name of a folder, wherever it lies, or the whole hub id."""
        return Path(self.place).name if self.is_folder else self.place

    @property
    def source(self) -> str:
        """What loads these very files again: a hub id is pinned to its commit."""
        commit = self.commit or self.revision
        return f"{self.place}@{commit}" if commit else self.place

    @property
    def commit(self) -> str | None:
        """The commit that a hub id stands for today; None for a folder."""
        path = None if self.is_folder else self.find(self.main)
        found = re.search(r"snapshots/([0-9a-f]{40})/", path.as_posix()) if path else None
        return found[1] if found else None

    def find(self, file: str) -> Path | None:
        """Return a file of the model, from the folder or the hub (or its cache when offline); None if it has none."""
        from transformers.utils import cached_file

        if self.is_folder:
            path = Path(self.place, self.subfolder, file)
            return path if path.is_file() else None
        try:
            found = cached_file(self.place, file, revision=self.revision or "main", subfolder=self.subfolder)
        except (OSError, ValueError):
            return None
        return Path(found) if found else None

    def surely_lacks(self, file: str) -> bool:
        """Tell a model that has no such file from one of which, offline, it is not known."""
        from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache

        if self.is_folder:
            return self.find(file) is None
        path = f"{self.subfolder}/{file}".removeprefix("/")
        return try_to_load_from_cache(self.place, path, revision=self.revision) is _CACHED_NO_EXIST

    def read_json(self, file: str) -> Any:
        """Return the content of a JSON file of the model; None if it has none.

        Raises:
            EncoderError: it is damaged.
        """
        path = self.find(file)
        try:
            return None if path is None else json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise EncoderError(f"{path} is damaged: {error}") from error

    def load(self, factory: Any, **options: Any) -> Any:
        """Load with transformers, without its own progress bar, and say in one line what went wrong.

        Raises:
            EncoderError: it does not load.
        """
        from transformers.utils import logging

        if self.revision:
            options["revision"] = self.revision
        if self.subfolder:
            options["subfolder"] = self.subfolder
        shown = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()
        try:
            with warnings.catch_warnings():
                # The published audio spectrogram transformers have such filters; nobody can choose others.
                warnings.filterwarnings("ignore", message="At least one mel filter has all zero values")
                return factory.from_pretrained(self.place, trust_remote_code=False, **options)
        except Exception as error:  # only transformers knows what it raises on a stranger's files
            raise EncoderError(self._failure(factory, error)) from error
        finally:
            if shown:
                logging.enable_progress_bar()

    def _failure(self, factory: Any, error: Exception) -> str:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        reason = reason if len(reason) <= LONG_REASON else f"{reason[:LONG_REASON]}..."
        library = factory.__module__.partition(".")[0]
        return f"{self.place!r}: {factory.__name__} of {library} could not load it: {reason}"


def choose_device() -> torch.device:
    """Return the accelerator if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def choose_precision(asked: str | None, device: torch.device) -> torch.dtype:
    """Choose by what the device can do: bfloat16 from CUDA compute capability 8 on, else float32.

    A CPU always computes in float32: most of them emulate bfloat16, eight times slower.

    Raises:
        EncoderError: no such precision.
    """
    if asked is not None:
        if asked not in PRECISIONS:
            raise EncoderError(f"no precision {asked!r}; {choices(asked, PRECISIONS)}")
        return PRECISIONS[asked]
    capable = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 8
    return torch.bfloat16 if capable else torch.float32


def load_model(checkpoint: Checkpoint, kind: str, precision: torch.dtype) -> Any:
    """Load a model frozen; of a two-tower or an encoder-decoder model only the part that sees items of this kind.

    Raises:
        EncoderError: it does not load, it has no such part, or some of its weights are not there and would be random.
    """
    import transformers

    config = checkpoint.read_json("config.json") or {}
    refuse_other_weights(checkpoint, "model.safetensors.index.json")
    _refuse_backbones(checkpoint, config)
    model_type = str(config.get("model_type"))
    factory = getattr(transformers, UNLISTED.get(model_type, "AutoModel"))
    model, report = checkpoint.load(factory, dtype=precision, use_safetensors=True, output_loading_info=True)
    tower = _tower(model, kind, checkpoint.place)
    part = getattr(model, tower) if tower else model
    own = part.state_dict()
    missing = sorted(key.removeprefix(f"{tower}.") for key in report["missing_keys"])
    missing = [key for key in missing if key in own]
    if missing and all(key.startswith("pooler.") for key in missing):
        part.pooler = None  # checkpoints of classifiers and masked language models have none
    elif missing:
        raise EncoderError(
            f"{checkpoint.place!r} lacks {len(missing)} weights of {type(part).__name__}, such as {missing[0]}: "
            "they would be random; give a complete checkpoint"
        )
    return part.eval().requires_grad_(False)


def refuse_other_weights(checkpoint: Checkpoint, index_file: str) -> None:
    """Hold a model to its own safetensors files.

    `use_safetensors` is a wish: what the index names is opened with `torch.load` if its name ends otherwise.

    Raises:
        EncoderError: it names another file.
    """
    index = checkpoint.read_json(index_file) or {}
    for file in sorted(set(map(str, index.get("weight_map", {}).values()))):
        if not re.fullmatch(r"[\w.-]+\.safetensors", file):
            raise EncoderError(f"{checkpoint.place!r} keeps weights in {file!r}; wanted .safetensors files of its own")


def _refuse_backbones(checkpoint: Checkpoint, config: Any) -> None:
    """Hold a model to its own weights.

    Raises:
        EncoderError: its settings name another model.
    """
    waiting = [config]
    while waiting:
        values = waiting.pop()
        if isinstance(values.get("backbone"), str) or values.get("use_pretrained_backbone"):
            raise EncoderError(
                f"{checkpoint.place!r} takes its backbone, {values.get('backbone')!r}, from elsewhere; "
                "give that model itself"
            )
        waiting += [value for value in values.values() if isinstance(value, Mapping)]


def _tower(model: Any, kind: str, place: str) -> str:
    """Name the part of a model that sees items of this kind; "" is all of it."""
    towers = {other: name for other, name in TOWERS.items() if hasattr(model, name)}
    if len(towers) > 1:
        if kind not in towers:
            raise EncoderError(f"{place!r} has no part for {kind} items; {choices(kind, towers)}")
        return towers[kind]
    return "encoder" if getattr(model.config, "is_encoder_decoder", False) else ""


def model_facts(model: Any, checkpoint: Checkpoint, kind: str, name: str | None = None) -> dict[str, Any]:
    """Return what a fingerprint says of the network itself.

    The configuration is what the author of the model wrote, without the defaults that transformers fills in: those
    come and go with its versions, and the canaries see whether they change a latent.
    """
    config = checkpoint.read_json("config.json") or {}
    return {
        "loader": "transformers",
        "name": name or checkpoint.name,
        "revision": checkpoint.commit or checkpoint.revision,
        "architecture": type(model).__name__,
        "config": plain(config.get(f"{TOWERS[kind].removesuffix('_model')}_config", config)),
        "dtype": str(model.dtype).removeprefix("torch."),
        "weights": hash_weights(model),
    }


def hash_weights(model: torch.nn.Module) -> str:
    """Hash the tensors of a model as loaded, whatever they are called.

    Their order is that of their shapes, and among equal shapes that in which the model holds them. So a version of
    transformers that renames parameters, or moves parts of different shapes, leaves the hash as it is, and two
    tensors that changed places change it: only equal shapes can, and those are hashed in their places. Not seen are
    integers such as position numbers, which versions add and drop. A version that reorders parts of equal shape
    changes the hash: old latents are then refused, which is safe.
    """
    tensors = {(t.data_ptr(), t.shape): t for t in model.state_dict().values() if t.is_floating_point()}
    digest = sha256()
    for tensor in sorted(tensors.values(), key=lambda tensor: tuple(tensor.shape)):
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def plain(value: Any) -> Any:
    """Turn settings into JSON values that read back equal, without what does not decide latents.

    Nothing (None) is left out, as versions differ in whether they write it; a list of settings becomes numbered
    fields, so that a difference can name one; a long text becomes its hash.
    """
    if isinstance(value, Mapping):
        kept = {str(key): plain(item) for key, item in value.items() if str(key) not in IMMATERIAL}
        return {key: item for key, item in kept.items() if item is not None}
    if isinstance(value, (list, tuple)):
        if any(isinstance(item, Mapping) for item in value):
            return plain(dict(enumerate(value)))
        return [plain(item) for item in value]
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, str):
        return value if len(value) <= LONG_TEXT else f"sha256:{sha256(value.encode()).hexdigest()[:16]}"
    # Arrays, as filter banks, follow from the other settings, with the rounding of this machine.
    return value if isinstance(value, (bool, int, float)) else None


def describe_processor(processor: Any) -> dict[str, Any]:
    """Return the settings of an image processor or an audio feature extractor."""
    settings: dict[str, Any] = plain(processor.to_dict())
    kind = settings.get("image_processor_type")
    if kind:  # the same arithmetic goes by several names
        settings["image_processor_type"] = re.sub("(Fast|Pil)$", "", kind)
    return settings


def describe_tokenizer(tokenizer: Any) -> dict[str, Any]:
    """Return the settings of a tokenizer, its vocabulary as a hash."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # a tokenizer written in Python
        return {"type": type(tokenizer).__name__, "vocabulary": hash_json(tokenizer.get_vocab())}
    state = json.loads(backend.to_str())
    model = state["model"]
    vocabulary = hash_json([model.pop("vocab", None), model.pop("merges", None), state.pop("added_tokens", None)])
    for name in ("version", "decoder", "truncation", "padding"):  # the latter two are set anew in every call
        state.pop(name, None)
    return {"vocabulary": vocabulary, **plain(state)}
