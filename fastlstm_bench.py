"""The command ``fastlstm bench``: its words and its help, without ``import torch``.

This module lies outside of the package ``fastlstm``, as ``fastlstm_command`` does, because
importing anything in the package imports torch. ``benchmarks/command.py`` does the work.
"""

import argparse
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

SUITES = {
    "quick": "6 shapes: 2 minutes on 2 cores",
    "table": "the shapes of README.md's table: 7 minutes with --dtype float32 bfloat16",
    "shapes": "every shape of shapes.yaml",
    "grid": "H = 32 to 1024 and B = 1, 8, 32, for the plot over H: 2 minutes",
    "sweep": "random shapes (--count, --seed): 6 minutes for 100",
    "cell": "one step a call: LSTM, LSTMCell and Stream: 2 minutes",
    "programs": "small programs that call an LSTM step by step",
    "variants": "the cost of lengths, directions, groups and peepholes, and loops of torch",
    "options": "the cost of layer norm, dropouts, zoneout and clips, and loops of torch",
    "packed": "sequences of different lengths",
    "threads": "the same shapes on 1 thread to all",
    "busy": "while other processes keep all cores busy",
    "long": "training on long sequences, with checkpoints and without: time and memory",
    "model": "a training step of CompositeLSTM",
}
MODES = ("inference", "training")
DTYPES = ("float32", "bfloat16", "float16", "autocast")
BACKENDS = ("auto", "frozen", "cpu", "torch", "cuda", "triton")
PEERS = ("nn.LSTM", "onnxruntime", "openvino", "loop", "compiled-loop", "jax")
FORMATS = ("table", "markdown", "json")
KINDS = ("ratio", "sweep", "roofline", "scaling", "memory")
FOLDER = ".fastlstm-bench"


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line: the usage of these commands is longer than a screen."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def _limit(text: str) -> tuple[str, float]:
    """Parse "ratio:5%" or "median:10%"."""
    kind, _, percent = text.partition(":")
    try:
        share = float(percent.removesuffix("%")) / 100
    except ValueError:
        share = -1
    if kind not in ("ratio", "median") or share < 0:
        raise argparse.ArgumentTypeError(f"expected ratio:5% or median:10%, got {text!r}")
    return kind, share


def positive(text: str) -> int:
    """Parse a whole number from 1 on."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on, got {text!r}")
    return int(text)


def positive_number(text: str) -> float:
    """Parse a number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return value


def _run_options(command: argparse.ArgumentParser) -> None:
    def words(name: str, choices: Sequence[str], default: list[str] | None, text: str) -> None:
        command.add_argument(
            name, nargs="+", choices=choices, default=default, metavar="WORD", help=text
        )

    suites = "; ".join(f"{name}: {does}" for name, does in SUITES.items())
    words("--suite", list(SUITES), None, f"What to measure; default quick. {suites}.")
    command.add_argument(
        "--shape",
        nargs="+",
        metavar="SHAPE",
        help="Names of shapes.yaml, or T,B,I,H[,L][,bi]: steps, batch, input size, hidden size,"
        " layers, both directions. They replace the suite quick.",
    )
    command.add_argument(
        "--grid",
        nargs="+",
        metavar="X=VALUES",
        help="All combinations of some sizes, as in T=50 B=1,32 H=128:2048:x2; I = H.",
    )
    words("--mode", MODES, None, "inference, training; default both.")
    words("--dtype", DTYPES, ["float32"], f"One or more of {', '.join(DTYPES)}; default float32.")
    text = "; default auto, and frozen beside ONNX Runtime or OpenVINO."
    words("--backend", BACKENDS, None, f"Our side: {', '.join(BACKENDS)}{text}")
    text = "; default nn.LSTM, and onnxruntime if it is installed."
    words("--peer", PEERS, None, f"The other side: {', '.join(PEERS)}{text}")
    command.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="Default cpu.")
    command.add_argument("--threads", type=positive, help="Default all that torch uses.")
    command.add_argument("--rounds", type=positive, default=7, help="At least; default 7.")
    command.add_argument(
        "--processes",
        type=positive,
        metavar="N",
        help="New processes that divide the rounds and the seconds, at least 3 rounds each. compare"
        " finds from them how far times vary by chance. Default 5 for the suite quick and --shape,"
        " else 1: the process of the command.",
    )
    command.add_argument(
        "--max-seconds",
        type=positive_number,
        default=6,
        metavar="S",
        help="For all rounds of a shape, default 6: rounds go on while the interquartile range of a"
        " ratio is wider than 5%%, and stop early, but not before 3, if they take longer.",
    )
    command.add_argument("--count", type=positive, default=100, help="Shapes of sweep; 100.")
    command.add_argument("--seed", type=int, default=0, help="Seed of sweep's shapes; default 0.")
    saved = command.add_mutually_exclusive_group()
    saved.add_argument("--save", metavar="NAME", help=f"Name of the file in {FOLDER}/.")
    saved.add_argument("--json", metavar="FILE", help="Write this file instead.")
    command.add_argument(
        "--against", metavar="RUN", help="Compare with this run; `latest` is the newest saved one."
    )


def _compare_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--fail-if",
        type=_limit,
        metavar="ratio:5%|median:10%",
        help="Exit with status 1 if a ratio to the peer falls, or a median rises, by more.",
    )
    command.add_argument("--only-changed", action="store_true", help="Leave out what is the same.")


def parser() -> argparse.ArgumentParser:
    """Return the parser of ``fastlstm bench``."""
    found = Parser(
        "fastlstm bench",
        description="Time fastlstm beside nn.LSTM and others, in rounds in which they take turns;"
        " every result is first checked against float64. Without a command: run --suite quick.",
        epilog="A RUN is a file, the name or number of a saved run, or `latest`. The command needs"
        " the packages of pip install 'fastlstm[bench]'. docs/benchmarks.md describes the method.",
    )
    commands = found.add_subparsers(metavar="COMMAND", dest="command", parser_class=Parser)

    def add(name: str, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        if name in ("run", "compare", "show"):
            command.add_argument("--format", choices=FORMATS, default="table", help="Of the table.")
        return command

    run = add("run", "Measure, print a table, and save the run.")
    _run_options(run)
    _compare_options(run)
    compare = add("compare", "Compare two runs, benchmark by benchmark.")
    compare.add_argument("old", metavar="A", help="The run before.")
    compare.add_argument("new", metavar="B", help="The run after.")
    _compare_options(compare)
    plot = add("plot", "Draw runs as SVG.")
    plot.add_argument("runs", nargs="+", metavar="RUN")
    plot.add_argument("-o", "--output", metavar="FILE.svg", help="Default KIND.svg.")
    plot.add_argument("--kind", choices=KINDS, default="ratio", help="Default ratio.")
    add("list", f"List the runs saved in {FOLDER}/.")
    show = add("show", "Print the table of a run.")
    show.add_argument("run", metavar="RUN")
    return found


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Parse the words after ``fastlstm bench``; without a command they are those of ``run``."""
    first = words[0] if words else ""
    asks = first in ("-h", "--help")
    is_command = bool(first) and not first.startswith("-")
    return parser().parse_args(words if asks or is_command else ["run", *words])


def main(words: Sequence[str]) -> None:
    """Run ``fastlstm bench``.

    Raises:
        SystemExit: the words are wrong or ask for help; a package of the extra ``fastlstm[bench]``
            is missing; or ``--fail-if`` found a change, with status 1.
    """
    arguments = parse(words)
    try:
        module("command").run(arguments, list(words))
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        raise SystemExit(
            f"fastlstm bench: it needs the package {package!r}, which is not installed:"
            " pip install 'fastlstm[bench]'"
        ) from None


def module(name: str) -> Any:
    """Import a module of ``benchmarks``, which is installed as ``fastlstm.benchmarks``."""
    # A checkout on the path uses its own benchmarks, also where another checkout is installed in
    # editable mode: fastlstm.benchmarks would be that one's.
    own = Path(__file__).with_name("benchmarks")
    found = importlib.util.find_spec("benchmarks")
    beside = found and found.origin == str(own / "__init__.py") and (own / "shapes.yaml").exists()
    return importlib.import_module(f"{'' if beside else 'fastlstm.'}benchmarks.{name}")
