"""The command ``fastlstm``: training, the paper's experiments, ``configs`` and ``info``.

Only the commands that train import Lightning. ``fastlstm_command`` has the help.
"""

import ctypes
import platform
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import fastlstm
from fastlstm import configs
from fastlstm_command import answer, quiet_broken_pipe


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command ``fastlstm``.

    Args:
        argv: the words after the program's name. Default: those of the process; an error that this
            package raises is then printed as one sentence, with exit status 1.

    Raises:
        SystemExit: the words are wrong or ask for help, or the command needs packages of the extra
            ``fastlstm[train]`` that are not installed.
        ValueError, FileNotFoundError: see ``fastlstm.training.commands.base.RunCommand``.
    """
    if argv is not None:
        _run(list(argv))
        return
    with quiet_broken_pipe(), short_errors():
        _run(sys.argv[1:])


@contextmanager
def short_errors() -> Iterator[None]:
    """Print an error that this package raises as one sentence, and exit with status 1.

    Errors raised elsewhere, by a user's own model or by a library, keep their traceback.
    """
    try:
        yield
    except BrokenPipeError:  # see quiet_broken_pipe
        raise
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        if Path(__file__).parent not in Path(frame.f_code.co_filename).parents:
            raise
        raise SystemExit(f"fastlstm: {error}") from None


def tune_process() -> None:
    """Set what makes training on a CPU faster, for the whole process: denormals and freed memory.

    Adam's running averages of pixels that are hardly ever lit become denormal numbers, on which a
    step takes twice as long; they are flushed to 0. Freed memory is kept, see
    ``_keep_freed_memory``. Call it before torch starts its threads, which inherit the setting.
    """
    import torch

    torch.set_flush_denormal(True)
    _keep_freed_memory()


def _run(words: list[str]) -> None:
    if answer(words) or _told(words):
        return
    try:
        # imported here, because `info` and `import fastlstm.cli` work without Lightning
        from fastlstm.experiments.command import main as experiments
        from fastlstm.training.commands.classify import ClassifyCommand
        from fastlstm.training.commands.video import VideoCommand
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        raise SystemExit(
            f"fastlstm: training needs the package {package!r}, which is not installed:"
            " pip install 'fastlstm[train]'"
        ) from None
    tune_process()
    if words[:1] == ["classify"]:
        ClassifyCommand(words[1:])
    elif words[:1] == ["experiment"]:
        experiments(words[1:])
    else:
        VideoCommand(words)


def _told(words: list[str]) -> bool:
    """Run ``--version``, ``info`` or ``configs``, and return whether the words ask for them."""
    first, rest = words[0], words[1:]
    if words == ["--version"]:
        print(f"fastlstm {fastlstm.__version__}")
    elif first == "info":
        if rest:
            raise SystemExit(f"fastlstm info: expected no arguments, got {' '.join(rest)}")
        print(info())
    elif first == "configs":
        if len(rest) > 1:
            raise SystemExit(f"fastlstm configs: expected at most one name, got {' '.join(rest)}")
        print(configs.path(rest[0]).read_text() if rest else _list_of_configs(), end="")
    else:
        return False
    return True


def _list_of_configs() -> str:
    """Return a line for each packaged configuration, and how to use it."""
    listed = [f"{name:<10}{configs.title(name)}" for name in configs.names()]
    return "\n".join(
        [
            *listed,
            "",
            "fastlstm configs NAME prints a configuration; --config NAME, or a file, uses it.",
            "",
        ]
    )


def _keep_freed_memory() -> None:
    """Make glibc reuse large freed blocks instead of returning them to the system.

    Every training step allocates the same activations again. Blocks that were returned would cause
    a page fault per page in every step: 8% of a step of the configuration demo on an idle machine.
    """
    mmap_max, trim_threshold = -4, -1  # M_MMAP_MAX and M_TRIM_THRESHOLD in <malloc.h>
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # the C library is not glibc
        return
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)


def info() -> str:
    """Return versions, the processor, and for each backend whether it runs here and why not."""
    import torch

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
