"""Both passes on tensors: allocation by PyTorch, and one native call each."""

from collections.abc import Callable, Sequence
from contextlib import suppress

import torch
from torch import Tensor

from ._native import Plan

_NAMES = {torch.bfloat16: "bf16", torch.float16: "f16", torch.float32: "f32"}

# A model has a handful of shapes; the number of tokens may change with every batch.
_KEPT = 1024
_passes: dict[tuple[object, ...], "Passes"] = {}

# Outputs that S is computed beside where it is wanted alone: a line of 16 bytes.
_NARROW = 8

# The handle of the stream that PyTorch's operators run on, without an object for it.
_current_stream = getattr(torch._C, "_cuda_getCurrentRawStream", None)
_current_device = getattr(torch._C, "_cuda_getDevice", None)
_is_capturing = getattr(torch._C, "_cuda_isCurrentStreamCapturing", None)

# (shape, strides, dtype) to a tensor, on the CPU and on the current CUDA device: what Inductor's
# code allocates by. It takes a third of the time of torch.empty.
_empty_cpu = _empty_cuda = None
with suppress(ImportError):
    from torch._C._dynamo.guards import _empty_strided_cpu as _empty_cpu
    from torch._C._dynamo.guards import _empty_strided_cuda as _empty_cuda


def current_stream(device: int) -> int:
    """The handle of PyTorch's current stream; 0 on the CPU, which is device -1."""
    return 0 if device < 0 else _current_stream(device)


def find(tensors: Sequence[Tensor], dropout: float) -> "Passes":
    """The passes of operands of these shapes, types, devices and needs of gradients: x, then the w0
    of every projection, then every a, then every b. `dropout` is p of the adapters' input.

    Raises ValueError, with the shapes, for operands that no call takes.
    """
    if len(tensors) == 4:
        # Spelled out: a loop takes twice the time.
        x, w0, a, b = tensors
        key = (
            dropout,
            x.shape, x.dtype, x.device, x.requires_grad,
            w0.shape, w0.dtype, w0.device, w0.requires_grad,
            a.shape, a.dtype, a.device, a.requires_grad,
            b.shape, b.dtype, b.device, b.requires_grad,
        )  # fmt: skip
    else:
        values: list[object] = [dropout]
        for one in tensors:
            values += (one.shape, one.dtype, one.device, one.requires_grad)
        key = tuple(values)
    found = _passes.get(key)
    if found is None:
        if len(_passes) >= _KEPT:
            _passes.clear()
        found = _passes[key] = Passes(tensors, dropout)
    return found


def thirds(weights: Sequence[Tensor]) -> list[Sequence[Tensor]]:
    """w0, a and b."""
    n = len(weights) // 3
    return [weights[:n], weights[n : 2 * n], weights[2 * n :]]


def _dense(*shape: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """A shape, with its strides."""
    strides = [1]
    for size in shape[:0:-1]:
        strides.insert(0, strides[0] * max(size, 1))
    return shape, tuple(strides[: len(shape)])


class Passes:
    """Both passes of projections of one shape: x [..., k], w0 [d, k], a [r, k] and b [d, r].

    Tensors are in the order of `find`, and contiguous.
    """

    __slots__ = (
        "_backward_needs",
        "_da",
        "_db",
        "_dtype",
        "_forward_needs",
        "_gradients",
        "_h",
        "_n",
        "_operands",
        "_plan",
        "_ranks",
        "_s",
        "_where",
        "device",
        "dropout",
        "keeps",
        "masters",
        "saves",
        "shape",
        "strides",
        "work",
    )

    def __init__(self, tensors: Sequence[Tensor], dropout: float) -> None:
        check(tensors, dropout)
        x, *weights = tensors
        _, a, b = thirds(weights)
        k, t = x.shape[-1], x.shape[:-1].numel()
        self.device: int = x.get_device()
        self.masters = a[0].dtype != x.dtype
        """Whether A and B are f32 beside an x of 16 bits."""
        self.dropout = dropout
        params = any(one.requires_grad for one in weights)
        self.saves = params or x.requires_grad
        """Whether there is a backward pass."""
        self.keeps = params or dropout > 0
        """Whether it needs more than the weights."""
        self._where, self._dtype, self._gradients = x.device, x.dtype, a[0].dtype
        self._n = len(b)
        # Outputs of several are used together: they are not the last of a checkpoint.
        self.work = t * k * b[0].shape[0] if self.keeps and len(b) == 1 else 0
        """Multiplications of an H that a checkpoint may not need."""
        sizes = [tuple(one.shape) for one in b]
        self._ranks = [r for _, r in sizes]
        dtype = _NAMES[x.dtype]
        self._plan = Plan(self.device, t, k, sizes, dtype, self.masters, dropout)
        self.shape, self.strides = _dense(*x.shape)
        self._s, self._da = _dense(t, self._plan.rank), _dense(self._plan.rank, k)
        self._h = [_dense(*x.shape[:-1], d) for d, _ in sizes]
        self._db = [_dense(*size) for size in sizes]
        self._operands = self._plan.operands
        self._forward_needs = self._plan.forward_workspace
        self._backward_needs = self._plan.backward_workspace

    def __repr__(self) -> str:
        return repr(self._plan)

    def forward(
        self,
        tensors: Sequence[Tensor],
        scales: Sequence[float],
        state: Tensor | None,
        save: bool,
        h: Sequence[Tensor] | None = None,
    ) -> tuple[Sequence[Tensor], Tensor | None, Tensor]:
        """h [..., d] of each; s [T, R] if `save`; A of all, and each B if they had to be rounded.

        A backward pass takes the latter two. The only A is itself. `state` is that of the dropout.
        Given h, it is filled.
        """
        empty, dtype = self._allocator(), self._dtype
        if h is None:
            h = [empty(shape, strides, dtype) for shape, strides in self._h]
        s = empty(*self._s, dtype) if save else None
        operands = self._stacked(tensors, empty)
        scratch, flags = self._workspace(empty, self._forward_needs)
        self._plan.forward(
            current_stream(self.device),
            [one.data_ptr() for one in (*tensors, *h)],
            scales,
            operands.data_ptr(),
            0 if s is None else s.data_ptr(),
            0 if state is None else state.data_ptr(),
            0 if scratch is None else scratch.data_ptr(),
            0 if flags is None else flags.data_ptr(),
        )
        return h, s, operands

    def project(
        self, tensors: Sequence[Tensor], scales: Sequence[float], state: Tensor | None
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """As `forward` of one projection, but h is only allocated: s is that of the first outputs.

        Its sums may be in another order.
        """
        empty = self._allocator()
        x, w0, a, b = tensors
        operands = self._stacked(tensors, empty)
        if self.masters:
            rounded = operands[: a.numel()].view(a.shape), operands[-b.numel() :].view(b.shape)
            a, b = (to.copy_(one) for to, one in zip(rounded, (a, b), strict=True))
        narrow = x, w0[:_NARROW], a, b[:_NARROW]
        _, s, _ = find(narrow, self.dropout).forward(narrow, scales, state, True)
        return [empty(shape, strides, self._dtype) for shape, strides in self._h], s, operands

    def backward(
        self,
        kept: Sequence[Tensor],
        dh: Sequence[Tensor | None],
        scales: Sequence[float],
        state: Tensor | None,
        want_dx: bool,
    ) -> tuple[Tensor | None, Tensor, list[Tensor]]:
        """dx in the shape of x, or None; dA of all [R, k]; and each dB [d, r].

        `kept` are x, s and the operands of the forward pass, each w0, and each b unless they were
        rounded. A missing dh counts as zeros.
        """
        empty, gradients = self._allocator(), self._gradients
        dh = [
            kept[0].new_zeros(shape) if one is None else one.contiguous()
            for one, (shape, _) in zip(dh, self._h, strict=True)
        ]
        dx = empty(self.shape, self.strides, self._dtype) if want_dx else None
        da = empty(*self._da, gradients)
        db = [empty(shape, strides, gradients) for shape, strides in self._db]
        scratch, flags = self._workspace(empty, self._backward_needs)
        self._plan.backward(
            current_stream(self.device),
            [one.data_ptr() for one in (*kept, *dh, da, *db)],
            scales,
            dx.data_ptr() if want_dx else 0,
            0 if state is None else state.data_ptr(),
            0 if scratch is None else scratch.data_ptr(),
            0 if flags is None else flags.data_ptr(),
        )
        return dx, da, db

    def split(self, da: Tensor) -> Sequence[Tensor]:
        """dA [r, k] of each projection."""
        return (da,) if self._n == 1 else torch.split_with_sizes(da, self._ranks)

    def _stacked(self, tensors: Sequence[Tensor], empty: Callable[..., Tensor]) -> Tensor:
        """The A of all, or where A and each B will be rounded."""
        if self.masters:
            return empty((self._operands,), (1,), self._dtype)
        n = self._n
        return tensors[2] if n == 1 else torch.cat(tensors[1 + n : 1 + 2 * n])

    def _allocator(self) -> Callable[[tuple[int, ...], tuple[int, ...], torch.dtype], Tensor]:
        if self.device < 0:
            found = _empty_cpu
        else:
            found = _empty_cuda if _current_device() == self.device else None
        return found or self._empty

    def _empty(
        self, shape: tuple[int, ...], strides: tuple[int, ...], dtype: torch.dtype
    ) -> Tensor:
        return torch.empty_strided(shape, strides, dtype=dtype, device=self._where)

    def _workspace(
        self, empty: Callable[..., Tensor], needs: tuple[int, int]
    ) -> tuple[Tensor | None, Tensor | None]:
        """Scratch, and flags where those of the stream will not do.

        NOTES: a graph gets flags of its own, zeroed at each use. Its replays may run beside the
        stream that captured it, or beside another graph.
        """
        scratch, flags = needs
        own = None
        if flags and self.device >= 0 and _is_capturing():
            own = torch.zeros(flags, dtype=torch.uint8, device=self._where)
        return (empty((scratch,), (1,), torch.uint8) if scratch else None), own


def input_gradient(
    dh: Sequence[Tensor | None], weights: Sequence[Tensor], scales: Sequence[float]
) -> Tensor | None:
    """dx [T, k] alone, by PyTorch's operators: for adapters that want no gradient."""
    dx = None
    for one, w, down, up, scale in zip(dh, *thirds(weights), scales, strict=True):
        if one is None:
            continue
        one = one.reshape(-1, w.shape[0])
        part = torch.addmm(one @ w, one @ up.to(w.dtype), down.to(w.dtype), alpha=scale)
        dx = part if dx is None else dx + part
    return dx


def check(tensors: Sequence[Tensor], dropout: float) -> None:
    """Raises ValueError unless the operands fit each other."""
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout_p is {dropout}, expected 0 <= p < 1")
    x, *weights = tensors
    w0, a, b = thirds(weights)
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
    if any(one.requires_grad for one in w0):
        raise ValueError("w0 requires a gradient, expected a frozen weight")
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
