"""`linear` and `linears`: nodes of PyTorch's autograd."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from . import _operators
from ._dropout import checked_state
from ._passes import find, input_gradient, recall, remember

_PLAIN = (Tensor, torch.nn.Parameter)
_any_autocast = torch._C._is_any_autocast_enabled
_graph_task = torch._C._current_graph_task_id
_saved_tensors_hooks = torch._C._autograd._top_saved_tensors_default_hooks

# Multiplications of H from which on a checkpoint's second forward pass makes S first, and H when S
# was saved. Where nothing else is to be saved, the checkpoint stops there: the last GEMM of a block
# is not computed again. An nn.Linear, which saves its operands before it computes, has the same.
_LATE = 1 << 35


def linear(
    x: Tensor,
    w0: Tensor,
    a: Tensor,
    b: Tensor,
    scale: float,
    dropout_p: float = 0.0,
    dropout_state: Tensor | None = None,
) -> Tensor:
    """h [..., d] = x W0ᵀ + scale · (x Aᵀ) Bᵀ of x [..., k].

    W0 [d, k] is frozen. A [r, k] and B [d, r] have the type of x, or are f32 beside an x of 16
    bits: they are then rounded for each call, and their gradients are f32.

    With `dropout_p` above 0, the adapter's x is m ∘ x / (1 - p), with a mask m that is 0 with
    probability p. It is a function of `dropout_state`, by default a new one: see
    :func:`dropout_state` and :func:`dropout_mask`.
    """
    return _call((x, w0, a, b), (scale,), dropout_p, dropout_state)


def linears(
    x: Tensor,
    projections: Sequence[tuple[Tensor, Tensor, Tensor, float]],
    dropout_p: float = 0.0,
    dropout_state: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """h [..., d] of 1 to 4 projections (w0, a, b, scale) that share x [..., k].

    They are computed together, with one dx in the backward pass. The shapes are those of `linear`;
    d, r and scale of each may differ. An output that the loss does not use leaves its A and B
    without gradients. They share the mask of the dropout.
    """
    if not projections:
        raise ValueError("no projections, expected 1 to 4")
    w0, a, b, scales = zip(*projections, strict=True)
    h = _call((x, *w0, *a, *b), scales, dropout_p, dropout_state)
    return h if len(scales) > 1 else (h,)


def _call(
    tensors: Sequence[Tensor], scales: Sequence[float], p: float, state: Tensor | None
) -> Tensor | tuple[Tensor, ...]:
    """h, of several a tuple, given x, the w0 of every projection, then every a, then every b."""
    autocast = autocast_dtype(tensors[0])
    if autocast is not None:
        tensors = _autocast(tensors, autocast)
    compiling = torch.compiler.is_compiling()
    passes = None if compiling else recall(tensors, p, autocast)
    if passes is None:
        if (
            compiling
            or type(tensors[0]) not in _PLAIN
            or torch._C._are_functorch_transforms_active()
        ):
            return _result(_operators.call(tensors, scales, p, state))
        passes = find(tensors, p, autocast)
        tensors = [one.contiguous() for one in tensors]
        remember(passes, tensors, autocast)
    if forward_ad._current_level >= 0:
        raise RuntimeError("lora_kernels has no forward-mode derivatives")
    state = checked_state(tensors[0].device, state) if p else None
    if not (passes.saves and torch.is_grad_enabled()):
        return _result(passes.forward(tensors, scales, state, False)[0])
    late = passes.work >= _LATE and _recomputes()
    h = _apply((passes, scales, state, late), *tensors)
    if late:
        with torch.no_grad():
            passes.forward(tensors, scales, state, False, [h])
    return h


def _result(h: Sequence[Tensor]) -> Tensor | tuple[Tensor, ...]:
    return h[0] if len(h) == 1 else tuple(h)


def _recomputes() -> bool:
    """Whether a checkpoint computes again what its backward pass takes: a forward pass within a
    backward pass, with hooks on what is saved."""
    return _graph_task() != -1 and _saved_tensors_hooks(False) is not None


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """What autocast casts to on the device of x, if it is on."""
    if not _any_autocast():
        return None
    kind = "cuda" if x.is_cuda else "cpu"
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def _autocast(tensors: Sequence[Tensor], dtype: torch.dtype) -> Sequence[Tensor]:
    """As autocast casts: not f64. f32 masters stay: they are rounded in the call."""
    n = len(tensors) // 3
    stays = [
        one.dtype == torch.float64 or (i > n and one.dtype == torch.float32)
        for i, one in enumerate(tensors)
    ]
    return [one if stay else one.to(dtype) for one, stay in zip(tensors, stays, strict=True)]


class _Linears(Function):
    @staticmethod
    def forward(ctx, call: tuple, *tensors: Tensor):
        passes, scales, state, late = call
        if late:
            h, s, operands = passes.project(tensors, scales, state)
        else:
            h, s, operands = passes.forward(tensors, scales, state, passes.keeps)
        n = len(scales)
        ctx.call = passes, scales
        if passes.keeps:
            b = () if passes.masters else tensors[1 + 2 * n :]
            dropout = () if state is None else (state,)
            ctx.save_for_backward(tensors[0], s, operands, *tensors[1 : 1 + n], *b, *dropout)
        else:
            ctx.save_for_backward(*tensors[1:])
        if n == 1:
            return h[0]
        ctx.set_materialize_grads(False)
        return tuple(h)

    @staticmethod
    def backward(ctx, *dh: Tensor | None):
        if not torch.is_grad_enabled():
            return _gradients(ctx, dh)
        with torch.no_grad():
            gradients = _gradients(ctx, dh)
        return _Once.apply(torch.empty(0, requires_grad=True), *gradients)


# Without what these do first: Function.apply looks for wrappers of functorch, for a third of its
# time, and the node's apply for a vjp.
_apply = super(Function, _Linears).apply
_Linears._backward_cls.apply = _Linears.backward


def _gradients(ctx, dh: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    (passes, scales), kept, wants = ctx.call, ctx.saved_tensors, ctx.needs_input_grad
    n = len(scales)
    if not passes.keeps:
        with torch.autocast(kept[0].device.type, enabled=False):
            dx = input_gradient(dh, kept, scales)
        return None, dx.view(passes.shape), *(None,) * (3 * n)
    state = None
    if passes.dropout:
        *kept, state = kept
    if n == 1:
        dx, da, (db,) = passes.backward(kept, dh, scales, state, wants[1])
        return None, dx, None, da if wants[3] else None, db if wants[4] else None
    # What the loss does not use has no gradient, as if it had been computed apart.
    used = [one is not None for one in dh]
    dh = [passes.zeros(i) if one is None else one for i, one in enumerate(dh)]
    dx, da, db = passes.backward(kept, dh, scales, state, wants[1])
    wanted = [want and used[i % n] for i, want in enumerate(wants[2 + n :])]
    params = zip((*passes.split(da), *db), wanted, strict=True)
    return None, dx, *(None,) * n, *[one if want else None for one, want in params]


class _Once(Function):
    """Gradients as they are. PyTorch's once_differentiable lets a second derivative pass as zero
    where dh does not depend on anything."""

    @staticmethod
    def forward(ctx, _requires_grad: Tensor, *gradients: Tensor | None):
        return gradients

    @staticmethod
    def backward(ctx, *_: Tensor | None):
        raise RuntimeError(
            "lora_kernels.linear has no second derivative: double backward (create_graph=True) "
            "through it is not supported"
        )
