"""Write ``docs/experiments.md``: tables and figures of every experiment, and published numbers."""

import platform
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fastlstm.experiments.setting import read, spread

Results = Mapping[str, Any]


def write_report(out: Path, document: Path) -> None:
    """Write a report, and copy the figures and numbers in it to a folder beside it.

    Args:
        out: folder of the results; experiments without results are listed as not run.
        document: the Markdown file; the folder has the same name without ``.md``.
    """
    parts = [_HEAD.format(machine=_machine())]
    for name, (title, section) in _SECTIONS.items():
        results = read(out, name)
        parts.append(f"## {title}\n")
        if results is None:
            parts.append(f"Not run. `fastlstm experiment {name}`\n")
            continue
        folder = document.with_suffix("") / name
        folder.mkdir(parents=True, exist_ok=True)
        for file in ("results.json", *results["figures"]):
            shutil.copy(out / name / file, folder / file)
        parts.append(section(results, f"{document.stem}/{name}"))
    parts.append(_PUBLISHED)
    document.write_text("\n".join(parts))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table whose first column is aligned to the left."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def number(found: Results, digits: int = 1) -> str:
    """Return the mean and, with more than one seed, the standard deviation."""
    mean, several = f"{found['mean']:.{digits}f}", len(found["values"]) > 1
    return f"{mean} ± {found['std']:.{digits}f}" if several else mean


def compared(better: Results, worse: Results, digits: int = 1) -> str:
    """Say by how much ``better`` is lower or higher than ``worse``, as the end of a sentence."""
    gaps = [w - b for b, w in zip(better["values"], worse["values"], strict=True)]
    below = sum(gaps) > 0
    gap = spread(g if below else -g for g in gaps)
    wins = sum(g > 0 for g in gaps)
    return (
        f"{'lower' if below else 'higher'} by {number(gap, digits)}"
        f" (lower with {wins} of {len(gaps)} seeds)"
    )


def _name(model: str) -> str:
    return model.replace("_", " ")


def _figure(folder: str, name: str, text: str) -> str:
    return f"![{text}]({folder}/{name}.png)\n"


def _variants(results: Results, folder: str, unit: str, paper: str) -> str:
    errors = results["errors"]
    rows = []
    for model, found in errors.items():
        cells = [
            number(found[k]) if k in found else ""
            for k in ("reconstruction", "future", "future_closed_loop")
        ]
        rows.append([_name(model), *cells])
    baselines = next(iter(errors.values()))
    for name in ("mean_frame", "copy_last"):
        rows.append([f"*{_name(name)}*", "", "", number(baselines[name])])
    closed = {model: found["future_closed_loop"] for model, found in errors.items()}
    forced = {model: found["future"] for model, found in errors.items()}
    pairs = (("composite", "future"), ("composite_conditional_future", "conditional_future"))
    conditions = (
        ("conditional_future", "future"),
        ("composite_conditional_future", "composite"),
    )
    verdicts = []
    for first, second in (*pairs, *conditions):
        words = (
            f"- {_name(first)} against {_name(second)}: {compared(closed[first], closed[second])}"
        )
        if (first, second) in conditions:
            words += f"; teacher-forced, {compared(forced[first], forced[second])}"
        verdicts.append(words + ".")
    head = ["model", "reconstruction", "future, teacher-forced", "future, closed loop"]
    return "\n".join(
        [
            f"H = {results['hidden_size']}, {results['steps']} steps, seeds"
            f" {', '.join(map(str, results['seeds']))}; {unit} per frame on held-out videos,"
            " mean ± standard deviation over seeds.\n",
            table(head, rows),
            paper,
            "Errors of the future in closed loop:\n",
            *verdicts,
            "",
            _figure(folder, "strips", "reconstructions and predictions of two held-out videos"),
        ]
    )


def _moving_mnist(results: Results, folder: str) -> str:
    paper = (
        "The paper's composite model with conditional future reaches 341.2 in closed loop, as"
        " quoted by later work, with 2,048 units and days of training.\n"
    )
    return _variants(results, folder, "nats", paper)


def _patches(results: Results, folder: str) -> str:
    paper = "The paper's patches are from UCF-101, so its errors cannot be compared with these.\n"
    return _variants(results, folder, "half the squared error of standardised pixels", paper)


def _time_scales(results: Results, folder: str) -> str:
    errors = results["errors_by_step"]
    key = "temporal_std" if "temporal_std" in results else "restlessness"  # as in version 0.1
    std, over = results[key], results[f"{key}_over"]
    steps = len(next(iter(errors.values())))
    shown = [s for s in (1, 5, 10, 20, 50, 100) if s <= steps]
    rows = [[_name(name), *(f"{e[s - 1]:.0f}" for s in shown)] for name, e in errors.items()]
    return "\n".join(
        [
            f"Models trained to predict {results['trained_on']} frames predict {steps}. The"
            " unconditional decoder reads nothing, the conditional one the frame it predicted"
            " before.\n",
            table(["error at step", *map(str, shown)], rows),
            f"Over the last {over} steps the standard deviation of a unit's h over time, averaged"
            " over the units, is "
            + ", ".join(f"{value:.4f} ({_name(name)})" for name, value in std.items())
            + ". If it is near 0, the units and the predicted frames no longer change; if not, the"
            " units keep changing, as in the paper.",
            *(
                f"From step {_crossing(found, errors['mean frame'])} on, the error of"
                f" {_name(name)} is above that of the mean frame."
                for name, found in errors.items()
                if name != "mean frame" and _crossing(found, errors["mean frame"]) <= steps
            ),
            "",
            _figure(
                folder,
                "activity",
                "200 units over 110 steps, in trained models and in an untrained one",
            ),
            _figure(folder, "errors", "error by step"),
            _figure(folder, "strips", "frames of the far future"),
        ]
    )


def _crossing(errors: Sequence[float], level: Sequence[float]) -> int:
    """Return the first step, from 1, with an error above ``level``; if none, the steps + 1."""
    pairs = zip(errors, level, strict=True)
    return next((step for step, (e, at) in enumerate(pairs, 1) if e > at), len(errors) + 1)


def _out_of_domain(results: Results, folder: str) -> str:
    names = ("reconstruction", "future_closed_loop", "mean_frame", "copy_last")
    rows = [
        [digits, *(f"{found[k]:.1f}" for k in names)] for digits, found in results["errors"].items()
    ]
    return "\n".join(
        [
            f"The {_name(results['model'])} model, trained on {results['trained_on']} digits.\n",
            table(["digits", "reconstruction", "future", "mean frame", "copy last"], rows),
            *(
                _figure(folder, f"digits_{digits}", f"two videos of {digits} digits")
                for digits in results["errors"]
            ),
        ]
    )


def _features(results: Results, folder: str) -> str:
    parts = [
        "A feature is the weights from a frame to one gate of a unit of the encoder, or from a unit"
        " of a decoder to a frame. The figures show the 200 features of largest L2 norm in each"
        " set. The table has the share of the pixels that a feature covers, trained / before"
        " training. It is the participation ratio: 5/9 for uniformly random weights of pixels, less"
        " for random weights of low frequencies, and small for a local feature.\n"
    ]
    sets = list(next(iter(results["extent"].values())))
    rows = [
        [_name(of), *(f"{found[s]['trained']:.2f} / {found[s]['untrained']:.2f}" for s in sets)]
        for of, found in results["extent"].items()
    ]
    parts.append(table(["model of", *sets], rows))
    parts += [_figure(folder, of, f"features of {_name(of)}") for of in results["extent"]]
    return "\n".join(parts)


def _percent(found: Results) -> str:
    return number({k: [100 * v for v in x] if k == "values" else 100 * x for k, x in found.items()})


def _actions(results: Results, folder: str) -> str:
    accuracy, model = results["accuracy"], results["model"]
    counts = list(accuracy[model])
    rows = [[_name(of), *(_percent(points[n]) for n in counts)] for of, points in accuracy.items()]
    new, *trained = accuracy
    for of in trained:
        pairs = [
            zip(accuracy[of][n]["values"], accuracy[new][n]["values"], strict=True) for n in counts
        ]
        gains = [_percent(spread(a - b for a, b in both)) for both in pairs]
        rows.append([f"*gain of {_name(of)}*", *gains])
    baselines = ", ".join(f"{of} {_percent(found)}" for of, found in results["baselines"].items())
    return "\n".join(
        [
            f"A digit moves in one of {len(results['classes'])} ways"
            f" ({', '.join(results['classes'])}), and the way is the label. The position of the"
            " digit, its class and its first direction are independent of the label by"
            " construction, so a single frame has no information about it. A classifier (a softmax"
            f" after every frame, averaged over the video) is trained for {results['steps']} steps"
            f" from new weights, or from the encoder of a {_name(model)} model that was trained on"
            f" {results['pretraining_steps']} batches of such videos without labels. Accuracy in %"
            " on videos of held-out digits, mean ± standard deviation over"
            f" {len(accuracy[model][counts[0]]['values'])} random choices of the labelled videos;"
            " gains are differences for the same choice:\n",
            table(["labels per class", *counts], rows),
            f"With {results['baselines_at']} labels per class and that encoder: {baselines};"
            f" a random guess, {100 / len(results['classes']):.0f}.\n",
            _figure(folder, "accuracy", "accuracy over labelled videos per class"),
            "The paper reports gains on UCF-101 and HMDB-51, the largest with few labels. Its"
            " accuracies are those of real actions, from features of an image network, and cannot"
            " be compared with these.\n",
        ]
    )


def _comparison(results: Results, folder: str) -> str:
    rows = []
    for model, accuracy in results["accuracy"].items():
        errors = results["errors"].get(model, {})
        names = ("reconstruction", "future_closed_loop")
        cells = (f"{errors[k]:.1f}" if k in errors else "" for k in names)
        rows.append([_name(model), _percent(accuracy), *cells])
    return "\n".join(
        [
            f"Accuracy in % with {results['labels_per_class']} labelled videos per class, by the"
            " model that the classifier's encoder comes from, and that model's own errors on videos"
            " of motions (nats per frame, future in closed loop).\n",
            table(["encoder of", "accuracy", "reconstruction", "future"], rows),
        ]
    )


def _machine() -> str:
    return f"{platform.machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads"


_HEAD = """# The paper's experiments

Srivastava, Mansimov and Salakhutdinov, *Unsupervised Learning of Video Representations using LSTMs*
(ICML 2015). `make report` writes this file from the results of `fastlstm experiment`; the folders
beside it have the numbers as JSON. Made on {machine}.

**What is comparable.** The models, the losses and the generator of Moving MNIST are the paper's.
The scale is smaller: `--preset small` has a quarter of the units, and trains for minutes instead of
days. Errors are therefore far above the paper's, and only comparisons within a table mean
something. `--preset paper` has the paper's sizes. These changes help in short runs:

- The optimiser is Adam with a warm-up and a linear decay (the authors' code has SGD with clipped
  momentum), in bfloat16 where the machine computes it fast. The read-outs have a larger learning
  rate, the weights that read frames a smaller one.
- Models of digits read and emit the 32 x 32 lowest frequencies of a frame
  ([`basis="dct"`](video_models.md)): the paper's model, its weights held to smooth images. Their
  initial weights are smoothed over the image.
- In the first half of a run a conditional decoder comes to read its own frames, with a probability
  that goes from 0 to 1 (scheduled sampling); in the second half it is trained in closed loop.

The digits are 5,000 of MNIST, split by image.

A conditional decoder reads a frame at every step. *Teacher-forced*, that is the true frame before;
in *closed loop*, as in use, it is the frame that the decoder predicted itself. An unconditional
decoder reads nothing, so its two errors are equal. Cross-entropies are in nats per frame: the sum
over the pixels of a frame, in natural logarithms.
"""

_PUBLISHED = """## 8. Published numbers

Published cross-entropies of the ten future frames of Moving MNIST, in nats per frame: composite
with conditional future 341.2 (in closed loop), ConvLSTM 367.2 (Shi et al. 2015, on a data set of
their own), VPN baseline 110.1 and VPN 87.6 (Kalchbrenner et al. 2016). The entropy of the grey
pixels is a lower bound of about 87. Convolutional models combine neighbouring pixels at every step;
the models here read a frame as a list of numbers and have to learn which of them are neighbours.
`benchmarks/gpu/paper.py` trains the 2,048-unit model on a GPU for ten minutes; it has not been run
on one yet.

There are no numbers for UCF-101 and HMDB-51, whose videos do not come with this library;
[action_videos.md](action_videos.md) describes how to use them.
"""

_SECTIONS: dict[str, tuple[str, Callable[[Results, str], str]]] = {
    "moving_mnist": ("1. Moving MNIST: the four models", _moving_mnist),
    "patches": ("2. Patches of real video: the four models", _patches),
    "time_scales": ("3. Beyond the trained time scale", _time_scales),
    "out_of_domain": ("4. Inputs out of domain", _out_of_domain),
    "features": ("5. Features", _features),
    "actions": ("6. Actions: classifying motions with few labels", _actions),
    "comparison": ("7. The kinds of models as initialisations of a classifier", _comparison),
}
