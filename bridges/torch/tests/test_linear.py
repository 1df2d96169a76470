"""`linear` and `linears` against plain PyTorch in f64."""

import threading

import pytest
import torch
from cases import (
    BF16,
    F32,
    bound,
    error,
    exact,
    gradients,
    leaves,
    operands,
    plain,
    types,
    weights_of,
)  # fmt: skip
from lora_kernels import _linear, _passes, linear, linears
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

SIZES = [((32, 4),), ((32, 4), (16, 8), (8, 4)), ((33, 3), (7, 1), (16, 16), (5, 2))]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("k", [48, 37])
def test_values_and_gradients(device, sizes, k):
    for dtype, masters in types(device):
        x, projections = operands(device, dtype, masters, k=k, sizes=sizes)
        h = linears(x, projections)
        weights = weights_of(h)
        got = gradients(h, leaves(x, projections), weights)
        want_h, want = exact(x, projections, weights)
        for one, wanted in zip((*h, *got), (*want_h, *want), strict=True):
            assert error(one, wanted) < bound(dtype), (dtype, masters, one.shape)
        assert [one.dtype for one in got] == [dtype] + [masters] * 2 * len(sizes)
        assert [one.shape for one in h] == [(2, 5, d) for d, _ in sizes]


def test_the_error_is_no_larger_than_that_of_pytorch_in_16_bits(device):
    """With f32 masters too: PyTorch multiplies by them in f32, but here they are rounded."""

    def in_16_bits(x, w0, a, b, scale):
        return plain(x, w0, a.to(x.dtype), b.to(x.dtype), scale)

    for masters in (BF16, F32):
        x, projections = operands(device, BF16, masters, t=(512,), k=256, sizes=((256, 16),))
        outputs = []
        for function in (linear, in_16_bits):
            h = function(x, *projections[0])
            weights = weights_of([h])
            outputs.append((h, *gradients([h], leaves(x, projections), weights)))
        want_h, want = exact(x, projections, weights)
        for ours, theirs, exactly in zip(*outputs, (*want_h, *want), strict=True):
            assert error(ours, exactly) < 1.1 * error(theirs, exactly)


def test_what_needs_no_gradient_gets_none(device):
    dtype = types(device)[-1][0] if device == "cpu" else BF16
    for frozen in [{0}, {1}, {2}, {0, 1}, {0, 2}, {1, 2}]:
        x, projections = operands(device, dtype, dtype)
        wanted = leaves(x, projections)
        for i in frozen:
            wanted[i].requires_grad_(False)
        h = linears(x, projections)
        weights = weights_of(h)
        torch.autograd.backward(h, weights)
        _, want = exact(x, projections, weights)
        for i, one in enumerate(wanted):
            assert (one.grad is None) == (i in frozen)
            assert i in frozen or error(one.grad, want[i]) < bound(dtype)


def test_frozen_adapters_keep_the_weights_alone(device):
    x, projections = operands(device, BF16, F32, sizes=SIZES[1])
    weights = [one for w0, a, b, _ in projections for one in (w0, a, b)]
    for one in weights:
        one.requires_grad_(False)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one) or one, lambda o: o):
        h = linears(x, projections)
    known = {one.data_ptr() for one in weights}
    assert {one.data_ptr() for one in kept} == known
    weights = weights_of(h)
    (dx,) = gradients(h, [x], weights)
    assert error(dx, exact(x, projections, weights)[1][0]) < bound(BF16)


def test_without_gradients_nothing_is_recorded(device):
    x, projections = operands(device, BF16, BF16)
    with torch.no_grad():
        h = linear(x, *projections[0])
    assert not h.requires_grad
    assert error(h, plain(*(one.double() if isinstance(one, torch.Tensor) else one
                            for one in (x, *projections[0])))) < bound(BF16)  # fmt: skip
    with torch.inference_mode():
        assert torch.equal(linear(x, *projections[0]), h)


def test_an_output_that_the_loss_does_not_use(device):
    x, projections = operands(device, BF16, BF16, sizes=SIZES[1])
    h = linears(x, projections)
    weights = weights_of(h)
    got = gradients(h, leaves(x, projections), [weights[0], None, weights[2]])
    used = [weights[0], torch.zeros_like(weights[1]), weights[2]]
    _, want = exact(x, projections, used)
    assert got[3] is None and got[4] is None
    for i in (0, 1, 2, 5, 6):
        assert error(got[i], want[i]) < bound(BF16)


def test_layouts(device):
    """x and dH that are not contiguous, and x of one and of no token."""
    x, projections = operands(device, BF16, BF16, t=(5, 2))
    turned = x.detach().transpose(0, 1).requires_grad_()
    h = linear(turned, *projections[0])
    assert torch.equal(h, linear(turned.contiguous(), *projections[0]))
    h.sum().backward()
    want = exact(turned, projections, [torch.ones_like(h)])[1]
    assert error(turned.grad, want[0]) < bound(BF16)
    one = linear(x[0, 0], *projections[0])
    assert one.shape == (32,)
    for leaf in leaves(x, projections):
        leaf.grad = None
    none = linear(x[:0], *projections[0])
    assert none.shape == (0, 2, 32)
    none.sum().backward()
    _, a, b, _ = projections[0]
    assert not a.grad.any() and not b.grad.any()


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint(device, reentrant):
    x, projections = operands(device, BF16, F32, sizes=SIZES[1])
    h = linears(x, projections)
    weights = weights_of(h)
    want = gradients(h, leaves(x, projections), weights)
    h = checkpoint(lambda x: linears(x, projections), x, use_reentrant=reentrant)
    torch.autograd.backward(h, weights)
    for leaf, one in zip(leaves(x, projections), want, strict=True):
        assert torch.equal(leaf.grad, one)


@pytest.mark.parametrize("early_stop", [True, False])
@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("masters", [BF16, F32])
def test_a_checkpoint_computes_no_h_again_that_nobody_takes(
    device, masters, p, early_stop, monkeypatch
):
    """What PyTorch does for its own operators: the second forward pass ends with the last tensor
    that the backward pass takes."""
    monkeypatch.setattr(_linear, "_LATE", 1)
    outputs, whole = [], _passes.Passes.forward

    def counted(self, tensors, *arguments):
        outputs.append(tensors[1].shape[0])
        return whole(self, tensors, *arguments)

    monkeypatch.setattr(_passes.Passes, "forward", counted)

    def two(x):
        for one in projections:
            x = linear(x, *one, p)
        return x

    x, projections = operands(device, BF16, masters, sizes=((48, 4), (48, 8)))
    torch.manual_seed(4)
    h = two(x)
    weights = weights_of([h])
    want = gradients([h], leaves(x, projections), weights)
    torch.manual_seed(4)
    with set_checkpoint_early_stop(early_stop):
        h = checkpoint(two, x, use_reentrant=False)
    outputs.clear()
    h.backward(*weights)
    # S by the first outputs. The first layer's h is the second one's x.
    assert outputs == ([8, 48, 8] if early_stop else [8, 48, 8, 48])
    for leaf, one in zip(leaves(x, projections), want, strict=True):
        assert error(leaf.grad, one) < bound(BF16)
        assert device == "cuda" or torch.equal(leaf.grad, one)


def test_autocast(device):
    """An f32 model under autocast: 16-bit passes, f32 gradients."""
    x, projections = operands(device, F32, F32)
    with torch.autocast(device, BF16):
        h = linear(x, *projections[0])
    assert h.dtype == BF16
    weights = weights_of([h])
    got = gradients([h], leaves(x, projections), weights)
    _, want = exact(x, projections, weights)
    for one, wanted in zip(got, want, strict=True):
        assert one.dtype == F32 and error(one, wanted) < bound(BF16)
    with torch.autocast(device, BF16):
        (dx,) = torch.autograd.grad(linear(x, *projections[0]), [x], weights)
    assert torch.equal(dx, got[0])


def test_a_second_derivative_is_refused(device):
    x, projections = operands(device, BF16, BF16)
    # dH is a constant, so that only the formula itself depends on A and B.
    h = linear(x, *projections[0])
    (dx,) = torch.autograd.grad(h, [x], torch.ones_like(h), create_graph=True)
    want = torch.autograd.grad(linear(x, *projections[0]), [x], torch.ones_like(h))[0]
    assert torch.equal(dx, want)
    with pytest.raises(RuntimeError, match=r"lora_kernels\.linear has no second derivative"):
        dx.square().sum().backward()


def test_operands_that_change_are_noticed(device):
    x, projections = operands(device, BF16, BF16)
    h = linear(x, *projections[0])
    with torch.no_grad():
        projections[0][1].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        h.sum().backward()


def test_a_parameter_that_is_sharded_and_gathered(device):
    """As FSDP has it: the parameter's memory is there for a call only."""
    x, projections = operands(device, BF16, BF16)
    w0, a, b, scale = projections[0]
    full = a.detach().clone()
    parameter = torch.nn.Parameter(torch.empty(0, dtype=BF16, device=device))
    with pytest.raises(ValueError, match=r"a \[0\]"):
        linear(x, w0, parameter, b, scale)
    parameter.data = full.clone()
    h = linear(x, w0, parameter, b, scale)
    assert torch.equal(h, linear(x, w0, a, b, scale))
    h.sum().backward()
    assert parameter.grad.shape == full.shape


def test_threads(device):
    """Calls of several threads, each with a backward pass."""
    x, projections = operands(device, BF16, F32, sizes=SIZES[1])
    h = linears(x, projections)
    want = gradients(h, leaves(x, projections), weights_of(h))
    failed = []

    def work():
        try:
            for _ in range(10):
                mine, same = operands(device, BF16, F32, sizes=SIZES[1])
                h = linears(mine, same)
                got = gradients(h, leaves(mine, same), weights_of(h))
                assert all(map(torch.equal, got, want))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed, failed


def test_errors_name_the_shapes(device):
    x, projections = operands(device, BF16, BF16)
    w0, a, b, scale = projections[0]
    cases = [
        ((x, w0, a[:, :3], b, scale), r"x \[2, 5, 48\], w0 \[32, 48\], a \[4, 3\], b \[32, 4\]"),
        ((x[..., :3], w0, a, b, scale), r"x \[2, 5, 3\]"),
        ((x, w0, a, b[:, :2], scale), r"b \[32, 2\]"),
        ((x, w0.float(), a, b, scale), r"w0 is torch.float32, expected torch.bfloat16"),
        ((x, w0, a.half(), b.half(), scale), "a is torch.float16 beside x of torch.bfloat16"),
        ((x, w0, a.float(), b, scale), "b is torch.bfloat16, expected torch.float32"),
        ((x.double(), w0, a, b, scale), "x is torch.float64"),
        ((x, w0, a, b, float("inf")), "scale must be a finite number"),
        ((x, w0.clone().requires_grad_(), a, b, scale), "w0 requires a gradient"),
    ]
    for arguments, message in cases:
        with pytest.raises(ValueError, match=message):
            linear(*arguments)
    with pytest.raises(ValueError, match="no projections"):
        linears(x, [])
    with pytest.raises(ValueError, match="rank 257"):
        linear(x, w0, a.new_zeros(257, 48), b.new_zeros(32, 257), scale)
    with pytest.raises(ValueError, match="1 to 4"):
        linears(x, projections * 5)
    with pytest.raises(ValueError, match="projection 1 do not fit"):
        linears(x, [projections[0], (w0, a, b[:, :1], 1.0)])
    with pytest.raises(ValueError, match="on meta"):
        linear(*(one.to("meta") for one in (x, w0, a, b)), scale)


def test_passes_are_of_operands_like_these_alone(device):
    """Those that a call recalls: for any other operands they are looked up anew."""
    x, projections = operands(device, BF16, BF16, k=32)
    tensors = x, *projections[0][:3]
    linear(*tensors, 1.0)
    known = _passes.recall(tensors, 0.0)
    assert known is _passes.find(tensors, 0.0)
    for i, one in enumerate(tensors):
        others = [one.half(), one.to("meta"), one[..., :-1].contiguous(), one[:1].clone()]
        others += [one.detach().requires_grad_(not one.requires_grad), torch.nn.Parameter(one)]
        if one.dim() == 2:
            others.append(one.detach().T.contiguous().T.requires_grad_(one.requires_grad))
        for other in others:
            changed = *tensors[:i], other, *tensors[i + 1 :]
            assert _passes.recall(changed, 0.0) is None, (i, other.shape, other.dtype)
    assert _passes.recall(tensors, 0.1) is None
    with torch.autocast(device, torch.float16):
        assert linear(*tensors, 1.0).dtype == torch.float16
    with torch.autocast(device, BF16):
        linear(*tensors, 1.0)
        assert _passes.recall(tensors, 0.0, BF16) is _passes.find(tensors, 0.0, BF16)
    found = []
    looked = torch.func.vmap(
        lambda x: found.append(_passes.recall((x, *tensors[1:]), 0.0)), out_dims=None
    )
    looked(x[None])
    assert found == [None]
    assert linear(*tensors, 1.0).dtype == BF16 and _passes.recall(tensors, 0.0) is known


def test_forward_mode_is_refused(device):
    x, projections = operands(device, BF16, BF16)
    refused = pytest.raises(RuntimeError, match="no forward-mode derivatives")
    with torch.autograd.forward_ad.dual_level(), refused:
        linear(x, *projections[0])
