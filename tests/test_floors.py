"""The rules of the house, read from the source: who may import whom, and who may change a parameter."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "auxin"
LIGHT = {"torch", "numpy", "safetensors"}

# Longest prefix wins. A module may import its own floor and those below; ``grower`` and the face stand on the engine.
FLOORS = {
    "auxin.errors": 0,
    "auxin.types": 0,
    "auxin.graph": 1,
    "auxin.surgery": 2,
    "auxin.statistics": 2,
    "auxin.similarity": 3,
    "auxin.methods": 3,
    "auxin.triggers": 3,
    "auxin.planned": 3,
    "auxin.budgets": 3,
    "auxin.ranking": 3,
    "auxin.shadow": 3,
    "auxin.trial": 3,
    "auxin.arguments": 3,
    "auxin.candidates": 3,
    "auxin.expansion": 3,
    "auxin.grower": 4,
    "auxin.once": 4,
    "auxin": 4.5,
    "auxin.data": 4,
    "auxin.models": 4,
    "auxin.training": 5,
    "auxin.analysis": 5,
    "auxin.report": 6,
    "auxin.compare": 6,
    "auxin.cli": 7,
    "auxin.__main__": 8,
}
FORBIDDEN = {"auxin.statistics": ("auxin.surgery",), "auxin.analysis": ("auxin.surgery", "auxin.grower")}
APPLICATION = (
    "auxin.data",
    "auxin.training",
    "auxin.analysis",
    "auxin.compare",
    "auxin.report",
    "auxin.cli",
)
CONSTRUCTORS = ("auxin.surgery", "auxin.models")

FILES = sorted(PACKAGE.rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def place(module: str) -> str:
    """The longest entry of ``FLOORS`` that holds a module; the face only if it is the face itself."""
    known = [p for p in FLOORS if module == p or (p != "auxin" and module.startswith(f"{p}."))]
    assert known, f"{module} has no floor; give it one in tests/test_floors.py and docs/architecture.md"
    return max(known, key=len)


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def run_time_nodes(path: Path) -> list[ast.AST]:
    """Every node but those under ``if TYPE_CHECKING``."""
    hidden: set[ast.AST] = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            hidden.update(inner for child in node.body for inner in ast.walk(child))
    return [node for node in ast.walk(tree(path)) if node not in hidden]


def imports(path: Path) -> list[tuple[str, int]]:
    """Modules that a file imports when it runs, with the line."""
    found: list[tuple[str, int]] = []
    for node in run_time_nodes(path):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            assert node.module is not None
            for alias in node.names:
                deeper = f"{node.module}.{alias.name}"
                is_module = node.module.startswith("auxin") and _exists(deeper)
                found.append((deeper if is_module else node.module, node.lineno))
    return found


def _exists(module: str) -> bool:
    path = PACKAGE.parent.joinpath(*module.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


by_file = pytest.mark.parametrize("path", FILES, ids=lambda path: module_name(path))


@by_file
def test_imports_go_down_only(path: Path) -> None:
    here = place(module_name(path))
    for target, line in imports(path):
        if target.split(".")[0] != "auxin":
            continue
        there = place(target)
        assert FLOORS[there] <= FLOORS[here], f"{path.name}:{line}: {here} imports {there}, which is above it"
        assert there not in FORBIDDEN.get(here, ()), f"{path.name}:{line}: {here} must not know {there}"


def test_no_import_cycles() -> None:
    edges = {module_name(path): {t for t, _ in imports(path) if t.startswith("auxin")} for path in FILES}
    state: dict[str, int] = {}

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert state.get(module) != 1, " -> ".join([*trail, module])
        if state.get(module) == 2:
            return
        state[module] = 1
        for target in sorted(edges.get(module, ())):
            # A package's __init__ gathers its own modules, which do not import the package back.
            if target != module:
                visit(target, (*trail, module))
        state[module] = 2

    for module in edges:
        visit(module, ())


@by_file
def test_the_engine_imports_only_what_is_light(path: Path) -> None:
    module = module_name(path)
    if module.startswith(APPLICATION) or module == "auxin.__main__":
        return
    for target, line in imports(path):
        top = target.split(".")[0]
        assert top == "auxin" or top in LIGHT or top in sys.stdlib_module_names, f"{path.name}:{line}: {target}"


@by_file
def test_only_surgery_assigns_a_parameter(path: Path) -> None:
    module = module_name(path)
    for node in run_time_nodes(path):
        where = f"{path.name}:{getattr(node, 'lineno', 0)}"
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AugAssign | ast.AnnAssign):
            targets = [node.target]
        if not module.startswith("auxin.surgery"):
            for target in targets:
                for part in ast.walk(target):
                    assert not (isinstance(part, ast.Attribute) and part.attr in ("data", "_parameters", "_buffers")
                                and not _is_own(part)), f"{where}: assigns {ast.unparse(target)}"  # fmt: skip
        if isinstance(node, ast.Call) and not module.startswith(CONSTRUCTORS):
            called = ast.unparse(node.func)
            assert called not in ("nn.Parameter", "torch.nn.Parameter", "Parameter"), f"{where}: makes a parameter"
            assert not called.endswith(".register_parameter"), f"{where}: registers a parameter"


def _is_own(node: ast.Attribute) -> bool:
    """Whether an attribute named ``data`` belongs to the object itself (a dataset's field, not a tensor's storage)."""
    return node.attr == "data" and isinstance(node.value, ast.Name) and node.value.id == "self"


@by_file
def test_no_pickle_is_ever_loaded(path: Path) -> None:
    for target, line in imports(path):
        assert target.split(".")[0] not in ("pickle", "dill", "cloudpickle", "joblib", "shelve"), f"{path.name}:{line}"
    for node in run_time_nodes(path):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("torch.load", "torch.jit.load", "pickle.load", "pickle.loads"), (
                f"{path.name}: {called}"
            )
            allowed = any(k.arg == "allow_pickle" and ast.unparse(k.value) == "True" for k in node.keywords)
            assert not allowed, f"{path.name}:{node.lineno}: allow_pickle"


@by_file
def test_imports_stand_at_the_top(path: Path) -> None:
    module = module_name(path)
    if module.startswith("auxin.cli"):
        return
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            inner = [n for n in ast.walk(node) if isinstance(n, ast.Import | ast.ImportFrom)]
            assert not inner, f"{path.name}:{inner[0].lineno}: import inside {node.name}"


def test_importing_auxin_brings_in_no_application_and_little_else() -> None:
    code = (
        "import sys, torch; before = set(sys.modules)\n"
        "import auxin\n"
        "print('\\n'.join(sorted(set(sys.modules) - before)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent
    )
    brought = {name for name in result.stdout.split() if name.split(".")[0] not in ("auxin", *sys.stdlib_module_names)}
    assert "auxin.grower" in result.stdout.split()
    assert len(brought) < 5, brought  # what torch itself has not imported, such as a corner of torch.nn
