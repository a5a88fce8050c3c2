"""What every training command shares: one folder for all of a run's files, and their safety."""

import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.cli import (
    ArgsType,
    LightningArgumentParser,
    LightningCLI,
    SaveConfigCallback,
)
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from fastlstm.training.callbacks.checkpoint import AtomicCheckpointIO, StepSeeds, StopBetweenSteps
from fastlstm.training.callbacks.finite import StopOnNonFinite
from fastlstm.training.callbacks.first_batches import FirstBatches
from fastlstm.training.callbacks.progress import StepProgressBar, Throughput
from fastlstm.training.run_folder import RemoveOlderRun, remove, results


class RunConfig(SaveConfigCallback):
    """Saves the configuration as config.yaml in the run's folder, wherever loggers write."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / self.config_filename
        self.parser.save(self.config, path, skip_none=False, overwrite=True, multifile=False)


class RunCommand(LightningCLI, ABC):
    """`fit|validate|test|predict` for one task and its data; derived classes say which.

    A run keeps everything in one folder, `--run`: config.yaml, TensorBoard events, metrics/ (CSV,
    a version for each resumption), checkpoints/last.ckpt and best.ckpt (of the lowest val/error).
    `--ckpt_path` takes a file, `best` or `last`; without it `fit` starts afresh and the other
    commands take the run's best. A run goes on from checkpoints of its own folder; any other `fit`
    is a new run, which has nothing of an older one in its folder: without `--overwrite` it is
    refused where there are results, with it they are removed as the first step begins. Files of
    other names stay.

    Args:
        task: the LightningModule; it logs `val/error`.
        throughput: counts what is trained on.
        words: the command as it is called, for its help.
        description: of the command.
        args: the arguments; None for those of the process.

    Raises:
        FileNotFoundError: a checkpoint that is not there.
        ValueError: `fit` would overwrite another run; a checkpoint that is damaged or of a model
            of another configuration; an argument out of range; data of a split that are absent or
            cannot be read, before the first step.
    """

    def __init__(
        self,
        task: type[LightningModule],
        throughput: Throughput,
        words: str,
        description: str,
        args: ArgsType = None,
    ) -> None:
        self.throughput = throughput
        # of torch, raised by Lightning at every run; nothing that a user could do about it
        warnings.filterwarnings("ignore", r".*isinstance\(treespec, LeafSpec\)")
        warnings.filterwarnings(
            "ignore", "LightningCLI's args parameter"
        )  # a first word is cut off
        super().__init__(
            task,
            LightningDataModule,
            subclass_mode_data=True,
            trainer_defaults={
                "max_epochs": -1,  # training data have no end: max_steps is the length of a run
                "max_steps": 1000,
                "val_check_interval": 500,
                "log_every_n_steps": 20,
                "use_distributed_sampler": False,  # the data modules share out the work themselves
            },
            save_config_callback=RunConfig,
            save_config_kwargs={"save_to_log_dir": False},
            seed_everything_default=0,
            parser_kwargs={"prog": words, "description": description},
            auto_configure_optimizers=False,
            args=args,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--run", type=str, default="runs/default", help="The run's folder.")
        parser.add_argument(
            "--overwrite",
            type=bool,
            default=False,
            help="Let fit remove another run's files from its folder.",
        )
        parser.add_argument(
            "--checkpoint_every", type=int, default=200, help="Steps between saves of last.ckpt."
        )

    def _parse_ckpt_path(self) -> None:
        # Lightning would take the model's arguments from the checkpoint, silently, over the
        # configuration's. Here the configuration decides, and the task compares on loading.
        pass

    @property
    def _folder(self) -> Path:
        return Path(self._get(self.config, "run"))

    @property
    def _checkpoints(self) -> Path:
        return self._folder / "checkpoints"

    @property
    def _starts_afresh(self) -> bool:
        """Whether this is a new run; one that writes no files is none."""
        config = self.config[self.subcommand]
        if self.subcommand != "fit" or config["trainer"]["fast_dev_run"]:
            return False
        if config.get("ckpt_path") is None:
            # a job that SLURM started again goes on, from Lightning's own checkpoint if it has one
            return os.environ.get("SLURM_RESTART_COUNT", "0") == "0"
        if config["ckpt_path"] == "hpc":  # Lightning's word for SLURM's
            return False
        place = Path(config["ckpt_path"]).parent.resolve()
        return place not in (self._checkpoints.resolve(), self._folder.resolve())

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        fit = self.subcommand == "fit"
        wanted = config.get("ckpt_path") or (None if fit else "best")
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
            if found and not config["overwrite"]:
                raise ValueError(
                    f"run: expected a folder without a run in it, got {self._folder} with"
                    f" {found[0]}; resume it with --ckpt_path last, take another --run, or give"
                    " --overwrite true"
                )
        else:
            self.save_config_callback = None  # config.yaml stays that of the training

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = self._get(self.config_init, "trainer")
        if config["limit_predict_batches"] is None:
            # Files to look at, not all of the test. Not by the configuration, whose parser may make
            # 1 a 1.0, which is all: to it `float | int` is the first of the two that fits.
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
            # under SLURM Lightning would load these unasked, before the first step
            remove((f for f in older.files if f.name.startswith("hpc_ckpt_")), self._folder)
        seed = self._get(self.config, "seed_everything")
        if fit:
            callbacks.append(FirstBatches())
        if fit and seed is not False:
            callbacks.append(StepSeeds(int(seed)))
        if fit and config["enable_checkpointing"] is not False:
            callbacks += [
                StopBetweenSteps(),
                StopOnNonFinite(self._checkpoints),
                ModelCheckpoint(
                    self._checkpoints,
                    "best",
                    monitor="val/error",
                    enable_version_counter=False,
                ),
                ModelCheckpoint(
                    self._checkpoints,
                    "last",
                    every_n_train_steps=self._get(self.config, "checkpoint_every"),
                    save_on_exception=True,
                    enable_version_counter=False,
                ),
            ]
        plugins = config["plugins"] or []
        return super().instantiate_trainer(
            default_root_dir=str(self._folder),
            callbacks=callbacks,
            logger=loggers,
            plugins=[*(plugins if isinstance(plugins, list) else [plugins]), AtomicCheckpointIO()],
            **kwargs,
        )

    def after_fit(self) -> None:
        """Saves the end of training, tests the best checkpoint and says how it went."""
        trainer = self.trainer
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        savers = [c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
        if savers:
            trainer.save_checkpoint(self._checkpoints / "last.ckpt")
        steps = trainer.global_step
        # No validation, no best: then the last step's weights are tested. A run that began with
        # another's checkpoint has that one's best_model_path, but no such file of its own.
        best = self._checkpoints / "best.ckpt"
        found = any(c.monitor and c.best_model_path for c in savers) and best.exists()
        tested = str(best) if found else None
        errors = trainer.test(
            self.model, datamodule=self.datamodule, ckpt_path=tested, verbose=False
        )
        if errors:  # there are none with --trainer.limit_test_batches 0
            print("\n".join(self._summary(steps, errors[0], tested)))

    @abstractmethod
    def _summary(self, steps: int, errors: Mapping[str, float], tested: str | None) -> list[str]:
        """What is said after `fit`: lines about `steps` steps and the `errors` of the test set.

        `tested` is the checkpoint that was tested; None: the weights of the last step.
        """
