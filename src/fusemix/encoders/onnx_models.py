"""Frozen encoders from ONNX files, as optimum exports them: the graph, and beside it what prepares its input.

An ONNX file is data: it is run by onnxruntime without custom operators. Its weights may lie in files beside it, and
only there: a file that names weights outside of its folder is refused before onnxruntime sees it.
"""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from fusemix.encoders.base import Latent
from fusemix.encoders.huggingface import Checkpoint, describe_processor, describe_tokenizer
from fusemix.encoders.onnx_files import external_files, hash_files
from fusemix.encoders.pooling import choose, family_of, pool, poolings_of
from fusemix.encoders.sentence import read_sentence
from fusemix.encoders.tokens import Tokens
from fusemix.errors import EncoderError, MissingExtraError, choices

READY = ("sentence_embedding", "text_embeds", "image_embeds", "embeddings")  # one row per item, whatever else there is
HIDDEN = ("last_hidden_state", "token_embeddings", "hidden_states")
DTYPES = {
    "tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64, "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
}  # fmt: skip


class OnnxEncoder:
    """Images or texts to latents through onnxruntime, on CUDA where its build has that.

    Args:
        path: an .onnx file, or a folder with model.onnx or onnx/model.onnx; beside it tokenizer.json for texts or
            preprocessor_config.json for images, and config.json.
        kind: "image" or "text".
        pooling: of the graph's tokens, see `pooling.split`; None takes the graph's own row per item if it has
            one, else what the architecture was made for.

    Raises:
        EncoderError: the file, or what must lie beside it, is not there or does not load.
        MissingExtraError: onnxruntime is not installed.
    """

    def __init__(self, path: str, kind: str, pooling: str | None = None) -> None:
        if kind not in ("image", "text"):
            raise EncoderError(f"{path}: an ONNX file encodes images or texts, not {kind} items; give module:function")
        file = _find(Path(path))
        checkpoint = _checkpoint(file)
        weights = [file, *external_files(file)]
        self.takes = kind
        self.source = str(file)
        self.name = f"{checkpoint.name}/{file.relative_to(checkpoint.place).as_posix()}"
        self._session = _open(file)
        self._inputs = {given.name: given for given in self._session.get_inputs()}
        first = next(iter(self._inputs.values()))
        self._rows = first.shape[0] if first.shape and isinstance(first.shape[0], int) else None
        self.batch_size = self._rows or (64 if kind == "text" else 32)
        self._config = SimpleNamespace(**{"model_type": None, **(checkpoint.read_json("config.json") or {})})
        self._front: _Images | _Texts
        if kind == "text":
            self._front = _Texts(checkpoint, self._inputs, self._config)
            self.lengths = self._front.lengths
        else:
            self._front = _Images(checkpoint)
        self._outputs = [output.name for output in self._session.get_outputs()]
        self.output, self.pooling = self._choose_output(pooling, checkpoint)
        self.fingerprint: dict[str, Any] = {
            "loader": "onnx",
            "name": self.name,
            "weights": hash_files(weights),
            "inputs": {name: given.type for name, given in self._inputs.items()},
            "outputs": self._outputs,
            "reading": {"output": self.output, "pooling": self.pooling},
            "preprocessing": self._front.facts,
        }
        if pooling is not None:  # what the loader must be told to get this encoder again
            self.fingerprint["pooling"] = pooling

    def encode(self, items: Sequence[Any]) -> Latent:
        """Encode n items to (n, D)."""
        size = self._rows or max(len(items), 1)
        parts = [self._encode(items[start : start + size]) for start in range(0, len(items), size)]
        return np.concatenate(parts)

    def _encode(self, items: Sequence[Any]) -> Latent:
        # A graph of a fixed batch gets the last item again until it is full.
        padded = [*items, *[items[-1]] * ((self._rows or len(items)) - len(items))]
        batch = self._front.prepare(padded)
        unknown = [name for name in self._inputs if name not in batch]
        if unknown:
            raise EncoderError(f"{self.name} wants the input {unknown[0]!r}; {choices(unknown[0], batch)}")
        feed = {name: np.asarray(batch[name], dtype=DTYPES.get(i.type)) for name, i in self._inputs.items()}
        try:
            (rows,) = self._session.run([self.output], feed)
        except Exception as error:  # onnxruntime has no public base for its own
            raise EncoderError(f"{self.name}: onnxruntime could not run it: {_first_line(error)}") from error
        return self._pooled(torch.from_numpy(np.asarray(rows)), batch)[: len(items)]

    @torch.inference_mode()
    def _pooled(self, rows: torch.Tensor, batch: dict[str, Any]) -> Latent:
        if self.pooling in ("graph", "pooler"):
            ready: Latent = rows.float().flatten(1).numpy()
            return ready
        mask = batch.get("attention_mask")
        given = SimpleNamespace(last_hidden_state=rows)
        pooled = pool(given, self.pooling, None if mask is None else torch.from_numpy(mask), self._special)
        latents: Latent = self._front.finish(pooled).numpy()
        return latents

    def _choose_output(self, pooling: str | None, checkpoint: Checkpoint) -> tuple[str, str]:
        """Choose what stands for an item: an output of the graph, and how to pool its tokens ("graph": it has none)."""
        ranks = {output.name: len(output.shape or ()) for output in self._session.get_outputs()}
        ready = next((name for name in READY if name in ranks), None)
        hidden = next((name for name in HIDDEN if name in ranks), None)
        hidden = hidden or next((name for name, rank in ranks.items() if rank >= 3), None)
        self._special = 0
        if pooling is None and (ready or not hidden):
            return ready or self._only_row(ranks), "graph"
        family = family_of(self._config)
        self._special = family.special if family and self.takes == "image" else 0
        known = poolings_of(self._config, checkpoint.name, self._front.saved)
        own = "pooler" if self.takes == "image" and "pooler_output" in ranks else "mean"
        chosen = choose(pooling, known, own, self.name)
        self._front.check(chosen, self.name)
        if chosen != "pooler" and "pooler" in chosen.split("+"):
            raise EncoderError(
                f"{self.name}: no pooling {chosen!r}, as a graph gives its pooler or its tokens; choose one"
            )
        wanted = "pooler_output" if chosen == "pooler" else hidden
        if wanted not in ranks:
            raise EncoderError(f"{self.name} has no tokens or pooler for pooling {chosen!r}; {choices('', ranks)}")
        return str(wanted), chosen

    def _only_row(self, ranks: dict[str, int]) -> str:
        """Return the first output that is a row per item and no class scores."""
        found = [name for name in ranks if name != "logits"]
        if not found:
            raise EncoderError(
                f"{self.name} gives only logits, the scores of its classes; export it for feature extraction "
                "(optimum-cli export onnx --task feature-extraction)"
            )
        return found[0]


class _Texts:
    """Strings to token arrays by the tokenizer beside the graph."""

    def __init__(self, checkpoint: Checkpoint, inputs: dict[str, Any], config: Any) -> None:
        _require(checkpoint, ("tokenizer.json", "tokenizer_config.json"), "a text encoder")
        sentence = read_sentence(checkpoint)
        shape = inputs["input_ids"].shape if "input_ids" in inputs else []
        fixed = shape[1] if len(shape) == 2 and isinstance(shape[1], int) else None
        self.tokens = Tokens(checkpoint, sentence, checkpoint.name, config, fixed, local_files_only=True)
        self.lengths, self.finish, self.saved = self.tokens.lengths, sentence.layers, sentence.pooling
        self.check = sentence.check
        self.facts = {**describe_tokenizer(self.tokens.tokenizer), **self.tokens.facts, "layers": sentence.facts}

    def prepare(self, texts: Sequence[str]) -> dict[str, Any]:
        batch = dict(self.tokens.batch(texts, "np"))
        batch.setdefault("attention_mask", np.ones_like(batch["input_ids"]))
        batch.setdefault("token_type_ids", np.zeros_like(batch["input_ids"]))
        places = np.arange(batch["input_ids"].shape[1])
        batch.setdefault("position_ids", np.broadcast_to(places, batch["input_ids"].shape))
        return batch


class _Images:
    """Pictures to pixel arrays by the image processor beside the graph."""

    saved: str | None = None
    finish = staticmethod(lambda pooled: pooled)
    check = staticmethod(lambda pooling, name: None)

    def __init__(self, checkpoint: Checkpoint) -> None:
        from transformers import AutoImageProcessor

        _require(checkpoint, ("preprocessor_config.json",), "an image encoder")
        self.processor = checkpoint.load(AutoImageProcessor, backend="pil", local_files_only=True)
        self.facts = describe_processor(self.processor)

    def prepare(self, images: Sequence[Any]) -> dict[str, Any]:
        return dict(self.processor(images=list(images), return_tensors="np"))


def _find(path: Path) -> Path:
    """Return the .onnx file that a path stands for, in full."""
    places = [path, path / "model.onnx", path / "onnx" / "model.onnx"]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise EncoderError(f"no ONNX file {path}, nor model.onnx or onnx/model.onnx in it (looked in {Path.cwd()})")
    return found.absolute()


def _checkpoint(file: Path) -> Checkpoint:
    """Return the folder that describes the graph: the file's own, or the one above a folder called onnx."""
    beside = ("config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json")
    above = file.parent.name == "onnx" and not any((file.parent / name).is_file() for name in beside)
    return Checkpoint(str(file.parent.parent if above else file.parent))


def _require(checkpoint: Checkpoint, files: tuple[str, ...], purpose: str) -> None:
    if not any(checkpoint.find(file) for file in files):
        raise EncoderError(
            f"{checkpoint.place} has no {files[0]}, which {purpose} needs to prepare its input: "
            "put it beside the graph (the exported model's own save_pretrained writes it)"
        )


def _open(file: Path) -> Any:
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise MissingExtraError("onnxruntime", "onnx", "an ONNX encoder") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # its warnings are about its own optimiser
    wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
    providers = [name for name in wanted if name in onnxruntime.get_available_providers()]
    try:
        return onnxruntime.InferenceSession(str(file), options, providers=providers)
    except Exception as error:  # onnxruntime has no public base for its own
        raise EncoderError(f"{file}: onnxruntime could not load it: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
