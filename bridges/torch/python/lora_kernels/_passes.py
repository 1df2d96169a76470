"""Both passes on tensors: allocation by PyTorch, and one native call each."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ._native import Plan

_NAMES = {torch.bfloat16: "bf16", torch.float16: "f16", torch.float32: "f32"}

# A model has a handful of shapes; the number of tokens may change with every batch.
_KEPT = 1024
_passes: dict[tuple[object, ...], "Passes"] = {}

# The handle of the stream that PyTorch's operators run on, without an object for it.
_current_stream = getattr(torch._C, "_cuda_getCurrentRawStream", None)


def current_stream(device: int) -> int:
    """The handle of PyTorch's current stream; 0 on the CPU, which is device -1."""
    return 0 if device < 0 else _current_stream(device)


def find(x: Tensor, w0: Sequence[Tensor], a: Sequence[Tensor], b: Sequence[Tensor]) -> "Passes":
    """The passes of operands of these shapes, types and devices.

    Raises ValueError, with the shapes, for operands that no call takes.
    """
    key = [x.shape, x.dtype, x.device]
    for one in (*w0, *a, *b):
        key += (one.shape, one.dtype, one.device)
    key = tuple(key)
    found = _passes.get(key)
    if found is None:
        if len(_passes) >= _KEPT:
            _passes.clear()
        found = _passes[key] = Passes(x, w0, a, b)
    return found


class Passes:
    """Both passes of projections of one shape: x [..., k], w0 [d, k], a [r, k] and b [d, r]."""

    __slots__ = (
        "_backward_needs",
        "_forward_needs",
        "_h_shapes",
        "_operands",
        "_plan",
        "_rank",
        "_ranks",
        "_sizes",
        "device",
        "k",
        "masters",
        "t",
    )

    def __init__(
        self, x: Tensor, w0: Sequence[Tensor], a: Sequence[Tensor], b: Sequence[Tensor]
    ) -> None:
        check(x, w0, a, b)
        self.device: int = x.get_device()
        self.k = x.shape[-1]
        self.t = x.shape[:-1].numel()
        self.masters = a[0].dtype != x.dtype
        self._sizes = [tuple(one.shape) for one in b]
        self._ranks = [r for _, r in self._sizes]
        self._h_shapes = [(*x.shape[:-1], d) for d, _ in self._sizes]
        self._plan = Plan(self.device, self.t, self.k, self._sizes, _NAMES[x.dtype], self.masters)
        self._rank = self._plan.rank
        self._operands = self._plan.operands
        self._forward_needs = self._plan.forward_workspace
        self._backward_needs = self._plan.backward_workspace

    def __repr__(self) -> str:
        return repr(self._plan)

    def forward(
        self,
        x: Tensor,
        w0: Sequence[Tensor],
        a: Sequence[Tensor],
        b: Sequence[Tensor],
        scales: Sequence[float],
        save: bool,
    ) -> tuple[list[Tensor], Tensor | None, Tensor | None]:
        """h [..., d] of each; s [T, R] if `save`; A of all, and each B if they had to be rounded.

        A backward pass takes the latter two. All tensors are contiguous.
        """
        h = [x.new_empty(shape) for shape in self._h_shapes]
        s = x.new_empty((self.t, self._rank)) if save else None
        if self.masters:
            operands = x.new_empty(self._operands)
            a_at, rounded = [one.data_ptr() for one in a], operands.data_ptr()
        else:
            operands = None if len(a) == 1 else torch.cat(a)
            a_at, rounded = [(a[0] if operands is None else operands).data_ptr()], 0
        scratch, flags = self._workspace(x, self._forward_needs)
        self._plan.forward(
            current_stream(self.device),
            x.data_ptr(),
            [one.data_ptr() for one in w0],
            a_at,
            [one.data_ptr() for one in b],
            scales,
            rounded,
            [one.data_ptr() for one in h],
            s.data_ptr() if save else 0,
            scratch.data_ptr() if scratch is not None else 0,
            flags.data_ptr() if flags is not None else 0,
        )
        return h, s, operands

    def backward(
        self,
        dh: Sequence[Tensor | None],
        x: Tensor,
        w0: Sequence[Tensor],
        a: Sequence[Tensor],
        b: Sequence[Tensor],
        s: Tensor,
        operands: Tensor | None,
        scales: Sequence[float],
        want_dx: bool,
    ) -> tuple[Tensor | None, Tensor, list[Tensor]]:
        """dx in the shape of x, or None; dA of all [R, k]; and each dB [d, r].

        A missing dh counts as zeros.
        """
        dh = [
            x.new_zeros(shape) if one is None else one.contiguous()
            for one, shape in zip(dh, self._h_shapes, strict=True)
        ]
        gradients = torch.float32 if self.masters else x.dtype
        dx = x.new_empty(x.shape) if want_dx else None
        da = x.new_empty((self._rank, self.k), dtype=gradients)
        db = [x.new_empty(size, dtype=gradients) for size in self._sizes]
        if self.masters:
            a_at, b_at, rounded = [], [], operands.data_ptr()
        else:
            a_at = [(a[0] if operands is None else operands).data_ptr()]
            b_at, rounded = [one.data_ptr() for one in b], 0
        scratch, flags = self._workspace(x, self._backward_needs)
        self._plan.backward(
            current_stream(self.device),
            x.data_ptr(),
            s.data_ptr(),
            [one.data_ptr() for one in w0],
            a_at,
            b_at,
            scales,
            rounded,
            [one.data_ptr() for one in dh],
            dx.data_ptr() if want_dx else 0,
            da.data_ptr(),
            [one.data_ptr() for one in db],
            scratch.data_ptr() if scratch is not None else 0,
            flags.data_ptr() if flags is not None else 0,
        )
        return dx, da, db

    def split(self, da: Tensor) -> tuple[Tensor, ...]:
        """dA [r, k] of each projection."""
        return (da,) if len(self._ranks) == 1 else da.split(self._ranks)

    def _workspace(self, x: Tensor, needs: tuple[int, int]) -> tuple[Tensor | None, Tensor | None]:
        """Scratch, and flags where those of the stream will not do.

        NOTES: a graph gets flags of its own, zeroed at each use. Its replays may run beside the
        stream that captured it, or beside another graph.
        """
        scratch, flags = needs
        own = None
        if flags and self.device >= 0 and torch.cuda.is_current_stream_capturing():
            own = x.new_zeros(flags, dtype=torch.uint8)
        return (x.new_empty(scratch, dtype=torch.uint8) if scratch else None), own


def input_gradient(
    dh: Sequence[Tensor | None],
    w0: Sequence[Tensor],
    a: Sequence[Tensor],
    b: Sequence[Tensor],
    scales: Sequence[float],
) -> Tensor | None:
    """dx [T, k] alone, by PyTorch's operators: for adapters that want no gradient."""
    dx = None
    for one, w, down, up, scale in zip(dh, w0, a, b, scales, strict=True):
        if one is None:
            continue
        one = one.reshape(-1, w.shape[0])
        part = torch.addmm(one @ w, one @ up.to(w.dtype), down.to(w.dtype), alpha=scale)
        dx = part if dx is None else dx + part
    return dx


def check(x: Tensor, w0: Sequence[Tensor], a: Sequence[Tensor], b: Sequence[Tensor]) -> None:
    """Raises ValueError unless the operands fit each other."""
    if x.dim() == 0:
        raise ValueError("x is a scalar, expected [..., k]")
    k, dtype, device = x.shape[-1], x.dtype, x.device
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"x is on {device}, expected a CUDA device or the CPU")
    if dtype not in _NAMES or (device.type == "cuda" and dtype == torch.float32):
        expected = "bfloat16 or float16" + ("" if device.type == "cuda" else ", or float32")
        raise ValueError(f"x is {dtype} on {device.type}, expected {expected}")
    masters = a[0].dtype
    if masters not in (dtype, torch.float32):
        raise ValueError(f"a is {masters} beside x of {dtype}, expected {dtype} or float32")
    for i, (w, down, up) in enumerate(zip(w0, a, b, strict=True)):
        shapes = f"x {list(x.shape)}, w0 {list(w.shape)}, a {list(down.shape)}, b {list(up.shape)}"
        of = f" of projection {i}" if len(w0) > 1 else ""
        fit = w.dim() == down.dim() == up.dim() == 2
        fit = fit and tuple(w.shape) == (up.shape[0], k) and tuple(down.shape) == (up.shape[1], k)
        if not fit:
            expected = "x [..., k], w0 [d, k], a [r, k] and b [d, r]"
            raise ValueError(f"shapes{of} do not fit: {shapes}; expected {expected}")
        if not 1 <= up.shape[1] <= 256:
            raise ValueError(f"rank {up.shape[1]}{of} is outside 1..=256 ({shapes})")
        for name, one, wanted in (("w0", w, dtype), ("a", down, masters), ("b", up, masters)):
            if one.dtype != wanted:
                raise ValueError(f"{name}{of} is {one.dtype}, expected {wanted} ({shapes})")
            if one.device != device:
                raise ValueError(f"{name}{of} is on {one.device}, but x on {device} ({shapes})")
