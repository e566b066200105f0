"""A memory that is really full: the address space is limited, and the fit goes on in pieces."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import warm

SCRIPT = """
import json, resource, sys
sys.path.insert(0, {tests!r})
import numpy as np, torch
torch.set_num_threads(1)
from dataclasses import replace
from test_fit import CPU, small
from fusemix.data.latents import Latents
from fusemix.fit import fit_adapters
from fusemix.progress import silent
from fusemix.training.step import Trainer

rng = np.random.default_rng(0)
z = rng.normal(size=(4096, 8))
train = Latents.from_arrays("train", x=z @ rng.normal(size=(8, 256)), y=z @ rng.normal(size=(8, 256)))
config = small(batch_size=2048, epochs=1, dropout=0.0, input_dropout=0.0, dim=16, depth=3, precision="float32")
pieces = []
real = Trainer._embed_all
Trainer._embed_all = lambda self, step, batch: (pieces.append((len(batch[0]), self.piece)), real(self, step, batch))[1]
few = train.take(np.arange(128))
fit_adapters(few, None, replace(config, batch_size=64), CPU, silent)  # everything is loaded, little is held
extra = int(sys.argv[1]) * 2**20
if extra:
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + extra, used + extra))
pieces.clear()
fitted = fit_adapters(train, None, config, CPU, silent)
print(json.dumps({{"loss": fitted.history[-1]["loss"], "pieces": pieces}}))
"""


def run(tmp_path: Path, extra: int) -> subprocess.CompletedProcess:
    script = tmp_path / "full.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent)))
    return warm.python([script, extra], tmp_path, dict(os.environ))


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS is of Linux")
def test_a_fit_in_too_little_memory_goes_on_in_pieces_with_the_same_loss(tmp_path):
    whole = json.loads(run(tmp_path, 0).stdout)
    assert {piece for _, piece in whole["pieces"]} == {whole["pieces"][0][1]}
    for extra in range(140, 20, -30):  # MiB; how much is just too little depends on the machine
        tight = run(tmp_path, extra)
        assert tight.returncode == 0, tight.stderr[-2000:]
        got = json.loads(tight.stdout)
        assert {rows for rows, _ in got["pieces"]} == {2048}, "the batch stays"
        assert got["loss"] == pytest.approx(whole["loss"], rel=1e-5)
        if got["pieces"][-1][1] < 2048:
            return
    pytest.fail("the memory was never too small")
