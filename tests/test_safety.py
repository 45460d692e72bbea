"""Bytes from the network never become code: the package holds nothing that could do it, which is read from its source.

The table names what is refused. Each row has a sample that the gate must catch, so that the gate cannot rot.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(ROOT.glob("edgedi/**/*.py"))

# Modules that turn bytes into objects by running what the bytes say; multiprocessing pickles all that it sends.
MODULES = frozenset(
    "pickle _pickle cloudpickle dill marshal joblib shelve jsonpickle multiprocessing code codeop xmlrpc".split()
)
# Functions that do, by full name, wherever they are used.
FUNCTIONS = frozenset(
    """
    eval exec compile __import__ builtins.eval builtins.exec builtins.compile
    os.system os.popen torch.jit.load torch.export.load torch.package.PackageImporter
    torch.hub.load torch.hub.load_state_dict_from_url
    """.split()
)
# Methods that do, on whatever object.
METHODS = frozenset({"recv_pyobj", "send_pyobj"})
# Functions that are safe with one argument only: name -> (argument, the value that it must be given).
SAFE_ONLY_WITH = {"torch.load": ("weights_only", True)}
# Arguments that may never be true.
FORBIDDEN_ARGUMENTS = frozenset({"allow_pickle", "shell"})


def aliases(tree: ast.AST) -> dict[str, str]:
    """Local name -> full name, from the imports: ``import numpy as np`` gives np -> numpy."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update({alias.asname: alias.name for alias in node.names if alias.asname})
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.update({alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names})
    return names


def imported(node: ast.AST) -> list[str]:
    """Libraries that one node imports: the first part of each module's name."""
    if isinstance(node, ast.Import):
        return [alias.name.split(".")[0] for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module and not node.level:
        return [node.module.split(".")[0]]
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
        return [str(argument.value).split(".")[0] for argument in node.args if isinstance(argument, ast.Constant)]
    return []


def full_name(node: ast.expr, names: dict[str, str]) -> str:
    """Dotted name of a plain name or attribute, imports resolved; empty for anything else."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.insert(0, node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return ""
    return ".".join([names.get(node.id, node.id), *parts])


def unsafe_arguments(call: ast.Call, name: str) -> Iterator[str]:
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    for argument in FORBIDDEN_ARGUMENTS & given.keys():
        value = given[argument]
        if not (isinstance(value, ast.Constant) and value.value is False):
            yield f"{argument}={ast.unparse(value)}"
    if name in SAFE_ONLY_WITH:
        argument, needed = SAFE_ONLY_WITH[name]
        value = given.get(argument)
        if not (isinstance(value, ast.Constant) and value.value is needed):
            yield f"{name} without {argument}={needed}"


def unsafe(text: str) -> list[str]:
    """What ``text`` does that no file of the package may do, as "line: what"."""
    tree = ast.parse(text)
    names = aliases(tree)
    found: set[tuple[int, str]] = set()
    for node in ast.walk(tree):
        found.update((node.lineno, f"import {name}") for name in imported(node) if name in MODULES)
        if isinstance(node, ast.Name | ast.Attribute):
            name = full_name(node, names)
            if name in FUNCTIONS:
                found.add((node.lineno, name))
            if isinstance(node, ast.Attribute) and node.attr in METHODS:
                found.add((node.lineno, node.attr))
        elif isinstance(node, ast.ImportFrom):
            found.update((node.lineno, n) for a in node.names if (n := f"{node.module}.{a.name}") in FUNCTIONS)
        elif isinstance(node, ast.Call):
            found.update((node.lineno, what) for what in unsafe_arguments(node, full_name(node.func, names)))
        elif isinstance(node, ast.Constant) and node.value in METHODS:
            found.add((node.lineno, node.value))
    return [f"{line}: {what}" for line, what in sorted(found)]


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(ROOT)) for path in FILES])
def test_a_file_of_the_package_turns_no_bytes_into_code(path: Path):
    assert unsafe(path.read_text(encoding="utf-8")) == []


def test_the_package_is_read():
    assert ROOT / "edgedi" / "errors.py" in FILES


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_banned_module_is_caught(module: str):
    assert unsafe(f"import {module}") == [f"1: import {module}"]
    assert unsafe(f"def f():\n    from {module}.x import y as z") == [f"2: import {module}"]
    assert unsafe(f"import importlib\nimportlib.import_module('{module}')") == [f"2: import {module}"]


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_a_banned_function_is_caught(name: str):
    module, _, function = name.rpartition(".")
    if not module:
        assert unsafe(f"{name}(frame)") == [f"1: {name}"]
        return
    assert unsafe(f"import {module}\n{name}(frame)") == [f"2: {name}"]
    assert unsafe(f"import {module} as m\nm.{function}(frame)") == [f"2: {name}"]
    assert f"1: {name}" in unsafe(f"from {module} import {function} as g\ng(frame)")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x = socket.recv_pyobj()", ["1: recv_pyobj"]),
        ("socket.send_pyobj(x)", ["1: send_pyobj"]),
        ("x = getattr(socket, 'recv_pyobj')()", ["1: recv_pyobj"]),
        ("import torch\ntorch.load(f)", ["2: torch.load without weights_only=True"]),
        ("import torch\ntorch.load(f, weights_only=False)", ["2: torch.load without weights_only=True"]),
        ("import torch\ntorch.load(f, weights_only=safe)", ["2: torch.load without weights_only=True"]),
        ("import torch as t\nt.load(f)", ["2: torch.load without weights_only=True"]),
        ("from torch import load\nload(f)", ["2: torch.load without weights_only=True"]),
        ("import numpy as np\nnp.load(f, allow_pickle=True)", ["2: allow_pickle=True"]),
        ("import subprocess\nsubprocess.run(line, shell=True)", ["2: shell=True"]),
        ("f = eval", ["1: eval"]),
    ],
)
def test_an_unsafe_call_is_caught(text: str, expected: list[str]):
    assert unsafe(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "model.eval()",
        "import re\nre.compile('x')",
        "import torch\ntorch.load(f, weights_only=True)",
        "import numpy as np\nnp.load(f, allow_pickle=False)",
        '"""No pickle, no eval, no recv_pyobj here."""',
        "import json\njson.loads(text)",
        "socket.send_multipart(frames, copy=False)",
        "def load(x):\n    return x",
    ],
)
def test_safe_code_passes(text: str):
    assert unsafe(text) == []
