"""``pytest README.md docs`` runs their Python blocks, page by page, if sybil is installed."""

import os
import tempfile
from collections.abc import Iterator

import pytest

os.environ.setdefault("NOTEBOOK_STEPS", "2")  # training steps of examples/*.ipynb

try:
    from sybil import Sybil
    from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser
except ModuleNotFoundError:
    pass
else:
    pytest_collect_file = Sybil(
        parsers=[PythonCodeBlockParser(), SkipParser()],
        patterns=["README.md", "docs/*.md"],
        fixtures=["folder"],
    ).pytest()


@pytest.fixture(scope="module")
def folder() -> Iterator[str]:
    """A folder of its own as the working directory: blocks write files."""
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as path:
        os.chdir(path)
        yield path
        os.chdir(before)
