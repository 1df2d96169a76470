#!/usr/bin/env python3
"""200 steps of training on real text, by PEFT and patched, from the same seeds.

The text is that of Python's standard library, its bytes as tokens; its digest is in the result,
since it differs between versions of Python. The model is a small Llama with random bf16 weights;
LoRA (f32 adapters, PEFT's default) is on all seven linear layers, and the embeddings and the head
are trained too. Both runs see the same batches in the same order.

  train200.py [--steps N] [--tiny] [--commit C] [--json FILE]
"""

import argparse
import hashlib
import pathlib
import statistics
import sysconfig

import lora_kernels
import torch
from common import DEVICE, SEVEN, SIZES, head, llama, with_lora, write

SIZES["text"] = {
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "vocab_size": 256,
}
# The modules of the standard library with the longest docstrings, which every Python has.
MODULES = ["argparse", "collections/__init__", "datetime", "decimal", "_pydecimal", "difflib",
           "doctest", "email/message", "inspect", "logging/__init__", "pathlib", "random",
           "statistics", "subprocess", "tarfile", "threading", "typing", "zipfile"]  # fmt: skip


def text() -> bytes:
    """The source of the modules that this Python has."""
    library = pathlib.Path(sysconfig.get_path("stdlib"))
    files = [library / f"{name}.py" for name in MODULES]
    return b"".join(file.read_bytes() for file in files if file.is_file())


def batches(data: torch.Tensor, steps: int, batch: int, seq: int) -> list[torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    starts = torch.randint(0, len(data) - seq, (steps, batch), generator=rng)
    return [torch.stack([data[at : at + seq] for at in row]).to(DEVICE) for row in starts.tolist()]


def train(patched: bool, size: str, layers: int, train: list[torch.Tensor],
          held: list[torch.Tensor]) -> dict[str, object]:  # fmt: skip
    seq = train[0].shape[1]
    whole = ["embed_tokens", "lm_head"]
    base = llama(size, layers, seq)
    model = with_lora(base, 16, True, modules_to_save=whole, target_modules=SEVEN)
    if patched:
        assert len(lora_kernels.patch(model).served) == 7 * layers
    trained = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    losses = []
    for ids in train:
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    assert not lora_kernels.report(model).fell_back
    model.eval()
    with torch.no_grad():
        held_out = [model(input_ids=ids, labels=ids).loss.item() for ids in held]
    return {"loss": [one.item() for one in losses], "held_out": statistics.mean(held_out)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--tiny", action="store_true", help="to try it out without a GPU")
    parser.add_argument("--commit")
    parser.add_argument("--json")
    args = parser.parse_args()
    size, layers, batch, seq = ("tiny", 2, 2, 64) if args.tiny else ("text", 8, 16, 512)
    raw = text()
    data = torch.frombuffer(bytearray(raw), dtype=torch.uint8).long()
    cut = len(data) * 9 // 10
    steps = batches(data[:cut], args.steps, batch, seq)
    held = batches(data[cut:], 4, batch, seq)
    runs = {name: train(name == "patched", size, layers, steps, held)
            for name in ("peft", "patched")}  # fmt: skip
    last = {name: statistics.mean(run["loss"][-20:]) for name, run in runs.items()}
    for name, run in runs.items():
        print(f"{name:8} first {run['loss'][0]:.4f}, mean of the last 20 {last[name]:.4f}, "
              f"held out {run['held_out']:.4f}")  # fmt: skip
    difference = {
        "last20": last["patched"] / last["peft"] - 1,
        "held_out": runs["patched"]["held_out"] / runs["peft"]["held_out"] - 1,
    }
    print({name: f"{100 * one:+.3f} %" for name, one in difference.items()})
    write(args.json, {
        "kind": "train", **head(args.commit), "size": SIZES[size], "layers": layers,
        "batch": batch, "seq": seq, "text_sha256": hashlib.sha256(raw).hexdigest(),
        "text_bytes": len(raw), "difference": difference, "runs": runs,
    })  # fmt: skip


main()
