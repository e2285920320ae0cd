"""The shape of the package: rooms import downward only, no circle, and files stay small."""

import ast
import statistics
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "jaxslim"
FILES = sorted(PACKAGE.rglob("*.py"))

FLOORS = [
    {"errors"},
    {"files", "machine", "ops"},
    {"core"},
    {"slim", "models"},
    {"data", "storage", "reporting"},
    {"interop"},
    {"training"},
    {"experiments"},
    {"commands"},
    {"train", "__main__"},
]
"""From the ground up: a room imports from the floors below its own, and nothing from beside or above."""
HEIGHT = {room: height for height, floor in enumerate(FLOORS) for room in floor}


def room(module: str) -> str:
    """The room of a module of the package, by its dotted name."""
    return module.split(".")[1] if "." in module else ""


def imports(source: str) -> set[str]:
    """Dotted names of what a file imports, at its top or inside functions."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def wrong_arrows(files: dict[str, str]) -> list[str]:
    """Imports that go sideways or upward between rooms; `files` maps dotted names to sources."""
    found = []
    for name, source in files.items():
        for target in imports(source):
            here, there = room(name), room(target)
            if not target.startswith("jaxslim.") or here == there or there not in HEIGHT:
                continue
            if HEIGHT[there] >= HEIGHT[here]:
                found.append(f"{name} imports {target}")
    return sorted(found)


def circles(files: dict[str, str]) -> list[str]:
    """Modules that import themselves by way of others."""
    arrows = {
        name: {
            module for target in imports(source) for module in (target, target.rpartition(".")[0]) if module in files
        }
        for name, source in files.items()
    }

    def reach(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            for module in arrows[waiting.pop()] - seen:
                seen.add(module)
                waiting.append(module)
        return seen

    return [name for name in files if name in reach(name)]


@pytest.fixture(scope="module")
def package():
    """Sources of all modules but the packages' own files, which only gather names, by dotted name."""
    named = {".".join(("jaxslim", *file.relative_to(PACKAGE).with_suffix("").parts)): file for file in FILES}
    return {name: file.read_text() for name, file in named.items() if not name.endswith("__init__")}


def test_every_room_has_its_floor():
    rooms = {file.relative_to(PACKAGE).parts[0].removesuffix(".py") for file in FILES} - {"__init__"}
    assert rooms == set(HEIGHT)


def test_arrows_go_down(package):
    assert wrong_arrows(package) == []


def test_there_is_no_circle(package):
    assert circles(package) == []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("jaxslim.core.graph", "def f():\n    from jaxslim.models.vgg import VGG"),
        ("jaxslim.core.plan", "import jaxslim.slim.prune"),
        ("jaxslim.storage.checkpoint", "from jaxslim.training import config"),
        ("jaxslim.experiments.sweep", "from jaxslim.commands.cli import run"),
        ("jaxslim.data.loading", "from jaxslim.storage import checkpoint"),
    ],
)
def test_a_forbidden_arrow_is_seen(name, source):
    assert len(wrong_arrows({name: source})) == 1


def test_a_circle_is_seen():
    assert circles({"jaxslim.a.b": "from jaxslim.a import c", "jaxslim.a.c": "import jaxslim.a.b"}) != []


def test_reporting_does_not_import_jax(package):
    for name, source in package.items():
        if room(name) == "reporting":
            assert not {target for target in imports(source) if target.partition(".")[0] in ("jax", "flax", "optax")}, (
                name
            )


def test_files_are_small():
    lengths = {file: len(file.read_text().splitlines()) for file in FILES}
    assert {file.name: count for file, count in lengths.items() if count > 300} == {}
    assert statistics.median(lengths.values()) < 150
