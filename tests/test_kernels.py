"""The Triton kernels: under the interpreter everywhere, and on a GPU where there is one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from fusemix.align.losses import info_nce
from fusemix.align.mixup import gather_mix, mix

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def test_the_kernels_equal_their_eager_forms_under_the_interpreter():
    """In a process of its own: Triton decides when it is imported whether to compile or to interpret."""
    pytest.importorskip("triton", reason="Triton is not installed here")
    file = Path(__file__).with_name("interpreted_kernels.py")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "--numprocesses", "0", str(file)],
        env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, cwd=file.parent.parent,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-4000:]


def test_the_kernels_are_not_imported_on_a_cpu():
    code = (
        "import sys, torch; from fusemix.align.losses import info_nce; from fusemix.align.mixup import gather_mix;"
        "x = torch.eye(4).requires_grad_(); info_nce(x, x, 0.1).backward();"
        "gather_mix(x.detach(), torch.arange(2), torch.arange(2), 0.5);"
        "print('fusemix.align.kernels' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


@needs_gpu
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("temperature", [0.01, 0.07])
@pytest.mark.parametrize(("size", "dim"), [(2, 8), (1000, 500), (5000, 512)])
def test_a_gpu_gives_what_float64_gives(size, dim, temperature, dtype, tolerance):
    generator = torch.Generator().manual_seed(0)
    x, y = (F.normalize(torch.randn(size, dim, generator=generator), dim=1).to(dtype) for _ in range(2))
    results = []
    for device, precision in (("cpu", torch.float64), ("cuda", dtype)):
        sides = [side.to(device, precision, copy=True).requires_grad_() for side in (x, y)]
        at = torch.tensor(temperature, dtype=torch.float64, device=device, requires_grad=True)
        loss = info_nce(*sides, at)
        loss.backward()
        results.append([part.detach().cpu().double() for part in (loss, sides[0].grad, sides[1].grad, at.grad)])
    for one, other in zip(*results, strict=True):
        assert (one - other).norm() <= tolerance * other.norm()


@needs_gpu
def test_gather_mix_on_a_gpu_equals_mix():
    latents = torch.randn(1000, 770).half().cuda()
    first, second = torch.randint(0, 1000, (2, 300), device="cuda").unbind()
    expected = mix(latents[torch.cat([first, second])].float(), 0.3)
    torch.testing.assert_close(gather_mix(latents, first, second, 0.3), expected, rtol=3e-7, atol=3e-7)
