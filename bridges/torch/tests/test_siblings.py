"""q, k, v and gate, up: computed together, and right where they must not be."""

import gc
import threading
import weakref

import pytest
import torch
from lora_kernels import _siblings, patch, unpatch
from models import error, llama, step

BF16 = torch.bfloat16


@pytest.fixture
def calls(monkeypatch):
    """The number of projections of each call for several."""
    made = []
    together = _siblings.linears

    def counted(x, projections, *dropout):
        made.append(len(projections))
        return together(x, projections, *dropout)

    monkeypatch.setattr(_siblings, "linears", counted)
    return made


class Attention(torch.nn.Module):
    """q, k and v of a patched model, called as a test says."""

    def __init__(self, device, call):
        super().__init__()
        attention = llama(device, BF16).base_model.model.model.layers[0].self_attn
        self.q_proj, self.k_proj, self.v_proj = (
            attention.q_proj, attention.k_proj, attention.v_proj,
        )  # fmt: skip
        self.call = call

    def forward(self, x):
        return self.call(self, x)


def outputs(device, call, grad=True):
    """What a call gives with PEFT, then patched: outputs, and gradients of x and all adapters."""
    module = Attention(device, call)
    x = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(0)).to(device, BF16)
    results = []
    for apply in (lambda _: None, patch):
        apply(module)
        module.zero_grad()
        leaf = x.clone().requires_grad_(grad)
        h = module(leaf)
        if grad:
            sum((i + 1) * one.float().square().sum() for i, one in enumerate(h)).backward()
        named = module.named_parameters()
        grads = {name: one.grad for name, one in named if one.grad is not None}
        results.append((h, leaf.grad, grads))
    return module, results


def check(device, call, calls, expected):
    module, ((h, dx, grads), (got_h, got_dx, got)) = outputs(device, call)
    assert calls == expected
    for one, two in zip(got_h, h, strict=True):
        assert (one - two).norm() < 0.02 * two.norm()
    assert (got_dx - dx).norm() < 0.02 * dx.norm()
    assert error(got, grads) < 0.02
    assert not _siblings._shelves.open
    return module


def test_together(device, calls):
    check(device, lambda m, x: (m.q_proj(x), m.k_proj(x), m.v_proj(x)), calls, [3])


def test_in_another_order(device, calls):
    check(device, lambda m, x: (m.v_proj(x), m.q_proj(x), m.k_proj(x)), calls, [3])


def test_a_model(device, calls):
    model = llama(device, BF16)
    assert [len(one) for one in patch(model).shared] == [3, 2, 3, 2]
    step(model)
    assert calls == [3, 2, 3, 2]
    unpatch(model)
    step(model)
    assert calls == [3, 2, 3, 2]


def test_x_changed_in_between(device, calls):
    def call(m, x):
        x = x * 1
        q = m.q_proj(x.clone())
        first = m.k_proj(x)
        with torch.no_grad():
            x.mul_(2)
        return q, first.detach(), m.v_proj(x)

    check(device, call, calls, [3])


def test_equal_values_of_another_tensor(device, calls):
    check(device, lambda m, x: (m.q_proj(x), m.k_proj(x.clone()), m.v_proj(x)), calls, [3])


def test_the_same_layer_twice(device, calls):
    check(device, lambda m, x: (m.q_proj(x), m.q_proj(x), m.k_proj(x)), calls, [3])


def test_an_output_that_is_not_used(device, calls):
    check(device, lambda m, x: (m.q_proj(x), m.k_proj(x).detach(), m.v_proj(x)), calls, [3])


def test_a_call_that_never_comes(device, calls):
    kept = []

    def call(m, x):
        q = m.q_proj(x)
        shelf = _siblings._shelves.open
        kept.extend(weakref.ref(one[0]) for of in shelf.values() for one in of.outputs.values())
        return (q,)

    check(device, call, calls, [3])
    gc.collect()
    assert len(kept) == 2 and all(one() is None for one in kept)


def test_a_call_that_fails(device, calls):
    def call(m, x):
        m.q_proj(x)
        raise KeyError("in between")

    module = Attention(device, call)
    patch(module)
    with pytest.raises(KeyError, match="in between"):
        module(torch.zeros(2, 64, dtype=BF16, device=device))
    assert calls == [3] and not _siblings._shelves.open


def test_weights_that_change_in_between(device, calls):
    def call(m, x):
        with torch.no_grad():
            q = m.q_proj(x)
            m.k_proj.lora_B["default"].weight.mul_(2)
        return q, m.k_proj(x), m.v_proj(x)

    module = Attention(device, call)
    x = torch.randn(2, 64).to(device, BF16)
    want = module(x)
    with torch.no_grad():
        module.k_proj.lora_B["default"].weight.mul_(0.5)
    patch(module)
    for one, two in zip(module(x), want, strict=True):
        assert (one - two).norm() < 0.02 * two.norm()


def test_gradients_on_and_off(device, calls):
    def call(m, x):
        with torch.no_grad():
            q = m.q_proj(x)
        return q, m.k_proj(x), m.v_proj(x)

    check(device, call, calls, [3])


def test_x_asked_for_gradients_in_between(device, calls):
    module = Attention(device, lambda m, x: (m.q_proj(x), m.k_proj(x.requires_grad_())))
    for one in module.parameters():
        one.requires_grad_(False)
    patch(module)
    q, k = module(torch.randn(2, 64).to(device, BF16))
    assert not q.requires_grad and k.requires_grad


def test_an_adapter_that_is_disabled_in_between(device, calls):
    def call(m, x):
        q = m.q_proj(x)
        m.k_proj.enable_adapters(False)
        k = m.k_proj(x)
        m.k_proj.enable_adapters(True)
        return q, k, m.v_proj(x)

    check(device, call, calls, [3])


def test_a_sibling_that_peft_serves(device, calls):
    def call(m, x):
        m.k_proj.enable_adapters(False)
        h = m.q_proj(x), m.v_proj(x), m.k_proj(x)
        m.k_proj.enable_adapters(True)
        return h

    check(device, call, calls, [])


def test_without_the_parent(device, calls):
    module = Attention(device, None)
    patch(module)
    x = torch.randn(2, 64).to(device, BF16)
    module.q_proj(x), module.k_proj(x)
    assert not calls and not _siblings._shelves.open


def test_inference_mode(device, calls):
    module = Attention(device, lambda m, x: (m.q_proj(x), m.k_proj(x), m.v_proj(x)))
    x = torch.randn(2, 64).to(device, BF16)
    patch(module)
    want = module(x)
    with torch.inference_mode():
        for one, two in zip(module(x * 1), want, strict=True):
            assert (one - two).norm() < 0.02 * two.norm()
    assert calls == [3]


def test_cross_attention_is_left_alone(device):
    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.cross_attn = Attention(device, None)

    found = patch(Block())
    assert len(found.served) == 3 and not found.shared


def test_threads(device):
    def call(m, x):
        return m.q_proj(x), m.k_proj(x), m.v_proj(x)

    module = Attention(device, call)
    xs = [torch.randn(2, 64).to(device, BF16) for _ in range(4)]
    want = [module(x) for x in xs]
    patch(module)
    failed = []

    def work(x, expected):
        try:
            for _ in range(25):
                for one, two in zip(module(x), expected, strict=True):
                    assert (one - two).norm() < 0.02 * two.norm()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=one) for one in zip(xs, want, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed, failed
