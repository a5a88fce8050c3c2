"""The entry point of the command ``fastlstm``: its commands, and its help without ``import torch``.

This module lies outside of the package ``fastlstm``, because importing anything in the package
imports torch, which takes seconds.
"""

import argparse
import contextlib
import difflib
import os
import select
import sys
from collections.abc import Iterator, Sequence

COMMANDS = {
    "fit": "Train a video model, and write its checkpoints, metrics and pictures to a folder.",
    "validate": "Compute the errors of a trained video model on the validation videos.",
    "test": "Compute the errors of a trained video model on the test videos.",
    "predict": "Draw the frames that a trained video model predicts, and write them to files.",
    "classify": "Train and test classifiers of video: fastlstm classify fit, validate or test.",
    "experiment": "Run an experiment of the paper (Srivastava et al., ICML 2015).",
    "configs": "List the configurations that come with the package, or print one of them.",
    "bench": "Time LSTMs beside nn.LSTM and other libraries, and compare and draw the results.",
    "plan": "Compute the memory and the time of a training step before it runs.",
    "info": "Print versions, the processor, and which backends run here and why.",
}
_LANGUAGE = (
    "fastlstm: `fastlstm language` is now an example of the source code: python"
    " examples/language/train.py fit --config examples/language/config.yaml"
)
_EPILOG = """\
start with:
  fastlstm fit --config demo      train a small model, in minutes on a laptop
  fastlstm predict --config demo  draw what it predicts
  fastlstm bench                  time LSTMs beside nn.LSTM, in two minutes
  fastlstm COMMAND --help         list the options of a command

Training needs the packages of `pip install 'fastlstm[train]'`, bench and plan those of
`pip install 'fastlstm[bench]'`; configs and info need neither.
"""


def parser() -> argparse.ArgumentParser:
    """Return the parser that writes the help of ``fastlstm``; each command parses its own words."""
    found = argparse.ArgumentParser(
        "fastlstm",
        usage="fastlstm [-h] [--version] COMMAND ...",
        description="Train and use LSTM models of video.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument("--version", action="store_true", help="Print the version of fastlstm.")
    commands = found.add_subparsers(title="commands", metavar="COMMAND", prog="fastlstm")
    for name, does in COMMANDS.items():
        command = commands.add_parser(name, help=does, description=does)
        if name == "configs":
            command.add_argument("name", nargs="?", help="The configuration to print, as YAML.")
    return found


def answer(words: Sequence[str]) -> bool:
    """Print the help, or run ``bench`` or ``plan``, if the words say so; return whether they do.

    Options before a command, as in ``fastlstm --config FILE fit``, are left to Lightning's parser.

    Args:
        words: the words after the program's name.

    Raises:
        SystemExit: the first word is no command; or there are no words, with status 2 and the help.
    """
    if not words:
        print(parser().format_help(), end="", file=sys.stderr)
        raise SystemExit(2)
    first, rest = words[0], list(words[1:])
    if first in ("-h", "--help") or (first in ("configs", "info") and rest in (["-h"], ["--help"])):
        with contextlib.suppress(SystemExit):
            parser().parse_args(words)
        return True
    if first == "bench":
        import fastlstm_bench  # here, because no other command needs its parser

        fastlstm_bench.main(rest)
        return True
    if first == "plan":
        import fastlstm_plan

        fastlstm_plan.main(rest)
        return True
    if first == "language":
        print(_LANGUAGE, file=sys.stderr)
        raise SystemExit(2)
    if first not in COMMANDS and not first.startswith("-"):
        near = difflib.get_close_matches(first, COMMANDS, 1)
        raise SystemExit(
            f"fastlstm: expected a command, one of {', '.join(COMMANDS)}; got {first!r}"
            f"{f': did you mean {near[0]!r}?' if near else ''}"
        )
    return False


@contextlib.contextmanager
def quiet_broken_pipe() -> Iterator[None]:
    """Exit with status 1 and without a message if the reader of stdout is gone, as after ``head``.

    Python's documentation of SIGPIPE gives this way.
    """
    try:
        try:
            yield
        except SystemExit:  # argparse has printed the help
            sys.stdout.flush()
            raise
        sys.stdout.flush()
    except BrokenPipeError:
        poll = select.poll()
        poll.register(sys.stdout, 0)
        if not any(event & select.POLLERR for _, event in poll.poll(0)):
            raise  # the pipe was another one
        # Python flushes stdout once more at its exit, and would print the error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None


def main() -> None:
    """Run the command ``fastlstm`` with the words of the process.

    Raises:
        SystemExit: as :func:`answer` and ``fastlstm.cli.main`` do.
    """
    with quiet_broken_pipe():
        if not answer(sys.argv[1:]):
            from fastlstm.cli import main as run

            run()


if __name__ == "__main__":
    main()
