"""edgedi-worker: lend this device to coordinators."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from types import FrameType
from typing import TYPE_CHECKING

from edgedi.errors import EdgediError
from edgedi.runtime.version import software_version

if TYPE_CHECKING:
    from edgedi.runtime.worker import WorkerOptions

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="edgedi-worker",
        description="Lend this device to coordinators. Without authorised keys it listens on loopback only.",
    )
    made.add_argument("--port", type=_port, default=5555, help="port to listen on; 0 picks a free one (default 5555)")
    made.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1)")
    made.add_argument("--threads", type=_positive, default=None, help="threads per operator (default: all cores given)")
    made.add_argument("--cores", type=_cores, default=None, metavar="N,N", help="cores to run on (default: all)")
    made.add_argument("--name", default=socket.gethostname(), help="name in plans and logs (default: the host's)")
    made.add_argument("--device", choices=("cpu", "cuda", "mps"), default="cpu", help="where layers run (default cpu)")
    made.add_argument("--memory-limit", type=_size, default=None, metavar="BYTES", help="e.g. 512M or 2G (default: none)")
    made.add_argument("--key", default=None, metavar="FILE", help="this worker's key pair, made by edgedi-keygen")
    made.add_argument("--authorized-keys", default=None, metavar="FILE", help="public keys that may use this worker")
    made.add_argument("--insecure-no-auth", action="store_true", help="let anybody in reach use this worker")
    made.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="info")
    made.add_argument("--version", action="version", version=f"edgedi {software_version()}")
    made.add_argument("--end-with-parent", action="store_true", help=argparse.SUPPRESS)
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until Ctrl-C or SIGTERM. Exit code 0 after a clean end, 2 for anything that prevents serving."""
    arguments = parser().parse_args(argv)
    logging.basicConfig(level=arguments.log_level.upper(), format="%(asctime)s %(levelname)s %(message)s")
    try:
        _prepare_process(arguments)
        return _serve(arguments)
    except (EdgediError, ValueError, OSError) as error:
        print(f"edgedi-worker: {error}", file=sys.stderr)
        return 2


def _prepare_process(arguments: argparse.Namespace) -> None:
    """What must be set before torch is imported."""
    if arguments.cores is not None:
        if not hasattr(os, "sched_setaffinity"):
            raise ValueError("--cores: this system does not pin processes")
        try:
            os.sched_setaffinity(0, arguments.cores)
        except OSError as error:
            usable = sorted(os.sched_getaffinity(0))
            raise ValueError(f"--cores {arguments.cores}: usable here are {usable}") from error
    if arguments.threads is None:
        affinity = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
        arguments.threads = len(affinity)
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)


def _serve(arguments: argparse.Namespace) -> int:
    options = _options(arguments)
    from edgedi.runtime.worker import Worker  # torch only now: options are wrong more often than torch is needed

    worker = Worker(options)
    port = worker.bind()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda _number, _frame: _stop(worker))
    if arguments.end_with_parent:
        threading.Thread(target=_watch_parent, daemon=True).start()
    print(f"ready {options.host}:{port}", flush=True)
    _log_how_open(options, port, arguments)
    worker.serve()
    logging.getLogger("edgedi.worker").info("stopped")
    return 0


def _stop(worker: object) -> FrameType | None:
    worker.stop()  # type: ignore[attr-defined]  # the class needs torch, which is not imported at the top
    return None


def _options(arguments: argparse.Namespace) -> WorkerOptions:
    from edgedi.runtime.keys import load_authorized_keys, load_keypair
    from edgedi.runtime.security import check_bind

    authorized = tuple(load_authorized_keys(arguments.authorized_keys)) if arguments.authorized_keys else ()
    check_bind(arguments.host, authorized=bool(authorized), insecure=arguments.insecure_no_auth)
    if authorized and arguments.key is None:
        raise ValueError("--authorized-keys needs --key FILE, this worker's own key pair: make one with edgedi-keygen")
    keypair = load_keypair(arguments.key) if arguments.key and authorized else None
    _check_device(arguments.device)
    from edgedi.runtime.worker import WorkerOptions

    return WorkerOptions(
        host=arguments.host, port=arguments.port, name=arguments.name, threads=arguments.threads,
        device=arguments.device, memory_limit_bytes=arguments.memory_limit, keypair=keypair, authorized=authorized,
    )  # fmt: skip


def _check_device(device: str) -> None:
    if device == "cpu":
        return
    from edgedi.runtime.device import device_available

    if not device_available(device):
        raise ValueError(f"--device {device}: torch finds no such device here; use --device cpu")


def _log_how_open(options: WorkerOptions, port: int, arguments: argparse.Namespace) -> None:
    log = logging.getLogger("edgedi.worker")
    if options.keypair is not None:
        log.info("listening on %s:%d for %d authorised keys; my public key is %s", options.host, port,
                 len(options.authorized), options.keypair.public)  # fmt: skip
    elif arguments.insecure_no_auth:
        log.warning("listening on %s:%d WITHOUT authentication: anybody in reach can use this worker", options.host, port)
    else:
        log.info("listening on %s:%d, this machine only; to open it: edgedi-keygen, then --host 0.0.0.0 --key FILE "
                 "--authorized-keys FILE", options.host, port)  # fmt: skip


def _watch_parent() -> None:
    """End when the parent does: its end of our standard input closes then, however it died."""
    while sys.stdin.buffer.read(1):
        pass
    os._exit(0)


def _port(text: str) -> int:
    if not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: 0 to 65535")
    return int(text)


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 up")
    return int(text)


def _cores(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.isdigit() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of cores such as 0,1")
    return [int(part) for part in parts]


def _size(text: str) -> int:
    number, unit = (text[:-1], text[-1].lower()) if text and not text[-1].isdigit() else (text, "")
    if unit not in _UNITS or not number.replace(".", "", 1).isdigit() or float(number) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 512M or 2G")
    return int(float(number) * _UNITS[unit])


if __name__ == "__main__":
    sys.exit(main())
