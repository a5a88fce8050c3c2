"""The settings of the experiments, one YAML file for each experiment and preset."""

from copy import deepcopy
from importlib import resources
from typing import Any

import yaml

PRESETS = ("small", "paper")


def read(experiment: str, preset: str) -> dict[str, Any]:
    """Read the settings in ``presets/<preset>/<experiment>.yaml``.

    Raises:
        ValueError: an unknown preset.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset: expected one of {PRESETS}, got {preset!r}")
    file = resources.files(__name__) / preset / f"{experiment}.yaml"
    settings: dict[str, Any] = yaml.safe_load(file.read_text())
    return settings


def merged(base: dict[str, Any], *changes: dict[str, Any]) -> dict[str, Any]:
    """Merge nested dictionaries; where several have a value, the last one's is taken."""
    result = deepcopy(base)
    for change in changes:
        for key, value in change.items():
            inner = result.get(key)
            if isinstance(value, dict) and isinstance(inner, dict):
                result[key] = merged(inner, value)
            else:
                result[key] = deepcopy(value)
    return result


def of_model(settings: dict[str, Any], model: str) -> dict[str, Any]:
    """Return the configuration of ``fastlstm fit`` for one model of an experiment."""
    return merged(settings["fit"], {"model": {"model": settings["models"][model]}})
