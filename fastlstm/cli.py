"""The command `fastlstm`: models of video, `classify`, `language`, `experiment`, `info`."""

import ctypes
import difflib
import platform
import sys
import traceback
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

_COMMANDS = ("fit", "validate", "test", "predict", "classify", "language", "experiment", "info")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command.

    Args:
        argv: arguments without the program's name. Default: those of the process, for which an
            error that this package raises is one sentence on stderr and exit status 1.

    Raises:
        SystemExit: the arguments are wrong, or training is asked for without the packages of the
            extra `fastlstm[train]`; with one sentence that says so.
        ValueError, FileNotFoundError: see `fastlstm.training.commands.base.RunCommand`.
    """
    if argv is not None:
        _run(list(argv))
        return
    try:
        _run(sys.argv[1:])
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        if not _is_of_this_package(error):
            raise
        raise SystemExit(f"fastlstm: {error}") from None


def _is_of_this_package(error: BaseException) -> bool:
    """Whether it was raised here, about something that a user can put right.

    Others, of a user's own model or of a library, need their traceback.
    """
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return Path(__file__).parent in Path(frame.f_code.co_filename).parents


def _run(words: list[str]) -> None:
    _check_command(words)
    if words[:1] == ["info"]:
        if len(words) > 1:
            raise SystemExit(f"fastlstm info: expected no arguments, got {' '.join(words[1:])}")
        print(info())
        return
    import torch

    try:
        # late, because `info` and `import fastlstm.cli` do without Lightning
        from fastlstm.experiments.command import main as experiments
        from fastlstm.training.commands.classify import ClassifyCommand
        from fastlstm.training.commands.language import LanguageCommand
        from fastlstm.training.commands.video import VideoCommand
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        raise SystemExit(
            f"fastlstm: training needs the package {package!r}, which is not installed:"
            " pip install 'fastlstm[train]'"
        ) from None
    # Adam's averages for pixels that are hardly ever lit fade into denormal numbers, on which a
    # step takes twice as long. Set before torch starts its threads, which inherit it.
    torch.set_flush_denormal(True)
    _keep_freed_memory()
    if words[:1] == ["language"]:
        LanguageCommand(words[1:])
    elif words[:1] == ["classify"]:
        ClassifyCommand(words[1:])
    elif words[:1] == ["experiment"]:
        experiments(words[1:])
    else:
        VideoCommand(words)


def _check_command(words: list[str]) -> None:
    """SystemExit if the first word is no command; options before it are argparse's to read."""
    if words and (words[0] in _COMMANDS or words[0].startswith("-")):
        return
    near = difflib.get_close_matches(words[0], _COMMANDS, 1) if words else []
    raise SystemExit(
        f"fastlstm: expected a command, one of {', '.join(_COMMANDS)}; got"
        f" {repr(words[0]) if words else 'none'}{f': did you mean {near[0]!r}?' if near else ''}"
    )


def _keep_freed_memory() -> None:
    """Have glibc reuse large blocks in place of returning them to the system.

    Every training step allocates the same activations again, and otherwise touches each of their
    pages for the first time again: 8% of a step of the demo on a quiet machine.
    """
    mmap_max, trim_threshold = -4, -1  # of <malloc.h>
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library has its own ways
        return
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)


def info() -> str:
    """Versions, processor, and for each backend whether it runs here and why not."""
    import torch

    import fastlstm

    lines = [f"fastlstm      {fastlstm.__version__}", f"python        {platform.python_version()}"]
    for package in ("torch", "numpy", "lightning"):
        try:
            lines.append(f"{package:<13} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            lines.append(f"{package:<13} not installed")
    isas = ", ".join(fastlstm.backends.cpu.isas())
    lines.append(f"cpu           {isas}; {torch.get_num_threads()} threads")
    built = ", ".join(f"sm_{number}" for number in fastlstm._C.cuda.architectures)
    lines.append(f"cuda kernels  {built or f'none: {fastlstm._C.cuda.reason}'}")
    devices = ["cpu"]
    if torch.cuda.is_available():
        devices.append("cuda")
        lines.append(f"gpu           {torch.cuda.get_device_name()}")
    else:
        lines.append(f"gpu           none: torch {torch.__version__} finds no CUDA device")
    for device in devices:
        for peephole in (False, True):
            module = fastlstm.LSTM(256, 256, peephole=peephole, device=device)
            lines += ["", fastlstm.explain(module)]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
