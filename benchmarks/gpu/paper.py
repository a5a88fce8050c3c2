"""Train and evaluate the paper's best model on Moving MNIST within ten minutes.

    python -m benchmarks.gpu.paper --out FOLDER [--minutes 9] [--device cpu --small]

The model is composite_conditional_future of ``fastlstm experiment moving_mnist --preset paper``, in
bfloat16. Its learning rates are those of a short run (the paper trains for days). In the first half
of the run the conditional decoder comes to read its own frames at every step, as in use. The script
reports the errors on held-out digits in nats per frame, teacher-forced (the decoder reads the true
frames) and in closed loop (it reads its own). The paper's 341.2 is a closed-loop error, because the
authors' validation feeds generated frames. The training curve, a figure of predictions and the
numbers are copied to FOLDER; the run's own folder, with the weights, is a temporary one. It needs
the extra "train".
"""

from __future__ import annotations

import argparse
import csv
import shutil
import tempfile
import time
from pathlib import Path

import yaml

from benchmarks.gpu import record
from fastlstm.experiments import presets
from fastlstm.training.commands.video import VideoCommand

_MODEL = "composite_conditional_future"
_PAPER = 341.2  # nats a frame, composite model with conditional future, in closed loop
_EVALUATION_S = 75  # reserved for the test set and the figure
_TRIAL_STEPS = 30  # whose speed gives the number of steps of the run


def words(arguments: object, run: Path, seconds: float, steps: int) -> list[str]:
    """Return the arguments of ``fastlstm``."""
    device, small = arguments.device, arguments.small  # type: ignore[attr-defined]
    config = run.with_suffix(".yaml")
    settings = presets.of_model(presets.read("moving_mnist", "paper"), _MODEL)
    settings["trainer"]["callbacks"] = [
        {
            "class_path": "fastlstm.training.SmoothImageWeights",
            "init_args": {"input_gain": 0.08, "decoder_gain": 0.0},
        }
    ]
    config.write_text(yaml.safe_dump(settings))
    found = ["fit", "--config", str(config), "--run", str(run)]
    found += ["--trainer.max_time", time.strftime("00:%H:%M:%S", time.gmtime(seconds))]
    found += ["--trainer.max_steps", str(steps), "--model.schedule", "linear"]
    found += ["--model.optimizer.lr", "1e-3", "--model.warmup_steps", "500"]
    found += ["--model.input_lr_scale", "0.08", "--model.readout_lr_scale", "4"]
    found += ["--model.model.readout_bias", "-3", "--trainer.enable_progress_bar", "false"]
    found += ["--trainer.val_check_interval", str(max(1, steps // 4)), "--data.val_size", "500"]
    found += ["--overwrite", "true", "--trainer.accelerator", "gpu" if device == "cuda" else "cpu"]
    if device == "cuda":
        found += ["--trainer.precision", "bf16-mixed", "--data.num_workers", "8"]
    if small:
        found += ["--model.model.hidden_size", "16", "--data.batch_size", "4"]
        found += ["--data.val_size", "4", "--data.test_size", "4", "--data.num_workers", "0"]
    return found


def main() -> None:
    options = record.parser(__doc__, minutes=9)
    options.add_argument("--steps", type=int, help="training steps (default: as many as fit)")
    arguments = options.parse_args()
    results = record.Results(arguments, "paper")
    with tempfile.TemporaryDirectory() as folder:
        _train(arguments, results, Path(folder) / "run")


def _train(arguments: argparse.Namespace, results: record.Results, run: Path) -> None:
    """Train in a folder of its own, and keep what is small."""
    steps = arguments.steps
    if steps is None:
        trial = [*words(arguments, run, 60, _TRIAL_STEPS), "--trainer.limit_val_batches", "0"]
        command = VideoCommand([*trial, "--trainer.limit_test_batches", "1"])
        batches = (command.throughput.per_second or 1) / command.datamodule.batch_size
        steps = 4 if arguments.small else int(batches * (results.seconds_left - _EVALUATION_S))
    seconds = max(10.0, results.seconds_left - _EVALUATION_S)
    command = VideoCommand(words(arguments, run, seconds, steps))
    errors = {k: float(v) for k, v in command.trainer.callback_metrics.items()}
    named = {name.removeprefix("test/"): e for name, e in errors.items() if name[:5] == "test/"}
    speed = command.throughput.per_second
    results.add(
        steps=command.trainer.global_step, sequences_per_second=speed, paper=_PAPER, **named
    )
    for path in sorted((run / "figures").glob("*.png"))[-1:]:
        shutil.copy(path, arguments.out / "paper_predictions.png")
    curves = sorted((run / "metrics").glob("version_*/metrics.csv"))
    if curves:
        shutil.copy(curves[-1], arguments.out / "paper_curve.csv")
        plot(arguments.out)


def plot(out: Path) -> None:
    """Draw the losses over the training steps."""
    from matplotlib.figure import Figure

    with (out / "paper_curve.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name in ("train/future", "val/future", "val/future_closed_loop"):
        points = [(int(row["step"]), float(row[name])) for row in rows if row.get(name)]
        if points:
            axes.plot(*zip(*points, strict=True), label=name, marker="o" if "val" in name else None)
    axes.axhline(_PAPER, color="gray", linestyle="--", label=f"the paper, closed loop: {_PAPER}")
    axes.set(xlabel="training step", ylabel="nats a frame")
    axes.legend()
    figure.savefig(out / "paper_curve.png", dpi=110)


if __name__ == "__main__":
    main()
