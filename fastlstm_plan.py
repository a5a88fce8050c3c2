"""The command ``fastlstm plan``: its words and its help, without ``import torch``.

``benchmarks/plan.py`` does the work.
"""

import argparse
from collections.abc import Sequence

from fastlstm_bench import Parser, module, positive, positive_number

OPTIMIZERS = ("Adam", "AdamW", "SGD", "SGD with momentum")
PRECISIONS = ("auto", "32-true", "bf16-mixed", "bf16-true")
_EPILOG = """\
examples:
  fastlstm plan --config demo --batch_size 64
  fastlstm plan --input_size 256 --hidden_size 512 --num_layers 2 --T 1000 --batch_size 16
  fastlstm plan --config paper --devices 64 --latency-us 10 --gbytes-per-s 12
  fastlstm plan --measure

The command needs the packages of pip install 'fastlstm[bench]', and with --config those of
'fastlstm[train]'. docs/cost.md says what is computed, and how exact it is.
"""


def parser() -> argparse.ArgumentParser:
    """Return the parser of ``fastlstm plan``."""
    found = Parser(
        "fastlstm plan",
        description="Compute the memory and the time of a training step before it runs, for each"
        " choice of checkpoint_every, and its time on several devices. Nothing is trained.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    model = found.add_argument_group("the model, by its configuration or by its sizes")
    model.add_argument("--config", help="A name in `fastlstm configs`, or a file.")
    sizes = {
        "input_size": "Input size of an LSTM.",
        "hidden_size": "Units of each of its layers.",
        "num_layers": "Its layers; default 1.",
    }
    for name, text in sizes.items():
        model.add_argument(f"--{name}", type=positive, metavar="N", help=text)
    for name, text in {"bidirectional": "Both directions.", "peephole": "Peepholes."}.items():
        model.add_argument(f"--{name}", action="store_true", help=text)
    step = found.add_argument_group("the step")
    text = (
        "Steps of a sequence; of a video model the frames that it reads, and as many that follow."
    )
    step.add_argument(
        "--T", type=positive, metavar="N", help=f"{text} Default: the configuration's."
    )
    step.add_argument(
        "--batch_size", type=positive, metavar="N", help="Sequences of a device in a step."
    )
    step.add_argument(
        "--precision", choices=PRECISIONS, help="As the trainer's; default the configuration's."
    )
    step.add_argument(
        "--optimizer",
        choices=OPTIMIZERS,
        help="Of an LSTM; default Adam, fused. A configuration has its own.",
    )
    step.add_argument(
        "--checkpoint_every",
        type=positive,
        nargs="+",
        metavar="K",
        help="The choices that are shown beside None; default 16, 64, 128 and 512.",
    )
    where = found.add_argument_group("the machine")
    where.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cpu",
        help="Default cpu. On a GPU no time was ever measured, and only memory is computed.",
    )
    where.add_argument(
        "--devices", type=positive, default=1, metavar="N", help="Data-parallel processes."
    )
    where.add_argument(
        "--memory",
        type=positive_number,
        metavar="GIB",
        help="Memory of a device in GiB; default this machine's, or its GPU's.",
    )
    where.add_argument(
        "--latency-us",
        type=positive_number,
        metavar="US",
        help="Microseconds of a message between two devices; default as measured between two"
        " processes of one machine.",
    )
    where.add_argument(
        "--gbytes-per-s",
        type=positive_number,
        metavar="GB",
        help="Gigabytes a second between two devices; default likewise.",
    )
    where.add_argument(
        "--measure",
        action="store_true",
        help="First measure this machine, which takes half a minute, and keep the constants for"
        " later plans. Without it a plan uses the kept ones, or those of a known machine, and says"
        " which.",
    )
    return found


def main(words: Sequence[str]) -> None:
    """Run ``fastlstm plan``.

    Raises:
        SystemExit: the words are wrong or ask for help; or a package is missing.
    """
    arguments = parser().parse_args(words)
    if not arguments.config and not arguments.measure:
        for name in ("input_size", "hidden_size", "T", "batch_size"):
            if getattr(arguments, name) is None:
                raise SystemExit(
                    f"fastlstm plan: expected --config, or --input_size, --hidden_size, --T and"
                    f" --batch_size; got no --{name}"
                )
    try:
        module("plan").run(arguments)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        extra = "bench,train" if arguments.config else "bench"
        raise SystemExit(
            f"fastlstm plan: it needs the package {package!r}, which is not installed:"
            f" pip install 'fastlstm[{extra}]'"
        ) from None
