#!/usr/bin/env python3
"""Microseconds of the host for a call from Python, autograd included.

Layers of 256 inputs and outputs for 16 tokens, so small that the GPU waits for the host, are called
one on the output of the other. As in a model, each has weights of its own, without gradients before
the pass. Times are of a whole chain, forward or backward, over its length: the best of the rounds,
in which contenders take turns.

--parts prints instead what a call of lora_kernels.linear is made of, each part timed alone.

  host.py [--parts] [--length N] [--rounds N] [--commit C] [--json FILE]
"""

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial

import lora_kernels
import torch
from common import DEVICE, head, synchronize, write
from lora_kernels._passes import find, recall
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

T, D, R = 16, 256, 16

Layer = Callable[[Tensor], Tensor]


class Chain(nn.Module):
    """A model of linear layers, for PEFT."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(D, D, bias=False) for _ in range(length))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def adapted(length: int, f32_adapters: bool, patched: bool) -> nn.ModuleList:
    """PEFT's layers, patched or not."""
    torch.manual_seed(0)
    base = Chain(length).to(DEVICE, torch.bfloat16)
    names = [f"layers.{i}" for i in range(length)]
    config = LoraConfig(r=R, target_modules=names)
    model = get_peft_model(base, config, autocast_adapter_dtype=f32_adapters)
    if patched:
        assert len(lora_kernels.patch(model).served) == length
    return model.base_model.model.layers


def contenders(length: int) -> dict[str, Sequence[Layer]]:
    made: dict[str, Sequence[Layer]] = {}
    made["nn.Linear, frozen"] = (
        Chain(length).to(DEVICE, torch.bfloat16).requires_grad_(False).layers
    )
    for f32_adapters in (False, True):
        kind = "f32 adapters" if f32_adapters else "bf16 adapters"
        layers = adapted(length, f32_adapters, False)
        weights = [
            (one.base_layer.weight, one.lora_A["default"].weight, one.lora_B["default"].weight)
            for one in layers
        ]
        made[f"lora_kernels.linear, {kind}"] = [
            lambda x, of=of: lora_kernels.linear(x, *of, 2.0) for of in weights
        ]
        made[f"PEFT, {kind}"] = layers
        made[f"PEFT patched, {kind}"] = adapted(length, f32_adapters, True)
    return made


def measure(layers: Sequence[Layer]) -> tuple[float, float]:
    """Microseconds a call, forward and backward."""
    x = torch.randn(T, D, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
    synchronize()
    start = time.perf_counter()
    h = x
    for layer in layers:
        h = layer(h)
    forward = time.perf_counter() - start
    synchronize()
    weight = torch.ones_like(h)
    synchronize()
    start = time.perf_counter()
    h.backward(weight)
    backward = time.perf_counter() - start
    synchronize()
    return forward / len(layers) * 1e6, backward / len(layers) * 1e6


class Nothing(torch.autograd.Function):
    """A node like that of a call, with outputs that were there before."""

    @staticmethod
    def forward(ctx, call, x, w0, a, b):
        ctx.save_for_backward(x, a, a, w0, b)
        ctx.call = a, b
        return x.detach()

    @staticmethod
    def backward(ctx, dh):
        _ = ctx.saved_tensors
        a, b = ctx.call
        return None, dh, None, a.detach(), b.detach()


class Silent:
    """In place of a plan: passes that do nothing."""

    def forward(self, *_: object) -> bool:
        return True

    backward = forward


def parts(length: int, rounds: int) -> None:
    """What a call with bf16 adapters is made of."""
    tensor = partial(torch.randn, device=DEVICE, dtype=torch.bfloat16)
    x, w0, a, b = tensors = tensor(T, D), tensor(D, D), tensor(R, D), tensor(D, R)
    scales = (2.0,)
    for one in (x, a, b):
        one.requires_grad_()
    lora_kernels.linear(*tensors, *scales)
    passes = recall(tensors, 0.0)
    native, empty = passes._plan, passes._allocator()
    kept = x, *passes.forward(tensors, scales, None, True)[1:], w0, b
    forward = partial(passes.forward, tensors, scales, None, True)
    backward = partial(passes.backward, kept, (x.detach(),), scales, None, True)
    of_forward = (passes._h[0], passes._s)
    of_backward = (passes._dx, passes._da, passes._db[0])
    for name, plan, part in (
        ("forward: finding the plan", native, lambda: recall(tensors, 0.0)),
        ("forward: finding it anew", native, lambda: find(tensors, 0.0)),
        ("forward: allocation", native, lambda: [empty(*one) for one in of_forward]),
        ("forward: without native call and autograd", Silent(), forward),
        ("forward: without autograd", native, forward),
        ("backward: allocation", native, lambda: [empty(*one) for one in of_backward]),
        ("backward: without native call and autograd", Silent(), backward),
        ("backward: without autograd", native, backward),
    ):
        passes._plan, best = plan, float("inf")
        for _ in range(rounds):
            synchronize()
            start = time.perf_counter()
            with torch.no_grad():
                for _ in range(length):
                    part()
            best = min(best, time.perf_counter() - start)
        print(f"{name:45} {best / length * 1e6:7.1f}")
    times = []
    for _ in range(rounds):
        pairs = [(a.detach().requires_grad_(), b.detach().requires_grad_()) for _ in range(length)]
        nodes = [lambda x, ab=ab: Nothing.apply(scales, x, w0, *ab) for ab in pairs]
        times.append(measure(nodes))
    for name, each in zip(("forward", "backward"), zip(*times, strict=True), strict=True):
        print(f"{name + ': a node of autograd that does nothing':45} {min(each):7.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", action="store_true")
    parser.add_argument("--length", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--commit")
    parser.add_argument("--json")
    args = parser.parse_args()
    if args.parts:
        return parts(args.length, args.rounds)
    calls = contenders(args.length)
    modules = [layers for layers in calls.values() if isinstance(layers, nn.ModuleList)]
    trained = [parameter for layers in modules for parameter in layers.parameters()]
    best = {name: [float("inf")] * 2 for name in calls}
    for _ in range(args.rounds):
        for name, layers in calls.items():
            for parameter in trained:
                parameter.grad = None
            times = measure(layers)
            best[name] = [min(one) for one in zip(best[name], times, strict=True)]
    rows = {name: {"forward_us": f, "backward_us": b} for name, (f, b) in best.items()}
    for name, row in rows.items():
        print(f"{name:40} {row['forward_us']:7.1f} {row['backward_us']:7.1f}")
    sizes = {"t": T, "k": D, "d": D, "r": R, "length": args.length, "rounds": args.rounds}
    write(args.json, {"kind": "host", **head(args.commit), **sizes, "rows": rows})


main()
