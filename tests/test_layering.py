"""Imports point one way, downward, and the modules that only decide stay free of what touches the world.

Read from the syntax trees, so that an import inside a function or under ``TYPE_CHECKING`` counts as well. The tables
below are the rule; a new room of the package is added to them, or the tests fail.
"""

from __future__ import annotations

import ast
import dataclasses
import fnmatch
import graphlib
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# What each room may import of the package besides itself. "edgedi" alone is the public door: it may import every room,
# and no room may import it.
MAY_IMPORT = {
    "errors": frozenset[str](),
    "pages": frozenset[str](),
    "partition": frozenset({"errors"}),
    "transforms": frozenset({"errors", "pages"}),
    "runtime": frozenset({"errors", "partition"}),
    "bench": frozenset({"errors", "pages", "partition", "runtime"}),
    "cli": frozenset({"errors", "partition", "runtime", "transforms", "bench"}),
}

# The same within the partition, whose rooms stand on each other, capture aside, ...
PARTITION_MAY_IMPORT = {
    "graph": frozenset[str](),
    "capture": frozenset({"graph"}),
    "plan": frozenset({"graph"}),
    "cost": frozenset({"graph", "plan"}),
    "search": frozenset({"graph", "plan", "cost"}),
    "planners": frozenset({"graph", "plan", "cost", "search"}),
    "throughput": frozenset({"graph", "plan", "cost", "search", "planners"}),
}

# ... and within the runtime. "version" is the one module beside its rooms.
RUNTIME_MAY_IMPORT = {
    "version": frozenset[str](),
    "wire": frozenset[str](),
    "kernels": frozenset[str](),
    "emulation": frozenset[str](),
    "links": frozenset({"wire"}),
    "execution": frozenset({"wire", "kernels", "emulation"}),
    "worker": frozenset({"version", "wire", "kernels", "emulation", "links", "execution"}),
    "coordinator": frozenset({"version", "wire", "kernels", "emulation", "links", "execution", "worker"}),
    "session": frozenset({"wire", "links", "execution", "worker", "coordinator"}),
}

# Each house of rooms and its table.
HOUSES = {
    "edgedi": MAY_IMPORT,
    "edgedi.partition": PARTITION_MAY_IMPORT,
    "edgedi.runtime": RUNTIME_MAY_IMPORT,
}

# The modules that handle tensors. Everything else on a worker's path does without torch, so that a worker on another
# engine stays possible.
TORCH_IMPORTERS = (
    "edgedi.partition.capture.*",
    "edgedi.transforms.*",
    "edgedi.runtime.kernels",
    "edgedi.runtime.kernels.*",
    "edgedi.runtime.execution.tensors",
    "edgedi.runtime.execution.executor",
    "edgedi.runtime.execution.measure",  # times kernels on tensors of noise
    # The coordinator's side only: it holds the user's model and answers.
    "edgedi.runtime.execution.reference",
    "edgedi.runtime.session.verify",
    "edgedi.runtime.session.plans_by_shape",
    "edgedi.runtime.session.session",
    "edgedi.runtime.session.distribute",
    "edgedi.bench.*",  # builds and trains the demo's network; runs beside the workers, never in one
)

# The modules that only decide: a value in, a value out.
PURE = (
    "edgedi.errors",
    "edgedi.pages",
    "edgedi.pages.*",
    "edgedi.partition",
    "edgedi.partition.*",
    "edgedi.runtime.wire",
    "edgedi.runtime.wire.*",
    "edgedi.runtime.emulation.speed",
    "edgedi.runtime.worker.events",
    "edgedi.runtime.worker.actions",
    "edgedi.runtime.worker.state",
    "edgedi.runtime.session.balance_state",
    "edgedi.runtime.session.trace",
    "edgedi.transforms.prune.allocate",
    "edgedi.bench",
    "edgedi.bench.settings",
    "edgedi.bench.numbers",
    "edgedi.bench.report",
    "edgedi.bench.testbed",
    "edgedi.bench.testbed.spec",
    "edgedi.bench.words",
    "edgedi.bench.html",
    "edgedi.bench.html.*",
)
NOT_PURE = ("edgedi.partition.capture.*",)
EFFECTS = frozenset(
    "asyncio concurrent ctypes datetime io multiprocessing os pathlib queue random sched secrets select selectors "
    "shutil signal socket ssl subprocess sys tempfile threading time torch torchvision zmq".split()
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Import:
    """One imported module, and the line that names it; ``late`` when importing the file does not run that line."""

    target: str
    line: int
    late: bool


def module_name(path: Path, root: Path = ROOT) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def package_sources() -> dict[str, str]:
    return {module_name(path): path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("edgedi/**/*.py"))}


SOURCES = package_sources()
PACKAGES = frozenset(module_name(path) for path in ROOT.glob("edgedi/**/__init__.py"))


def is_any(module: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(module, pattern) for pattern in patterns)


def is_pure(module: str) -> bool:
    return is_any(module, PURE) and not is_any(module, NOT_PURE)


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def written_targets(node: ast.AST, module: str, is_package: bool) -> list[str]:
    """Dotted names that one node imports; ``from a import b`` gives ``a.b``, where ``b`` may be no module."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            parts = module.split(".") if is_package else module.split(".")[:-1]
            base = ".".join([*parts[: len(parts) - node.level + 1], *base.split(".")]).strip(".")
        return [f"{base}.{alias.name}" for alias in node.names]
    if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        called, name = ast.unparse(node.func), node.args[0].value
        if called in ("importlib.import_module", "import_module", "__import__") and isinstance(name, str):
            return [name]
    return []


def imports_of(module: str, sources: Mapping[str, str] = SOURCES, packages: frozenset[str] = PACKAGES) -> list[Import]:
    found: list[Import] = []

    def visit(node: ast.AST, late: bool) -> None:
        for target in written_targets(node, module, module in packages):
            known = target
            if target.split(".")[0] == "edgedi" and target not in sources:
                known = target.rpartition(".")[0]  # a name of a module, not a module
            found.append(Import(target=known, line=getattr(node, "lineno", 0), late=late))
        inside = late or is_type_checking(node) or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            visit(child, inside)

    visit(ast.parse(sources[module]), late=False)
    return found


def imports_package(target: str, package: str) -> bool:
    return target == package or target.startswith(package + ".")


def upward_imports(
    module: str, sources: Mapping[str, str], packages: frozenset[str], house: str = "edgedi"
) -> list[str]:
    """Imports that the table of ``house`` does not allow to ``module``'s room, a direct child of that package."""
    if module == house or not imports_package(module, house):
        return []
    room = room_of(module, house)
    wrong = []
    for found in imports_of(module, sources, packages):
        if imports_package(found.target, house):
            other = room_of(found.target, house)
            if other != room and other not in HOUSES[house][room]:
                wrong.append(f"{module}:{found.line} imports {found.target}")
    return wrong


def room_of(module: str, house: str) -> str:
    """Which child of the package ``house`` the module is in; the package's own last name for itself."""
    return module.removeprefix(house).lstrip(".").split(".")[0] or house.rpartition(".")[2]


def torch_imports(module: str, sources: Mapping[str, str], packages: frozenset[str]) -> list[str]:
    allowed = is_any(module, TORCH_IMPORTERS)
    return [
        f"{module}:{found.line} imports {found.target}"
        for found in imports_of(module, sources, packages)
        if imports_package(found.target, "torchvision") or (imports_package(found.target, "torch") and not allowed)
    ]


def effects(module: str, sources: Mapping[str, str], packages: frozenset[str]) -> list[str]:
    """What a pure module does that a pure module may not: import an effect or an impure module, open a file."""
    wrong = []
    for found in imports_of(module, sources, packages):
        ours = imports_package(found.target, "edgedi")
        if (ours and not is_pure(found.target)) or (not ours and found.target.split(".")[0] in EFFECTS):
            wrong.append(f"{module}:{found.line} imports {found.target}")
    for node in ast.walk(ast.parse(sources[module])):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("open", "print", "input"):
            wrong.append(f"{module}:{node.lineno} calls {ast.unparse(node.func)}")
    return wrong


def path_to(module: str, library: str, sources: Mapping[str, str], packages: frozenset[str]) -> list[str]:
    """The chain of imports by which importing ``module`` also imports ``library``; empty if it does not."""
    chains, seen = [[module]], {module}
    while chains:
        chain = chains.pop(0)
        here = chain[-1]
        if imports_package(here, library):
            return chain
        parents = [here.rpartition(".")[0]] if "." in here else []
        found_here = imports_of(here, sources, packages) if here in sources else []
        for target in [*parents, *(found.target for found in found_here if not found.late)]:
            if target not in seen and (target in sources or imports_package(target, library)):
                seen.add(target)
                chains.append([*chain, target])
    return []


def cycle(sources: Mapping[str, str], packages: frozenset[str]) -> list[str]:
    """Modules that import each other in a circle, late imports included; empty if there is none."""
    graph = {
        module: {found.target for found in imports_of(module, sources, packages) if found.target in sources} - {module}
        for module in sources
    }
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


# --- the package ------------------------------------------------------------------------------------------------------

MODULES = sorted(SOURCES)


def test_the_package_is_read():
    assert {"edgedi.errors", "edgedi.partition", "edgedi.runtime", "edgedi.cli"} <= set(SOURCES)


def test_every_folder_is_a_package_or_the_wheel_would_lack_it():
    assert {module.rpartition(".")[0] or "edgedi" for module in SOURCES} - PACKAGES == set()


@pytest.mark.parametrize("house", HOUSES)
def test_every_room_is_in_the_table(house: str):
    rooms = {room_of(module, house) for module in MODULES if imports_package(module, house) and module != house}
    assert rooms == HOUSES[house].keys()


@pytest.mark.parametrize("table", HOUSES.values(), ids=HOUSES)
def test_the_tables_themselves_point_one_way(table: Mapping[str, frozenset[str]]):
    floors = list(graphlib.TopologicalSorter(table).static_order())
    assert all(floors.index(below) < floors.index(room) for room in table for below in table[room])


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_downward(module: str):
    assert [wrong for house in HOUSES for wrong in upward_imports(module, SOURCES, PACKAGES, house)] == []


def test_no_modules_import_each_other_in_a_circle():
    assert cycle(SOURCES, PACKAGES) == []


@pytest.mark.parametrize("module", MODULES)
def test_torch_is_imported_only_where_tensors_are(module: str):
    assert torch_imports(module, SOURCES, PACKAGES) == []


@pytest.mark.parametrize("module", [module for module in MODULES if is_pure(module)])
def test_a_pure_module_has_no_effects(module: str):
    assert effects(module, SOURCES, PACKAGES) == []


@pytest.mark.parametrize("library", ["torch", "zmq"])
@pytest.mark.parametrize("module", [module for module in MODULES if is_pure(module)])
def test_importing_a_pure_module_loads_no_engine_and_no_transport(module: str, library: str):
    assert path_to(module, library, SOURCES, PACKAGES) == []


# --- the gate itself, on packages broken on purpose -------------------------------------------------------------------

FAKE_PACKAGES = frozenset({"edgedi", "edgedi.partition", "edgedi.runtime", "edgedi.cli"})


def fake(**sources: str) -> dict[str, str]:
    return dict.fromkeys(FAKE_PACKAGES, "") | {name.replace("__", "."): text for name, text in sources.items()}


@pytest.mark.parametrize(
    ("module", "text", "expected"),
    [
        ("edgedi.partition.plan", "import edgedi.runtime.a", ["edgedi.partition.plan:1 imports edgedi.runtime"]),
        ("edgedi.partition.plan", "from ..cli import x", ["edgedi.partition.plan:1 imports edgedi.cli"]),
        ("edgedi.partition.plan", "import edgedi", ["edgedi.partition.plan:1 imports edgedi"]),
        ("edgedi.partition.plan", "from edgedi import distribute", ["edgedi.partition.plan:1 imports edgedi"]),
        ("edgedi.partition.plan", "def f():\n    import edgedi.cli", ["edgedi.partition.plan:2 imports edgedi.cli"]),
        ("edgedi.errors", "from edgedi.partition import x", ["edgedi.errors:1 imports edgedi.partition"]),
        ("edgedi.transforms.fold", "import edgedi.partition", ["edgedi.transforms.fold:1 imports edgedi.partition"]),
        ("edgedi.runtime.worker.loop", "from edgedi.partition import plan\nfrom . import state\nimport zmq", []),
    ],
)
def test_an_upward_import_is_found(module: str, text: str, expected: list[str]):
    assert upward_imports(module, fake() | {module: text}, FAKE_PACKAGES) == expected


@pytest.mark.parametrize(
    ("house", "module", "text", "num_wrong"),
    [
        ("edgedi.runtime", "edgedi.runtime.wire.codec", "from edgedi.runtime.links import keys", 1),
        ("edgedi.runtime", "edgedi.runtime.wire.codec", "from ..links import keys", 1),
        ("edgedi.runtime", "edgedi.runtime.wire.codec", "import edgedi.runtime", 1),
        (
            "edgedi.runtime",
            "edgedi.runtime.links.keys",
            "from edgedi.runtime.wire import codec\nfrom . import peers\nimport edgedi.errors",
            0,
        ),
        ("edgedi.runtime", "edgedi.partition.plan.plan", "import edgedi.runtime.wire", 0),  # the upper table's business
        ("edgedi.partition", "edgedi.partition.plan.plan", "from edgedi.partition.cost import settle", 1),
        ("edgedi.partition", "edgedi.partition.cost.settle", "from ..plan import plan\nfrom . import cost", 0),
    ],
)
def test_an_upward_import_within_a_house_is_found(house: str, module: str, text: str, num_wrong: int):
    rooms = {"edgedi.runtime.wire", "edgedi.runtime.links", "edgedi.partition.plan", "edgedi.partition.cost"}
    sources = fake() | dict.fromkeys(rooms, "") | {module: text}
    assert len(upward_imports(module, sources, FAKE_PACKAGES | rooms, house)) == num_wrong


@pytest.mark.parametrize(
    ("module", "text", "num_wrong"),
    [
        ("edgedi.runtime.worker.loop", "import torch.nn as nn", 1),
        ("edgedi.runtime.worker.loop", "import importlib\nimportlib.import_module('torch')", 1),
        ("edgedi.runtime.worker.loop", "import typing\nif typing.TYPE_CHECKING:\n    from torch import Tensor", 1),
        ("edgedi.runtime.execution.tensors", "import torch", 0),
        ("edgedi.runtime.kernels.fused", "import torch", 0),
        ("edgedi.runtime.execution.tensors", "from torchvision.models import resnet50", 1),
        ("edgedi.runtime.worker.loop", "import torchlike", 0),
    ],
)
def test_a_torch_import_outside_the_table_is_found(module: str, text: str, num_wrong: int):
    assert len(torch_imports(module, fake() | {module: text}, FAKE_PACKAGES)) == num_wrong


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import time", ["edgedi.partition.plan:1 imports time"]),
        ("from os.path import join", ["edgedi.partition.plan:1 imports os.path.join"]),
        ("from .capture import capture", ["edgedi.partition.plan:1 imports edgedi.partition.capture.capture"]),
        ("def f(p):\n    return open(p).read()", ["edgedi.partition.plan:2 calls open"]),
        ("import json, math, numpy\nfrom edgedi.errors import PlanError", []),
    ],
)
def test_an_effect_in_a_pure_module_is_found(text: str, expected: list[str]):
    sources = fake(edgedi__errors="", edgedi__partition__capture__capture="", edgedi__partition__plan=text)
    assert effects("edgedi.partition.plan", sources, FAKE_PACKAGES) == expected


def test_an_engine_loaded_through_a_parent_package_is_found():
    sources = fake(edgedi="from edgedi.runtime.session import x", edgedi__runtime__session="import torch")
    sources["edgedi.partition.plan"] = ""
    chain = ["edgedi.partition.plan", "edgedi.partition", "edgedi", "edgedi.runtime.session", "torch"]
    assert path_to("edgedi.partition.plan", "torch", sources, FAKE_PACKAGES) == chain
    sources["edgedi"] = "def __getattr__(name):\n    from edgedi.runtime.session import x\n    return x"
    assert path_to("edgedi.partition.plan", "torch", sources, FAKE_PACKAGES) == []


def test_a_circle_is_found():
    sources = fake(edgedi__partition__plan="from .cost import a", edgedi__partition__cost="from .plan import b")
    assert set(cycle(sources, FAKE_PACKAGES)) == {"edgedi.partition.plan", "edgedi.partition.cost"}
    sources["edgedi.partition.cost"] = ""
    assert cycle(sources, FAKE_PACKAGES) == []
