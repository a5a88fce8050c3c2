"""Downloads models from the Hugging Face Hub, and uploads them; imports huggingface_hub late."""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import ModuleType

FILE = "model.safetensors"


def find(name_or_folder: str | os.PathLike[str], revision: str | None) -> Path:
    """Return the model's file in a folder, or in a repository of the Hub, which is downloaded.

    Raises:
        FileNotFoundError: the folder has no model, or there is neither such a folder nor can this
            be the name of a repository.
        ImportError: it is no folder, and the package huggingface_hub is not installed.
    """
    folder = Path(name_or_folder)
    if folder.is_dir():
        if not (folder / FILE).is_file():
            raise FileNotFoundError(
                f"name_or_folder: expected a folder with {FILE}, got {os.fspath(folder)!r}"
            )
        return folder / FILE
    name = os.fspath(name_or_folder)
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name):
        raise FileNotFoundError(
            f"name_or_folder: expected a folder that exists, or USER/MODEL on the Hub, got {name!r}"
        )
    return Path(_huggingface_hub().hf_hub_download(name, FILE, revision=revision))


def push(folder: str, repo_id: str, private: bool, commit_message: str) -> str:
    """Upload a folder to a repository of the Hub, which is made if it does not exist.

    Returns:
        The address of the commit.

    Raises:
        ImportError: the package huggingface_hub is not installed.
    """
    api = _huggingface_hub().HfApi()
    repository = api.create_repo(repo_id, private=private, exist_ok=True)
    name = repository.repo_id  # with the user's name, if it was left out
    commit = api.upload_folder(repo_id=name, folder_path=folder, commit_message=commit_message)
    return str(commit.commit_url)


def _huggingface_hub() -> ModuleType:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError(
            "the Hugging Face Hub needs the package huggingface_hub: pip install 'fastlstm[hub]'"
        ) from error
    return huggingface_hub
