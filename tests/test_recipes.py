"""The paper's two runs, from annotation files to recall, on tiny random models of the same classes and a few rows."""

import csv
import io
import json
import os
import runpy
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import fusemix as fm
import warm

RECIPES = Path(__file__).parents[1] / "recipes"
WORDS = (
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "kite", "dog", "barks", "in", "the", "sky", "rain", "number",
    *map(str, range(12)),
)  # fmt: skip
LAYERS = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


def save(folder, *parts):
    for part in parts:
        part.save_pretrained(folder)
    return str(folder)


def save_bert(folder):
    import transformers as hf
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    torch.manual_seed(0)
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [("[CLS]", 2), ("[SEP]", 3)]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    config = hf.BertConfig(**LAYERS, hidden_size=16, vocab_size=len(WORDS), max_position_embeddings=16)
    fast = hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]")
    return save(folder, hf.BertModel(config), fast)


def save_dinov2(folder):
    import transformers as hf

    torch.manual_seed(0)
    config = hf.Dinov2Config(**LAYERS, hidden_size=32, image_size=32, patch_size=8)
    crop = {"height": 32, "width": 32}
    processor = hf.BitImageProcessorPil(size={"shortest_edge": 40}, crop_size=crop)
    return save(folder, hf.Dinov2Model(config), processor)


def save_whisper(folder):
    import transformers as hf

    torch.manual_seed(0)
    config = hf.WhisperConfig(
        d_model=32, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=32, decoder_layers=1,
        decoder_attention_heads=2, decoder_ffn_dim=32, max_source_positions=50, vocab_size=20, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    return save(folder, hf.WhisperModel(config), hf.WhisperFeatureExtractor(chunk_length=1))


def save_clap(folder):
    import transformers as hf

    torch.manual_seed(0)
    audio = {
        "num_mel_bins": 16, "spec_size": 64, "window_size": 4, "patch_embeds_hidden_size": 8, "depths": [1, 1],
        "num_attention_heads": [2, 2], "num_hidden_layers": 2, "hidden_size": 16, "patch_size": 4,
        "patch_stride": [4, 4], "enable_fusion": True,
    }  # fmt: skip
    text = {**LAYERS, "hidden_size": 16, "vocab_size": 20, "max_position_embeddings": 16, "pad_token_id": 1}
    config = hf.ClapConfig(audio_config=audio, text_config=text, projection_dim=8)
    return save(
        folder, hf.ClapModel(config), hf.ClapFeatureExtractor(feature_size=16, max_length_s=1, truncation="fusion")
    )


def jpeg(rng):
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (40, 48, 3), dtype=np.uint8)).save(file, "JPEG")
    return file.getvalue()


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content) if isinstance(content, bytes) else path.write_text(content, encoding="utf-8")


def environment(**settings):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, **settings}


def run(recipe, folder, data, **settings):
    """Run a copy of a recipe as a user does, in a folder of its own, though on forks; return what it printed."""
    shutil.copytree(RECIPES / recipe, folder / "recipes" / recipe)
    shutil.copy(RECIPES / "published.py", folder / "recipes")
    env = environment(OMP_NUM_THREADS="1", FIT="--epochs 2 --dim 16 --depth 1", **settings)
    command = [f"recipes/{recipe}/run.sh", data.name, "runs/out"]
    with warm.stand_in(folder / "bin"):
        env["PATH"] = f"{folder / 'bin'}{os.pathsep}{env['PATH']}"
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def check_results(out, printed, files, ways):
    """The last lines are the goals, and they say what evaluate printed; both directions of each."""
    found = {path.stem: json.loads(path.read_text()) for path in (out / name for name in files)}
    results = [json.loads(line.removeprefix("RESULT ")) for line in printed.splitlines()[-2 * len(files) :]]
    measured = [scores["retrieval"][way]["R@1"] for scores in found.values() for way in ways]
    assert [result["figure"] for result in results] == [round(figure, 1) for figure in measured]
    for result, (name, way) in zip(results, [(name, way) for name in found for way in ways], strict=True):
        assert f"{name} {way} R@1" in result["name"]
        assert result["holds"] is False  # also by chance: of the thousands of items that were published few are there
    for name, scores in found.items():
        assert scores["split"] == name and set(scores["baselines"]) == {"chance", "ridge", "cca"}
        assert all(f"| {name}, {way} | {method} |" in printed for way in ways for method in ("cca", "fusemix"))
        assert all(printed.count(f'"{way}"') >= 4 * len(files) for way in ways)  # evaluate itself, and its baselines
    return results


def karpathy(folder, dataset, rng, splits, **extra):
    """Pictures with two captions each in the form of Karpathy's files."""
    images = []
    for number, split in enumerate(splits):
        image = {"filename": f"{7000 + number}.jpg", "split": split, "cocoid": 100 + number, **extra}
        image["sentences"] = [{"raw": f'A red KITE; number "{number}".'}, {"raw": f"The sky in rain, number {number}"}]
        write(folder / extra.get("filepath", "images") / image["filename"], jpeg(rng))
        images.append(image)
    write(folder / f"dataset_{dataset}.json", json.dumps({"images": images, "dataset": dataset}))


def genome(folder, rng):
    """Four pictures: one of COCO's test split, one of Flickr30k's, one of COCO's training split, one of its own."""
    facts = [(1, 108, None), (2, None, 7001), (3, 100, 5), (4, None, None)]
    boxes = [{"width": 10 + i, "height": 10, "phrase": f"the red dog number {i}."} for i in range(12)]
    data = [
        {
            "image_id": n,
            "coco_id": coco,
            "flickr_id": flickr,
            "url": f"https://x.org/rak248/VG_100K_{1 + n % 2}/{n}.jpg",
        }
        for n, coco, flickr in facts
    ]
    write(folder / "image_data.json", json.dumps(data))
    write(folder / "region_descriptions.json", json.dumps([{"id": n, "regions": boxes} for n, _, _ in facts]))
    for n, _, _ in facts:
        write(folder / f"VG_100K_{1 + n % 2}" / f"{n}.jpg", jpeg(rng))


def web(path, rng, count):
    """A tar as img2dataset writes it."""
    path.parent.mkdir()
    with tarfile.open(path, "w") as tar:
        for i in range(count):
            fields = {"caption": f"rain in the sky {i}", "key": f"{i:09}", "status": "success", "exif": "{}"}
            parts = {"jpg": jpeg(rng), "json": json.dumps(fields).encode(), "txt": fields["caption"].encode()}
            for suffix, content in parts.items():
                member = tarfile.TarInfo(f"{i:09}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


@pytest.fixture(scope="module")
def bge(tmp_path_factory):
    return save_bert(tmp_path_factory.mktemp("bert") / "bge-large-x")


@pytest.mark.slow
def test_the_image_text_run_of_the_paper(bge, tmp_path):
    rng, data = np.random.default_rng(0), tmp_path / "data"
    splits = ["train"] * 4 + ["restval"] * 2 + ["val"] * 2 + ["test"] * 3
    karpathy(data / "coco", "coco", rng, splits, filepath="val2014")
    karpathy(data / "flickr30k", "flickr30k", rng, ["train", "test", "test"])
    genome(data / "vg", rng)
    web(data / "sbu" / "00000.tar", rng, 4)
    web(data / "cc3m" / "00000.tar", rng, 5)
    printed = run("paper_image_text", tmp_path, data, IMAGE=save_dinov2(tmp_path / "dinov2-x"), TEXT=bge)

    out = tmp_path / "runs" / "out"
    rows = pq.read_table(out / "pairs.parquet").to_pylist()
    counts = {"train": 12 + 2 * 8 + 4 + 5, "val": 4, "test-coco": 6, "test-flickr30k": 4}
    assert {split: sum(row["split"] == split for row in rows) for split in counts} == counts
    assert len(rows) == sum(counts.values())
    assert rows[0] == {
        "image": "coco/val2014/7000.jpg", "text": "a red kite number 0", "split": "train", "group": "coco/100",
    }  # fmt: skip
    regions = [row for row in rows if row["image"].startswith("vg/")]
    assert {(row["image"], row["group"]) for row in regions} == {
        ("vg/VG_100K_2/3.jpg", "coco/100"), ("vg/VG_100K_1/4.jpg", "vg/4"),
    }  # fmt: skip
    assert {row["text"] for row in regions} == {f"the red dog number {i}" for i in range(4, 12)}
    web_rows = [row for row in rows if ".tar#" in row["image"]]
    assert [(row["group"][-6:], row["text"]) for row in web_rows] == [
        (f"{i:02}.jpg", f"rain in the sky {i}") for count in (4, 5) for i in range(count)
    ]
    for row in web_rows:  # an image is where its place says, whole
        name, _, place = row["image"].partition("#")
        offset, size = map(int, place.split("+"))
        content = (data / name).read_bytes()[offset : offset + size]
        assert content[:2] == b"\xff\xd8" and content[-2:] == b"\xff\xd9"
    assert "vg               16 pairs          2 images" in printed

    latents = fm.open_latents(out / "latents")
    assert len(latents) == len(rows) and set(latents.splits) == set(counts)
    assert latents["image"].latents.shape == (6 + 2 + 3 + 2 + 2 + 4 + 5, 32)
    assert latents["text"].latents.shape[1] == 16 and latents["text"].encoder["pooling"] == "cls"
    model = fm.FuseMix.load(out / "model")
    assert model.facts_["trained_on"] == ["train"] and model.facts_["chosen_on"] == ["val"]
    assert (model.config_.dropout, model.config_.batch_size, model.config_.schedule) == (0.6, 20_480, "epoch")
    ways = ("text->image", "image->text")
    results = check_results(out, printed, ["test-coco.json", "test-flickr30k.json"], ways)
    assert [result["target"] for result in results] == [">= 46.3", ">= 62.7", ">= 71.2", ">= 84.8"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:At least one mel filter")
def test_the_audio_text_run_of_the_paper(bge, tmp_path):
    import soundfile

    rng, data = np.random.default_rng(0), tmp_path / "data"

    def sound(name, rate):
        t = np.arange(rate) / rate
        wave = 0.3 * np.sin(2 * np.pi * rng.uniform(200, 900) * t) + rng.normal(0, 0.05, rate)
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(data / name, wave.astype(np.float32), rate)

    for split, count, captions in (("train", 6, 1), ("val", 2, 5), ("test", 3, 5)):
        table = io.StringIO()
        writer = csv.writer(table)
        writer.writerow(["audiocap_id", "youtube_id", "start_time", "caption"])
        for i in range(count):
            key = f"-{split}_{i}"
            writer.writerows([[9, key, 30, f"A dog, it barks in the rain {i} {k}"] for k in range(captions)])
            # Three ways in which downloads name them; one clip is gone from the net.
            name = {0: f"{key}.wav", 1: f"Y{key}.wav", 2: f"{split}/{key}_30.flac"}.get(i, f"{key}.wav")
            if (split, i) != ("train", 5):
                sound(f"audiocaps/audio/{name}", 48000)
        write(data / "audiocaps" / f"{split}.csv", table.getvalue())
    for split, count in (("development", 4), ("validation", 2), ("evaluation", 3)):
        table = io.StringIO()
        writer = csv.writer(table)
        writer.writerow(["file_name", *(f"caption_{k}" for k in range(1, 6))])
        for i in range(count):
            sound(f"clotho/{split}/Rain {i}.wav", 44100)
            writer.writerow([f"Rain {i}.wav", *(f"The rain, {split} {i} {k}" for k in range(5))])
        write(data / "clotho" / f"clotho_captions_{split}.csv", table.getvalue())
    audio = f"{save_whisper(tmp_path / 'whisper-x')}+{save_clap(tmp_path / 'clap-x')}"
    printed = run("paper_audio_text", tmp_path, data, AUDIO=audio, TEXT=bge)

    out = tmp_path / "runs" / "out"
    assert "audiocaps train                1 clips are not in" in printed
    with (out / "pairs.csv").open(newline="") as file:
        for row in csv.DictReader(file):  # each caption names the clip that it was written for
            number = row["text"].split()[-2]
            assert number == row["sound"].rpartition(".")[0].removesuffix("_30")[-1]
            assert row["group"].removesuffix(".wav").endswith(number)
    latents = fm.open_latents(out / "latents")
    splits = latents.splits.tolist()
    counts = {"train": 5 + 20, "val": 10 + 10, "test-audiocaps": 15, "test-clotho": 15}
    assert {split: splits.count(split) for split in counts} == counts and len(splits) == sum(counts.values())
    assert latents["sound"].latents.shape == (10 + 9, 32 + 16) and latents["text"].latents.shape[1] == 16
    assert latents["sound"].kind == "audio" and latents["sound"].encoder["name"] == "whisper-x+clap-x"
    assert latents["text"].encoder["pooling"] == "cls"
    model = fm.FuseMix.load(out / "model")
    assert model.facts_["trained_on"] == ["train"] and model.facts_["chosen_on"] == ["val"]
    ways = ("text->sound", "sound->text")
    results = check_results(out, printed, ["test-audiocaps.json", "test-clotho.json"], ways)
    assert [result["target"] for result in results] == [">= 43.1", ">= 52.4", ">= 17.6", ">= 21.5"]


def test_unicom_is_a_function_in_a_file(tmp_path, monkeypatch):
    """The package of its authors is replaced by one with the same two things: a model and a transform."""
    code = (
        "import numpy as np, torch\n"
        "def load(name):\n"
        "    assert name == 'ViT-L/14@336px'\n"
        "    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 24))\n"
        "    return model, lambda image: torch.from_numpy(np.asarray(image.resize((8, 8)), np.float32))\n"
    )
    write(tmp_path / "unicom.py", code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("UNICOM", raising=False)
    from fusemix.encoders import load_encoder

    encoder = load_encoder(f"{RECIPES / 'paper_image_text' / 'unicom_encoder.py'}:encode", "image")
    try:
        latents = encoder.encode([Image.new("RGB", (9, 7), colour) for colour in ("red", "blue")])
    finally:
        del sys.modules["unicom"]
    assert encoder.takes == "image" and latents.shape == (2, 24) and latents.dtype == np.float32


@pytest.mark.parametrize(
    ("figure", "size", "holds"), [(47.04, 4_990, True), (46.2, 5_000, False), (46.3, 4_500, True), (99.0, 4_499, False)]
)
def test_a_published_figure_is_reached_only_on_a_gallery_like_the_published_one(figure, size, holds, tmp_path):
    ways = {way: {"R@1": figure, "R@5": 80, "R@10": 90, "gallery": size} for way in ("text->image", "image->text")}
    found = {"retrieval": ways, "baselines": {}, "notes": ["a note"]}
    write(tmp_path / "test-coco.json", json.dumps(found))
    command = [sys.executable, RECIPES / "published.py", "paper_image_text", tmp_path / "test-coco.json"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert "note, test-coco: a note" in lines
    assert json.loads(lines[-2].removeprefix("RESULT ")) == {
        "name": f"paper Table 1 (D,B 5M): test-coco text->image R@1, {size} of 5000 images",
        "figure": round(figure, 1), "target": ">= 46.3", "holds": holds,
    }  # fmt: skip


@pytest.mark.parametrize("recipe", ["paper_image_text", "paper_audio_text"])
def test_every_published_figure_is_in_the_readme(recipe):
    """What a result is read beside is written once for people and once for the machine; they must agree."""
    table = runpy.run_path(str(RECIPES / "published.py"))["TABLES"][recipe]
    readme = (RECIPES / recipe / "README.md").read_text()
    assert len(table.rows) >= 2
    for name, recalls in table.rows.items():
        row = next(text for text in readme.splitlines() if text.startswith(f"| {name} |"))
        assert [cell.strip() for cell in row.strip("|").split("|")][1:] == ["/".join(map(str, r)) for r in recalls]


@pytest.mark.parametrize("recipe", ["paper_image_text", "paper_audio_text"])
def test_a_folder_without_the_data_is_refused_by_name(recipe, tmp_path):
    command = [sys.executable, RECIPES / recipe / "pairs.py", tmp_path, tmp_path / "table"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and f"no file {tmp_path}" in done.stderr and "README" in done.stderr
    assert not (tmp_path / "table").exists()


@pytest.mark.parametrize("recipe", ["paper_image_text", "paper_audio_text"])
def test_a_wrong_call_is_refused_before_any_work(recipe, tmp_path):
    command = [RECIPES / recipe / "run.sh", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "DATA OUT" in done.stderr
    done = subprocess.run([*command, tmp_path / "out"], env=environment(ROW="7M"), capture_output=True, text=True)
    assert done.returncode == 2 and "invalid choice: '7M'" in done.stderr and not (tmp_path / "out").exists()
