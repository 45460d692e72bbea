"""The surface cannot grow by accident: the public names, and every option of the commands, are written here."""

from __future__ import annotations

import argparse
import configparser
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import edgedi
from edgedi import errors
from edgedi.cli import bench, compact, keygen, worker
from edgedi.runtime.session.session import Session

ROOT = Path(__file__).parent.parent

NAMES = {
    "ClusterProfile", "LayerGraph", "Placement", "Plan", "Session", "capture", "compact", "distribute", "load",
    "lower", "place", "plan", "planners", "save", "simulate",
}  # fmt: skip
DISTRIBUTE = {
    "model": inspect.Parameter.empty,
    "example_inputs": inspect.Parameter.empty,
    "workers": inspect.Parameter.empty,
    "planner": "oodp",
    "objective": "latency",
    "profile": None,
    "links": None,
    "key": None,
    "verify": "first",
    "allow_local": True,
    "max_in_flight": None,
    "timeout_s": 60.0,
    "rebalance": True,
    "progress": None,
    "local": False,
}
COMPACT = {
    "model": inspect.Parameter.empty,
    "example_inputs": inspect.Parameter.empty,
    "calibration": None,
    "train": None,
    "loss": None,
    "budget_s": None,
    "checkpoint": None,
    "validate": None,
    "metric": "accuracy",
    "tolerance": None,
    "steps": None,
    "method": "reconstruct",
    "target": None,
    "cost": "macs",
    "scar_ratio": "auto",
    "seed": 0,
    "progress": None,
}
SESSION = {
    "close", "layer_seconds", "links", "placement", "plan", "profile", "programs", "spans", "statistics", "stream",
    "submit", "trace", "workers",
}  # fmt: skip
ERRORS = {
    "CompactionError", "DeadlineExceeded", "EdgediError", "GraphError", "LocalProtocolError", "NotFinite",
    "PlanError", "ProtocolError", "RemoteProtocolError", "SecurityError", "WorkerLost",
}  # fmt: skip
OPTIONS = {
    "edgedi-worker": {
        "--help", "--version", "--port", "--host", "--threads", "--cores", "--name", "--device", "--engine",
        "--memory-limit", "--key", "--authorized-keys", "--insecure-no-auth", "--log-level", "--end-with-parent",
        "--slowdown", "--latency", "--message-price", "--message-passing", "--calm-loop", "--dilation", "--socks-proxy",
    },
    "edgedi-keygen": {"--help", "--out", "--force", "--show", "--trust"},
    "edgedi-bench": {
        "--help", "--version", "--demo", "--model", "--input", "--local", "--workers", "--planners", "--objective",
        "--against", "--rounds", "--repeat", "--threads", "--key", "--json", "--counts", "--html",
        "--share", "--testbed",
    },
    "edgedi-compact": {
        "--help", "--version", "--model", "--data", "--input", "--out", "--force", "--steps", "--tolerance", "--seed",
        "--budget", "--checkpoint", "--target", "--method", "--scar-ratio",
    },
}  # fmt: skip
PARSERS = {
    "edgedi-worker": worker.parser,
    "edgedi-keygen": keygen.build_parser,
    "edgedi-bench": bench.parser,
    "edgedi-compact": compact.parser,
}
MODULES = {"edgedi-worker": "worker", "edgedi-keygen": "keygen", "edgedi-bench": "bench", "edgedi-compact": "compact"}


def long_options(parser: argparse.ArgumentParser) -> set[str]:
    return {option for action in parser._actions for option in action.option_strings if option.startswith("--")}


def test_the_public_names_are_these():
    assert set(edgedi.__all__) == NAMES
    assert set(dir(edgedi)) == NAMES | {"__version__"}
    assert edgedi.__version__[0].isdigit()


@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_public_name_is_there_and_says_what_it_is(name: str):
    found = getattr(edgedi, name)
    assert callable(found)
    assert len((found.__doc__ or "").split()) > 3


def test_another_name_is_refused_as_python_does():
    with pytest.raises(AttributeError, match="module 'edgedi' has no attribute 'Planner'"):
        _ = edgedi.Planner


def test_distribute_takes_these_arguments():
    parameters = inspect.signature(edgedi.distribute).parameters
    assert {name: parameter.default for name, parameter in parameters.items()} == DISTRIBUTE
    by_keyword = {name for name, parameter in parameters.items() if parameter.kind is parameter.KEYWORD_ONLY}
    assert by_keyword == set(DISTRIBUTE) - {"model", "example_inputs", "workers"}


def test_compact_takes_these_arguments():
    parameters = inspect.signature(edgedi.compact).parameters
    assert {name: parameter.default for name, parameter in parameters.items()} == COMPACT
    by_keyword = {name for name, parameter in parameters.items() if parameter.kind is parameter.KEYWORD_ONLY}
    assert by_keyword == set(COMPACT) - {"model", "example_inputs"}


def test_a_session_has_these_methods():
    assert {name for name in vars(Session) if not name.startswith("_")} == SESSION


def test_the_errors_are_these():
    own = {
        name for name, value in vars(errors).items() if inspect.isclass(value) and value.__module__ == errors.__name__
    }
    assert own == ERRORS
    assert all(issubclass(getattr(errors, name), errors.EdgediError) for name in ERRORS)


@pytest.mark.parametrize("command", sorted(OPTIONS))
def test_a_command_has_these_options(command: str):
    assert long_options(PARSERS[command]()) == OPTIONS[command]


@pytest.mark.parametrize("command", sorted(OPTIONS))
def test_every_option_has_a_help_text(command: str):
    parser = PARSERS[command]()
    assert parser.prog == command
    assert [action.option_strings for action in parser._actions if not action.help] == []


@pytest.mark.parametrize("command", sorted(OPTIONS))
def test_every_option_is_in_the_readme(command: str):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    hidden = {
        "--help", "--end-with-parent", "--slowdown", "--latency", "--message-price", "--message-passing", "--calm-loop",
        "--dilation", "--socks-proxy",
    }  # fmt: skip
    assert command in readme
    assert [option for option in sorted(OPTIONS[command] - hidden) if option not in readme] == []


def test_the_installed_commands_are_these():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    written = setup["options.entry_points"]["console_scripts"].split("\n")
    found = dict(line.split(" = ") for line in written if line)
    assert found == {command: f"edgedi.cli.{MODULES[command]}:main" for command in OPTIONS}


@pytest.mark.parametrize("command", sorted(OPTIONS))
def test_asking_for_help_loads_no_torch(command: str):
    code = (
        "import sys\n"
        f"from edgedi.cli.{MODULES[command]} import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as ended:\n    assert ended.code == 0\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: {command}")
