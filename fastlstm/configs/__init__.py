"""The configurations that come with the package, for ``fastlstm fit --config NAME``."""

import difflib
import re
from pathlib import Path

_FOLDER = Path(__file__).parent


def names() -> list[str]:
    """Return the names of the packaged configurations, in alphabetical order.

    Example:
        >>> from fastlstm import configs
        >>> configs.names()
        ['classify', 'demo', 'paper', 'paper_cpu']
    """
    return sorted(file.stem for file in _FOLDER.glob("*.yaml"))


def path(name: str) -> Path:
    """Return the path of a packaged configuration.

    Args:
        name: one of :func:`names`.

    Raises:
        ValueError: there is no configuration of this name.

    Example:
        >>> from fastlstm import configs
        >>> configs.path("demo").name
        'demo.yaml'
    """
    if name not in names():
        raise ValueError(f"name: expected one of {_listed()}, got {name!r}{_nearest(name)}")
    return _FOLDER / f"{name}.yaml"


def title(name: str) -> str:
    """Return what a packaged configuration does: the first line of its first comment.

    Args:
        name: one of :func:`names`.

    Raises:
        ValueError: there is no configuration of this name.

    Example:
        >>> from fastlstm import configs
        >>> configs.title("paper")
        "Train the paper's best model of Moving MNIST at its size: 2,048 units, meant for a GPU."
    """
    return path(name).read_text().splitlines()[0].removeprefix("# ")


def find(word: str) -> str:
    """Return the file that ``--config WORD`` means: the file of that name, or a packaged one.

    Args:
        word: a path, a name of :func:`names`, or a configuration in YAML or JSON, which is
            returned as it is. A file in the working directory comes before a packaged one.

    Raises:
        ValueError: it is none of these.

    Example:
        >>> from fastlstm import configs
        >>> configs.find("demo") == str(configs.path("demo"))
        True
    """
    file = Path(word).expanduser()
    is_text = re.search(r"[:{\n]", word) or word == "-"  # YAML, a URL, or standard input
    if is_text or (file.exists() and not file.is_dir()):
        return word
    if word in names():
        return str(path(word))
    raise ValueError(
        f"config: expected a file that exists or one of {_listed()}, got {word!r}{_nearest(word)}"
    )


def _listed() -> str:
    return ", ".join(names())


def _nearest(word: str) -> str:
    """Return "; did you mean 'demo'?" for a word such as dmeo, demo.yaml or configs/demo.yaml."""
    near = difflib.get_close_matches(Path(word).stem, names(), 1)
    return f": did you mean {near[0]!r}?" if near else ""
