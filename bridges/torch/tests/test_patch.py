"""PEFT models, patched."""

import copy
import io

import pytest
import torch
from lora_kernels import _linear, _passes, _siblings, patch, report, unpatch
from models import SEVEN, error, fill, ids, in_f64, llama, step
from peft import LoraConfig

BF16, F32 = torch.bfloat16, torch.float32


def types(device):
    """(the model, whether adapters are f32)."""
    return [(BF16, False), (BF16, True)] + ([(F32, True)] if device == "cpu" else [])


def errors(device, dtype, f32_adapters, bias=False, autocast=False):
    """Of the gradients of all adapters by lora_kernels, and by PEFT, of some models."""
    ours = by_peft = 0
    for seed in range(4):
        model = llama(device, dtype, seed=seed, bias=bias, f32_adapters=f32_adapters)
        _, want = step(in_f64(model))
        with torch.autocast(device, BF16, enabled=autocast):
            peft_loss, got = step(model)
            by_peft += error(got, want)
            assert str(patch(model)).startswith("14 of 14 LoRA layers run on lora_kernels, 10 of")
            loss, got = step(model)
        ours += error(got, want)
        assert not report(model).fell_back
        assert len(got) == 28 and abs(loss - peft_loss) < 2e-3
    return ours / 4, by_peft / 4


@pytest.mark.parametrize("bias", [False, True])
def test_gradients_of_every_adapter(device, bias):
    for dtype, f32_adapters in types(device):
        ours, by_peft = errors(device, dtype, f32_adapters, bias)
        if dtype == F32:
            assert ours < 1e-5
        else:
            # PEFT multiplies by f32 adapters in f32; here they are rounded, and so are S and dS.
            assert ours < (1.25 if f32_adapters else 1.0) * by_peft


def test_gradients_under_autocast(device):
    ours, by_peft = errors(device, F32, True, autocast=True)
    assert ours < by_peft


def test_names_and_state_stay(device, tmp_path):
    model = llama(device, BF16)
    names = [(name, type(module)) for name, module in model.named_modules()]
    state = {name: one.clone() for name, one in model.state_dict().items()}
    model.save_pretrained(tmp_path / "before")
    want = step(model)
    patch(model)
    step(model)

    def same():
        assert [(name, type(module)) for name, module in model.named_modules()] == names
        assert list(state) == list(model.state_dict())
        assert all(torch.equal(one, state[name]) for name, one in model.state_dict().items())

    same()
    model.save_pretrained(tmp_path / "after")
    for file in (tmp_path / "before").iterdir():
        assert file.read_bytes() == (tmp_path / "after" / file.name).read_bytes()
    unpatch(model)
    same()
    assert all("forward" not in module.__dict__ for module in model.modules())
    assert not any("_lora_kernels" in module.__dict__ for module in model.modules())
    loss, got = step(model)
    assert torch.equal(loss, want[0])
    assert all(torch.equal(got[name], want[1][name]) for name in got)
    assert len(report(model).left) == 14
    unpatch(model)
    patch(model)
    patch(model)
    assert len(report(model).served) == 14


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(device, reentrant):
    model = llama(device, BF16)
    patch(model)
    _, want = step(model)
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    _, got = step(model)
    assert not report(model).fell_back
    assert all(torch.equal(got[name], want[name]) for name in want)


def test_a_checkpoint_ends_before_the_last_gemm_of_a_block(device, monkeypatch):
    monkeypatch.setattr(_linear, "_LATE", 1)
    model = llama(device, BF16)
    patch(model)
    _, want = step(model)
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    outputs, whole = [], _passes.Passes.forward

    def counted(self, tensors, *arguments):
        outputs.append([one.shape[0] for one in tensors[1 : 1 + len(tensors) // 3]])
        return whole(self, tensors, *arguments)

    monkeypatch.setattr(_passes.Passes, "forward", counted)
    _, got = step(model)
    qkv, o, gate_up, down = [64, 32, 32], [64], [96, 96], [64]
    assert outputs[:8] == [qkv, o, gate_up, down] * 2
    # Layers that may be a block's last make S first, here beside 8 outputs.
    assert outputs[8:] == [qkv, [8], o, gate_up, [8]] * 2
    assert error(got, want) == 0 if device == "cpu" else error(got, want) < 0.01


def compared(model, message, **arguments):
    """A step that PEFT's forward serves, with the reason in the report."""
    loss, got = step(model, **arguments)
    assert any(message in one for one in report(model).fell_back.values()), report(model)
    unpatch(model)
    want_loss, want = step(model, **arguments)
    assert torch.equal(loss, want_loss) and got.keys() == want.keys()
    assert all(torch.equal(got[name], want[name]) for name in got)


def test_dropout(device):
    """In training each layer has a mask of its own, and in evaluation none."""
    model = llama(device, BF16, lora_dropout=0.5)
    _, without = step(in_f64(model.eval()))
    found = patch(model)
    assert len(found.served) == 14 and not found.dropout and len(found.shared) == 4
    _, got = step(model)
    assert error(got, without) < 0.05
    found = report(model.train())
    assert len(found.served) == 14 and set(found.dropout.values()) == {0.5}
    assert not found.shared and [len(one) for one in found.apart] == [3, 2, 3, 2]
    assert "dropout 0.5: " in str(found) and "4 groups" in str(found)
    torch.manual_seed(0)
    loss, want = step(model)
    assert not report(model).fell_back
    assert error(want, without) > 0.2
    torch.manual_seed(0)
    again, got = step(model)
    assert torch.equal(loss, again) and error(got, want) == 0
    assert not torch.equal(loss, step(model)[0])
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    torch.manual_seed(0)
    again, got = step(model)
    assert torch.equal(loss, again) and error(got, want) == 0


def test_gradients_with_dropout_are_peft_s_on_average(device):
    """The masks are others than PEFT's, so the mean of many steps is compared."""
    means = []
    for apply in (lambda _: None, patch):
        model = llama(device, BF16, lora_dropout=0.2, targets=["o_proj", "down_proj"])
        apply(model)
        steps = [step(model)[1] for _ in range(64)]
        means.append({n: torch.stack([one[n].double() for one in steps]).mean(0) for n in steps[0]})
    assert error(means[1], means[0]) < 0.15


def test_dropout_that_siblings_share(device, monkeypatch):
    model = llama(device, BF16, lora_dropout=0.5)
    together, calls = _siblings.linears, []

    def counted(x, projections, p):
        calls.append((len(projections), p))
        return together(x, projections, p)

    monkeypatch.setattr(_siblings, "linears", counted)
    patch(model)
    step(model)
    assert not calls
    found = patch(model, share_dropout=True)
    assert len(found.shared) == 4 and not found.apart
    torch.manual_seed(0)
    loss, _ = step(model)
    assert calls == [(3, 0.5), (2, 0.5)] * 2
    torch.manual_seed(0)
    assert torch.equal(step(model)[0], loss) and not report(model).fell_back


def test_dropout_that_peft_serves(device):
    model = llama(device, BF16, lora_dropout=0.5)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 1.0
    found = patch(model)
    assert set(found.dropout.values()) == {1.0}
    compared(model, "dropout_p is 1.0, expected 0 <= p < 1")


def test_what_stays_with_peft(device):
    for lora, reason in [
        ({"use_dora": True}, "DoraLinearVariant"),
        ({"lora_bias": True}, "bias of lora_B"),
        ({"r": 300}, None),
    ]:
        model = llama(device, BF16, **lora)
        found = patch(model)
        assert reason is None or set(found.left.values()) == {reason}
        step(model)
        if reason is None:
            assert all("rank 300" in one for one in report(model).fell_back.values())
            assert len(report(model).fell_back) == 14
    model = llama(device, BF16, targets=["embed_tokens", "q_proj"])
    found = patch(model)
    assert list(found.left.values()) == ["peft.tuners.lora.layer.Embedding"]
    assert len(found.served) == 2 and not found.shared
    assert "1 of" not in str(found) and "2 of 3 LoRA layers" in str(found)


def test_merged_and_disabled(device):
    model = llama(device, BF16)
    patch(model)
    step(model)
    tokens = ids(device)
    with torch.no_grad():
        results = []
        for one in (model, copy.deepcopy(model)):
            if results:
                unpatch(one)
            with one.disable_adapter():
                results.append(one(input_ids=tokens).logits)
            one.merge_adapter()
            results.append(one(input_ids=tokens).logits)
            assert set(report(one).left.values()) == {"merged" if one is model else "not patched"}
        assert torch.equal(results[0], results[2]) and torch.equal(results[1], results[3])


def test_several_adapters(device):
    model = llama(device, BF16)
    lora = LoraConfig(r=8, lora_alpha=8, target_modules=SEVEN)
    model.add_adapter("other", lora)
    fill(model)
    patch(model)
    for name in ("other", "default"):
        model.set_adapter(name)
        _, want = step(in_f64(model))
        _, got = step(model)
        assert len(got) == 28 and all(f".{name}." in one for one in got)
        assert error(got, want) < 0.05
    tokens, names = ids(device), ["default", "other"]
    model.eval()
    with torch.no_grad():
        mixed = model(input_ids=tokens, adapter_names=names).logits
        assert set(report(model).fell_back.values()) == {"further arguments"}
        apart = []
        for row, name in enumerate(names):
            model.set_adapter(name)
            apart.append(model(input_ids=tokens[row : row + 1]).logits)
    assert (mixed - torch.cat(apart)).abs().max() < 0.05 * mixed.abs().max()
    model.train()
    model.base_model.set_adapter(["default", "other"])
    assert set(report(model).left.values()) == {"several active adapters"}
    step(model)


def test_a_hook_and_a_trained_base(device):
    model = llama(device, BF16)
    patch(model)
    layer = model.base_model.model.model.layers[0].self_attn.k_proj
    seen = []
    layer.lora_A["default"].register_forward_hook(lambda *_: seen.append(1))
    step(model)
    found = report(model)
    assert seen and list(found.left.values()) == ["a hook on its base layer or adapter"]
    assert not found.fell_back
    model = llama(device, BF16)
    patch(model)
    model.base_model.model.model.layers[1].mlp.up_proj.base_layer.weight.requires_grad_()
    assert list(report(model).left.values()) == ["its base weight is trained"]
    step(model)


def test_hooks_of_a_layer_run(device):
    model = llama(device, BF16)
    patch(model)
    layer = model.base_model.model.model.layers[0].self_attn.k_proj
    seen = []
    layer.register_forward_hook(lambda _module, _inputs, output: seen.append(output.shape))
    step(model)
    assert seen == [(2, 10, 32)] and not report(model).fell_back


def test_other_types_of_x(device):
    if device == "cpu":
        model = llama(device, torch.float64)
        message = "x is torch.float64 on cpu"
    else:
        model = llama(device, F32)
        message = "x is torch.float32 on cuda"
    assert len(patch(model).served) == 14
    compared(model, message)


def test_copies(device):
    model = llama(device, BF16)
    patch(model)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for one in model.parameters():
            one.zero_()
    assert len(report(twin).served) == 14
    _, got = step(twin)
    assert not report(twin).fell_back
    unpatch(twin)
    _, want = step(twin)
    assert error(got, want) < 0.05
    file = io.BytesIO()
    patch(twin)
    torch.save(twin, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert len(report(loaded).left) == 14
    unpatch(loaded)
    assert error(step(loaded)[1], want) == 0


def test_replicas_compute_with_their_own_weights(device):
    """As nn.DataParallel makes them."""
    model = llama(device, BF16)
    patch(model)
    layer = model.base_model.model.model.layers[0].mlp.gate_proj
    replica = layer._replicate_for_data_parallel()
    for name, child in layer.named_children():
        replica._modules[name] = copy.deepcopy(child)
    x = torch.randn(3, 64, dtype=BF16, device=device)
    want = replica(x)
    with torch.no_grad():
        layer.base_layer.weight.zero_()
        layer.lora_B["default"].weight.zero_()
    assert torch.equal(replica(x), want) and want.any() and not layer(x).any()


@pytest.mark.parametrize("f32_adapters", [False, True])
def test_compiled(device, f32_adapters):
    model = llama(device, BF16, f32_adapters=f32_adapters)
    _, want = step(in_f64(model))
    patch(model)
    _, by_eager = step(model)
    for backend in ["aot_eager"] + (["inductor"] if device == "cuda" else []):
        torch._dynamo.reset()
        compiled = torch.compile(model, backend=backend, fullgraph=True)
        _, got = step(compiled)
        got = {name.removeprefix("_orig_mod."): one for name, one in got.items()}
        assert error(got, want) < 1.2 * error(by_eager, want)


def test_compiled_by_peft_where_it_must_be(device):
    model = llama(device, torch.float64)
    _, want = step(model)
    patch(model)
    torch._dynamo.reset()
    _, got = step(torch.compile(model, backend="aot_eager"))
    got = {name.removeprefix("_orig_mod."): one for name, one in got.items()}
    assert error(got, want) < 1e-12
    assert len(report(model).fell_back) == 14
