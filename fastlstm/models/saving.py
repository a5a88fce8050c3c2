"""The base class of models that are saved to files, with their configuration, and loaded."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from torch import nn
from typing_extensions import Self

import fastlstm
from fastlstm.models import hub, model_files
from fastlstm.models.model_files import ModelFile, current_names


class SavedModel(nn.Module):
    """A module that can be written to a file and made anew from it.

    Attributes:
        config: the arguments of the class, but for device and dtype.
    """

    config: dict[str, Any]

    def save(self, path: str | os.PathLike[str], *, fold: bool = False) -> None:
        """Write parameters and configuration to one safetensors file.

        An older file at ``path`` is replaced once the new one is complete.

        Args:
            path: the file to write.
            fold: write the dense weights of :meth:`fastlstm.VideoLSTM.folded`, which read and emit
                pixels. A video model with ``basis="pixels"`` is written as it is. Default: False.

        Raises:
            ImportError: the package safetensors is not installed.
            OSError: the file cannot be written; one that was there before is left as it was.
            ValueError: ``fold`` for a model that is no video model.
        """
        model = self.folded() if fold else self
        content = ModelFile(type(model).__name__, model.config, model.state_dict())
        model_files.write(Path(path), content)

    def folded(self) -> Self:
        """Return the model with weights of pixels; video models alone may have other ones."""
        raise ValueError(f"fold: expected a video model, got a {type(self).__name__}")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Load a model from a file that :meth:`save` wrote, or from a checkpoint of a run.

        ``fastlstm fit`` writes both: ``checkpoints/model.safetensors``, and the checkpoints
        ``best.ckpt`` and ``last.ckpt``, which also have the state of the optimiser. The content of
        the file decides how it is read, not its name. Checkpoints are read with
        ``torch.load(weights_only=True)``, which runs no code of the file. Checkpoints of version
        0.1 have no ``dropout``, ``readout_bias`` and ``backend``: the model has their defaults.

        Args:
            path: the file. A checkpoint may be a folder that ``DDPWithShardedCheckpoints`` wrote.

        Returns:
            The model, on the CPU, of the class that was saved: ``cls`` or a subclass.

        Raises:
            ImportError: a safetensors file, and the package safetensors is not installed.
            FileNotFoundError: there is no such file.
            ValueError: it is damaged, not of this library, or holds another class than ``cls``.

        Example:
            >>> import pathlib, tempfile, fastlstm
            >>> path = pathlib.Path(tempfile.mkdtemp()) / "model.safetensors"
            >>> fastlstm.CompositeLSTM(16, 8).save(path)
            >>> type(fastlstm.VideoLSTM.load(path)).__name__
            'CompositeLSTM'
        """
        return cls._load(path, "path")

    @classmethod
    def from_pretrained(
        cls, name_or_folder: str | os.PathLike[str], *, revision: str | None = None
    ) -> Self:
        """Load a model from a folder, or from a repository of the Hugging Face Hub.

        A folder needs neither a network nor the package huggingface_hub. The methods of the Hub are
        thin ones over ``huggingface_hub.hf_hub_download`` and ``HfApi.upload_folder``:
        ``PyTorchModelHubMixin`` is a base class, so that ``import fastlstm`` would import it.

        Args:
            name_or_folder: a folder that :meth:`save_pretrained` wrote, or the name of a repository
                such as "user/model". A folder of this name comes before a repository.
            revision: the branch, tag or commit of the repository. Default: None, its main branch.

        Returns:
            The model, on the CPU, of the class that was saved: ``cls`` or a subclass.

        Raises:
            ImportError: the package huggingface_hub (of the extra ``fastlstm[hub]``) or safetensors
                is needed and not installed.
            FileNotFoundError: the folder has no model, or no folder or repository has this name.
            ValueError: as :meth:`load` does.
            OSError: a download fails; huggingface_hub has subclasses for the reasons.

        Example:
            >>> import tempfile, fastlstm
            >>> folder = tempfile.mkdtemp()
            >>> fastlstm.CompositeLSTM(16, 8).save_pretrained(folder)
            >>> fastlstm.CompositeLSTM.from_pretrained(folder).config["hidden_size"]
            8
        """
        return cls._load(hub.find(name_or_folder, revision), "name_or_folder")

    def save_pretrained(self, folder: str | os.PathLike[str], *, fold: bool = False) -> None:
        """Write ``model.safetensors``, as :meth:`save` does, into a folder.

        Args:
            folder: the folder; it is made if it does not exist.
            fold: as in :meth:`save`. Default: False.

        Raises:
            ImportError: the package safetensors is not installed.
            OSError: the folder or the file cannot be written.
            ValueError: ``fold`` for a model that is no video model.
        """
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.save(Path(folder) / hub.FILE, fold=fold)

    def push_to_hub(
        self, repo_id: str, *, private: bool = False, commit_message: str | None = None
    ) -> str:
        """Upload the model to a repository of the Hugging Face Hub, for :meth:`from_pretrained`.

        It needs a token of the Hub, from ``hf auth login`` or the environment's ``HF_TOKEN``.

        Args:
            repo_id: "user/model"; the repository is made if it does not exist.
            private: whether a repository that is made is private. Default: False.
            commit_message: of the upload. Default: "Upload" and the name of the class.

        Returns:
            The address of the upload's commit.

        Raises:
            ImportError: the package huggingface_hub (of the extra ``fastlstm[hub]``) or safetensors
                is not installed.
            OSError: the upload fails; huggingface_hub has subclasses for the reasons.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            message = commit_message or f"Upload {type(self).__name__}"
            return hub.push(folder, repo_id, private, message)

    @classmethod
    def _load(cls, path: str | os.PathLike[str], argument: str) -> Self:
        """Load a model from a file that the caller's ``argument`` names."""
        file = model_files.read(path, argument, cls.__name__)
        own = cls.__name__ == file.class_name  # a user's class, which fastlstm does not have
        model_class = cls if own else getattr(fastlstm, str(file.class_name), None)
        if not (isinstance(model_class, type) and issubclass(model_class, cls)):
            raise ValueError(
                f"{argument}: expected a {cls.__name__}, got a {file.class_name} in"
                f" {os.fspath(path)!r}"
            )
        try:
            dtype = next(iter(file.tensors.values())).dtype
            model = model_class(**file.arguments, dtype=dtype)
            model.load_state_dict(file.tensors)
            return model
        except Exception as error:  # arguments or weights that do not fit raise many types
            raise model_files.not_fitting(path, argument, error) from error

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickled model, also one of version 0.1."""
        state = current_names(state)
        super().__setstate__(state | {"config": current_names(state["config"])})
