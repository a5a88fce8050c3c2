"""The names of the three parts of a data set."""

from __future__ import annotations

from typing import Literal

Split = Literal["train", "val", "test"]
