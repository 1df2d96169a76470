"""Small PEFT models with random weights."""

import copy

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def llama(
    device, dtype=torch.float32, *, seed=0, targets=SEVEN, bias=False, f32_adapters=True, **lora
):
    """A Llama of two layers, with adapters that are not zero."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=128,
        attention_bias=bias,
        use_cache=False,
        # The gradients of others may differ from run to run on a GPU.
        attn_implementation="eager",
    )
    base = LlamaForCausalLM(config).to(dtype)
    lora = {"r": 4, "lora_alpha": 8, "target_modules": targets, **lora}
    model = get_peft_model(base, LoraConfig(**lora), autocast_adapter_dtype=f32_adapters)
    fill(model)
    return model.to(device).train()


def fill(model):
    """B is zero at the start: dA and dX would not depend on it."""
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.02)


def ids(device):
    rng = torch.Generator().manual_seed(3)
    return torch.randint(0, 128, (2, 10), generator=rng).to(device)


def step(model, **arguments):
    """The loss, and the gradients by name."""
    model.zero_grad()
    tokens = ids(next(model.parameters()).device)
    loss = model(input_ids=tokens, labels=tokens, **arguments).loss
    loss.backward()
    named = model.named_parameters()
    return loss.detach(), {n: p.grad.clone() for n, p in named if p.grad is not None}


def in_f64(model):
    """The same model in f64."""
    return copy.deepcopy(model).to("cpu", torch.float64)


def error(got, want):
    """Relative, over all gradients."""
    assert got.keys() == want.keys()
    square = lambda of: sum(one.double().square().sum().cpu() for one in of)  # noqa: E731
    return (square(got[n].cpu().double() - want[n].cpu() for n in got) / square(want.values())
            ).sqrt().item()  # fmt: skip
