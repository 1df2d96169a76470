"""PEFT models on lora_kernels: the forward of LoRA layers, and nothing else of them."""

from collections.abc import Iterator
from types import MethodType

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import Linear
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from . import _native
from ._linear import linear
from ._operands import Operands, operands
from ._report import Report
from ._siblings import Siblings, families

_STATE = "_lora_kernels"


class _State:
    """What a served layer keeps. It is an attribute of the layer, in no state_dict."""

    __slots__ = ("fell_back", "names", "siblings")

    def __init__(self) -> None:
        self.siblings: Siblings | None = None
        self.names: tuple[str, ...] = ()
        self.fell_back: str | None = None


def patch(model: nn.Module, share_dropout: bool = False) -> Report:
    """Serves the LoRA layers of a PEFT model by lora_kernels, and says which.

    Their class, names, parameters and hooks stay. A layer that cannot be served stays PEFT's. So
    does a call that cannot, such as one with merged or disabled adapters. q, k, v and gate, up of
    one module are computed together when they are called with the same x.

    With adapter dropout in training, PEFT draws a mask for each layer. Layers that are computed
    together share one: so they are only with `share_dropout`, and else computed one by one.
    """
    served = {}
    for name, module in _layers(model):
        if _STATE not in module.__dict__ and _why_left(module) is None:
            module.__dict__[_STATE] = _State()
            module.forward = MethodType(forward, module)
            module._replicate_for_data_parallel = MethodType(_replicate_for_data_parallel, module)
            served[module] = name
    for _, module in _layers(model):
        state = module.__dict__.get(_STATE)
        if state is not None and state.siblings is not None:
            state.siblings.share_dropout = share_dropout
    for name, parent in list(model.named_modules()):
        for names in families(name, parent, served.keys()):
            siblings = Siblings(parent, names, share_dropout)
            for member in siblings.members:
                member.__dict__[_STATE].siblings = siblings
                member.__dict__[_STATE].names = names
    return report(model)


def unpatch(model: nn.Module) -> None:
    """Undoes `patch`."""
    for _, module in _layers(model):
        state = module.__dict__.pop(_STATE, None)
        if state is not None:
            del module.forward, module._replicate_for_data_parallel
            if state.siblings is not None:
                state.siblings.remove()


def report(model: nn.Module) -> Report:
    """Which LoRA layers of the model run on lora_kernels, and why others do not."""
    found = Report()
    for name, module in _layers(model):
        state = module.__dict__.get(_STATE)
        if state is None:
            found.left[name] = _why_left(module) or "not patched"
            continue
        if getattr(module.forward, "__func__", forward) is not forward:
            # As in a model that was pickled: its methods are found by their names.
            found.left[name] = "its forward was replaced; unpatch and patch the model"
            continue
        own = operands(module, None)
        if isinstance(own, str):
            found.left[name] = own
            continue
        found.served.append(name)
        if own[4] > 0:
            found.dropout[name] = own[4]
        if state.fell_back is not None:
            found.fell_back[name] = state.fell_back
        if state.siblings is not None and module is state.siblings.members[0]:
            parent = name.rpartition(".")[0]
            groups = found.apart if state.siblings.mask_each(own) else found.shared
            groups.append(tuple(f"{parent}.{one}" for one in state.names))
    return found


def _layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            yield name, module


def _why_left(module: nn.Module) -> str | None:
    """Why a layer cannot be served at all."""
    if type(module) is not Linear:
        kind = f"{type(module).__module__}.{type(module).__name__}"
        return f"{kind} is not a LoRA layer" if not isinstance(module, LoraLayer) else kind
    if "forward" in module.__dict__:
        return "its forward was replaced before"
    base = module.get_base_layer()
    if type(base) is not nn.Linear:
        return f"its base layer is {type(base).__module__}.{type(base).__name__}"
    device = base.weight.device
    if device.type not in ("cpu", "cuda"):
        return f"it is on {device}"
    return _native.missing(device.index) if device.type == "cuda" else None


def _replicate_for_data_parallel(self: nn.Module) -> nn.Module:
    """The replica's forward is the replica's: PyTorch copies attributes, and with them methods of
    the original. Siblings are not replicated."""
    replica = type(self)._replicate_for_data_parallel(self)
    replica.__dict__[_STATE] = _State()
    replica.forward = MethodType(forward, replica)
    return replica


def forward(self: nn.Module, x: Tensor, *args: object, **kwargs: object) -> Tensor:
    """In place of `peft.tuners.lora.layer.Linear.forward`, on the instance."""
    state = self.__dict__[_STATE]
    found = "further arguments" if args or kwargs else operands(self, x)
    if type(found) is tuple:
        try:
            h = _serve(self, state.siblings, x, found)
        except ValueError as error:
            found = str(error)
        else:
            state.fell_back = None
            return h
    state.fell_back = found
    return type(self).forward(self, x, *args, **kwargs)


def _serve(self: nn.Module, siblings: Siblings | None, x: Tensor, own: Operands) -> Tensor:
    h, compiling = None, torch.compiler.is_compiling()
    if siblings is not None and not compiling:
        h = siblings.forward(self, x, own)
    w0, a, b, scale, p, bias = own
    if h is None:
        h = linear(x, w0, a, b, scale, p)
    if bias is None:
        return h
    return h + bias if compiling else h.add_(bias)
