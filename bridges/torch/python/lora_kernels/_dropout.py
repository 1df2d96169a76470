"""The masks of the adapters' dropout."""

import torch
from torch import Tensor

from ._native import kept

_WORD = (1 << 64) - 1


def dropout_state(device: torch.device | str) -> Tensor:
    """A seed and an offset, drawn by PyTorch's generator of the device: int64 [2], there.

    A mask is a function of these two, by Philox4x32-10. They are drawn as any random tensor of
    PyTorch is. So torch.manual_seed repeats a mask, a checkpoint draws the same one again, nothing
    waits for the GPU, and each replay of a CUDA graph has another.
    """
    return torch.randint(torch.iinfo(torch.int64).max, (2,), device=device)


def dropout_mask(p: float, state: Tensor, t: int, k: int) -> Tensor:
    """Which elements of x [t, k] a call with this state keeps: bool, on the CPU. For tests; it
    waits for the GPU if the state is there."""
    seed, offset = (word & _WORD for word in state.tolist())
    mask = bytearray(kept(p, seed, offset, t, k))
    return torch.frombuffer(mask, dtype=torch.bool).view(t, k) if mask else torch.ones(t, k).bool()


def checked_state(device: torch.device, state: Tensor | None) -> Tensor:
    """The state of a call on this device: a new one unless it is given."""
    if state is None:
        return dropout_state(device)
    if (state.dtype, state.device, tuple(state.shape)) != (torch.int64, device, (2,)):
        got = f"{state.dtype} {list(state.shape)} on {state.device}"
        raise ValueError(f"dropout_state is {got}, expected torch.int64 [2] on {device}")
    return state.contiguous()
