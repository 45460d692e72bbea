"""How fast an emulated device is, as a value."""

from __future__ import annotations

from dataclasses import dataclass

MOST_SLOWDOWN = 1000.0
MOST_LATENCY_S = 10.0
MOST_DILATION = 100.0


@dataclass(frozen=True, slots=True, kw_only=True)
class MessagePrice:
    """Processor seconds of this machine's core for one message: packing it, unpacking it, or passing it on."""

    message_s: float
    byte_s: float

    def __post_init__(self) -> None:
        for name, value in (("message_s", self.message_s), ("byte_s", self.byte_s)):
            if not 0 <= value <= MOST_LATENCY_S:
                raise ValueError(f"{name} is {value:g}: accepted are 0 to {MOST_LATENCY_S:g} seconds")

    def __str__(self) -> str:
        return f"{self.message_s:.9g}+{self.byte_s:.9g}"

    @classmethod
    def parse(cls, text: str) -> MessagePrice:
        """What ``str`` gives, back. ``ValueError`` for anything else."""
        message, plus, byte = text.partition("+")
        if not plus:
            raise ValueError(f"message price {text!r}: give SECONDS+SECONDS_A_BYTE, as in 1.5e-05+5e-11")
        return cls(message_s=float(message), byte_s=float(byte))

    def seconds(self, num_bytes: int) -> float:
        """For a message of so many bytes."""
        return self.message_s + num_bytes * self.byte_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """What is emulated: ``slowdown`` 1, ``latency_s`` 0 and ``dilation`` 1 are this machine itself. Seconds are the
    device's own, of which one takes ``dilation`` seconds of this machine's (``pace.clock_of``)."""

    slowdown: float = 1.0
    latency_s: float = 0.0
    price: MessagePrice | None = None
    """Of messages, at each end, before the slowdown; then layers count what they take with warm caches, too. ``None``:
    both count what they happen to take in their place."""
    passing: MessagePrice | None = None
    """What others than the thread that computes do for a message, at both ends together, before the slowdown: the
    network library's thread and the kernel, encryption included. ``None``: what that takes on this machine."""
    dilation: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= self.slowdown <= MOST_SLOWDOWN:
            raise ValueError(f"slowdown is {self.slowdown:g}: accepted are 1 (this machine) to {MOST_SLOWDOWN:g}")
        if not 0 <= self.latency_s <= MOST_LATENCY_S:
            raise ValueError(f"latency_s is {self.latency_s:g}: accepted are 0 to {MOST_LATENCY_S:g} seconds")
        if not 1 <= self.dilation <= MOST_DILATION:
            raise ValueError(f"dilation is {self.dilation:g}: accepted are 1 (time as it is) to {MOST_DILATION:g}")

    @property
    def counts_warm(self) -> bool:
        """Whether work counts what it takes with warm caches, as on a device that is busy."""
        return self.is_emulated and self.price is not None

    @property
    def is_emulated(self) -> bool:
        """Whether anything is other than on this machine."""
        return self.slowdown != 1 or self.latency_s != 0 or self.dilation != 1
