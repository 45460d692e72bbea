"""Puts a testbed up: worker processes as devices, in namespaces or behind a relay, this process on the first device.

Sessions made within it give this process its share (``distribute(..., local=True)``). In namespaces every link is
encrypted, with keys made for the run: that is what a session between real devices does, and cannot do without.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from edgedi.bench.testbed.namespaces import Network, NoNamespaces
from edgedi.bench.testbed.price import measured_price
from edgedi.bench.testbed.spec import WARM, Device, Spec
from edgedi.errors import EdgediError
from edgedi.runtime.emulation.calm import CALM
from edgedi.runtime.emulation.here import Emulation, emulating
from edgedi.runtime.emulation.pace import clock_of
from edgedi.runtime.emulation.speed import MessagePrice, Speed
from edgedi.runtime.links.keys import generate_keypair, save_keypair
from edgedi.runtime.worker.local_workers import Launch, LocalWorkers

_STOP_TIMEOUT_S = 5.0


class Testbed:
    """Running devices, until ``close``. Meanwhile this thread is on the first one, and so are sessions that it makes.

    ``distribute`` takes ``addresses`` as workers, ``key`` and ``local=True``.
    """

    __test__ = False  # for pytest: this is no test

    def __init__(self, spec: Spec, say: Callable[[str], None], *, namespaces: bool = True) -> None:
        self.spec, self._say = spec, say
        self.key: Path | None = None
        self.process_ids: list[int] = []
        with ExitStack() as stack:
            network = self._network(stack) if namespaces else None
            keys, warm = network is not None, spec.work == WARM
            self.price: MessagePrice | None = None
            self.passing: MessagePrice | None = None
            if warm:
                self.price, self.passing = measured_price(keys=keys)
            self.how = "links shaped by the kernel" if network else "links shaped by a relay"
            self.addresses = self._in_namespaces(network, stack) if network else self._behind_relay(stack)
            stack.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(1)  # a device has one core, and this process's share is as wide as torch
            self._stack = stack.pop_all()

    @property
    def clock(self) -> Callable[[], float]:
        """The devices' time: requests are timed by it."""
        return clock_of(self._speed(self.spec.devices[0]))

    def __str__(self) -> str:
        return f"Emulated devices, not real ones: {self.spec}; {self.how}; {self._work()}"

    def _work(self) -> str:
        if self.price is None or self.passing is None:
            return "layers and work on messages slowed as they are measured in their place, with cold caches"
        return (
            f"a message counts {_microseconds(self.price)} at each end, being passed on {_microseconds(self.passing)}, "
            "layers what they take one after another: all measured here with warm caches, times the slowdown"
        )

    def close(self) -> None:
        """End the workers and remove what was made. Idempotent."""
        self._stack.close()

    def _network(self, stack: ExitStack) -> Network | None:
        try:
            network = Network(self.spec.links)
        except NoNamespaces as error:
            self._say(f"no network namespaces ({error}): a relay in a process of its own shapes the links instead")
            return None
        stack.callback(network.close)
        return network

    def _in_namespaces(self, network: Network, stack: ExitStack) -> tuple[str, ...]:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgedi-testbed-")))
        self.key, keys = _make_keys(folder, len(self.spec.devices) - 1)
        launches = [
            self._launch(
                device, "--host", network.address(index), "--key", str(keys[index - 1][0]),
                "--authorized-keys", str(folder / "authorized"), prefix=network.prefix(index),
            )
            for index, device in enumerate(self.spec.devices) if index
        ]  # fmt: skip
        places = self._start(launches, stack)
        stack.enter_context(network.entered(0))
        stack.enter_context(emulating(self._own()))
        return tuple(f"{place}#{public}" for place, (_, public) in zip(places, keys, strict=True))

    def _behind_relay(self, stack: ExitStack) -> tuple[str, ...]:
        relay = RelayProcess([link.bytes_per_s for link in self.spec.links])
        stack.callback(relay.close)
        self.process_ids.append(relay.process_id)
        proxies = [f"127.0.0.1:{port}" for port in relay.proxies]
        launches = [
            self._launch(device, "--socks-proxy", proxy)
            for device, proxy in zip(self.spec.devices[1:], proxies[1:], strict=True)
        ]
        relay.connect([int(place.rpartition(":")[2]) for place in self._start(launches, stack)])
        stack.enter_context(emulating(self._own(proxy=proxies[0])))
        return tuple(f"127.0.0.1:{door}" for door in relay.doors)

    def _start(self, launches: Sequence[Launch], stack: ExitStack) -> tuple[str, ...]:
        workers = LocalWorkers.launch(launches)
        stack.callback(workers.stop)
        self.process_ids += workers.process_ids
        return tuple(workers.addresses)

    def _own(self, *, proxy: str | None = None) -> Emulation:
        own = self.spec.devices[0]
        return Emulation(speed=self._speed(own), memory_bytes=own.memory_bytes, proxy=proxy)

    def _speed(self, device: Device) -> Speed:
        return replace(device.speed, price=self.price, passing=self.passing, dilation=self.spec.dilation)

    def _launch(self, device: Device, *options: str, prefix: tuple[str, ...] = ()) -> Launch:
        memory = ("--memory-limit", str(device.memory_bytes)) if device.memory_bytes is not None else ()
        speed = self._speed(device)
        priced = (("--message-price", speed.price), ("--message-passing", speed.passing))
        prices = [word for option, price in priced if price is not None for word in (option, str(price))]
        emulation = (
            "--slowdown", repr(speed.slowdown), "--latency", repr(speed.latency_s), "--dilation", repr(speed.dilation),
            *prices, "--calm-loop", repr(CALM.best_s),
        )  # fmt: skip
        return Launch(name=device.name, options=(*emulation, *memory, *options), prefix=prefix)


def _microseconds(price: MessagePrice) -> str:
    return f"{1e6 * price.message_s:.0f} us and {1e12 * price.byte_s:.0f} us a MB"


def _make_keys(folder: Path, num_workers: int) -> tuple[Path, list[tuple[Path, str]]]:
    """The coordinator's key file; file and public key of each worker."""
    own = generate_keypair()
    (folder / "authorized").write_text(f"{own.public} coordinator\n")
    (folder / "authorized").chmod(0o600)
    workers = [generate_keypair() for _ in range(num_workers)]
    saved = [(save_keypair(folder / f"worker-{index}.key", pair), pair.public) for index, pair in enumerate(workers)]
    return save_keypair(folder / "coordinator.key", own), saved


class RelayProcess:
    """``edgedi.bench.testbed.relay`` as a child, which ends with us."""

    def __init__(self, bytes_per_s: Sequence[float]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "edgedi.bench.testbed.relay"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        try:
            ports = self._ask(bytes_per_s=list(bytes_per_s))
        except BaseException:
            self.close()
            raise
        self.doors: tuple[int, ...] = tuple(ports["doors"])
        self.proxies: tuple[int, ...] = tuple(ports["proxies"])

    @property
    def process_id(self) -> int:
        """Its number."""
        return self._process.pid

    def connect(self, workers: Sequence[int]) -> None:
        """Say on which ports the workers listen; from now on it passes on."""
        self._ask(workers=list(workers))

    def _ask(self, **values: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(values) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise EdgediError(f"the relay of the testbed ended with code {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End it. Idempotent."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
