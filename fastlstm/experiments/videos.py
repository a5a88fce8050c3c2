"""The videos on which an experiment evaluates its models."""

from importlib import import_module
from typing import Any


def data_of(settings: dict[str, Any], **changes: Any) -> Any:
    """Create the data module of an experiment.

    Args:
        settings: settings of the experiment, from :func:`fastlstm.experiments.presets.read`.
        changes: arguments of the data module that replace those in the settings.
    """
    chosen = settings["fit"]["data"]
    module, _, name = chosen["class_path"].rpartition(".")
    return getattr(import_module(module), name)(**{**chosen["init_args"], **changes})
