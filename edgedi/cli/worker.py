"""edgedi-worker: lend this device to coordinators."""

from __future__ import annotations

import argparse
import logging
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from edgedi.errors import EdgediError
from edgedi.runtime.version import software_version

if TYPE_CHECKING:
    from edgedi.runtime.worker.options import WorkerOptions
    from edgedi.runtime.worker.worker import Worker

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}
_MOST_THREADS = 1024
_ENDING = (signal.SIGINT, signal.SIGTERM)
_LAST_WORDS_S = 5.0


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
    made.add_argument(
        "--name", type=_name, default=socket.gethostname(), help="name in plans and logs (default: the host's)"
    )
    made.add_argument("--device", choices=("cpu", "cuda", "mps"), default="cpu", help="where layers run (default cpu)")
    made.add_argument("--engine", choices=("auto", "torch"), default="auto",
                      help="auto (default): OpenVINO or ONNX Runtime, if they are here, where measured faster; with a "
                      "memory limit one of them, where weights fit three times into half of it")  # fmt: skip
    made.add_argument(
        "--memory-limit", type=_size, default=None, metavar="BYTES", help="e.g. 512M or 2G (default: none)"
    )
    made.add_argument("--key", default=None, metavar="FILE", help="this worker's key pair, made by edgedi-keygen")
    made.add_argument("--authorized-keys", default=None, metavar="FILE", help="public keys that may use this worker")
    made.add_argument("--insecure-no-auth", action="store_true", help="let anybody in reach use this worker")
    levels = ("debug", "info", "warning", "error")
    made.add_argument("--log-level", choices=levels, default="info", help="what is logged, and above (default info)")
    made.add_argument("--version", action="version", version=f"edgedi {software_version()}")
    made.add_argument("--end-with-parent", action="store_true", help=argparse.SUPPRESS)
    # An emulated device, see docs/method.md: how many times as slow, how late messages reach it, what work on
    # one counts, the loop that tells calm moments, how slowly time goes, its way to peers.
    made.add_argument("--slowdown", type=_number, default=1.0, help=argparse.SUPPRESS)
    made.add_argument("--latency", type=_number, default=0.0, help=argparse.SUPPRESS)
    made.add_argument("--message-price", default=None, help=argparse.SUPPRESS)
    made.add_argument("--message-passing", default=None, help=argparse.SUPPRESS)
    made.add_argument("--calm-loop", type=_number, default=math.inf, help=argparse.SUPPRESS)
    made.add_argument("--dilation", type=_number, default=1.0, help=argparse.SUPPRESS)
    made.add_argument("--socks-proxy", default=None, help=argparse.SUPPRESS)
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until Ctrl-C or SIGTERM. Exit code 0 after a clean end, 2 for anything that prevents serving."""
    arguments = parser().parse_args(argv)
    logging.basicConfig(level=arguments.log_level.upper(), format="%(asctime)s %(levelname)s %(message)s")
    try:
        _prepare_process(arguments)
        _serve(arguments)
    except (EdgediError, ValueError, OSError) as error:
        print(f"edgedi-worker: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # before it served
        pass
    logging.getLogger("edgedi.worker").info("stopped")
    return 0


def _prepare_process(arguments: argparse.Namespace) -> None:
    """What must be set before torch is imported."""
    if arguments.cores is not None:
        if not hasattr(os, "sched_setaffinity"):
            raise ValueError("--cores: this system does not pin processes")
        _pin(arguments.cores)
    if arguments.threads is None:
        affinity = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
        arguments.threads = len(affinity)
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)


def _pin(cores: Sequence[int]) -> None:
    """Run on ``cores`` from now on, on each of them."""
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, cores)
        pinned = os.sched_getaffinity(0)
    except OSError:  # none of them is there
        pinned = set()
    if pinned != set(cores):
        given, usable = (",".join(map(str, sorted(numbers))) for numbers in (set(cores), before))
        raise ValueError(f"--cores {given}: this process may use cores {usable}")


def _serve(arguments: argparse.Namespace) -> None:
    serving: list[Worker] = []
    _end_on_signals(serving)
    options = _options(arguments)
    from edgedi.runtime.worker.worker import Worker  # torch only now: options are wrong more often than torch is needed

    worker = Worker(options)
    serving.append(worker)
    try:
        port = worker.bind()
        if arguments.end_with_parent:
            threading.Thread(target=_watch_parent, daemon=True).start()
        _log_how_open(options, port, arguments)
        print(f"ready {options.host}:{port}", flush=True)
        worker.serve()
    finally:
        worker.close()


def _end_on_signals(serving: Sequence[Worker]) -> None:
    """Have the first SIGINT or SIGTERM end the process at once, in the middle of a request too; later ones do nothing.

    The exception leaves whatever runs; the flag is for when it is raised where Python ignores exceptions, as in what
    frees a message of ZeroMQ's.
    """

    def end(_number: int, _frame: object) -> None:
        for number in _ENDING:
            signal.signal(number, signal.SIG_IGN)
        for worker in serving:
            worker.stop()
        _keep_interrupts_quiet()
        raise KeyboardInterrupt

    for number in _ENDING:
        signal.signal(number, end)


def _keep_interrupts_quiet() -> None:
    """What Python ignores it prints, compiled code by both hooks: not this exception, for which the flag stands."""
    tell, tell_ignored = sys.excepthook, sys.unraisablehook

    def other(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not issubclass(kind, KeyboardInterrupt):
            tell(kind, error, trace)

    def other_ignored(found: sys.UnraisableHookArgs) -> None:
        if not issubclass(found.exc_type, KeyboardInterrupt):
            tell_ignored(found)

    sys.excepthook, sys.unraisablehook = other, other_ignored


def _options(arguments: argparse.Namespace) -> WorkerOptions:
    from edgedi.runtime.links.keys import load_authorized_keys, load_keypair
    from edgedi.runtime.links.security import check_bind

    authorized = tuple(load_authorized_keys(arguments.authorized_keys)) if arguments.authorized_keys else ()
    check_bind(arguments.host, authorized=bool(authorized), insecure=arguments.insecure_no_auth)
    if authorized and arguments.insecure_no_auth:
        raise ValueError("--authorized-keys and --insecure-no-auth contradict each other: leave one out")
    if authorized and arguments.key is None:
        raise ValueError("--authorized-keys needs --key FILE, this worker's own key pair: make one with edgedi-keygen")
    if arguments.key and not authorized:
        raise ValueError(
            "--key alone lets nobody in: add --authorized-keys FILE, the public keys that may use this worker"
        )
    keypair = load_keypair(arguments.key) if arguments.key else None
    _check_device(arguments.device)
    from edgedi.runtime.emulation.calm import CALM
    from edgedi.runtime.emulation.speed import MessagePrice, Speed
    from edgedi.runtime.worker.options import WorkerOptions

    CALM.hears_of(arguments.calm_loop)
    price, passing = (
        None if text is None else MessagePrice.parse(text)
        for text in (arguments.message_price, arguments.message_passing)
    )
    speed = Speed(
        slowdown=arguments.slowdown, latency_s=arguments.latency, price=price, passing=passing,
        dilation=arguments.dilation,
    )  # fmt: skip
    return WorkerOptions(
        host=arguments.host, port=arguments.port, name=arguments.name, threads=arguments.threads,
        device=arguments.device, engine=arguments.engine, memory_limit_bytes=arguments.memory_limit, keypair=keypair,
        authorized=authorized, speed=speed, proxy=arguments.socks_proxy,
    )  # fmt: skip


def _check_device(device: str) -> None:
    if device == "cpu":
        return
    from edgedi.runtime.execution.tensors import device_available

    if not device_available(device):
        raise ValueError(f"--device {device}: torch finds none that it can use here; take --device cpu")


def _log_how_open(options: WorkerOptions, port: int, arguments: argparse.Namespace) -> None:
    log = logging.getLogger("edgedi.worker")
    if options.keypair is not None:
        log.info("listening on %s:%d for %d authorised keys; my public key is %s", options.host, port,
                 len(options.authorized), options.keypair.public)  # fmt: skip
    elif arguments.insecure_no_auth:
        log.warning(
            "listening on %s:%d WITHOUT authentication: anybody in reach can use this worker", options.host, port
        )
    else:
        log.info("listening on %s:%d, this machine only; to open it: edgedi-keygen, then --host 0.0.0.0 --key FILE "
                 "--authorized-keys FILE", options.host, port)  # fmt: skip


def _watch_parent() -> None:
    """End when the parent does: its end of our standard input closes then, however it died."""
    while os.read(0, 1):  # not sys.stdin: its lock, held by this thread, would make a normal end a fatal error
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(
        _LAST_WORDS_S
    )  # a thread that serves nobody any more; only an operator that does not return sees the end
    os._exit(0)


def _port(text: str) -> int:
    if not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: 0 to 65535")
    return int(text)


def _positive(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= _MOST_THREADS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {_MOST_THREADS}")
    return int(text)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None


def _name(text: str) -> str:
    if not text.isprintable() or not 1 <= len(text) <= 64:
        raise argparse.ArgumentTypeError(f"{text!r} is not a name: 1 to 64 printable characters")
    return text


def _cores(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.isdigit() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of cores such as 0,1")
    return [int(part) for part in parts]


def _size(text: str) -> int:
    number, unit = (text[:-1], text[-1].lower()) if text and not text[-1].isdigit() else (text, "")
    if unit not in _UNITS or not number.replace(".", "", 1).isdigit() or float(number) * _UNITS[unit] < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 512M or 2G")
    return int(float(number) * _UNITS[unit])


if __name__ == "__main__":
    sys.exit(main())
