"""The command ``fastlstm classify``: train classifiers of video."""

from collections.abc import Mapping

from lightning.pytorch.cli import ArgsType, LightningArgumentParser

from fastlstm.models.video import VideoLSTM
from fastlstm.training.callbacks.progress import Throughput
from fastlstm.training.commands.base import RunCommand
from fastlstm.training.tasks.classification import ClassificationTask

_DESCRIPTION = (
    "Train classifiers of video, from new weights or (--encoder) from the encoder of a video model"
    " that was trained without labels."
)


class ClassifyCommand(RunCommand):
    """The commands ``fit``, ``validate`` and ``test`` for a ``ClassificationTask``.

    The data module can be any that yields ``LabelledBatch`` objects. ``fit --encoder FILE`` starts
    from the encoder of a video model that ``VideoLSTM.load`` reads: a saved one or a checkpoint.

    Args:
        args: the command's words. Default: those of the process.

    Raises:
        FileNotFoundError, ValueError: as ``RunCommand`` does; also ValueError for an encoder whose
            sizes differ from the classifier's.
    """

    example = "classify"

    def __init__(self, args: ArgsType = None) -> None:
        throughput = Throughput("videos", lambda batch: len(batch.labels))
        super().__init__(ClassificationTask, throughput, "fastlstm classify", _DESCRIPTION, args)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.add_argument(
            "--encoder",
            type=str | None,
            default=None,
            help="Saved video model, or checkpoint of its run, whose encoder fit starts from.",
        )

    def before_fit(self) -> None:
        """Load the encoder's weights, unless a checkpoint with weights is loaded anyway."""
        file = self._get(self.config, "encoder")
        if file is None or self._get(self.config, "ckpt_path") is not None:
            return
        trained, classifier = VideoLSTM._load(file, "encoder"), self.model.model
        for name in ("input_size", "hidden_size", "num_layers", "peephole"):
            expected, received = classifier.config[name], trained.config[name]
            if received != expected:
                raise ValueError(
                    f"encoder: expected a model of {name}={expected!r} as configured, got"
                    f" {name}={received!r} in {file}"
                )
        classifier.encoder.load_state_dict(trained.folded().encoder.state_dict())

    def _summary(self, steps: int, errors: Mapping[str, float], tested: str | None) -> list[str]:
        return [
            "",
            f"LSTMClassifier after {steps:,} steps" + self.throughput.summary(),
            f"Held-out videos, {tested or 'weights of the last step'}:",
            f"  accuracy     {errors['test/accuracy']:>7.1%}",
            f"  loss, nats   {errors['test/loss']:>7.3f}",
            f"run     {self._folder}",
        ]
