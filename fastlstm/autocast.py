"""Whether ``torch.autocast`` is on, asked for any device."""

from __future__ import annotations

import torch


def autocasts(device: str) -> bool:
    """True under ``torch.autocast`` for a type of device; "meta" has none, and torch raises."""
    return device != "meta" and torch.is_autocast_enabled(device)
