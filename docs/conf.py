"""The configuration of the documentation site; ``make docs`` builds it into build/docs."""

import os
import subprocess
import sys
from typing import ClassVar

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx

import fastlstm

project = "fastlstm"
author = copyright = "The fastlstm authors"
release = version = fastlstm.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
suppress_warnings = ["myst.header"]  # the changelog repeats "Added", "Changed" and "Fixed"

myst_heading_anchors = 3

autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
napoleon_numpy_docstring = False
napoleon_preprocess_types = False
napoleon_use_ivar = True
napoleon_use_rtype = False
python_maximum_signature_line_length = 80  # longer ones take a line for each argument
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = f"fastlstm {version}"
html_show_sphinx = False
copybutton_exclude = ".linenos, .gp, .go"  # neither prompts nor outputs are copied
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True

# Names of other libraries. Their inventories are not read, so the site builds without a network.
nitpick_ignore_regex = [
    ("py:.*", r"(torch|nn|np|npt|numpy|lightning|jsonargparse|collections|os|pathlib|typing)\..*"),
    ("py:class", "Tensor|PackedSequence|State"),
]


class CommandHelp(Directive):
    """``{command-help} fit``: what ``fastlstm fit --help`` prints, folded if it is long."""

    optional_arguments = 1
    final_argument_whitespace = True
    option_spec: ClassVar[dict[str, object]] = {}

    def run(self) -> list[nodes.Node]:
        words = [*(self.arguments[0].split() if self.arguments else []), "--help"]
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "fastlstm.cli", *words],
            capture_output=True,
            text=True,
            env=os.environ | {"COLUMNS": "88", "NO_COLOR": "1"},
        )
        if done.returncode:
            raise self.error(f"fastlstm {' '.join(words)}: {done.stderr}")
        usage, _, rest = done.stdout.partition("\n\n")
        if usage.count("\n") > 9:  # it names every option, as the lines below do
            usage = f"usage: fastlstm {' '.join(words[:-1])} [options]"
        text = f"{usage}\n\n{rest}"
        box = nodes.literal_block(text, text, language="text")
        if text.count("\n") < 40:
            return [box]
        begin = nodes.raw("", "<details><summary>All options</summary>", format="html")
        return [begin, box, nodes.raw("", "</details>", format="html")]


def setup(app: Sphinx) -> None:
    """Register the directive of docs/command_line.md."""
    app.add_directive("command-help", CommandHelp)
