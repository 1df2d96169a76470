"""Passes of lora-kernels on memory and streams named by their addresses."""

from collections.abc import Sequence

__version__: str

def missing(device: int) -> str | None:
    """Why calls on this CUDA device are not possible, or None."""

def kept(p: float, seed: int, offset: int, t: int, k: int) -> bytes:
    """Which elements of x [t, k] dropout keeps: a byte each, 1 or 0."""

class Plan:
    """Both passes of 1 to 4 projections that share x, planned for one device.

    Operands of the passes are addresses of dense matrices, 0 for what is not wanted. The caller
    keeps the memory alive, in the order of the stream, and vouches for the addresses.
    """

    def __new__(
        cls,
        device: int,
        t: int,
        k: int,
        sizes: Sequence[tuple[int, int]],
        dtype: str,
        masters: bool,
        dropout: float,
    ) -> Plan:
        """For T tokens of k inputs, and (d, r) of each projection, on a CUDA device or -1.

        `dropout` is p of the adapters' input.
        """

    @property
    def rank(self) -> int:
        """R, the sum of the ranks."""

    @property
    def operands(self) -> int:
        """Elements of 16 bits of A and every B, rounded; 0 without masters."""

    @property
    def forward_workspace(self) -> tuple[int, int]:
        """Bytes of scratch and of flags."""

    @property
    def backward_workspace(self) -> tuple[int, int]:
        """Bytes of scratch and of flags."""

    def forward(
        self,
        stream: int,
        addresses: list[int],
        scales: Sequence[float],
        operands: int,
        s: int,
        dropout: int,
        scratch: int,
        flags: int,
    ) -> bool:
        """Enqueues h [T, d] of each projection, and s [T, R] unless it is 0.

        `addresses` are those of x, then of each w0, each a, each b and each h. `operands` is the A
        of all, or receives the rounded masters. `dropout` is the address of the seed and the offset
        of its mask, 64 bits each. `scratch` and `flags` are addresses, of zeros for the flags, or 0
        for the stream's own. False if nothing was enqueued: the stream captures, and a graph must
        not use its own.
        """

    def backward(
        self,
        stream: int,
        addresses: list[int],
        scales: Sequence[float],
        dx: int,
        dropout: int,
        scratch: int,
        flags: int,
    ) -> bool:
        """Enqueues dx [T, k] unless it is 0, da [R, k], and db [d, r] of each projection.

        `addresses` are those of x, s and the operands of the forward pass, then of each w0, of each
        b unless there are masters, of each dh, of da, and of each db. The other arguments and the
        result are those of `forward`.
        """
