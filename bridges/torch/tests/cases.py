"""Operands, and what they should give: plain PyTorch in f64."""

import torch

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32


def types(device):
    """(x, A and B)."""
    sixteen = [(BF16, BF16), (F16, F16), (BF16, F32), (F16, F32)]
    return sixteen + ([(F32, F32)] if device == "cpu" else [])


def operands(device, dtype, masters, t=(2, 5), k=48, sizes=((32, 4),), seed=0):
    """x and (w0, a, b, scale) of each, all but w0 with gradients."""
    rng = torch.Generator().manual_seed(seed)

    def tensor(shape, of, std):
        return (std * torch.randn(shape, generator=rng)).to(device, of)

    x = tensor((*t, k), dtype, 1).requires_grad_()
    projections = []
    for i, (d, r) in enumerate(sizes):
        a = tensor((r, k), masters, k**-0.5).requires_grad_()
        b = tensor((d, r), masters, r**-0.5).requires_grad_()
        projections.append((tensor((d, k), dtype, k**-0.5), a, b, 0.5 + i))
    return x, projections


def leaves(x, projections):
    return [x, *(one for _, a, b, _ in projections for one in (a, b))]


def plain(x, w0, a, b, scale):
    """As PEFT has it."""
    low_rank = (x.to(a.dtype) @ a.T) @ b.T
    return (x @ w0.T + low_rank * scale).to(x.dtype)


def exact(x, projections, weights):
    """h of each, and the gradients of the weighted sum of all h with respect to the leaves."""
    wide = [one.detach().double().requires_grad_() for one in leaves(x, projections)]
    each = zip(projections, wide[1::2], wide[2::2], strict=True)
    h = [plain(wide[0], w0.double(), a, b, scale) for (w0, _, _, scale), a, b in each]
    loss = sum((one * weight.double()).sum() for one, weight in zip(h, weights, strict=True))
    return h, torch.autograd.grad(loss, wide)


def weights_of(h, seed=1):
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(one.shape, generator=rng).to(one.device, one.dtype) for one in h]


def gradients(h, wanted, weights):
    pairs = [(one, weight) for one, weight in zip(h, weights, strict=True) if weight is not None]
    outputs, of = zip(*pairs, strict=True)
    return torch.autograd.grad(outputs, wanted, of, allow_unused=True)


def error(got, want):
    """Relative, in norm."""
    return ((got.double() - want.double()).norm() / want.double().norm()).item()


def bound(dtype):
    return {F32: 2e-6, F16: 2e-3, BF16: 1.5e-2}[dtype]
