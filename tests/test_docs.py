"""README and documentation: length, titles, links, and that they name everything that is public.

``make docs`` builds the site, with every warning an error.
"""

import importlib
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from fastlstm.backends.gpu import timings
from fastlstm_command import COMMANDS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = {p.relative_to(DOCS).with_suffix("").as_posix(): p for p in sorted(DOCS.rglob("*.md"))}
LINKED = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES.values()]
INCLUDE = re.compile(r"```\{include\} (\S+)")


def _text(page):
    """The page's text, that of a file which it includes, and the folder of its links."""
    text = page.read_text()
    if found := INCLUDE.match(text):
        page = (page.parent / found[1]).resolve()
        text = page.read_text()
    return text, page.parent


def _without_code(text):
    return re.sub(r"^```.*?^```$|`[^`\n]*`", "", text, flags=re.DOTALL | re.MULTILINE)


def _anchors(page):
    """The anchors of a page's headings, as GitHub and MyST make them."""
    headings = re.findall(r"^#+ (.*)$", _without_code(_text(page)[0]), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_is_short():
    assert (ROOT / "README.md").read_text().count("\n") <= 120


@pytest.mark.parametrize("name", PAGES)
def test_pages_have_one_title(name):
    text = _without_code(_text(PAGES[name])[0])
    assert text.startswith("# ") and len(re.findall("^# ", text, flags=re.MULTILINE)) == 1


def test_every_page_is_in_a_table_of_contents():
    listed = ["index"]
    index = (DOCS / "index.md").read_text()
    for block in re.findall(r"```\{toctree\}\n(.*?)```", index, re.DOTALL):
        lines = [line for line in block.splitlines() if line and line[0] != ":"]
        listed += [re.sub(r".*<(.*)>", r"\1", line) for line in lines]
    assert sorted(listed) == sorted(PAGES)


@pytest.mark.parametrize("page", LINKED, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_resolve(page):
    text, folder = _text(page)
    for target in re.findall(r"\]\(([^)\s]+)\)", _without_code(text)):
        if not target.startswith(("http://", "https://")):
            path, _, anchor = target.partition("#")
            file = (folder / path).resolve() if path else page
            assert file.exists(), target
            assert not anchor or anchor in _anchors(file), target


@pytest.mark.parametrize("package", ["fastlstm", "fastlstm.data", "fastlstm.training"])
def test_public_names_are_on_an_api_page(package):
    try:
        names = set(importlib.import_module(package).__all__)
    except ModuleNotFoundError as error:
        pytest.skip(f"{error.name} is not installed")
    documented = set()
    for page in (DOCS / "api").glob("*.md"):
        documented |= set(re.findall(r"^\.\. auto\w+:: (\w+)", page.read_text(), re.MULTILINE))
    renamed = {"Percepts"}  # names of version 0.1
    assert names - renamed <= documented


def test_commands_have_a_section():
    text = (DOCS / "command_line.md").read_text()
    sections = {word for line in re.findall(r"^## (.*)$", text, re.M) for word in line.split(", ")}
    assert set(COMMANDS) <= sections


@pytest.mark.slow
def test_the_site_builds_without_warnings(tmp_path):
    pytest.importorskip("furo")
    options = ["--nitpicky", "--fail-on-warning", "--keep-going", "--quiet"]
    command = [sys.executable, "-m", "sphinx", *options, str(DOCS), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "api" / "lstm.html").exists()


def test_drawings_are_those_of_their_script():
    script = runpy.run_path(str(DOCS / "figures" / "kernels.py"))
    for draw in script["DRAWINGS"]:
        file = DOCS / "figures" / f"kernels_{draw.__name__}.svg"
        assert file.read_text() == draw().svg(), file


def test_what_a_build_without_a_network_needs_is_named():
    """pip does not install the requirements of a build with --no-build-isolation."""
    project = (ROOT / "pyproject.toml").read_text()
    requires = re.search(r"^requires = \[(.*)\]$", project, re.MULTILINE)[1]
    packages = re.findall(r'"([\w-]+)', requires)
    text = (DOCS / "gpu.md").read_text()
    assert "pip install --no-build-isolation --no-deps -e ." in text
    named = re.search(r"Without a network the build needs (.*?) to be installed", text, re.DOTALL)[
        1
    ]
    assert sorted(re.split(r", | and ", named.replace("\n", " "))) == sorted(packages)
    setup = (ROOT / "setup.py").read_text()
    imported = set(re.findall(r"^(?:import|from) (\w+)", setup, re.MULTILINE))
    assert imported - set(sys.stdlib_module_names) <= set(packages)


def test_kernels_have_not_run_on_a_gpu_until_one_is_measured():
    """Pages and comments change with the first table of measurements, and not before."""
    unmeasured = not timings.TABLES and not timings.PASSES
    for page in (DOCS / "gpu.md", DOCS / "install.md"):
        assert bool(re.search(r"has run on a\s+GPU yet", page.read_text())) is unmeasured, page
    files = [*ROOT.glob("csrc/cuda/*.cu*"), *ROOT.glob("kernels/*.py")]
    texts = {file: re.sub(r"\s*//\s*|\s+", " ", file.read_text()) for file in files}
    kernels = {f: t for f, t in texts.items() if "__global__" in t or "@triton.jit(" in t}
    assert len(kernels) >= 9
    for file, text in kernels.items():
        assert bool(re.search("(has|have) not yet run on a GPU", text)) is unmeasured, file
