"""What the benchmarks share: models of a Llama's shapes, and the head of a result file."""

import datetime
import json
import pathlib
import platform
import subprocess
import sys

import lora_kernels
import peft
import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

SIZES = {
    "8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    },
    "1b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    },
    # To try the benchmarks out, without a GPU.
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 256,
    },
}
SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def llama(size: str, layers: int, seq: int) -> LlamaForCausalLM:
    """A frozen bf16 model with random weights, the same each time."""
    torch.manual_seed(0)
    config = LlamaConfig(
        num_hidden_layers=layers,
        max_position_embeddings=seq,
        attn_implementation="sdpa",
        use_cache=False,
        **SIZES[size],
    )
    with torch.device(DEVICE):
        torch.set_default_dtype(torch.bfloat16)
        model = LlamaForCausalLM(config)
        torch.set_default_dtype(torch.float32)
    return model.requires_grad_(False).train()


def with_lora(model: LlamaForCausalLM, rank: int, f32_adapters: bool, **lora) -> torch.nn.Module:
    """Adapters on all seven linear layers, none of them zero, the same each time."""
    lora = {"r": rank, "lora_alpha": 2 * rank, "target_modules": SEVEN, "lora_dropout": 0.0, **lora}
    model = get_peft_model(model, LoraConfig(**lora), autocast_adapter_dtype=f32_adapters)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    return model


def synchronize() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def head(commit: str | None) -> dict[str, object]:
    """Card, versions, date, commit and command."""
    if commit is None:
        found = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],
            capture_output=True,
            text=True,
            cwd=pathlib.Path(__file__).parent,
            check=False,
        )
        commit = found.stdout.strip() or "unknown"
    card = torch.cuda.get_device_name() if DEVICE == "cuda" else platform.processor() or "CPU"
    driver = None
    if DEVICE == "cuda":
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(query, capture_output=True, text=True, check=False).stdout.split()
    return {
        "card": card,
        "driver": driver[0] if driver else None,
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
        "lora_kernels": lora_kernels.__version__,
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "commit": commit,
        "command": " ".join([pathlib.Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def write(path: str | None, result: dict[str, object]) -> None:
    """The result as JSON, to the file or to the terminal."""
    text = json.dumps(result, indent=1) + "\n"
    if path is None:
        print(text, end="")
    else:
        pathlib.Path(path).write_text(text)
