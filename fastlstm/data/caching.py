"""Folders and file names for results that are computed once and read many times."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any


def cache_folder(folder: str | Path | None, kind: str) -> Path:
    """Create a cache folder if it is absent, and return its path.

    Args:
        folder: the folder. None: ``fastlstm/<kind>`` in ``$XDG_CACHE_HOME``, or in ``~/.cache``
            where that variable is unset.
        kind: name of the default folder.
    """
    if folder is None:
        caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(caches) / "fastlstm" / kind
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def cache_name(source: str | Path, **options: Any) -> str:
    """Return a file name for a result computed from a file.

    Another source file or another option gives another name.

    Args:
        source: an existing file, identified by its path, size and time of modification.
        options: what else the result depends on, in types that JSON can represent.
    """
    path = Path(source).resolve()
    status = path.stat()
    identity = [str(path), status.st_size, status.st_mtime_ns, options]
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return f"{path.stem}-{digest[:16]}"
