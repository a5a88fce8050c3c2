"""The base class of the training commands: one folder per run, checkpoints, resumption."""

import os
import re
import sys
import warnings
from abc import ABC, abstractmethod
from argparse import SUPPRESS
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.cli import (
    ArgsType,
    LightningArgumentParser,
    LightningCLI,
)
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from fastlstm.files import read_checkpoint
from fastlstm.models.model_files import ModelFile, weights_of, write
from fastlstm.models.saving import SavedModel
from fastlstm.training.callbacks.checkpoint import (
    AtomicCheckpointIO,
    ModelOrCheckpointIO,
    SameCheckpoint,
    StepSeeds,
)
from fastlstm.training.callbacks.first_batches import FirstBatches
from fastlstm.training.callbacks.progress import StepProgressBar, Throughput
from fastlstm.training.callbacks.saving import savers
from fastlstm.training.commands.configuration import (
    RunConfig,
    check_that_a_model_is_given,
    with_packaged_configurations,
)
from fastlstm.training.commands.processes import counts_of_torchrun, share_batch
from fastlstm.training.precision import AutoPrecisionTrainer, PrecisionChange
from fastlstm.training.run_folder import RemoveOlderRun, newest_checkpoint, remove, results

_SAVE_EVERY = 200  # steps


class RunCommand(LightningCLI, ABC):
    """Base class of a command with ``fit``, ``validate``, ``test`` and ``predict`` for one task.

    All files of a run are in one folder, ``--run``: config.yaml, TensorBoard events, metrics/ (CSV,
    one version per resumption), checkpoints/last.ckpt, and checkpoints/best.ckpt, which has the
    lowest ``val/error``. At its end ``fit`` writes the model of best.ckpt, or else of last.ckpt, to
    checkpoints/model.safetensors, if it is a ``SavedModel``.

    ``--config`` takes a file, or the name of a configuration that comes with the package, see
    :func:`fastlstm.configs.find`.

    ``--trainer.precision auto`` is bf16-mixed where bfloat16 is fast and 32-true elsewhere, see
    :func:`fastlstm.training.precision.find_precision`. A run that resumes finds it anew.

    ``--ckpt_path`` takes a file, ``best``, ``last`` or ``auto``: the run's newest checkpoint, or
    none if the run has not saved any yet, for commands that start again by themselves. A file may
    be a saved model, from which ``fit`` cannot resume. Without it, ``fit`` starts from new weights
    and the other commands load the run's ``best``. ``fit`` resumes a run if the checkpoint is in
    the run's folder. Otherwise ``fit`` starts a new run: if the folder has results of another run,
    ``fit`` raises an error, or with ``--overwrite true`` removes them when the first step begins.
    Files that no run writes are never removed.

    ``--global_batch_size`` is the batch of all processes together, which they share evenly.

    Args:
        task: the LightningModule class; it must log ``val/error``.
        throughput: counts the training items per second.
        words: the command as users type it, for ``--help``.
        description: of the command, for ``--help``.
        args: the command's words. Default: those of the process.

    Raises:
        FileNotFoundError: the checkpoint does not exist.
        ValueError: no configuration is given, or there is none of its name; ``fit`` would overwrite
            another run; the checkpoint is damaged or of another model configuration; an argument is
            out of range; a split's data are missing or cannot be read, which is found before the
            first step.
    """

    example = "demo"  # a configuration, which is named if none is given

    def __init__(
        self,
        task: type[LightningModule],
        throughput: Throughput,
        words: str,
        description: str,
        args: ArgsType = None,
    ) -> None:
        self.throughput = throughput
        self._words = words
        # Lightning uses a deprecated function of torch; users can do nothing about it
        warnings.filterwarnings("ignore", r".*isinstance\(treespec, LeafSpec\)")
        # raised because `fastlstm classify` passes the words without the first one
        warnings.filterwarnings("ignore", "LightningCLI's args parameter")
        super().__init__(
            task,
            LightningDataModule,
            trainer_class=AutoPrecisionTrainer,
            subclass_mode_data=True,
            trainer_defaults={
                "max_epochs": -1,  # training data are infinite: max_steps ends the run
                "max_steps": 1000,
                "val_check_interval": 500,
                "log_every_n_steps": 20,
                "use_distributed_sampler": False,  # the data modules divide batches among processes
            },
            save_config_callback=RunConfig,
            save_config_kwargs={"save_to_log_dir": False},
            seed_everything_default=0,
            parser_kwargs={"prog": words, "description": description},
            auto_configure_optimizers=False,
            args=args,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--run", type=str, default="runs/default", help="Folder of all files of the run."
        )
        parser.add_argument(
            "--overwrite",
            type=bool,
            default=False,
            help="Let fit remove another run's files from the run's folder.",
        )
        parser.add_argument(
            "--save_every",
            type=int,
            default=_SAVE_EVERY,
            help="Training steps between saves of checkpoints/last.ckpt.",
        )
        parser.add_argument(
            "--global_batch_size",
            type=int | None,
            default=None,
            help="Rows of a batch in all processes together; replaces the data's batch_size.",
        )
        # the name of version 0.1, in configuration files; `parse_arguments` renames words
        parser.add_argument("--checkpoint_every", type=int | None, default=None, help=SUPPRESS)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        words = sys.argv[1:] if args is None else args
        if isinstance(words, list):
            check_that_a_model_is_given(words, self._words, self.example)
            words = with_packaged_configurations(words)
            words = [re.sub("^--checkpoint_every(?==|$)", "--save_every", word) for word in words]
        super().parse_arguments(parser, words)
        config = self.config[self.config.subcommand]
        saves = config.pop("checkpoint_every", None)
        if saves is not None and config["save_every"] == _SAVE_EVERY:
            config["save_every"] = saves

    def _parse_ckpt_path(self) -> None:
        # Lightning would silently replace the configured model arguments by the checkpoint's. Here
        # the configuration counts, and the task compares it with the checkpoint on loading.
        pass

    @property
    def _folder(self) -> Path:
        return Path(self._get(self.config, "run"))

    @property
    def _checkpoints(self) -> Path:
        return self._folder / "checkpoints"

    @property
    def _starts_afresh(self) -> bool:
        """Whether ``fit`` starts a new run. ``fast_dev_run`` writes no files and is not a run."""
        config = self.config[self.subcommand]
        if self.subcommand != "fit" or config["trainer"]["fast_dev_run"]:
            return False
        if config.get("ckpt_path") is None:
            # a job that SLURM restarted resumes, from Lightning's own checkpoint if there is one
            return os.environ.get("SLURM_RESTART_COUNT", "0") == "0"
        if config["ckpt_path"] == "hpc":  # Lightning's word for its checkpoint under SLURM
            return False
        place = Path(config["ckpt_path"]).parent.resolve()
        return place not in (self._checkpoints.resolve(), self._folder.resolve())

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        fit = self.subcommand == "fit"
        wanted = config.get("ckpt_path") or (None if fit else "best")
        saved_nothing = False
        if wanted == "auto":
            newest = newest_checkpoint(self._folder)
            saved_nothing = newest is None
            config["ckpt_path"] = wanted = newest and str(newest)
            if saved_nothing and not fit:
                wanted = "last"  # which is absent
        if wanted in ("best", "last"):
            path = self._checkpoints / f"{wanted}.ckpt"
            if not path.exists():
                raise FileNotFoundError(
                    f"ckpt_path: expected a checkpoint, {path} is absent; train with `fastlstm fit`"
                    " or give --run or --ckpt_path"
                )
            config["ckpt_path"] = str(path)
        if fit:
            found = results(self._folder) if self._starts_afresh else []
            if saved_nothing:  # curves and pictures before the first checkpoint are written again
                found = [path for path in found if path.parent == self._checkpoints]
            if found and not config["overwrite"]:
                raise ValueError(
                    f"run: expected a folder without a run in it, got {self._folder} with"
                    f" {found[0]}; resume it with --ckpt_path last, take another --run, or give"
                    " --overwrite true"
                )
        else:
            self.save_config_callback = None  # config.yaml stays as training wrote it

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = self._get(self.config_init, "trainer")
        kwargs |= counts_of_torchrun(config)
        if config["limit_predict_batches"] is None:
            # One batch is enough to look at. Set here and not as a default of the parser, which may
            # convert 1 to 1.0 (the type is `int | float`), and 1.0 means all batches.
            kwargs["limit_predict_batches"] = 1
        fit = self.subcommand == "fit"
        callbacks: list[Callback] = list(config["callbacks"] or [])
        callbacks.append(self.throughput)
        if config["enable_progress_bar"] is not False:
            callbacks.append(StepProgressBar())
        loggers: Any = config["logger"]
        if loggers is None or loggers is True:
            folder = str(self._folder)
            loggers = fit and [
                TensorBoardLogger(folder, name="", version=""),
                CSVLogger(folder, name="metrics"),
            ]
        if fit and loggers:
            callbacks.append(LearningRateMonitor())
        if self._starts_afresh:
            older = RemoveOlderRun(self._folder)
            callbacks.append(older)
            # under SLURM Lightning would load these files by itself, before the first step
            remove((f for f in older.files if f.name.startswith("hpc_ckpt_")), self._folder)
        seed = self._get(self.config, "seed_everything")
        if fit:
            callbacks += [FirstBatches(), PrecisionChange(), SameCheckpoint()]
        if fit and seed is not False:
            callbacks.append(StepSeeds(int(seed)))
        if fit and config["enable_checkpointing"] is not False:
            callbacks += savers(self._checkpoints, self._get(self.config, "save_every"))
        plugins = config["plugins"] or []
        reads = AtomicCheckpointIO() if fit else ModelOrCheckpointIO()
        trainer = super().instantiate_trainer(
            default_root_dir=str(self._folder),
            callbacks=callbacks,
            logger=loggers,
            plugins=[*(plugins if isinstance(plugins, list) else [plugins]), reads],
            **kwargs,
        )
        share_batch(self._get(self.config, "global_batch_size"), self.datamodule, trainer)
        return trainer

    def after_fit(self) -> None:
        """Save the last step and the best model, test the best checkpoint, print a summary."""
        trainer = self.trainer
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        savers = [c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
        if savers:
            trainer.save_checkpoint(self._checkpoints / "last.ckpt")
        steps = trainer.global_step
        # Without validation there is no best checkpoint, and the last step's weights are tested. A
        # run that started from another run's checkpoint has the other's best_model_path, but no
        # such file in its own folder.
        best = self._checkpoints / "best.ckpt"
        found = any(c.monitor and c.best_model_path for c in savers) and best.exists()
        tested = str(best) if found else None
        source = best if found else self._checkpoints / "last.ckpt"
        saved = self._save_model(source) if savers else []
        errors = trainer.test(
            self.model, datamodule=self.datamodule, ckpt_path=tested, verbose=False
        )
        if errors and trainer.is_global_zero:  # empty with --trainer.limit_test_batches 0
            print("\n".join(self._summary(steps, errors[0], tested)))
        if saved:
            print("\n".join(saved))

    def _save_model(self, checkpoint: Path) -> list[str]:
        """Write a checkpoint's model as checkpoints/model.safetensors, and return lines about it.

        The weights are read from the file, because those in memory may be shards.
        """
        model: Any = getattr(self.model, "model", None)
        if not (self.trainer.is_global_zero and isinstance(model, SavedModel)):
            return []
        path, name = self._checkpoints / "model.safetensors", type(model).__name__
        try:
            weights = weights_of(read_checkpoint(checkpoint))
            write(path, ModelFile(name, model.config, weights))
        except (ImportError, TypeError, ValueError) as error:  # a user's task or model may raise it
            return [f"model   not written: {error}"]
        package = type(model).__module__.partition(".")[0]
        return [f"model   {path}", f"        in Python: {package}.{name}.load({str(path)!r})"]

    @abstractmethod
    def _summary(self, steps: int, errors: Mapping[str, float], tested: str | None) -> list[str]:
        """Return the lines that are printed after ``fit``.

        Args:
            steps: training steps done.
            errors: on the test set.
            tested: path of the tested checkpoint; None if the last step's weights were tested.
        """
