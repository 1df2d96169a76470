"""Devices and element types to test on: what needs PyTorch is skipped without it."""

import importlib.util

import pytest

collect_ignore = []
if importlib.util.find_spec("torch") is None:
    collect_ignore += ["test_linear.py", "test_cuda.py", "test_compile.py", "test_dropout.py"]
if any(importlib.util.find_spec(name) is None for name in ("torch", "peft", "transformers")):
    collect_ignore += ["test_patch.py", "test_siblings.py", "models.py"]

GPU = pytest.mark.gpu


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=GPU)])
def device(request):
    """A device to test on."""
    if request.param == "cuda":
        skip_without_gpu()
    return request.param


@pytest.fixture
def cuda():
    """The CUDA device."""
    skip_without_gpu()
    return "cuda"


def skip_without_gpu():
    import torch
    from lora_kernels import _native

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    reason = _native.missing(0)
    if reason:
        pytest.fail(reason)
