"""The operators, under torch.compile."""

import pytest
import torch
from cases import BF16, F32, gradients, leaves, operands, weights_of
from lora_kernels import _operators, linear, linears

SIZES = [((32, 4),), ((32, 4), (16, 8), (8, 4))]
TYPES = [(BF16, BF16), (BF16, F32)]


def backends(device):
    return ["eager", "aot_eager"] + (["inductor"] if device == "cuda" else [])


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("types", TYPES)
def test_one_graph_with_the_same_gradients(device, sizes, types):
    x, projections = operands(device, *types, sizes=sizes)
    h = linears(x, projections)
    weights = weights_of(h)
    want = gradients(h, leaves(x, projections), weights)
    for backend in backends(device):
        torch._dynamo.reset()
        compiled = torch.compile(linears, backend=backend, fullgraph=True)
        h = compiled(x, projections)
        got = gradients(h, leaves(x, projections), weights)
        assert all(map(torch.equal, got, want)), backend


def test_unused_outputs_and_frozen_adapters(device):
    x, projections = operands(device, BF16, BF16, sizes=SIZES[1])
    torch._dynamo.reset()
    compiled = torch.compile(linears, backend="aot_eager", fullgraph=True)
    weights = weights_of(linears(x, projections))
    weights[1] = torch.zeros_like(weights[1])
    want = gradients(linears(x, projections), leaves(x, projections), weights)
    got = gradients(
        compiled(x, projections), leaves(x, projections), [weights[0], None, weights[2]]
    )
    assert all(torch.equal(got[i], want[i]) for i in (0, 1, 2, 5, 6))
    for one in leaves(x, projections)[1:]:
        one.requires_grad_(False)
    want = gradients(linears(x, projections), [x], weights)
    got = gradients(compiled(x, projections), [x], weights)
    assert torch.equal(got[0], want[0])


def test_other_sizes_and_no_gradients(device):
    torch._dynamo.reset()
    compiled = torch.compile(linear, backend="aot_eager", fullgraph=True)
    for t in (3, 4, 7):
        x, projections = operands(device, BF16, F32, t=(t,))
        assert torch.equal(compiled(x, *projections[0]), linear(x, *projections[0]))
        with torch.no_grad():
            assert not compiled(x, *projections[0]).requires_grad


@pytest.mark.parametrize("types", TYPES)
def test_the_operators_are_what_they_say(device, types):
    for sizes in SIZES:
        x, projections = operands(device, *types, sizes=sizes)
        w0, a, b, scales = (list(one) for one in zip(*projections, strict=True))
        for save in (True, False):
            with torch.set_grad_enabled(save):
                torch.library.opcheck(
                    torch.ops.lora_kernels.forward.default,
                    (x.detach(), w0, [one.detach() for one in a], [one.detach() for one in b],
                     scales, 0.0, None, save),
                )  # fmt: skip
        masters = [one.float() for one in (*a, *b)]
        passes = _operators.find((x, *w0, *masters), 0.0)
        assert _operators._rounded(48, sizes) == passes._plan.operands
