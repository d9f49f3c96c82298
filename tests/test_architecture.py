"""The layers hold: who imports whom, read from the source, imports inside functions included.

The arrow below is the architecture in one list: a module imports its own layer and those to the right. When
this test fails, the import it names is what has to change; if it is the arrow that is wrong, `docs/design.md`
changes with it.
"""

import ast
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

ARROW = (
    ("launcher",),
    ("rmpi",),  # the public face, rmpi/__init__.py, which nothing below may use
    ("testing",),
    ("mapreduce",),
    ("taskfarm",),
    ("comm",),
    ("rpc",),
    ("places",),
    ("transport",),
    ("wire",),
    ("deadline",),
    ("errors",),
)
HEIGHT = {layer: -depth for depth, layers in enumerate(ARROW) for layer in layers}
LAUNCHER_HAS_NO_BUSINESS_IN = {"testing", "mapreduce", "taskfarm"}

PURE = (
    "rmpi/wire/*.py",
    "rmpi/transport/matching.py",
    "rmpi/places/deadlock.py",
    "rmpi/places/books.py",
    "rmpi/places/crossings.py",
    "rmpi/places/directory.py",
    "rmpi/places/grouping.py",
    "rmpi/places/messages.py",
    "rmpi/places/outpost.py",
    "rmpi/places/router.py",
    "rmpi/places/routes.py",
    "rmpi/places/supervisor.py",
    "rmpi/places/system_messages.py",
    "rmpi/places/timers.py",
    "rmpi/places/hosts.py",
    "rmpi/places/whereto.py",
    "rmpi/places/wording.py",
    "rmpi/comm/schedule.py",
    "rmpi/comm/choose.py",
    "rmpi/comm/ops.py",
    "rmpi/comm/partition.py",
    "rmpi/comm/grid.py",
    "rmpi/comm/placement.py",
    "rmpi/comm/topology.py",
    "rmpi/comm/collectives/*.py",
    "rmpi/mapreduce/functions.py",
    "rmpi/mapreduce/hashing.py",
    "rmpi/mapreduce/ordering.py",
    "rmpi/mapreduce/schedule.py",
    "rmpi/testing/simulate.py",
    "rmpi/testing/clock.py",
)
IMPURE = {"socket", "selectors", "threading", "subprocess", "time", "os", "sys"}

LIGHT = ("launcher/cli.py", "rmpi/places/remote.py", "rmpi/places/standingcommand.py")
HEAVY = ("numpy", "paramiko")


@dataclass(frozen=True)
class Import:
    path: str  # of the importing file, from the root of the project
    line: int
    module: str  # what is imported, by its absolute name

    @property
    def importer(self):
        return layer_of(".".join(Path(self.path).with_suffix("").parts).removesuffix(".__init__"))

    @property
    def imported(self):
        return layer_of(self.module)

    def __str__(self):
        return f"{self.path}:{self.line} imports {self.module}"


def layer_of(module):
    """``rmpi.wire.frames`` is of ``wire``, ``rmpi`` is the face, ``launcher.job`` is of ``launcher``."""
    first, *rest = module.split(".")
    return rest[0] if first == "rmpi" and rest else first


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        for module in imported_by(node, path):
            yield Import(str(path.relative_to(ROOT)), node.lineno, module)


def imported_by(node, path):
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        package = path.relative_to(ROOT).parts[:-1]
        base = package[: len(package) - node.level + 1] if node.level else ()
        origin = ".".join([*base, *filter(None, [node.module])])
        return [submodule_or(origin, alias.name) for alias in node.names]
    return []


def submodule_or(package, name):
    """``from rmpi import wire`` imports rmpi.wire; ``from rmpi import SUM`` imports the face."""
    path = ROOT.joinpath(*package.split("."), name)
    return f"{package}.{name}" if path.is_dir() or path.with_suffix(".py").exists() else package


IMPORTS = [
    found
    for folder in ("rmpi", "launcher")
    for path in sorted((ROOT / folder).rglob("*.py"))
    for found in imports_of(path)
]
OURS = [found for found in IMPORTS if found.module.split(".")[0] in ("rmpi", "launcher")]


def check(wrong, rule):
    assert not wrong, "\n".join([rule, *map(str, wrong)])


def test_every_module_has_its_place_on_the_arrow():
    strangers = {layer for found in OURS for layer in (found.importer, found.imported)} - HEIGHT.keys()
    assert not strangers, f"no layer of ARROW: {', '.join(sorted(strangers))}. Where do they belong?"


def test_imports_follow_the_arrow():
    arrow = " ▶ ".join(", ".join(layers) for layers in ARROW)
    upward = [
        found
        for found in OURS
        if found.importer != "rmpi"  # the face shows every layer, lazily
        and found.importer != found.imported
        and HEIGHT.get(found.importer, 0) <= HEIGHT.get(found.imported, 0)
    ]
    check(upward, f"A layer imports only what is to its right in\n    {arrow}\nbut")


def test_the_launcher_stays_out_of_what_is_built_on_communicators():
    astray = [found for found in OURS if found.importer == "launcher" and found.imported in LAUNCHER_HAS_NO_BUSINESS_IN]
    check(astray, "The launcher starts jobs and knows nothing of what runs in them, but")


def test_rmpi_never_imports_the_launcher():
    """Neither does its face: a remote host has no launcher."""
    upward = [found for found in OURS if found.importer != "launcher" and found.imported == "launcher"]
    check(upward, "What both need belongs in rmpi/comm/launch.py or below, but")


def test_pure_modules_can_neither_block_nor_look_at_the_machine():
    pure = {str(path.relative_to(ROOT)) for pattern in PURE for path in ROOT.glob(pattern)}
    impure = [found for found in IMPORTS if found.path in pure and found.module.split(".")[0] in IMPURE]
    check(impure, "A pure module decides and leaves acting to its caller: pass in time, bytes and events, but")


def test_only_one_module_knows_paramiko():
    loose = [
        found for found in IMPORTS if found.module.split(".")[0] == "paramiko" and found.path != "rmpi/places/ssh.py"
    ]
    check(loose, "ssh is the business of rmpi/places/ssh.py alone, but")


@pytest.mark.parametrize("path", [path for path in LIGHT if (ROOT / path).exists()])
def test_starting_imports_nothing_heavy(path):
    """numpy costs 0.1 s of start-up, and a node may run where paramiko is not installed."""
    module = ".".join(Path(path).with_suffix("").parts)
    program = f"import sys, {module}; print(*({{*sys.modules}} & {{*{HEAVY}}}))"
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    heavy = run.stdout.split()
    assert not heavy, f"importing {module} loads {heavy}: import late, where it is used (python -X importtime)"
