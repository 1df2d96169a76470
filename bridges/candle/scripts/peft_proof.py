"""The run of the example `smollm2` by PyTorch, transformers and PEFT (requirements.txt).

It reads what the example has left: the model and the tokens in its --model, and in its --out the
order of the batches, the initial adapter and the trained one. The result file has the fields of
the example's own (examples/smollm2/report.rs).
"""

import argparse
import contextlib
import datetime
import hashlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import peft
import torch
import transformers

PACKAGES = torch, transformers, peft

# The example's, and PyTorch's defaults.
BETAS, EPS, WEIGHT_DECAY = (0.9, 0.999), 1e-8, 0.01


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="the example's --model")
    parser.add_argument("--run", type=Path, required=True, help="the example's --out")
    parser.add_argument("--json", type=Path, required=True, help="where the figures go")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--steps", type=int, help="fewer than the example's")
    args = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()

    order = json.loads((args.run / "order.json").read_text())
    run = Run(args, order)
    model = run.load(args.run / "initial")
    losses, held_out, step_ms = run.train(model, order["steps"][: args.steps], order["every"])
    trainable = [p for p in model.parameters() if p.requires_grad]
    count = sum(p.numel() for p in trainable)
    adapter, digest = saved(model)
    report = {
        "program": "peft",
        "device": device_name(args.device),
        "dtype": args.dtype,
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "commit": os.environ.get("LORA_KERNELS_COMMIT", "unknown"),
        "command": "python3 " + " ".join(sys.argv),
        "versions": {package.__name__: package.__version__ for package in PACKAGES},
        "settings": order["settings"],
        "model_parameters": sum(p.numel() for p in model.parameters()) - count,
        "trainable_parameters": count,
        "gradient_bytes": sum(p.numel() * p.element_size() for p in trainable),
        "optimiser_bytes": 2 * sum(p.numel() * p.element_size() for p in trainable),
        "adapter_bytes": adapter,
        "adapter_sha256": digest,
        "losses": losses,
        "held_out": held_out,
        "step_ms": statistics.median(step_ms[1:] or step_ms),
        "peak": run.peak(),
    }
    del model
    report["loaded_held_out"] = run.evaluate(run.load(args.run / "adapter"))
    args.json.write_text(json.dumps(report, indent=2) + "\n")
    for steps, loss in held_out[0], held_out[-1]:
        print(f"held out   {loss:.4f} after {steps} steps")
    print(f"held out   {report['loaded_held_out']:.4f} with the adapter that the example trained")


class Run:
    """The tokens and how they are used."""

    def __init__(self, args, order):
        self.args, self.order = args, order
        self.device = torch.device(args.device)
        self.dtype = getattr(torch, args.dtype)
        # The example leaves its tiny model with the run.
        self.model = args.run / "model" if order["settings"]["random_tiny"] else args.model
        self.train_ids, self.held_out_ids = (
            torch.from_numpy(np.fromfile(self.model / name, dtype="<u2").astype(np.int64))
            for name in ("train.u16", "held_out.u16")
        )

    def load(self, adapter):
        """The model with an adapter in f32, as PEFT keeps adapters of 16-bit models."""
        model = transformers.AutoModelForCausalLM.from_pretrained(self.model, dtype=self.dtype)
        model = peft.PeftModel.from_pretrained(model.to(self.device), adapter, is_trainable=True)
        model.train()
        return model

    def loss(self, model, ids, starts):
        """The mean cross-entropy of the next tokens, in f32."""
        seq = self.order["settings"]["seq"]
        rows = torch.stack([ids[at : at + seq + 1] for at in starts]).to(self.device)
        # What transformers' Trainer does for bf16=True. Without it PEFT computes A and B in f32.
        cast = contextlib.nullcontext()
        if self.dtype != torch.float32:
            cast = torch.autocast(self.device.type, self.dtype)
        with cast:
            logits = model(input_ids=rows[:, :-1], use_cache=False).logits
        return torch.nn.functional.cross_entropy(
            logits.flatten(0, 1).float(), rows[:, 1:].flatten()
        )

    @torch.no_grad()
    def evaluate(self, model):
        starts, batch = self.order["held_out"], self.order["settings"]["batch"]
        parts = [starts[i : i + batch] for i in range(0, len(starts), batch)]
        model.eval()
        losses = [self.loss(model, self.held_out_ids, part).item() * len(part) for part in parts]
        model.train()
        return sum(losses) / len(starts)

    def train(self, model, steps, every):
        trainable = [p for p in model.parameters() if p.requires_grad]
        optimiser = torch.optim.AdamW(
            trainable,
            lr=self.order["settings"]["lr"],
            betas=BETAS,
            eps=EPS,
            weight_decay=WEIGHT_DECAY,
        )
        losses, step_ms = [], []
        held_out = [[0, self.evaluate(model)]]
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        for step, starts in enumerate(steps, 1):
            begin = time.perf_counter()
            loss = self.loss(model, self.train_ids, starts)
            loss.backward()
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            losses.append(loss.item())
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            step_ms.append(1e3 * (time.perf_counter() - begin))
            if step % every == 0 or step == len(steps):
                held_out.append([step, self.evaluate(model)])
        return losses, held_out, step_ms

    def peak(self):
        if self.device.type == "cuda":
            bytes, reserved = (
                torch.cuda.max_memory_allocated(self.device),
                torch.cuda.max_memory_reserved(self.device),
            )
            return {"bytes": bytes, "reserved": reserved}
        kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {"bytes": kib << 10, "reserved": None}


def saved(model):
    """The size and SHA-256 of the adapter's file."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        content = (Path(folder) / "adapter_model.safetensors").read_bytes()
    return len(content), hashlib.sha256(content).hexdigest()


def device_name(device):
    if device.startswith("cuda"):
        query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        line = subprocess.run(query, capture_output=True, text=True, check=True).stdout
        return line.splitlines()[0].replace(", ", ", driver ")
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((l.split(":")[1].strip() for l in lines if l.startswith("model name")), "unknown")


if __name__ == "__main__":
    main()
