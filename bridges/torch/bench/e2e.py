#!/usr/bin/env python3
"""A training step of a Llama with LoRA, against the same model frozen: what an adapter costs.

Contenders take turns in one process; the models have random bf16 weights and SDPA attention:
  frozen   no adapter; the embeddings' output wants a gradient, so that every layer's dX is computed
  peft     PEFT's LoRA on all seven linear layers of a block, forward and backward
  patched  the same model after lora_kernels.patch
In a graph, and under torch.compile, transformers gives SDPA an explicit mask, to all alike.

Each figure is the median over the rounds; a ratio is the median of the ratios within a round.

  e2e.py [--rows ROW,...] [--rounds N] [--rank R] [--commit C] [--json FILE]
"""

import argparse
import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import lora_kernels
import torch
from common import DEVICE, head, llama, synchronize, with_lora, write


@dataclass(frozen=True)
class Row:
    """One row of the table."""

    size: str
    layers: int
    batch: int
    seq: int
    graph: bool = False
    f32_adapters: bool = False
    checkpointing: bool = False
    compiled: bool = False
    dropout: float = 0.0


ROWS = {
    "8b-4x2048": Row("8b", 8, 4, 2048),
    "8b-1x2048": Row("8b", 8, 1, 2048),
    "8b-1x512": Row("8b", 8, 1, 512),
    "8b-1x512-graph": Row("8b", 8, 1, 512, graph=True),
    "8b-4x2048-f32": Row("8b", 8, 4, 2048, f32_adapters=True),
    "1b-4x2048": Row("1b", 16, 4, 2048),
    "8b-4x2048-checkpointing": Row("8b", 8, 4, 2048, checkpointing=True),
    "8b-4x2048-dropout": Row("8b", 8, 4, 2048, dropout=0.05),
    "8b-4x2048-compile": Row("8b", 4, 4, 2048, compiled=True),
}
TINY = {
    "tiny": Row("tiny", 2, 2, 16),
    "tiny-f32": Row("tiny", 2, 2, 16, f32_adapters=True),
    "tiny-checkpointing": Row("tiny", 2, 2, 16, checkpointing=True),
    "tiny-dropout": Row("tiny", 2, 2, 16, dropout=0.05),
    "tiny-compile": Row("tiny", 2, 2, 16, compiled=True),
}


def models(row: Row, rank: int) -> dict[str, torch.nn.Module]:
    """The contenders."""
    made = {}
    for name in ("frozen", "peft", "patched"):
        model = llama(row.size, row.layers, row.seq)
        if row.checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        if name == "frozen" or row.checkpointing:
            model.enable_input_require_grads()
        if name != "frozen":
            model = with_lora(model, rank, row.f32_adapters, lora_dropout=row.dropout)
        if name == "patched":
            found = lora_kernels.patch(model)
            print(found, flush=True)
            assert len(found.served) == 7 * row.layers, found
        made[name] = model
    return made


def captured(step: Callable[[], None]) -> Callable[[], None]:
    """The step as a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def measure(row: Row, rank: int, rounds: int) -> dict[str, object]:
    vocabulary = 128256 if row.size != "tiny" else 256
    torch.manual_seed(2)
    ids = torch.randint(0, vocabulary, (row.batch, row.seq), device=DEVICE)
    labels = ids.clone()
    labels[:, : row.seq // 2] = -100
    contenders = models(row, rank)
    # cuBLAS takes its workspace from PyTorch's memory at its first call, and keeps it.
    warm = torch.ones(64, 64, device=DEVICE, dtype=torch.bfloat16)
    torch.nn.functional.linear(warm, warm)
    synchronize()
    weights = torch.cuda.memory_allocated() if DEVICE == "cuda" else 0

    def of(model: torch.nn.Module) -> Callable[[], None]:
        called = model
        if row.compiled:
            backend = "inductor" if DEVICE == "cuda" else "aot_eager"
            called = torch.compile(model, dynamic=False, backend=backend)

        trained = [one for one in model.parameters() if one.requires_grad]

        def step() -> None:
            # As an optimiser does: a model's zero_grad walks over all modules, and PEFT adds many.
            for one in trained:
                one.grad = None
            called(input_ids=ids, labels=labels).loss.backward()

        return step

    steps = {name: of(model) for name, model in contenders.items()}
    peak = {}
    for name, step in steps.items():
        step()
        step()
        synchronize()
        if DEVICE == "cuda":
            torch.cuda.reset_peak_memory_stats()
            step()
            synchronize()
            peak[name] = (torch.cuda.max_memory_allocated() - weights) / 2**30
        contenders[name].zero_grad(set_to_none=True)
    if row.graph:
        steps = {name: captured(step) for name, step in steps.items()}
    ms: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            synchronize()
            start = time.perf_counter()
            step()
            synchronize()
            ms[name].append((time.perf_counter() - start) * 1e3)
    found = lora_kernels.report(contenders["patched"])
    assert not found.fell_back, found
    results = {}
    for name, times in ms.items():
        ratios = [one / base for one, base in zip(times, ms["frozen"], strict=True)]
        results[name] = {
            "ms": statistics.median(times),
            "ratio": statistics.median(ratios),
            "spread": [min(ratios), max(ratios)],
            "peak_gib": peak.get(name),
        }
    return {**asdict(row), "rank": rank, "rounds": rounds, "contenders": results}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", help=f"comma-separated: {', '.join(ROWS)}; or tiny")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--commit")
    parser.add_argument("--json")
    args = parser.parse_args()
    rows = TINY if args.rows == "tiny" else ROWS
    names = list(rows) if args.rows in (None, "tiny") else args.rows.split(",")
    result = {"kind": "e2e", **head(args.commit), "rows": {}}
    for name in names:
        start = time.perf_counter()
        result["rows"][name] = measure(rows[name], args.rank, args.rounds)
        gc.collect()
        if DEVICE == "cuda":
            torch.cuda.empty_cache()
        torch._dynamo.reset()
        ratios = {k: v["ratio"] for k, v in result["rows"][name]["contenders"].items()}
        print(name, {k: round(v, 3) for k, v in ratios.items()},
              f"{time.perf_counter() - start:.0f} s", flush=True)  # fmt: skip
        # After each row, so that a run that is cut short keeps what it has.
        if args.json:
            write(args.json, result)
    if not args.json:
        write(None, result)


main()
