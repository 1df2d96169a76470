"""Both passes on tensors: allocation by PyTorch, and one native call each."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeAlias

import torch
from torch import Tensor

from ._native import Plan

_NAMES = {torch.bfloat16: "bf16", torch.float16: "f16", torch.float32: "f32"}

# A model has a handful of shapes; the number of tokens may change with every batch.
_KEPT = 1024
_passes: dict[tuple[object, ...], "Passes"] = {}
_last: dict[tuple[object, ...], "Passes"] = {}

# Outputs that S is computed beside where it is wanted alone: a line of 16 bytes.
_NARROW = 8

# The handle of the stream that PyTorch's operators run on, without an object for it.
_current_stream = getattr(torch._C, "_cuda_getCurrentRawStream", None)
_current_device = getattr(torch._C, "_cuda_getDevice", None)

# Bytes of scratch that a stream keeps, at most: S of 8192 tokens at r = 64. cuBLAS keeps 32 MiB.
_SMALL = 1 << 20

_address = Tensor.data_ptr

# (shape, strides, dtype) to a tensor, on the CPU and on the current CUDA device: what Inductor's
# code allocates by. It takes a third of the time of torch.empty.
_empty_cpu = _empty_cuda = None
with suppress(ImportError):
    from torch._C._dynamo.guards import _empty_strided_cpu as _empty_cpu
    from torch._C._dynamo.guards import _empty_strided_cuda as _empty_cuda


def current_stream(device: int) -> int:
    """The handle of PyTorch's current stream; 0 on the CPU, which is device -1."""
    return 0 if device < 0 else _current_stream(device)


def find(
    tensors: Sequence[Tensor], dropout: float, autocast: torch.dtype | None = None
) -> "Passes":
    """The passes of operands of these shapes, types, devices and needs of gradients: x, then the w0
    of every projection, then every a, then every b. `dropout` is p of the adapters' input.
    `autocast` is what is on: it is part of what `recall` compares.

    Raises ValueError, with the shapes, for operands that no call takes.
    """
    values: list[object] = [dropout, autocast]
    for one in tensors:
        values += (one.shape, one.dtype, one.device, one.requires_grad)
    key = tuple(values)
    found = _passes.get(key)
    if found is None:
        if len(_passes) >= _KEPT:
            _passes.clear()
        found = _passes[key] = Passes(tensors, dropout)
    return found


def recall(
    tensors: Sequence[Tensor], dropout: float, autocast: torch.dtype | None = None
) -> "Passes | None":
    """What `remember` was told last for these shapes, if the operands are as they were then: in all
    that `find` asks for, and in class, strides and functorch's transforms."""
    passes = _last.get((tensors[0].shape, tensors[-1].shape, len(tensors), autocast))
    if passes is not None and passes.dropout == dropout and passes.fit(*tensors):
        return passes
    return None


def remember(passes: "Passes", tensors: Sequence[Tensor], autocast: torch.dtype | None) -> None:
    """For operands like these, which are contiguous."""
    if passes.fit is None:
        passes.fit = _guard(tensors)
    if len(_last) >= _KEPT:
        _last.clear()
    _last[tensors[0].shape, tensors[-1].shape, len(tensors), autocast] = passes


def _guard(tensors: Sequence[Tensor]) -> Callable[..., bool]:
    """Whether tensors are as these: one call, of what torch.compile guards its code with."""
    # Another PyTorch may not have it, or not in this form: then every call takes `find`.
    with suppress(Exception):
        from torch._C._dynamo.guards import TensorGuards

        sizes, strides = [[*one.shape] for one in tensors], [[*one.stride()] for one in tensors]
        made = TensorGuards(*tensors, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides)
        return made.check
    return lambda *_: False


def thirds(weights: Sequence[Tensor]) -> list[Sequence[Tensor]]:
    """w0, a and b."""
    n = len(weights) // 3
    return [weights[:n], weights[n : 2 * n], weights[2 * n :]]


_Dense: TypeAlias = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]


def _dense(dtype: torch.dtype, *shape: int) -> _Dense:
    """Shape, strides and dtype."""
    strides = [1]
    for size in shape[:0:-1]:
        strides.insert(0, strides[0] * max(size, 1))
    return shape, tuple(strides[: len(shape)]), dtype


class Passes:
    """Both passes of projections of one shape: x [..., k], w0 [d, k], a [r, k] and b [d, r].

    Tensors are in the order of `find`, and contiguous.
    """

    __slots__ = (
        "_backward_needs",
        "_da",
        "_db",
        "_dx",
        "_forward_needs",
        "_h",
        "_n",
        "_operands",
        "_plan",
        "_ranks",
        "_s",
        "_where",
        "device",
        "dropout",
        "fit",
        "keeps",
        "masters",
        "saves",
        "shape",
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
        self.fit: Callable[..., bool] | None = None
        params = any(one.requires_grad for one in weights)
        self.saves = params or x.requires_grad
        """Whether there is a backward pass."""
        self.keeps = params or dropout > 0
        """Whether it needs more than the weights."""
        self._where = x.device
        self._n = len(b)
        # Outputs of several are used together: they are not the last of a checkpoint.
        self.work = t * k * b[0].shape[0] if self.keeps and len(b) == 1 else 0
        """Multiplications of an H that a checkpoint may not need."""
        sizes = [tuple(one.shape) for one in b]
        self._ranks = [r for _, r in sizes]
        self._plan = Plan(self.device, t, k, sizes, _NAMES[x.dtype], self.masters, dropout)
        dtype, gradients, rank = x.dtype, a[0].dtype, self._plan.rank
        self.shape = x.shape
        self._h = [_dense(dtype, *x.shape[:-1], d) for d, _ in sizes]
        self._s, self._operands = _dense(dtype, t, rank), _dense(dtype, self._plan.operands)
        self._dx, self._da = _dense(dtype, *x.shape), _dense(gradients, rank, k)
        self._db = [_dense(gradients, *size) for size in sizes]
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
        empty = self._allocator()
        if h is None:
            h = self._each(empty, self._h)
        s = empty(*self._s) if save else None
        operands = self._stacked(tensors, empty)
        self._enqueue(
            self._plan.forward,
            self._forward_needs,
            [*map(_address, (*tensors, *h))],
            scales,
            operands.data_ptr(),
            s.data_ptr() if save else 0,
            0 if state is None else state.data_ptr(),
        )
        return h, s, operands

    def project(
        self, tensors: Sequence[Tensor], scales: Sequence[float], state: Tensor | None
    ) -> tuple[Sequence[Tensor], Tensor, Tensor]:
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
        return self._each(empty, self._h), s, operands

    def backward(
        self,
        kept: Sequence[Tensor],
        dh: Sequence[Tensor],
        scales: Sequence[float],
        state: Tensor | None,
        want_dx: bool,
    ) -> tuple[Tensor | None, Tensor, Sequence[Tensor]]:
        """dx in the shape of x, or None; dA of all [R, k]; and each dB [d, r].

        `kept` are x, s and the operands of the forward pass, each w0, and each b unless they were
        rounded.
        """
        empty = self._allocator()
        dh = (dh[0].contiguous(),) if self._n == 1 else [one.contiguous() for one in dh]
        dx = empty(*self._dx) if want_dx else None
        da, db = empty(*self._da), self._each(empty, self._db)
        self._enqueue(
            self._plan.backward,
            self._backward_needs,
            [*map(_address, (*kept, *dh, da, *db))],
            scales,
            dx.data_ptr() if want_dx else 0,
            0 if state is None else state.data_ptr(),
        )
        return dx, da, db

    def zeros(self, i: int) -> Tensor:
        """dh of projection i, where the loss does not use its h."""
        shape, _, dtype = self._h[i]
        return torch.zeros(shape, dtype=dtype, device=self._where)

    def split(self, da: Tensor) -> Sequence[Tensor]:
        """dA [r, k] of each projection."""
        return (da,) if self._n == 1 else torch.split_with_sizes(da, self._ranks)

    def _each(self, empty: Callable[..., Tensor], of: Sequence[_Dense]) -> Sequence[Tensor]:
        # Without a loop for one.
        return (empty(*of[0]),) if self._n == 1 else [empty(*one) for one in of]

    def _stacked(self, tensors: Sequence[Tensor], empty: Callable[..., Tensor]) -> Tensor:
        """The A of all, or where A and each B will be rounded."""
        if self.masters:
            return empty(*self._operands)
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

    def _enqueue(
        self, call: Callable[..., bool], needs: tuple[int, int], *arguments: object
    ) -> None:
        """Calls with the stream before the arguments, and scratch and flags after them: those of
        the stream, but for large scratch.

        NOTES: a graph gets both for itself, the flags zeroed at each use. Its replays may run
        beside the stream that captured it, or beside another graph.
        """
        stream, (scratch, flags) = current_stream(self.device), needs
        lent = self._bytes(scratch) if scratch > _SMALL else None
        if not call(stream, *arguments, 0 if lent is None else lent.data_ptr(), 0):
            lent = self._bytes(scratch) if lent is None else lent
            own = torch.zeros(flags, dtype=torch.uint8, device=self._where)
            call(stream, *arguments, lent.data_ptr(), own.data_ptr())

    def _bytes(self, n: int) -> Tensor:
        return self._allocator()((n,), (1,), torch.uint8)


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
