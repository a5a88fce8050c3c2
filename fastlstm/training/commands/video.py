"""The commands ``fastlstm fit``, ``validate``, ``test`` and ``predict`` of video models."""

from collections.abc import Mapping

from lightning.pytorch.cli import ArgsType, LightningArgumentParser

from fastlstm.training.callbacks.baselines import Baselines
from fastlstm.training.callbacks.figures import PredictionFigure
from fastlstm.training.callbacks.predictions import PredictionWriter
from fastlstm.training.callbacks.progress import Throughput
from fastlstm.training.commands.base import RunCommand
from fastlstm.training.run_folder import results
from fastlstm.training.tasks.video import VideoTask

_DESCRIPTION = (
    "Train and use LSTM models of video; `fastlstm --help` lists the other commands, such as"
    " `fastlstm configs`, which lists the configurations that --config takes by name."
)


class VideoCommand(RunCommand):
    """The commands ``fit``, ``validate``, ``test`` and ``predict`` for a ``VideoTask``.

    The data module can be any that yields ``VideoBatch`` objects. The run's folder also gets
    figures/, one picture per validation, and predictions/.

    Args:
        args: the command's words. Default: those of the process.

    Raises:
        FileNotFoundError, ValueError: as ``RunCommand`` does.
    """

    def __init__(self, args: ArgsType = None) -> None:
        throughput = Throughput("sequences", lambda batch: batch.frames.shape[1])
        super().__init__(VideoTask, throughput, "fastlstm", _DESCRIPTION, args)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.add_lightning_class_args(PredictionFigure, "figure")
        parser.add_lightning_class_args(Baselines, "baselines")
        parser.add_lightning_class_args(PredictionWriter, "predictions")

    def _summary(self, steps: int, errors: Mapping[str, float], tested: str | None) -> list[str]:
        model = self.model.model
        lines = [
            "",
            f"{type(model).__name__} after {steps:,} steps" + self.throughput.summary(),
            f"Held-out videos, {tested or 'weights of the last step'},"
            f" {'nats' if model.frame_type == 'binary' else 'half squared error'} per frame:",
        ]
        for label, name in (
            ("reconstruction", "reconstruction"),
            ("future, teacher-forced", "future"),
            ("future, closed loop", "future_closed_loop"),
            ("  baseline: mean frame", "mean_frame"),
            ("  baseline: copy last", "copy_last"),
        ):
            if f"test/{name}" in errors:
                lines.append(f"  {label:<26}{errors[f'test/{name}']:>9.1f}")
        drawn = [path for path in results(self._folder) if path.match("figures/step_*.png")]
        figure = self._get(self.config_init, "figure").latest or (drawn and drawn[-1])
        if figure:
            lines += [f"figure  {figure}", f"video   {figure.with_suffix('.gif')}"]
        lines.append(f"run     {self._folder}")
        return lines

    def after_predict(self) -> None:
        """Print the files that were written."""
        for path in self._get(self.config_init, "predictions").written:
            print(f"wrote {path}")
