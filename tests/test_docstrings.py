"""The examples in docstrings run as they stand, by doctest; every public name has one."""

import ast
import doctest
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest
import torch

import fastlstm

PACKAGES = ("fastlstm", "fastlstm.data", "fastlstm.nn", "fastlstm.nn.convert", "fastlstm.training")
# The packages in which every public name must have an example that runs.
COMPLETE = PACKAGES


def _defined_in(module):
    """The public names of a module without ``__all__``."""
    values = vars(module).items()
    return [n for n, v in values if getattr(v, "__module__", "") == module.__name__ and n[0] != "_"]


def _public():
    """Every public class and function once, by its shortest name."""
    found = {}
    for package in PACKAGES:
        try:
            module = importlib.import_module(package)
        except ModuleNotFoundError as error:
            reason = f"{error.name} is not installed"
            found[package] = pytest.param(None, marks=pytest.mark.skip(reason), id=package)
            continue
        for name in getattr(module, "__all__", None) or _defined_in(module):
            value = getattr(module, name)
            if inspect.isclass(value) or inspect.isfunction(value):
                found.setdefault(id(value), pytest.param(value, id=f"{package}.{name}"))
    return found.values()


@pytest.fixture(params=_public())
def public(request):
    """Every public class and function in turn."""
    return request.param


def _tests(value, module):
    """The examples of a class or function and its methods, or of all those of a module."""
    names = vars(module) | {"fastlstm": fastlstm, "torch": torch}
    return doctest.DocTestFinder().find(value, value.__name__, module, names)


def test_every_public_name_has_an_example(public, request):
    if request.node.callspec.id.rpartition(".")[0] in COMPLETE:
        tests = _tests(public, inspect.getmodule(public))
        options = [example.options for test in tests for example in test.examples]
        assert not all(option.get(doctest.SKIP) for option in options), "no example that runs"


def _modules():
    found = pkgutil.walk_packages(fastlstm.__path__, "fastlstm.", onerror=lambda name: None)
    return [module.name for module in found if "_C" not in module.name]


@pytest.mark.parametrize("name", _modules())
def test_examples(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runner = doctest.DebugRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    try:
        module = importlib.import_module(name)
        for test in _tests(module, module):
            runner.run(test)
    except doctest.DocTestFailure as failure:
        example, got = failure.example, failure.got
        text = f"{failure.test.name}: {example.source}expected {example.want}got {got}"
        pytest.fail(text, pytrace=False)
    except (doctest.UnexpectedException, ModuleNotFoundError) as failure:
        error = getattr(failure, "exc_info", (None, failure))[1]
        if isinstance(error, ModuleNotFoundError) and not error.name.startswith("fastlstm"):
            pytest.skip(f"{error.name} is not installed")
        raise error from None


def test_docstrings_begin_with_a_sentence_that_can_be_read_alone(public):
    members = vars(public).items() if inspect.isclass(public) else ()
    for value in (public, *(value for name, value in members if name[0] != "_")):
        assert not (inspect.getdoc(value) or "").startswith("Of "), value


def _docstrings():
    root = Path(fastlstm.__file__).parents[1]
    folders = (root / name for name in ("fastlstm", "kernels", "benchmarks", "examples"))
    for path in (path for folder in folders for path in folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                yield f"{path.relative_to(root)}, {getattr(node, 'name', 'module')}", node


def test_docstrings_are_restructured_text():
    """Code is in double backticks or a role; single ones would be Markdown's."""
    for place, node in _docstrings():
        text = (ast.get_docstring(node) or "").replace("``", "")
        text = re.sub(r":[a-z:]+:`[^`]+`|`[^`]+`_", "", text)
        assert "`" not in text, place
