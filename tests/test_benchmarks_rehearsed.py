"""Benchmarks that need what is not everywhere: they say so, and the way through their code stays whole."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

import warm

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def bench(name, *words):
    env = {key: value for key, value in os.environ.items() if key != "FUSEMIX_DATA"}
    run = warm.python([BENCHMARKS / name, *words], Path.cwd(), {**env, "OMP_NUM_THREADS": "1"})
    assert run.returncode == 0, f"{run.stdout}\n{run.stderr}"
    return run.stdout


def test_the_gpu_benchmark_goes_through_on_a_cpu():
    out = bench("bench_gpu.py", "--rehearse")
    assert "RESULT" not in out, "tiny figures are no results"
    for words in ("relative error against float64", "share of its matrix rate", "not a matrix product", "TF32"):
        assert words in out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_cuda_the_gpu_benchmark_says_so_in_a_line():
    assert bench("bench_gpu.py") == "# no CUDA device here: the figures of a GPU stay open\n"


def test_without_data_the_fit_benchmark_says_so_in_a_line(tmp_path):
    for words in ((), ("--data", tmp_path)):
        out = bench("bench_fit.py", *words)
        assert out.startswith("# no Flickr8k latents here") and out.count("\n") == 1


def test_without_data_the_probe_benchmark_says_so_in_a_line(tmp_path):
    for words in ((), ("--data", tmp_path)):
        out = bench("bench_probe.py", "--keep", tmp_path / "keep", *words)
        assert out.startswith("# no Flickr8k here") and out.count("\n") == 1 and not (tmp_path / "keep").exists()


def test_the_fit_benchmark_prints_both_curves_and_a_ratio(tmp_path):
    """Made-up latents, laid out as the real ones."""
    rng = np.random.default_rng(0)
    arrays = tmp_path / "latents" / "flickr8k"
    arrays.mkdir(parents=True)
    (tmp_path / "flickr8k").mkdir()
    splits = ["train"] * 600 + ["val"] * 50
    (tmp_path / "flickr8k" / "images.tsv").write_text("image\tsplit\n" + "".join(f"x.jpg\t{s}\n" for s in splits))
    cause, image_of = rng.normal(size=(650, 6)), np.repeat(np.arange(650), 2)
    np.save(arrays / "image_mobilenet_v1.npy", (cause @ rng.normal(size=(6, 12))).astype(np.float16))
    np.save(arrays / "text_minilm_l6_v2.npy", (cause[image_of] @ rng.normal(size=(6, 9))).astype(np.float16))
    np.save(arrays / "caption_to_image.npy", image_of.astype(np.int32))
    keep = tmp_path / "curves.json"
    words = "bench_fit.py", "--data", tmp_path, "--epochs", 3, "--keep", keep
    out = bench(*words)
    assert "600 images, 1,200 pairs" in out and out.count("RESULT") == 1 and '"holds": true' in out
    again = bench(*words)
    assert "# fusemix: epoch" not in again and again.splitlines()[-1] == out.splitlines()[-1]
