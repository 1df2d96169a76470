"""What a patched model runs on."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Report:
    """The LoRA layers of a model, by their names."""

    served: list[str] = field(default_factory=list)
    """Layers that run on lora_kernels."""
    shared: list[tuple[str, ...]] = field(default_factory=list)
    """Of these, siblings that are computed together when they are called with one x."""
    apart: list[tuple[str, ...]] = field(default_factory=list)
    """Siblings that have a dropout mask each, so that they are computed one by one."""
    dropout: dict[str, float] = field(default_factory=dict)
    """Served layers whose adapter has dropout at present, each with p."""
    left: dict[str, str] = field(default_factory=dict)
    """Layers that run PEFT's forward, each with the reason."""
    fell_back: dict[str, str] = field(default_factory=dict)
    """Served layers whose last call ran PEFT's forward, each with the reason."""

    def __str__(self) -> str:
        total = len(self.served) + len(self.left)
        lines = [f"{len(self.served)} of {total} LoRA layers run on lora_kernels"]
        if self.shared:
            lines[0] += f", {sum(map(len, self.shared))} of them in {len(self.shared)} groups"
        if self.dropout:
            ps = ", ".join(f"{p:g}" for p in sorted(set(self.dropout.values())))
            lines.append(f"dropout {ps}: {_list(list(self.dropout))}")
        if self.apart:
            lines.append(
                f"one by one, with a dropout mask each: {len(self.apart)} groups; "
                "patch(model, share_dropout=True) computes each together, with one mask"
            )
        for title, layers in (("PEFT's forward", self.left), ("last call by PEFT", self.fell_back)):
            reasons: dict[str, list[str]] = {}
            for name, reason in layers.items():
                reasons.setdefault(reason, []).append(name)
            lines += [f"{title}: {reason}: {_list(names)}" for reason, names in reasons.items()]
        return "\n".join(lines)


def _list(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
