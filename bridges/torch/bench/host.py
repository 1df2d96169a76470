#!/usr/bin/env python3
"""Microseconds of the host for a call from Python, autograd included.

Layers of 256 inputs and outputs for 16 tokens, so small that the GPU waits for the host, are called
one on the output of the other. Times are of a whole chain, forward or backward, over its length:
the best of the rounds, in which contenders take turns.

  host.py [--length N] [--rounds N] [--commit C] [--json FILE]
"""

import argparse
import time
from collections.abc import Callable

import lora_kernels
import torch
from common import DEVICE, head, synchronize, write
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

T, D, R = 16, 256, 16


class One(nn.Module):
    """A model of one linear layer, for PEFT."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(D, D, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


def layer(f32_adapters: bool, patched: bool) -> nn.Module:
    """PEFT's layer, patched or not."""
    torch.manual_seed(0)
    base = One().to(DEVICE, torch.bfloat16)
    config = LoraConfig(r=R, target_modules=["linear"])
    model = get_peft_model(base, config, autocast_adapter_dtype=f32_adapters)
    if patched:
        assert len(lora_kernels.patch(model).served) == 1
    return model.base_model.model.linear


def contenders() -> dict[str, Callable[[Tensor], Tensor]]:
    made: dict[str, Callable[[Tensor], Tensor]] = {}
    frozen = One().to(DEVICE, torch.bfloat16).requires_grad_(False).linear
    made["nn.Linear, frozen"] = frozen
    for f32_adapters in (False, True):
        kind = "f32 adapters" if f32_adapters else "bf16 adapters"
        adapted = layer(f32_adapters, False)
        a, b = adapted.lora_A["default"].weight, adapted.lora_B["default"].weight
        made[f"lora_kernels.linear, {kind}"] = lambda x, a=a, b=b: lora_kernels.linear(
            x, frozen.weight, a, b, 2.0
        )
        made[f"PEFT, {kind}"] = adapted
        made[f"PEFT patched, {kind}"] = layer(f32_adapters, True)
    return made


def measure(call: Callable[[Tensor], Tensor], length: int) -> tuple[float, float]:
    """Microseconds a call, forward and backward."""
    x = torch.randn(T, D, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
    synchronize()
    start = time.perf_counter()
    h = x
    for _ in range(length):
        h = call(h)
    forward = time.perf_counter() - start
    synchronize()
    weight = torch.ones_like(h)
    synchronize()
    start = time.perf_counter()
    h.backward(weight)
    backward = time.perf_counter() - start
    synchronize()
    return forward / length * 1e6, backward / length * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--length", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--commit")
    parser.add_argument("--json")
    args = parser.parse_args()
    calls = contenders()
    best = {name: [float("inf")] * 2 for name in calls}
    for _ in range(args.rounds):
        for name, call in calls.items():
            times = measure(call, args.length)
            best[name] = [min(one) for one in zip(best[name], times, strict=True)]
    rows = {name: {"forward_us": f, "backward_us": b} for name, (f, b) in best.items()}
    for name, row in rows.items():
        print(f"{name:40} {row['forward_us']:7.1f} {row['backward_us']:7.1f}")
    sizes = {"t": T, "k": D, "d": D, "r": R, "length": args.length, "rounds": args.rounds}
    write(args.json, {"kind": "host", **head(args.commit), **sizes, "rows": rows})


main()
