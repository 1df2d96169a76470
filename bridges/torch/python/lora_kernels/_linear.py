"""`linear` and `linears`: nodes of PyTorch's autograd."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from . import _operators
from ._passes import Passes, find, input_gradient

_PLAIN = (Tensor, torch.nn.Parameter)
_any_autocast = torch._C._is_any_autocast_enabled


def linear(x: Tensor, w0: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """h [..., d] = x W0ᵀ + scale · (x Aᵀ) Bᵀ of x [..., k].

    W0 [d, k] is frozen. A [r, k] and B [d, r] have the type of x, or are f32 beside an x of 16
    bits: they are then rounded for each call, and their gradients are f32.
    """
    return _call((x, w0, a, b), (scale,))[0]


def linears(
    x: Tensor, projections: Sequence[tuple[Tensor, Tensor, Tensor, float]]
) -> tuple[Tensor, ...]:
    """h [..., d] of 1 to 4 projections (w0, a, b, scale) that share x [..., k].

    They are computed together, with one dx in the backward pass. The shapes are those of `linear`;
    d, r and scale of each may differ. An output that the loss does not use leaves its A and B
    without gradients.
    """
    if not projections:
        raise ValueError("no projections, expected 1 to 4")
    w0, a, b, scales = zip(*projections, strict=True)
    return tuple(_call((x, *w0, *a, *b), scales))


def _call(tensors: Sequence[Tensor], scales: Sequence[float]) -> Sequence[Tensor]:
    """h of each, given x, the w0 of every projection, then every a, then every b."""
    if _any_autocast():
        tensors = _autocast(tensors)
    if (
        torch.compiler.is_compiling()
        or type(tensors[0]) not in _PLAIN
        or torch._C._are_functorch_transforms_active()
    ):
        return _operators.call(tensors, scales)
    if forward_ad._current_level >= 0:
        raise RuntimeError("lora_kernels has no forward-mode derivatives")
    passes = find(tensors)
    tensors = [one.contiguous() for one in tensors]
    if passes.saves and torch.is_grad_enabled():
        return _apply(passes, scales, *tensors)
    return passes.forward(tensors, scales, False)[0]


def _autocast(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """As autocast casts: not f64. f32 masters stay: they are rounded in the call."""
    kind = "cuda" if tensors[0].is_cuda else "cpu"
    if not torch.is_autocast_enabled(kind):
        return tensors
    dtype, n = torch.get_autocast_dtype(kind), len(tensors) // 3
    stays = [
        one.dtype == torch.float64 or (i > n and one.dtype == torch.float32)
        for i, one in enumerate(tensors)
    ]
    return [one if stay else one.to(dtype) for one, stay in zip(tensors, stays, strict=True)]


class _Linears(Function):
    @staticmethod
    def forward(ctx, passes: Passes, scales: Sequence[float], *tensors: Tensor):
        h, s, operands = passes.forward(tensors, scales, passes.params)
        ctx.set_materialize_grads(False)
        ctx.call = passes, scales
        n = len(scales)
        if not passes.params:
            # Adapters without gradients need only the weights.
            ctx.save_for_backward(*tensors[1:])
        elif passes.masters:
            ctx.save_for_backward(tensors[0], s, operands, *tensors[1 : 1 + n])
        else:
            w0, b = tensors[1 : 1 + n], tensors[1 + 2 * n :]
            ctx.save_for_backward(tensors[0], s, operands, *w0, *b)
        return tuple(h)

    @staticmethod
    def backward(ctx, *dh: Tensor | None):
        if not torch.is_grad_enabled():
            return _gradients(ctx, dh)
        with torch.no_grad():
            gradients = _gradients(ctx, dh)
        return _Once.apply(torch.empty(0, requires_grad=True), *gradients)


# Function.apply without its search for wrappers of functorch, which takes a third of the time.
_apply = super(Function, _Linears).apply


def _gradients(ctx, dh: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    (passes, scales), kept, wants = ctx.call, ctx.saved_tensors, ctx.needs_input_grad
    n = len(scales)
    if not passes.params:
        with torch.autocast(kept[0].device.type, enabled=False):
            dx = input_gradient(dh, kept, scales)
        return (None, None, dx.view(passes.shape), *(None,) * (3 * n))
    dx, da, db = passes.backward(kept, dh, scales, wants[2])
    if n == 1:
        return None, None, dx, None, da if wants[4] else None, db[0] if wants[5] else None
    # What the loss does not use has no gradient, as if it had been computed apart.
    used = [one is not None for one in dh]
    wanted = [want and used[i % n] for i, want in enumerate(wants[3 + n :])]
    params = zip((*passes.split(da), *db), wanted, strict=True)
    return (None, None, dx, *(None,) * n, *[one if want else None for one, want in params])


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
