"""LoRA linear layers as CUDA kernels, for PyTorch and PEFT.

H = X W0ᵀ + s · (X Aᵀ) Bᵀ, with the adapter inside the frozen layer's GEMM.

    import lora_kernels
    print(lora_kernels.patch(peft_model))

This module imports without PyTorch; the names below need it.
"""

from typing import TYPE_CHECKING

from ._native import __version__

if TYPE_CHECKING:
    from ._dropout import dropout_mask, dropout_state
    from ._linear import linear, linears
    from ._patch import patch, report, unpatch
    from ._report import Report

__all__ = [
    "Report",
    "__version__",
    "dropout_mask",
    "dropout_state",
    "linear",
    "linears",
    "patch",
    "report",
    "unpatch",
]

_HOMES = {
    "dropout_mask": "_dropout",
    "dropout_state": "_dropout",
    "linear": "_linear",
    "linears": "_linear",
    "patch": "_patch",
    "report": "_patch",
    "unpatch": "_patch",
    "Report": "_report",
}


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
