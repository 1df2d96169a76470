"""Dropout of the adapters' input, against plain PyTorch with the mask applied by hand."""

import pytest
import torch
from cases import BF16, F32, bound, error, gradients, leaves, operands, plain, types, weights_of
from lora_kernels import dropout_mask, dropout_state, linear, linears
from torch.utils.checkpoint import checkpoint

SIZES = [((32, 4),), ((32, 4), (16, 8), (8, 4))]
P = 0.3


def exact(x, projections, weights, mask, p=P):
    """h of each and the gradients, in f64, with x of the adapters dropped by this mask."""
    wide = [one.detach().double().requires_grad_() for one in leaves(x, projections)]
    kept = mask.to(x.device).view(x.shape) / (1 - p)
    h = []
    for (w0, _, _, scale), a, b in zip(projections, wide[1::2], wide[2::2], strict=True):
        nothing = torch.zeros_like(w0, dtype=torch.float64)
        adapter = plain(wide[0] * kept, nothing, a, b, scale)
        h.append(wide[0] @ w0.double().T + adapter)
    loss = sum((one * weight.double()).sum() for one, weight in zip(h, weights, strict=True))
    return h, torch.autograd.grad(loss, wide)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("k", [48, 37])
def test_values_and_gradients(device, sizes, k):
    for dtype, masters in types(device):
        x, projections = operands(device, dtype, masters, k=k, sizes=sizes)
        torch.manual_seed(5)
        mask = dropout_mask(P, dropout_state(device), 10, k)
        torch.manual_seed(5)
        h = linears(x, projections, P)
        weights = weights_of(h)
        got = gradients(h, leaves(x, projections), weights)
        want_h, want = exact(x, projections, weights, mask)
        for one, wanted in zip((*h, *got), (*want_h, *want), strict=True):
            assert error(one, wanted) < bound(dtype), (dtype, masters, one.shape)


def test_masks_keep_their_share(device):
    for p in (0.1, 0.5):
        masks = [dropout_mask(p, dropout_state(device), 256, 320) for _ in range(2)]
        n = masks[0].numel()
        for mask in masks:
            assert abs(mask.double().mean() - (1 - p)) < 5 * (p * (1 - p) / n) ** 0.5
        same, expected = (masks[0] == masks[1]).double().mean(), p * p + (1 - p) ** 2
        assert abs(same - expected) < 5 * (expected * (1 - expected) / n) ** 0.5
    assert dropout_mask(0.5, dropout_state(device), 0, 3).shape == (0, 3)


def test_a_seed_repeats_a_mask_and_calls_differ(device):
    x, projections = operands(device, BF16, BF16)
    call = lambda: linear(x, *projections[0], P)  # noqa: E731
    torch.manual_seed(1)
    first, second = call(), call()
    torch.manual_seed(1)
    assert torch.equal(call(), first) and torch.equal(call(), second)
    assert not torch.equal(first, second)


def test_a_state_of_the_caller(device):
    x, projections = operands(device, BF16, BF16)
    state = torch.tensor([-5, 1 << 40], device=device)
    before = torch.get_rng_state()
    h = linear(x, *projections[0], P, state)
    assert torch.equal(h, linear(x, *projections[0], dropout_p=P, dropout_state=state))
    assert torch.equal(torch.get_rng_state(), before)
    weights = weights_of([h])
    want_h, _ = exact(x, projections, weights, dropout_mask(P, state, 10, 48))
    assert error(h, want_h[0]) < bound(BF16)
    for wrong in (state.int(), state[:1], state.view(2, 1)):
        with pytest.raises(ValueError, match=r"dropout_state is .*, expected torch\.int64 \[2\]"):
            linear(x, *projections[0], P, wrong)
    for p in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match="dropout_p is"):
            linear(x, *projections[0], p)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_draws_the_same_mask(device, reentrant):
    x, projections = operands(device, BF16, F32, sizes=SIZES[1])
    torch.manual_seed(2)
    h = linears(x, projections, P)
    weights = weights_of(h)
    want = gradients(h, leaves(x, projections), weights)
    torch.manual_seed(2)
    h = checkpoint(lambda x: linears(x, projections, P), x, use_reentrant=reentrant)
    torch.manual_seed(3)
    torch.autograd.backward(h, weights)
    for leaf, one in zip(leaves(x, projections), want, strict=True):
        assert torch.equal(leaf.grad, one)


def test_frozen_adapters(device):
    x, projections = operands(device, BF16, F32)
    for leaf in leaves(x, projections)[1:]:
        leaf.requires_grad_(False)
    state = dropout_state(device)
    h = linear(x, *projections[0], P, state)
    weights = weights_of([h])
    (dx,) = gradients([h], [x], weights)
    mask = dropout_mask(P, state, 10, 48)
    assert error(dx, exact(x, projections, weights, mask)[1][0]) < bound(BF16)


@pytest.mark.parametrize("masters", [BF16, F32])
def test_compiled(device, masters):
    x, projections = operands(device, BF16, masters, sizes=SIZES[1])
    state = dropout_state(device)
    h = linears(x, projections, P, state)
    weights = weights_of(h)
    want = gradients(h, leaves(x, projections), weights)
    torch._dynamo.reset()
    compiled = torch.compile(linears, backend="aot_eager", fullgraph=True)
    h = compiled(x, projections, P, state)
    got = gradients(h, leaves(x, projections), weights)
    assert all(map(torch.equal, got, want))
    assert not torch.equal(compiled(x, projections, P)[0], compiled(x, projections, P)[0])
