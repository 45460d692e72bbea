"""A network of our own, by the kernel: a namespace for each device, cables to a switch, rates by ``tc``. Linux, root.

* Everything is named ``edgedi-TOKEN-...`` and made inside the namespaces: the machine's own network never sees an
  interface, an address or a packet of it, and nobody but root can enter.
* Each cable is shaped at both ends, so each direction has the full rate, and what several devices send to one shares
  its cable. A token bucket holds a tenth of a millisecond's worth, or two frames: next to nothing comes for free.
* Who made them holds a lock on ``/run/edgedi/TOKEN``, which the kernel drops when he dies, however. Whoever comes next
  removes what belongs to unlocked tokens, and nothing else.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import secrets
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from edgedi.bench.testbed.spec import Link
from edgedi.errors import EdgediError

LOCKS = Path("/run/edgedi")
NAMESPACES = Path("/run/netns")
_CLONE_NEWNET = 0x40000000
_FRAMES_BYTES = 3_200
_BUCKET_S = 1e-4
_QUEUE_BYTES = 64_000_000
"""Longer than all senders together may have under way: a dropped packet would cost TCP a fifth of a second."""


class NoNamespaces(EdgediError):
    """This process may or can not make network namespaces here; the text says why."""


class Network:
    """Namespaces of devices, joined by a switch; ``close`` removes them."""

    def __init__(self, links: Sequence[Link]) -> None:
        _require_tools()
        _remove_stale()
        self._token, self._lock = _take_token()
        self.names = tuple(f"edgedi-{self._token}-{index}" for index in range(len(links)))
        self._switch = f"edgedi-{self._token}-switch"
        try:
            self._make(links)
        except BaseException:
            self.close()
            raise

    def address(self, index: int) -> str:
        """The address of a device, known inside these namespaces only."""
        return f"10.0.0.{index + 1}"

    def prefix(self, index: int) -> tuple[str, ...]:
        """What to put before a command so that it runs in a device's namespace."""
        return ("ip", "netns", "exec", self.names[index])

    @contextlib.contextmanager
    def entered(self, index: int) -> Iterator[None]:
        """This thread, and the threads and processes that it starts meanwhile, are in a device's namespace."""
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            _enter(NAMESPACES / self.names[index])
            yield
        finally:
            _set_namespace(before)
            os.close(before)

    def close(self) -> None:
        """Remove everything. Idempotent; processes that still run inside are ended."""
        if self._lock >= 0:
            _remove(self._token)
            os.close(self._lock)
            self._lock = -1

    def _make(self, links: Sequence[Link]) -> None:
        for name in (self._switch, *self.names):
            _run("ip", "netns", "add", name)
            _run("ip", "-n", name, "link", "set", "lo", "up")
        _run("ip", "-n", self._switch, "link", "add", "switch", "type", "bridge")
        _run("ip", "-n", self._switch, "link", "set", "switch", "up")
        for index, link in enumerate(links):
            self._plug_in(index, link)

    def _plug_in(self, index: int, link: Link) -> None:
        name, port = self.names[index], f"port{index}"
        _run("ip", "link", "add", "cable", "netns", name, "type", "veth", "peer", "name", port, "netns", self._switch)
        _run("ip", "-n", self._switch, "link", "set", port, "master", "switch")
        _run("ip", "-n", name, "address", "add", f"{self.address(index)}/24", "dev", "cable")
        for namespace, end in ((name, "cable"), (self._switch, port)):
            _run("tc", "-n", namespace, "qdisc", "add", "dev", end, "root", *shaping(link))
            _run("ip", "-n", namespace, "link", "set", end, "up")


def shaping(link: Link) -> tuple[str, ...]:
    """The words of ``tc`` that give a device's cable its rate."""
    burst = max(_FRAMES_BYTES, int(link.bytes_per_s * _BUCKET_S))
    rate = f"{max(1, round(link.rate_bits_per_s))}bit"
    return ("tbf", "rate", rate, "burst", str(burst), "limit", str(_QUEUE_BYTES))


def _require_tools() -> None:
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        raise NoNamespaces("not root")
    lacking = [tool for tool in ("ip", "tc") if shutil.which(tool) is None]
    if lacking:
        raise NoNamespaces(f"{' and '.join(lacking)} not found: install iproute2")


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NoNamespaces(f"'{' '.join(command)}' failed: {' '.join(done.stderr.split())}")
    return done.stdout


# --- entering ---------------------------------------------------------------------------------------------------------


def _enter(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        _set_namespace(file)
    finally:
        os.close(file)


def _set_namespace(file: int) -> None:
    """``os.setns``, which Python has from 3.12 on."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(file, _CLONE_NEWNET):
        raise NoNamespaces(f"entering a network namespace: {os.strerror(ctypes.get_errno())}")


# --- who owns what ----------------------------------------------------------------------------------------------------


def _take_token() -> tuple[str, int]:
    """A new name, and the file whose lock says that its owner lives."""
    try:
        LOCKS.mkdir(mode=0o700, parents=True, exist_ok=True)
        while True:
            token = secrets.token_hex(4)
            file = os.open(LOCKS / token, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            fcntl.flock(file, fcntl.LOCK_EX)
            os.write(file, f"{os.getpid()}\n".encode())  # for who looks what this is
            if (LOCKS / token).exists():  # else somebody took it for stale before it was locked
                return token, file
            os.close(file)
    except OSError as error:
        raise NoNamespaces(f"cannot keep a lock in {LOCKS}: {error.strerror}") from error


def _remove_stale() -> None:
    """What owners left behind who died without a chance to clean up."""
    for path in LOCKS.glob("*") if LOCKS.is_dir() else ():
        with contextlib.suppress(OSError):  # gone meanwhile, or not to be opened
            file = os.open(path, os.O_RDWR)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(path.name)
            except BlockingIOError:
                pass  # its owner lives
            finally:
                os.close(file)


def _remove(token: str) -> None:
    """Namespaces of a token, the processes in them, and at last the lock's file."""
    for path in sorted(NAMESPACES.glob(f"edgedi-{token}-*")):
        _each_process(path.name, lambda number: os.kill(number, signal.SIGKILL))
        with contextlib.suppress(NoNamespaces):
            _run("ip", "netns", "delete", path.name)
    (LOCKS / token).unlink(missing_ok=True)


def _each_process(namespace: str, act: Callable[[int], None]) -> None:
    with contextlib.suppress(NoNamespaces):
        for word in _run("ip", "netns", "pids", namespace).split():
            if int(word) != os.getpid():
                with contextlib.suppress(ProcessLookupError):
                    act(int(word))
