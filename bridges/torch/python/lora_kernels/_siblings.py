"""Layers that a model calls one by one with the same x, computed together.

The first of the siblings that is called computes all; the others find theirs. This happens within
one call of their parent module: its hooks open and close the shelf on which outputs wait, so that
none outlives the call.
"""

import threading
from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from ._linear import autocast_dtype, linears
from ._operands import Operands, operands, stamp
from ._passes import current_stream

# Children that models call with one x. Whether siblings are served together must not depend on
# earlier calls: a checkpoint's second forward pass has to save what its first one saved.
_FAMILIES = (
    ("q_proj", "k_proj", "v_proj"),
    ("gate_proj", "up_proj"),
    ("query", "key", "value"),
    ("to_q", "to_k", "to_v"),
    ("q", "k", "v"),
    ("wi_0", "wi_1"),
    ("w1", "w3"),
)

# Of modules whose k and v are of another x than q.
_CROSS = ("cross", "encoder_attn", "encdec")


class _Shelf:
    """The outputs that wait, in one call of the parent."""

    __slots__ = ("computed", "key", "outputs", "x")

    def __init__(self) -> None:
        self.computed = False
        self.clear()

    def clear(self) -> None:
        self.x: Tensor | None = None
        self.key: tuple[object, ...] = ()
        self.outputs: dict[nn.Module, tuple[Tensor, Operands, tuple[object, ...]]] = {}


class _Shelves(threading.local):
    """The open shelf of each group, in this thread."""

    def __init__(self) -> None:
        self.open: dict[Siblings, _Shelf] = {}


_shelves = _Shelves()


def _key(x: Tensor) -> tuple[object, ...]:
    """What must not change between the calls of siblings, besides their operands."""
    autocast = autocast_dtype(x)
    stream = current_stream(x.get_device())
    return x._version, torch.is_grad_enabled(), x.requires_grad, autocast, stream


class Siblings:
    """Two to four children of a module."""

    def __init__(self, parent: nn.Module, names: Sequence[str], share_dropout: bool) -> None:
        self.share_dropout = share_dropout
        self.members = [parent.get_submodule(name) for name in names]
        self._hooks = [
            parent.register_forward_pre_hook(self._begin),
            parent.register_forward_hook(self._end, always_call=True),
        ]

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def _begin(self, _parent: nn.Module, _inputs: object) -> None:
        if not torch.compiler.is_compiling():
            _shelves.open[self] = _Shelf()

    def _end(self, _parent: nn.Module, _inputs: object, _outputs: object) -> None:
        if not torch.compiler.is_compiling():
            _shelves.open.pop(self, None)

    def mask_each(self, own: Operands) -> bool:
        """Whether each needs a dropout mask of its own, as PEFT has it. A call has one for all."""
        return own[4] > 0 and not self.share_dropout

    def forward(self, module: nn.Module, x: Tensor, own: Operands) -> Tensor | None:
        """h of this module without its bias, or None where it has to be computed alone."""
        shelf = _shelves.open.get(self)
        if shelf is None or self.mask_each(own) or x.is_inference():
            return None
        key = _key(x)
        if not shelf.computed:
            # Once a call: where siblings turn out to have another x each, the rest is done alone.
            shelf.computed = True
            return self._compute(shelf, module, x, own, key)
        found = shelf.outputs.get(module)
        if found is None or shelf.x is not x or shelf.key != key or found[2] != stamp(own):
            return None
        del shelf.outputs[module]
        if not shelf.outputs:
            shelf.clear()
        return found[0]

    def _compute(
        self, shelf: _Shelf, module: nn.Module, x: Tensor, own: Operands, key: tuple[object, ...]
    ) -> Tensor | None:
        each = [own if one is module else operands(one, x) for one in self.members]
        fit = [one for one in each if not isinstance(one, str) and one[4] == own[4]]
        if len(fit) < len(each):
            return None
        try:
            h = linears(x, [one[:4] for one in fit], own[4])
        except ValueError:
            # They do not fit each other: a shard that was not gathered, say.
            return None
        for one, out, of in zip(self.members, h, fit, strict=True):
            if one is module:
                mine = out
            else:
                shelf.outputs[one] = (out, of, stamp(of))
        shelf.x, shelf.key = x, key
        return mine


def families(name: str, parent: nn.Module, served: Collection[nn.Module]) -> list[tuple[str, ...]]:
    """The names of children that share their x, of those that are served."""
    if any(word in name.lower() for word in _CROSS) or getattr(parent, "is_cross_attention", False):
        return []
    children = dict(parent.named_children())
    found = (tuple(n for n in names if children.get(n) in served) for names in _FAMILIES)
    k = [(names, {children[n].in_features for n in names}) for names in found if len(names) > 1]
    return [names for names, inputs in k if len(inputs) == 1]
