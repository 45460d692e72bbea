"""What a worker is told when it starts."""

from __future__ import annotations

from dataclasses import dataclass

from edgedi.runtime.emulation.speed import Speed
from edgedi.runtime.links.keys import KeyPair


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """What a worker is started with. ``authorized`` are the public keys of coordinators that may use it.

    ``engine`` is ``auto``, which lets OpenVINO and ONNX Runtime, where they are installed, compute the chains of layers
    that they are faster at, or ``torch``.
    ``speed`` and ``proxy`` (``host:port`` of a SOCKS proxy, the only way to its peers) are for emulated devices.
    """

    host: str = "127.0.0.1"
    port: int = 0
    name: str = "worker"
    threads: int = 1
    device: str = "cpu"
    engine: str = "auto"
    memory_limit_bytes: int | None = None
    keypair: KeyPair | None = None
    authorized: tuple[str, ...] = ()
    speed: Speed = Speed()  # noqa: RUF009  # it is frozen
    proxy: str | None = None
