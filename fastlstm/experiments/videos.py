"""The videos that an experiment's models are shown after training."""

from importlib import import_module
from typing import Any


def data_of(settings: dict[str, Any], **changes: Any) -> Any:
    """The datamodule of an experiment's settings, with some of its arguments changed."""
    chosen = settings["fit"]["data"]
    module, _, name = chosen["class_path"].rpartition(".")
    return getattr(import_module(module), name)(**{**chosen["init_args"], **changes})
