"""The shape of the code: length of files, number of parameters, direction of imports.

``make lint`` has the levels of the package too, which import-linter checks.
"""

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("fastlstm", "kernels", "benchmarks", "tests", "examples", "csrc")
PACKAGE = ROOT / "fastlstm"
# What lies below the public functions: a call goes through it as one object.
INTERNAL = (
    "op",
    "backends",
    "call",
    "problem",
    "checks",
    "cell_checks",
    "layout_checks",
    "autocast",
    "tracing",
)
MAX_LINES = {".py": 320} | dict.fromkeys((".h", ".cpp", ".cuh", ".cu"), 420)
MAX_PARAMETERS = 7


def _name(path):
    """``fastlstm.backends.cpu`` of fastlstm/backends/cpu/__init__.py."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text()) for name, path in MODULES.items()}


def test_lengths_of_files():
    too_long = {}
    for path in (path for folder in FOLDERS for path in (ROOT / folder).rglob("*.*")):
        if (most := MAX_LINES.get(path.suffix)) is not None:
            lines = path.read_text().count("\n")
            if lines > most:
                too_long[str(path.relative_to(ROOT))] = f"{lines} lines of at most {most}"
    assert not too_long


def _parameters(function):
    a = function.args
    names = [argument.arg for argument in a.posonlyargs + a.args + a.kwonlyargs]
    names += [argument.arg for argument in (a.vararg, a.kwarg) if argument is not None]
    return [name for name in names if name not in ("self", "cls")]


@pytest.mark.parametrize("part", INTERNAL)
def test_numbers_of_parameters(part):
    """``op/schema.py`` is excepted: an op of torch.library takes one argument for each tensor."""
    many = {}
    for name, tree in TREES.items():
        if name.split(".")[1:2] != [part] or name == "fastlstm.op.schema":
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and len(_parameters(node)) > MAX_PARAMETERS:
                many[f"{name}.{node.name}, line {node.lineno}"] = len(_parameters(node))
    assert not many


def _imports(tree):
    """Modules of the package that a module imports, those inside its functions included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                yield submodule if submodule in MODULES else node.module


def test_no_module_imports_itself_through_others():
    imports = {name: set(_imports(tree)) for name, tree in TREES.items()}
    imports["fastlstm"] = set()  # the package's face, which imports everything
    graphlib.TopologicalSorter(imports).prepare()


def test_only_the_version_and_the_compiled_module_are_imported_from_the_package_itself():
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module == "fastlstm":
                for alias in node.names:
                    own = f"fastlstm.{alias.name}" in MODULES
                    assert own or alias.name in ("_C", "__version__"), f"{name}: {alias.name}"
