"""The modules that version 0.1 had under other names, for pickles and class paths that name them.

``import fastlstm.modules`` gives a module whose attributes are those of ``fastlstm.nn.lstm``. New
code should import from the new names, which are the values of :data:`RENAMED`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import ModuleType
from typing import Any

RENAMED = {
    "types": "call problem",
    "dispatch": "backends.select nn.explain",
    "backends.packed": "backends.cpu.prepacked",
    "modules": "nn.lstm",
    "cell": "nn.lstm_cell",
    "patching": "nn.patching",
    "interop": "nn.replace nn.convert",
    "segmented": "nn.segmented_loss",
    "video": "models.video",
    "video_models": "models.srivastava",
    "stack": "models.encoder_decoder",
    "classifier": "models.classifier",
    "language": "models.byte_lstm",
    "data.action_video": "data.ucf_hmdb",
    "data.deals": "data.shuffled_rounds",
    "data.decoded": "data.decoded_video",
    "data.percepts": "data.frame_features",
    "data.motions": "data.motion_mnist",
    "training.module": "training.tasks.video",
    "training.task": "training.tasks.base",
    "training.classification": "training.tasks.classification",
    "training.sequence_task": "training.tasks.sequence",
    "training.datamodule": "training.datamodules.moving_mnist",
    "training.endless_data": "training.datamodules.base",
    "training.action_data": "training.datamodules.motions",
    "training.action_video_data": "training.datamodules.action_videos",
    "training.patch_data": "training.datamodules.patches",
    "training.sequence_data": "training.datamodules.sequences",
    "training.baselines": "training.callbacks.baselines",
    "training.checkpoint": "training.callbacks.checkpoint",
    "training.figures": "training.callbacks.figures",
    "training.finite": "training.callbacks.finite",
    "training.first_batches": "training.callbacks.first_batches",
    "training.initialization": "training.callbacks.initialization",
    "training.predictions": "training.callbacks.predictions",
    "training.progress": "training.callbacks.progress",
    "training.run_command": "training.commands.base",
    "training.video_command": "training.commands.video",
    "training.classify_command": "training.commands.classify",
    "sequence": "functional",
}
"""Names below ``fastlstm``, old to new; two names where one module became two. Modules that had
nothing for users are not here."""


def old_module(name: str) -> ModuleType:
    """The module under its old name, as in ``fastlstm.modules.LSTM``."""
    if name in RENAMED:
        return import_module(f"fastlstm.{name}")
    raise AttributeError(f"module 'fastlstm' has no attribute {name!r}")


class _Finder(MetaPathFinder, Loader):
    """Finds the modules of :data:`RENAMED`, after Python has found no file of that name."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, rest = name.partition(".")
        is_renamed = package == "fastlstm" and rest in RENAMED
        return spec_from_loader(name, self) if is_renamed else None

    def exec_module(self, module: ModuleType) -> None:
        new_names = RENAMED[module.__name__.partition(".")[2]].split()

        def find(attribute: str) -> Any:
            for new_name in new_names:
                new_module = import_module(f"fastlstm.{new_name}")
                if hasattr(new_module, attribute):
                    return getattr(new_module, attribute)
            raise AttributeError(f"module {module.__name__!r} has no attribute {attribute!r}")

        vars(module)["__getattr__"] = find


sys.meta_path.append(_Finder())
