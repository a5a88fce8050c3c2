"""The stub of the compiled module, by pybind11-stubgen: ``make stubs`` writes fastlstm/_C.pyi.

The submodule ``cuda`` becomes a class in the same file. If the module was built without CUDA, the
class stays as it was.
"""

import ast
import subprocess
import sys
import tempfile
from pathlib import Path

from fastlstm import _C

STUB = Path(__file__).parents[1] / "fastlstm" / "_C.pyi"

# The values of these depend on the build.
_ATTRIBUTES = """
built: bool
reason: str | None
"why they were not built"
architectures: tuple[int, ...]
"that they were compiled for, as 90 for sm_90"
ptx: tuple[int, ...]
"those of them that later GPUs can be compiled for"
"""


def generate():
    """The stub of the module that is built, as a syntax tree."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["-m", "pybind11_stubgen", "fastlstm._C", "--output-dir", folder]
        subprocess.run([sys.executable, *command], check=True, capture_output=True)
        module, cuda = (
            _read(Path(folder, "fastlstm", "_C", name)) for name in ("__init__.pyi", "cuda.pyi")
        )
    for function in functions(cuda):
        function.decorator_list = [ast.Name("staticmethod")]
    attributes = ast.parse(_ATTRIBUTES).body
    body = [cuda.body[0], *attributes, *functions(cuda)]
    submodule = ast.ClassDef("cuda", [], [], body, [])
    imports = ast.parse(
        "import collections.abc\nimport typing\nimport torch\nimport typing_extensions"
    ).body
    body = [module.body[0], *imports, *functions(module), *classes(module), submodule]
    tree = ast.Module(body, [])
    return clean(ast.fix_missing_locations(tree))


def clean(tree):
    """The tree, with its docstrings as they are without indentation."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            docstring = ast.get_docstring(node)
            if docstring is not None:
                node.body[0].value = ast.Constant(docstring)
    return tree


def functions(tree):
    """The functions of a module or a class."""
    return [node for node in tree.body if isinstance(node, ast.FunctionDef)]


def classes(tree):
    """The classes of a module, with types for the arguments of ``__new__``."""
    found = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    for function in (f for node in found for f in functions(node) if f.name == "__new__"):
        function.args = ast.parse("def f(cls, **keywords: typing.Any): ...").body[0].args
        function.decorator_list, function.returns = (
            [],
            ast.parse("typing_extensions.Self").body[0].value,
        )
    return found


def _read(path):
    text = path.read_text()
    for number in ("Int", "Float"):  # whatever has __int__ or __index__: more than callers need
        wide = f"typing.Supports{number} | typing.SupportsIndex"
        text = text.replace(wide, number.lower())
    return ast.parse(text)


if __name__ == "__main__":
    tree = generate()
    if not _C.cuda.built:
        tree.body[-1] = ast.parse(STUB.read_text()).body[-1]
    STUB.write_text(ast.unparse(tree))
    for command in (["check", "--select=I", "--fix"], ["format"]):
        subprocess.run([sys.executable, "-m", "ruff", *command, STUB], check=True)
