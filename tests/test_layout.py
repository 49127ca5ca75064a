"""Imports run one way: a module imports what stands before it in the flow of data."""

import ast
import graphlib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "ghn_jax"

# Each may import itself and those before it.
ORDER = (
    "extras",
    "arrays",
    "configuration",
    "programs",
    "layer_norm",
    "graphs",
    "architectures",
    "targets",
    "sampling",
    "deepnets1m",
    "hypernetworks",
    "models",
    "tracing",
    "prediction",
    "tasks",
    "data",
    "engine",
    "parallel",
    "training",
    "evaluation",
)
# These stand on all of the above, and below nothing of it.
USERS = ("drawing", "interop", "pretrained", "finetune", "cli", "configs")


def read_imports(path: Path) -> set[str]:
    """Modules of the package that a file imports, at its top or later on."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.startswith("ghn_jax.")}


def modules() -> dict[str, set[str]]:
    """Imports of every module, by its name, without those of packages that it lies in."""
    imports = {}
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        imports[name.removesuffix(".__init__")] = read_imports(path)
    del imports["ghn_jax"]  # imports everything, lazily
    return {
        name: {other for other in others & set(imports) if not f"{name}.".startswith(f"{other}.")}
        for name, others in imports.items()
    }


def room(name: str) -> str:
    return name.split(".")[1]


def test_read_imports_by_hand(tmp_path):
    path = tmp_path / "x.py"
    path.write_text("import ghn_jax.a\nimport os\ndef f():\n    from ghn_jax.b import c\n")
    assert read_imports(path) == {"ghn_jax.a", "ghn_jax.b", "ghn_jax.b.c"}


def test_every_room_has_its_place():
    rooms = {room(name) for name in modules()} | {"configs"}
    assert rooms == {*ORDER, *USERS}


@pytest.mark.parametrize("index", range(len(ORDER)), ids=ORDER)
def test_imports_run_one_way(index):
    allowed = ORDER[: index + 1]
    wrong = {
        f"{name} imports {other}"
        for name, others in modules().items()
        for other in others
        if room(name) == ORDER[index] and room(other) not in allowed
    }
    assert not wrong


def test_the_ground_floor_imports_nothing_and_hypernetworks_little():
    allowed = {
        "graphs": {"graphs"},
        "programs": {"programs"},
        "configuration": {"configuration"},
        "hypernetworks": {
            *("hypernetworks", "graphs", "programs", "configuration", "layer_norm", "arrays")
        },
    }
    found: dict[str, set[str]] = {name: set() for name in allowed}
    for name, others in modules().items():
        if room(name) in found:
            found[room(name)] |= {room(other) for other in others}
    assert {name for name, rooms in found.items() if not rooms <= allowed[name]} == set()


def defined_names(path: Path) -> set[str]:
    """Public classes, functions, constants and types that a file defines at its top."""
    names: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return {name for name in names if not name.startswith("_")}


# What several files may define: programs; one operation in several spellings; batch norm as a block
# and as Flax has it, whose name is in the paths of parameters.
SHARED = {"FLAGS", "main", "run"}
SHARED |= {"BatchNorm", "T"}
SHARED |= {"batch_norm", "convolve", "convolve_depthwise", "max_pool"}


def test_one_name_for_one_thing():
    files = [path for path in PACKAGE.rglob("*.py") if "configs" not in path.parts]
    names = [name for path in files for name in defined_names(path)]
    assert {name for name in names if names.count(name) > 1} == SHARED


def test_no_module_imports_itself_by_a_detour():
    graphlib.TopologicalSorter(modules()).prepare()  # raises CycleError, which names the modules
