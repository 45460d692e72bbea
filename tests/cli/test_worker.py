"""edgedi-worker as a process: what it prints, with what code it ends, and how fast."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

from edgedi import distribute
from edgedi.cli import worker as cli
from edgedi.runtime.execution.tensors import device_available
from edgedi.runtime.links.keys import generate_keypair, save_keypair
from edgedi.runtime.version import software_version

WAIT_S = 60
"""Bounds every wait; nothing here is expected to take a tenth of it."""


def run(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgedi.cli.worker", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)


@contextlib.contextmanager
def serving(*options: str) -> Iterator[subprocess.Popen[str]]:
    """A worker that listens; ``address`` is what it printed."""
    command = [sys.executable, "-m", "edgedi.cli.worker", "--port", "0", "--threads", "1", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def address_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    match = re.fullmatch(r"ready (127\.0\.0\.1:\d+)\n", line)
    assert match, f"{line!r}; {process.communicate()[1]}"
    return match[1]


# --- what it says ----------------------------------------------------------------------------------------------------


def test_help_names_every_option() -> None:
    result = run("--help")
    assert result.returncode == 0
    named = set(re.findall(r"--[a-z-]+", result.stdout))
    assert named == {
        "--help", "--port", "--host", "--threads", "--cores", "--name", "--device", "--engine", "--memory-limit",
        "--key", "--authorized-keys", "--insecure-no-auth", "--log-level", "--version",
    }  # fmt: skip


def test_version() -> None:
    result = run("--version")
    assert (result.returncode, result.stdout) == (0, f"edgedi {software_version()}\n")


@pytest.mark.parametrize(
    ("options", "accepted"),
    [
        (("--port", "x"), "0 to 65535"),
        (("--port", "65536"), "0 to 65535"),
        (("--port", "-1"), "expected one argument|0 to 65535"),
        (("--threads", "0"), "from 1 to 1024"),
        (("--threads", "many"), "from 1 to 1024"),
        (("--cores", "0;1"), "such as 0,1"),
        (("--cores", ""), "such as 0,1"),
        (("--name", ""), "1 to 64 printable characters"),
        (("--name", "a\nb"), "1 to 64 printable characters"),
        (("--device", "gpu"), "cpu.*cuda.*mps"),
        (("--memory-limit", "lots"), "such as 512M or 2G"),
        (("--memory-limit", "0"), "such as 512M or 2G"),
        (("--memory-limit", "0.5"), "such as 512M or 2G"),
        (("--memory-limit", "2T"), "such as 512M or 2G"),
        (("--log-level", "loud"), "debug.*info.*warning.*error"),
        (("--prot", "5"), "unrecognized arguments: --prot"),
        (("5555",), "unrecognized arguments: 5555"),
    ],
)
def test_a_typo_ends_with_2_and_says_what_is_accepted(
    options: Sequence[str], accepted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.parser().parse_args(options)
    assert caught.value.code == 2
    assert re.search(accepted, capsys.readouterr().err, re.DOTALL)


@pytest.mark.parametrize(
    ("text", "size"), [("1", 1), ("512M", 512_000_000), ("2g", 2_000_000_000), ("1.5k", 1_500), ("123456", 123_456)]
)
def test_sizes_are_si(text: str, size: int) -> None:
    assert cli.parser().parse_args(["--memory-limit", text]).memory_limit == size


# --- what keeps it from serving: code 2, one line, no traceback ------------------------------------------------------


def refused(*options: str) -> str:
    result = run(*options)
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("edgedi-worker: ")
    return lines[0]


def test_a_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"127.0.0.1:{port}: the port is in use: choose another" in refused("--port", str(port))


def test_an_address_that_this_machine_does_not_have() -> None:
    words = refused("--host", "203.0.113.7", "--insecure-no-auth")
    assert "listening on 203.0.113.7:5555: this machine has no such address" in words


def test_beyond_loopback_without_keys() -> None:
    words = refused("--host", "0.0.0.0")
    assert "will not listen on 0.0.0.0 without authorised keys" in words
    assert "--authorized-keys FILE" in words
    assert "--insecure-no-auth" in words


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system does not pin processes")
def test_cores_that_are_not_there() -> None:
    usable = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    assert f"--cores 4000: this process may use cores {usable}" in refused("--cores", "4000")
    first = sorted(os.sched_getaffinity(0))[0]
    assert f"--cores {first},4000: this process may use" in refused("--cores", f"{first},4000")


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_device_that_is_not_there(device: str) -> None:
    if device_available(device):
        pytest.skip(f"{device} is there: what it computes is in tests/runtime/worker/test_devices.py")
    assert refused("--device", device).endswith(
        f"--device {device}: torch finds none that it can use here; take --device cpu"
    )


def test_keys_that_do_not_go_together(tmp_path: Path) -> None:
    mine, other = generate_keypair(), generate_keypair()
    save_keypair(tmp_path / "worker.key", mine)
    allowed = tmp_path / "authorized"
    allowed.write_text(f"{other.public} other\n")
    allowed.chmod(0o600)
    key, keys = ("--key", str(tmp_path / "worker.key")), ("--authorized-keys", str(allowed))
    assert "--authorized-keys needs --key FILE" in refused(*keys)
    assert "--key alone lets nobody in: add --authorized-keys FILE" in refused(*key)
    assert "contradict each other" in refused(*key, *keys, "--insecure-no-auth")
    assert f"cannot read {tmp_path}/none: No such file" in refused(*key, "--authorized-keys", str(tmp_path / "none"))
    assert f"no key at {tmp_path}/none; make one with: edgedi-keygen" in refused("--key", str(tmp_path / "none"), *keys)
    allowed.chmod(0o666)
    assert "chmod go-w" in refused(*key, *keys)


# --- serving and ending ----------------------------------------------------------------------------------------------


def test_an_open_worker_warns_and_serves() -> None:
    with serving("--host", "0.0.0.0", "--insecure-no-auth") as process:
        assert process.stdout is not None
        assert re.fullmatch(r"ready 0\.0\.0\.0:\d+\n", process.stdout.readline())
        process.terminate()
        _, words = process.communicate(timeout=WAIT_S)
    assert "WARNING listening on 0.0.0.0" in words
    assert "WITHOUT authentication: anybody in reach can use this worker" in words


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_an_idle_worker_with_0(number: signal.Signals) -> None:
    with serving() as process:
        address_of(process)
        process.send_signal(number)
        assert process.wait(WAIT_S) == 0
        assert process.stderr is not None
        words = process.stderr.read()
    assert "this machine only; to open it: edgedi-keygen" in words
    assert words.rstrip().endswith("stopped")
    assert "Traceback" not in words


def test_a_signal_before_it_serves_ends_it_with_0() -> None:
    """Importing torch takes seconds, in which people press Ctrl-C."""
    with serving("--log-level", "debug") as process:
        before = process.poll()
        process.send_signal(signal.SIGTERM)
        code = process.wait(WAIT_S)
    assert before is None
    assert code in (0, -signal.SIGTERM)  # the second if even the command line had not been read


class Long(nn.Module):
    """Minutes of work in small steps."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.Sequential(*[nn.Conv2d(16, 16, 3, padding=1) for _ in range(40)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.steps(x)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_worker_in_the_middle_of_a_request(number: signal.Signals) -> None:
    torch.manual_seed(0)
    model, x = Long().eval(), torch.randn(1, 16, 8, 8)
    with serving() as process:
        address = address_of(process)
        with distribute(model, x, [address], planner="single", verify="never", timeout_s=WAIT_S) as session:
            assert session(x).shape == x.shape
            many = [session.submit(x) for _ in range(3)]
            process.send_signal(number)
            assert process.wait(WAIT_S) == 0
            with torch.inference_mode():
                own = model(x)
            for future in many:
                torch.testing.assert_close(future.result(WAIT_S), own)
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()


IGNORING = """
import signal, sys
from edgedi.cli.worker import _end_on_signals

class Serving:
    def stop(self):
        print("told to stop", flush=True)

class Message:
    def __del__(self):
        signal.raise_signal(signal.SIGTERM)

_end_on_signals([Serving()])
Message()  # freed at once: an exception from there goes nowhere
sys.excepthook(KeyboardInterrupt, KeyboardInterrupt(), None)  # as compiled code tells of what it ignores, besides
print("still here", flush=True)
raise ValueError("something else")
"""


def test_an_interrupt_where_exceptions_are_ignored_is_not_printed_and_the_flag_stands_for_it() -> None:
    done = subprocess.run([sys.executable, "-c", IGNORING], capture_output=True, text=True, check=False, timeout=WAIT_S)
    assert done.stdout == "told to stop\nstill here\n"
    assert "KeyboardInterrupt" not in done.stderr
    assert done.stderr.endswith("ValueError: something else\n")


def test_the_end_of_its_parent_ends_it() -> None:
    command = [sys.executable, "-m", "edgedi.cli.worker", "--port", "0", "--threads", "1", "--end-with-parent"]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        address_of(process)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(WAIT_S) == 0
    finally:
        process.kill()
        process.wait()
