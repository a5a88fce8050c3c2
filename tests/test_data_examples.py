"""The examples in the docstrings of fastlstm.data run, and every public name has one."""

import doctest
import importlib
import inspect
import pkgutil

import pytest

import fastlstm.data

MODULES = [
    f"fastlstm.data.{module.name}" for module in pkgutil.iter_modules(fastlstm.data.__path__)
]
PUBLIC = [name for name in fastlstm.data.__all__ if callable(getattr(fastlstm.data, name))]


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_has_an_example(name):
    public = getattr(fastlstm.data, name)
    assert "    Example:\n        >>> " in inspect.getdoc(public).replace("\n", "\n    ")


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0
