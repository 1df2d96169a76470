"""What a LoRA layer of PEFT computes with, looked up at each call."""

from typing import Any, TypeAlias

from torch import Tensor, nn

_PLAIN = (Tensor, nn.Parameter)

Operands: TypeAlias = tuple[Tensor, Tensor, Tensor, float, float, Tensor | None]
"""w0, a, b, scale, p of the dropout and the bias."""


def stamp(own: Operands) -> tuple[object, ...]:
    """Differs after a change of the operands, as long as they are alive."""
    w0, a, b, scale, p, _ = own
    return id(w0), w0._version, id(a), a._version, id(b), b._version, scale, p


def operands(self: Any, x: Tensor | None) -> Operands | str:
    """What the layer computes with at present, or why PEFT has to.

    NOTES: attributes that are modules or parameters go through nn.Module.__getattr__, which takes a
    microsecond; its dictionaries do not.
    """
    if self._disable_adapters:
        return "adapters are disabled"
    if self.merged_adapters:
        return "merged"
    modules = self._modules
    down, up = modules["lora_A"]._modules, modules["lora_B"]._modules
    active = self._active_adapter
    if type(active) is not str:
        names = [name for name in active if name in down]
        if len(names) > 1:
            return "several active adapters"
        active = names[0] if names else ""
    if active not in down:
        return "no active adapter"
    if active in self.lora_variant:
        return type(self.lora_variant[active]).__name__
    base, a, b = modules["base_layer"], down[active], up[active]
    for one in (base, a, b):
        if type(one) is not nn.Linear:
            return f"a {type(one).__module__}.{type(one).__name__} in it"
        if (one._forward_pre_hooks or one._forward_hooks
                or one._backward_pre_hooks or one._backward_hooks):  # fmt: skip
            return "a hook on its base layer or adapter"
    dropout, p = modules["lora_dropout"]._modules[active], 0.0
    if type(dropout) is not nn.Identity and dropout.training:
        if type(dropout) is not nn.Dropout:
            return f"a {type(dropout).__module__}.{type(dropout).__name__} while training"
        p = dropout.p
    if b._parameters["bias"] is not None:
        return "bias of lora_B"
    w0, a, b = _parameter(base, "weight"), _parameter(a, "weight"), _parameter(b, "weight")
    if not (type(w0) in _PLAIN and type(a) in _PLAIN and type(b) in _PLAIN):
        return f"parameters of {type(w0).__name__}, {type(a).__name__} and {type(b).__name__}"
    if w0.requires_grad:
        return "its base weight is trained"
    if x is not None and x.dtype != a.dtype and not self.cast_input_dtype_enabled:
        return "the cast of x is disabled"
    return w0, a, b, self.scaling[active], p, _parameter(base, "bias")


def _parameter(layer: nn.Linear, name: str) -> Tensor | None:
    """FSDP has gathered parameters as plain attributes."""
    parameters = layer._parameters
    return parameters[name] if name in parameters else getattr(layer, name)
