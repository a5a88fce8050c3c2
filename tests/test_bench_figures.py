"""benchmarks/figures: the tables and pictures of the documentation are those of the results."""

import json
import re

import bench_runs
import matplotlib as mpl
import pytest

from benchmarks import figures, plots, storage


@pytest.fixture(scope="module")
def results():
    return storage.load(str(storage.results()))


def test_running_it_changes_no_page(results):
    found = set()
    for page in figures.pages():
        text = page.read_text()
        assert figures.replaced(text, results) == text, f"{page.name}: run make bench-figures"
        found |= set(re.findall("<!-- begin: bench (.*?) -->", text))
    assert {"table", "sweep", "machine", "cell", "losses"} <= found


def test_running_it_changes_no_picture(results, tmp_path):
    for name, kind in figures.PICTURES.items():
        stored = (figures.ROOT / "docs" / "figures" / name).read_bytes()
        if f"Matplotlib v{mpl.__version__}".encode() not in stored:
            pytest.skip("another version of Matplotlib drew the pictures")
        plots.write(kind, [results], tmp_path / name)
        assert (tmp_path / name).read_bytes() == stored, f"{name}: run make bench-figures"


def test_stored_results_name_neither_hosts_nor_users():
    for path in storage.RESULTS.glob("*/*.json"):
        text = path.read_text()
        paths = re.findall(r"(?<![\w.:/])/\w+/", text)  # absolute ones
        assert not paths and '"node"' not in text
        assert not json.loads(text)["failed"]


def test_names_and_numbers():
    page = "a\n<!-- begin: bench sweep -->\nold\n<!-- end: bench sweep -->\nb"
    both = [
        bench_runs.bench(name, ratio=ratio, noise=0, suite="sweep", mode=mode)
        for name, ratio in (("x", 1.0), ("y", 4.0))
        for mode in ("inference", "training")
    ]
    new = figures.replaced(page, bench_runs.run(*both))
    assert "Over 2 random shapes" in new and "is 2.00 in inference and 2.00 in training" in new
    assert "the lowest ratios are 1.00 and 1.00." in new and "old" not in new
    assert new.startswith("a\n<!-- begin") and new.endswith("bench sweep -->\nb")
    with pytest.raises(ValueError, match="bench nothing: expected one of table, sweep"):
        figures.replaced(page.replace("sweep", "nothing"), bench_runs.run(*both))


def test_an_empty_run_leaves_empty_cells():
    table = figures.table(bench_runs.run(bench_runs.bench("asr", suite="table", noise=0)))
    assert "| 100, 32, 256, 256 | 1.20 |  |  |  |  |" in table
