"""The passes as operators of PyTorch, so that torch.compile keeps them in one graph.

Eager calls do not come here: an operator written in Python costs them tens of microseconds.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ._dropout import checked_state
from ._passes import check, find, input_gradient, thirds

_DEVICES = ("cpu", "cuda")

torch.library.define(
    "lora_kernels::forward",
    "(Tensor x, Tensor[] w0, Tensor[] a, Tensor[] b, float[] scales, "
    "float dropout_p, Tensor? dropout_state, bool save) -> Tensor[]",
)
torch.library.define(
    "lora_kernels::backward",
    "(Tensor[] dh, Tensor x, Tensor[] w0, Tensor[] a, Tensor[] b, Tensor s, Tensor? operands, "
    "float[] scales, float dropout_p, Tensor? dropout_state, bool want_dx) -> Tensor[]",
)


def call(
    tensors: Sequence[Tensor], scales: Sequence[float], p: float, state: Tensor | None
) -> list[Tensor]:
    """h of each, by the operator, given x, the w0 of every projection, every a, and every b.

    Raises ValueError for operands that no call takes.
    """
    # While PyTorch traces: the operator itself runs later, where nobody can serve it otherwise.
    check(tensors, p)
    x, *weights = tensors
    state = checked_state(x.device, state) if p else None
    w0, a, b = map(list, thirds(weights))
    scales = [float(scale) for scale in scales]
    params = any([one.requires_grad for one in weights])
    save = torch.is_grad_enabled() and (params or x.requires_grad)
    outputs = torch.ops.lora_kernels.forward(x, w0, a, b, scales, p, state, save)
    return outputs[: len(scales)]


def _dense(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [one.contiguous() for one in tensors]


@torch.library.impl("lora_kernels::forward", _DEVICES)
def _forward(x, w0, a, b, scales, dropout_p, dropout_state, save):
    """h of each; if `save`, s; and A, and B if rounded, of projections that are not one of x's
    type."""
    tensors = _dense((x, *w0, *a, *b))
    passes = find(tensors, dropout_p)
    h, s, operands = passes.forward(tensors, scales, dropout_state, save)
    if not save:
        return h
    return [*h, s, operands] if passes.masters or len(a) > 1 else [*h, s]


@torch.library.register_fake("lora_kernels::forward")
def _forward_fake(x, w0, a, b, scales, dropout_p, dropout_state, save):
    h = [x.new_empty((*x.shape[:-1], one.shape[0])) for one in w0]
    if not save:
        return h
    rank = sum(one.shape[1] for one in b)
    s = x.new_empty((x.shape[:-1].numel(), rank))
    if a[0].dtype != x.dtype:
        return [*h, s, x.new_empty(_rounded(x.shape[-1], [one.shape for one in b]))]
    return [*h, s] if len(a) == 1 else [*h, s, x.new_empty((rank, x.shape[-1]))]


def _rounded(k: int, sizes: Sequence[Sequence[int]]) -> int:
    """Elements of A and every B, each B at a multiple of 16 bytes: `Plan.operands`."""
    end = sum(r for _, r in sizes) * k
    for d, r in sizes:
        end = (end + 7) // 8 * 8 + d * r
    return end


@torch.library.impl("lora_kernels::backward", _DEVICES)
def _backward(dh, x, w0, a, b, s, operands, scales, dropout_p, dropout_state, want_dx):
    """dx if it is wanted, dA of all, and each dB."""
    tensors = x, *weights = _dense((x, *w0, *a, *b))
    passes, (w0, a, b) = find(tensors, dropout_p), thirds(weights)
    kept = x, s, a[0] if operands is None else operands, *w0, *(() if passes.masters else b)
    dx, da, db = passes.backward(kept, dh, scales, dropout_state, want_dx)
    return [dx, da, *db] if want_dx else [da, *db]


@torch.library.register_fake("lora_kernels::backward")
def _backward_fake(dh, x, w0, a, b, s, operands, scales, dropout_p, dropout_state, want_dx):
    dtype = a[0].dtype
    da = x.new_empty((s.shape[1], x.shape[-1]), dtype=dtype)
    db = [x.new_empty(one.shape, dtype=dtype) for one in b]
    return [x.new_empty(x.shape), da, *db] if want_dx else [da, *db]


def _setup(ctx, inputs, output):
    x, w0, a, b, scales, dropout_p, dropout_state, _ = inputs
    n = len(w0)
    ctx.scales, ctx.n, ctx.shape, ctx.dropout_p = scales, n, x.shape, dropout_p
    ctx.keeps = dropout_p > 0 or any(one.requires_grad for one in (*a, *b))
    ctx.want_dx = x.requires_grad
    ctx.save_for_backward(*w0, *a, *b, *((x, dropout_state, *output[n:]) if ctx.keeps else ()))


def _gradients(ctx, gradients):
    n, dh = ctx.n, gradients[: ctx.n]
    saved = ctx.saved_tensors
    w0, a, b, rest = saved[:n], saved[n : 2 * n], saved[2 * n : 3 * n], saved[3 * n :]
    if not ctx.keeps:
        dx = input_gradient(dh, (*w0, *a, *b), ctx.scales)
        return dx.view(ctx.shape), [None] * n, [None] * n, [None] * n, *(None,) * 4
    x, state, s, *operands = rest
    shapes = [(*x.shape[:-1], one.shape[0]) for one in w0]
    dh = [x.new_zeros(shape) if one is None else one for one, shape in zip(dh, shapes, strict=True)]
    operands = operands[0] if operands else None
    outputs = torch.ops.lora_kernels.backward(
        dh, x, w0, a, b, s, operands, ctx.scales, ctx.dropout_p, state, ctx.want_dx
    )
    dx, da, *db = outputs if ctx.want_dx else (None, *outputs)
    da = list(da.split([one.shape[0] for one in a]))
    return dx, [None] * n, da, db, *(None,) * 4


torch.library.register_autograd("lora_kernels::forward", _gradients, setup_context=_setup)
