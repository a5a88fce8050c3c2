"""Where files that are made once and read many times lie, under names that tell what made them."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any


def cache_folder(folder: str | Path | None, kind: str) -> Path:
    """The folder, made if it is absent; None: `fastlstm/<kind>` in the user's folder of caches.

    That is `$XDG_CACHE_HOME`, or `~/.cache`.
    """
    if folder is None:
        caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(caches) / "fastlstm" / kind
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def cache_name(source: str | Path, **made: Any) -> str:
    """A name for what is made of a file: another one if the file or anything in `made` changes.

    Args:
        source: an existing file, told from others by its path, size and time of modification.
        made: how; what JSON can write.
    """
    path = Path(source).resolve()
    status = path.stat()
    told = json.dumps([str(path), status.st_size, status.st_mtime_ns, made], sort_keys=True)
    return f"{path.stem}-{hashlib.sha256(told.encode()).hexdigest()[:16]}"
