"""The example in examples/language, importable by the tests."""

import sys
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "examples" / "language"
sys.path.insert(0, str(FOLDER))

from report import read_curve  # noqa: E402
from train import LanguageCommand, LanguageTask  # noqa: E402

__all__ = ["FOLDER", "LanguageCommand", "LanguageTask", "read_curve"]
