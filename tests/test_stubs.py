"""``fastlstm/_C.pyi`` is what ``make stubs`` makes of the compiled module."""

import ast

import pytest
import stubs

from fastlstm import _C


def test_the_stub_is_up_to_date():
    pytest.importorskip("pybind11_stubgen", reason="pybind11-stubgen is not installed")
    found, expected = stubs.generate(), stubs.clean(ast.parse(stubs.STUB.read_text()))
    if not _C.cuda.built:  # there is nothing to compare the functions of the class with
        for tree in (found, expected):
            cuda = tree.body[-1]
            tree.body[-1:] = [node for node in cuda.body if not isinstance(node, ast.FunctionDef)]
    assert ast.unparse(found) == ast.unparse(expected), "run `make stubs`"
