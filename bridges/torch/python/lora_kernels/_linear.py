"""`linear` and `linears`: nodes of PyTorch's autograd."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from . import _operators
from ._passes import Passes, find, input_gradient

_PLAIN = (Tensor, torch.nn.Parameter)


def linear(x: Tensor, w0: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """h [..., d] = x W0ᵀ + scale · (x Aᵀ) Bᵀ of x [..., k].

    W0 [d, k] is frozen. A [r, k] and B [d, r] have the type of x, or are f32 beside an x of 16
    bits: they are then rounded for each call, and their gradients are f32.
    """
    return _call(x, (w0,), (a,), (b,), (scale,))[0]


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
    return tuple(_call(x, *zip(*projections, strict=True)))


def _call(
    x: Tensor,
    w0: Sequence[Tensor],
    a: Sequence[Tensor],
    b: Sequence[Tensor],
    scales: Sequence[float],
) -> Sequence[Tensor]:
    kind = "cuda" if x.is_cuda else "cpu"
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        x, w0 = _cast(x, dtype), [_cast(one, dtype) for one in w0]
        # f32 masters stay: they are rounded in the call.
        a, b = ([one if one.dtype == torch.float32 else _cast(one, dtype) for one in ab]
                for ab in (a, b))  # fmt: skip
    for one in w0:
        if one.requires_grad:
            raise ValueError("w0 requires a gradient, expected a frozen weight")
    save = torch.is_grad_enabled() and (
        x.requires_grad or any([one.requires_grad for one in (*a, *b)])
    )
    if (
        torch.compiler.is_compiling()
        or type(x) not in _PLAIN
        or torch._C._are_functorch_transforms_active()
    ):
        return _operators.call(x, w0, a, b, scales, save)
    if forward_ad._current_level >= 0:
        raise RuntimeError("lora_kernels has no forward-mode derivatives")
    passes = find(x, w0, a, b)
    x = x.contiguous()
    w0, a, b = ([one.contiguous() for one in wab] for wab in (w0, a, b))
    if not save:
        return passes.forward(x, w0, a, b, scales, False)[0]
    return _apply(passes, scales, x, *w0, *a, *b)


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """As autocast casts: not f64."""
    return tensor if tensor.dtype == torch.float64 else tensor.to(dtype)


class _Linears(Function):
    @staticmethod
    def forward(ctx, passes: Passes, scales: Sequence[float], x: Tensor, *weights: Tensor):
        n = len(scales)
        w0, a, b = weights[:n], weights[n : 2 * n], weights[2 * n :]
        params = any(ctx.needs_input_grad[3 + n :])
        h, s, operands = passes.forward(x, w0, a, b, scales, params)
        ctx.set_materialize_grads(False)
        ctx.passes, ctx.scales = passes, scales
        # Adapters without gradients need only the weights.
        ctx.save_for_backward(*((x, s, operands) if params else (None,) * 3), *weights)
        ctx.shape = x.shape
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
    passes, scales = ctx.passes, ctx.scales
    x, s, operands, *weights = ctx.saved_tensors
    n = len(scales)
    w0, a, b = weights[:n], weights[n : 2 * n], weights[2 * n :]
    wants = ctx.needs_input_grad
    none = (None,) * n
    if x is None:
        with torch.autocast(w0[0].device.type, enabled=False):
            dx = input_gradient(dh, w0, a, b, scales)
        return (None, None, dx.view(ctx.shape), *none, *none, *none)
    dx, da, db = passes.backward(dh, x, w0, a, b, s, operands, scales, wants[2])
    if n == 1:
        return None, None, dx, None, da if wants[4] else None, db[0] if wants[5] else None
    # What the loss does not use has no gradient, as if it had been computed apart.
    used = [one is not None for one in dh]
    wanted = [want and used[i % n] for i, want in enumerate(wants[3 + n :])]
    params = zip((*passes.split(da), *db), wanted, strict=True)
    return (None, None, dx, *none, *[one if want else None for one, want in params])


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
