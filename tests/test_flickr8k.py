"""Real photographs through the command line, where the data lies beside the project; skipped where it does not."""

import json
import os
from pathlib import Path

import pytest

import warm

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("FUSEMIX_DATA", ROOT.parent / "shared" / "data"))

pytestmark = pytest.mark.skipif(not (DATA / "flickr8k" / "captions.tsv").is_file(), reason="no Flickr8k data here")


def fusemix(*words, cwd):
    env = {**os.environ, "MOBILENET": str(DATA / "weights" / "mobilenet_v2_tf_fp16.npz")}
    done = warm.run(words, cwd, env)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def test_photographs_and_captions_from_files_to_recall(tmp_path):
    """The first 60 training and 30 validation images, five captions each, with MobileNetV2 and MiniLM."""
    lines = (DATA / "flickr8k" / "captions.tsv").read_text().splitlines()
    kept = {split: [line for line in lines[1:] if f"\t{split}\t" in line] for split in ("train", "val")}
    (tmp_path / "captions.tsv").write_text("\n".join([lines[0], *kept["train"][:300], *kept["val"][:150]]) + "\n")
    encoder = f"image={ROOT / 'recipes' / 'flickr8k' / 'mobilenet.py'}:encode"
    words = ("extract", "captions.tsv", "--root", DATA / "flickr8k" / "images", "--image", encoder)
    counts = json.loads(fusemix(*words, "--text", "caption=minilm", "-o", "l", "--json", cwd=tmp_path))
    image = counts["modalities"]["image"]
    assert (image["items"], image["encoded"], counts["pairs"]) == (90, 90, 450)
    fusemix("fit", "l", "-o", "m", "--val", "none", "--epochs", 40, "--dim", 128, "-q", cwd=tmp_path)
    found = json.loads(fusemix("evaluate", "m", "l", "--split", "val", "--json", cwd=tmp_path))
    for way, scores in found["retrieval"].items():
        assert scores["R@1"] > 3 * found["baselines"]["chance"][way]["R@1"], way
    fusemix("index", "m", "l", "--split", "val", "-o", "i", cwd=tmp_path)
    assert len(json.loads(fusemix("search", "i", "a dog runs", "-k", 3, "--json", cwd=tmp_path))) == 3


def test_given_latents_instead_of_encoders(tmp_path):
    """The same job from .npy files, one vector per image and one per table row."""
    latents = DATA / "latents" / "flickr8k"
    words = ("extract", DATA / "flickr8k" / "captions.tsv", "--image", f"image={latents / 'image_mobilenet_v1.npy'}")
    counts = json.loads(
        fusemix(*words, "--text", f"caption={latents / 'text_minilm_l6_v2.npy'}", "-o", "l", "--json", cwd=tmp_path)
    )
    assert counts["splits"] == {"train": 30000, "val": 5000} and counts["pairs"] == counts["rows"] == 35000
