"""fastlstm bench: its words, its answers to wrong ones, its files, tables and pictures."""

import json
import subprocess
import sys
from pathlib import Path

import bench_runs
import pytest

import fastlstm_bench
from benchmarks import machine, plots, shapes, storage, tables

ROOT = Path(__file__).parents[1]


@pytest.fixture
def bench(tmp_path, monkeypatch, capsys):
    """Run the command in an empty folder, and return its status, its output and its errors."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        status = 0
        try:
            fastlstm_bench.main(words)
        except SystemExit as end:
            status = end.code or 0
            if isinstance(status, str):  # Python prints it and exits with 1
                print(status, file=sys.stderr)
                status = 1
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


@pytest.fixture
def saved(tmp_path):
    """Write a run to a file, and return its name."""

    def write(name, *benches, **how):
        storage.write(bench_runs.run(*benches, **how), tmp_path / name)
        return name

    return write


@pytest.mark.parametrize(
    "words, says",
    [
        (("--mode", "train"), "invalid choice: 'train' (choose from"),
        (("--dtype", "float8"), "invalid choice: 'float8'"),
        (("--peer", "keras"), "invalid choice: 'keras' (choose from"),
        (("--suite", "fast"), "invalid choice: 'fast'"),
        (("--rounds", "0"), "expected a whole number from 1 on, got '0'"),
        (("--max-seconds", "nan"), "expected a number above 0, got 'nan'"),
        (("--fail-if", "5%"), "expected ratio:5% or median:10%, got '5%'"),
        (("--shape", ",1,bidir"), "expected a shape, T,B,I,H[,L][,bi] (steps, batch, input size"),
        (("--shape", "1,2,3,4,5,6"), "got '1,2,3,4,5,6'"),
        (("--shape", "0,2,3,4"), "got '0,2,3,4'"),
        (("--shape", "asrr"), "or one of stream, "),
        (("--grid", "H=8:64"), "expected values as in H=128,256 or H=128:2048:x2, got '8:64'"),
        (("--grid", "H=8:64:x1"), "expected a factor from 2 on"),
        (("--grid", "hidden=8"), "expected a grid's size, one of T, B, I, H and L"),
        (("--against", "latest"), "of which there is none; got 'latest'"),
        (("--fail-if", "ratio:5%"), "expected --against RUN with it"),
        (("compare", "a.json", "b.json"), "expected a run, a file or the name of one in"),
        (("show",), "the following arguments are required: RUN"),
        (("shwo", "1"), "invalid choice: 'shwo' (choose from"),
    ],
)
def test_wrong_words_are_answered_by_one_sentence(bench, words, says):
    status, out, err = bench(*words)
    assert status in (1, 2) and not out
    assert says in err and err.startswith("fastlstm bench") and err.count("\n") == 1


def test_the_help_does_not_import_torch():
    hidden = "import sys; sys.modules.update(dict.fromkeys(('torch', 'numpy', 'fastlstm')));"
    code = f"{hidden} from fastlstm_command import main; main()"
    for words in (["bench", "--help"], ["bench", "run", "-h"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=ROOT
        )
        assert done.returncode == 0 and done.stdout.startswith("usage: fastlstm bench"), done.stderr
    assert all(name in done.stdout for name in fastlstm_bench.SUITES)


@pytest.mark.parametrize("package", ["rich", "pytest_benchmark", "psutil", "yaml"])
def test_without_the_extra_one_sentence_says_what_to_install(bench, monkeypatch, package):
    for name in list(sys.modules):
        if name.split(".")[0] in ("benchmarks", package) or "fastlstm.benchmarks" in name:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    status, _, err = bench("list")
    assert status == 1
    assert err == (
        f"fastlstm bench: it needs the package {package!r}, which is not installed:"
        " pip install 'fastlstm[bench]'\n"
    )


def test_shapes():
    assert shapes.parse("2,3,4,5") == (2, 3, 4, 5, 1, False, "")
    assert shapes.parse("2,3,4,5,bi").words == "2,3,4,5,1,bi"
    assert shapes.parse("2,3,4,5,2,bi").D == 2
    for name in shapes.named():
        shape = shapes.parse(name)
        assert shape.name == name and shapes.parse(shape.words)[:6] == shape[:6]
    # 8 T B D H (I + H) in a layer, and D H inputs from the second on
    assert shapes.parse("2,3,4,5,2").flop(False) == 8 * 2 * 3 * 5 * (4 + 5 + 5 + 5)
    assert [s.H for s in shapes.grid(["B=2", "H=8:64:x2"])] == [8, 16, 32, 64]
    assert [s.I for s in shapes.grid(["B=2", "I=3", "H=8:12:2"])] == [3, 3, 3]
    first = [next(shapes.draw(seed)) for seed in (0, 0, 1)]
    assert first[0] == first[1] != first[2]


def test_show_has_every_loss_last(bench, saved):
    faster, slower, same = (
        bench_runs.bench(name, ratio=ratio)
        for name, ratio in (("f", 1.5), ("s", 0.8), ("x", 1.001))
    )
    name = saved("run.json", faster, slower, same)
    status, out, _ = bench("show", name)
    assert status == 0
    assert "1 slower, 1 inconclusive" in out and "~ 1.0" in out
    assert out.splitlines()[-2:-1] == ["slower than the peer:"]
    assert "s-inference-float32-auto" in out.splitlines()[-1] and "\x1b" not in out
    lines = bench("show", name, "--format", "markdown")[1].splitlines()
    assert lines[1].startswith("| shape | mode |") and len(lines[3].split("|")) == 13
    assert json.loads(bench("show", name, "--format", "json")[1])["benchmarks"]


def test_saved_runs_are_found_by_number_name_and_latest(bench, tmp_path):
    for name, ratio in (("before", 1.2), ("after", 1.5)):
        storage.write(bench_runs.run(bench_runs.bench(ratio=ratio)), storage.next_path(name))
    for word in ("2", "0002", "after", "0002_after", "latest"):
        assert "1.5" in bench("show", word)[1]
    (tmp_path / fastlstm_bench.FOLDER / "0003_broken.json").write_text('{"benchmarks"')
    status, out, _ = bench("list")
    assert status == 0 and "0001_before  2026-11-29 10:00" in out and "damaged" in out


def test_damaged_and_foreign_files(bench, saved, tmp_path):
    good = saved("good.json", bench_runs.bench())
    text = (tmp_path / good).read_text()
    damaged = {
        "cut.json": text[: len(text) // 2],
        "other.json": "[1, 2]",
        "stats.json": text.replace('"data":[', '"dat":['),
        "empty.json": "",
    }
    for name, content in damaged.items():
        (tmp_path / name).write_text(content)
        status, _, err = bench("compare", good, name)
        assert status == 1 and err.count("\n") == 1
        assert err.startswith(f"fastlstm bench: {name}: expected a run of `fastlstm bench`")
    (tmp_path / "new.json").write_text(text.replace("fastlstm-bench/1", "fastlstm-bench/2"))
    _, _, err = bench("show", "new.json")
    assert "expected results of the schema 'fastlstm-bench/1', got 'fastlstm-bench/2'" in err


def grid():
    return [
        bench_runs.bench(f"5,{B},{H},{H}", ratio=1 + B / H, suite="grid", B=B, I=H, H=H, mode=mode)
        for mode in ("inference", "training")
        for B in (1, 8)
        for H in (16, 32)
    ]


def test_pictures_are_the_same_twice(bench, saved, tmp_path):
    benches = grid()
    benches += [bench_runs.bench("s", suite="sweep", mode=mode) for mode in plots.MODES]
    for count in (1, 2):
        entry = bench_runs.bench(f"t{count}", suite="threads", seconds=1 / count, shape="t")
        entry["extra_info"]["threads"] = count
        benches.append(entry)
    for T in (10, 100):
        entry = bench_runs.bench(f"l{T}", suite="long", mode="training", T=T)
        entry["extra_info"] |= {"peak_rss": T * 2**20, "peer_rss": T * 2**21}
        benches.append(entry)
    name = saved("run.json", *benches)
    for kind in fastlstm_bench.KINDS:
        assert bench("plot", name, "--kind", kind)[:2] == (0, f"{kind}.svg\n")
        first = (tmp_path / f"{kind}.svg").read_bytes()
        bench("plot", name, "--kind", kind)
        assert first == (tmp_path / f"{kind}.svg").read_bytes() and b"<dc:date>" not in first
    assert set(plots.DRAWN) == set(fastlstm_bench.KINDS)


def test_what_cannot_be_drawn(bench, saved, monkeypatch):
    name = saved("run.json", bench_runs.bench())
    assert "expected a run of the suite grid" in bench("plot", name)[2]
    assert "expected a run of the suite long" in bench("plot", name, "--kind", "memory")[2]
    assert "expected a file that ends in .svg" in bench("plot", name, "-o", "a.png")[2]
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    status, _, err = bench("plot", name, "--kind", "roofline")
    assert status == 1 and "needs the package 'matplotlib'" in err and err.count("\n") == 1


def test_machines_have_names_but_no_hosts():
    info = {"node": "secret", "python_build": "x", "cpu": {"brand_raw": "AMD EPYC", "flags": []}}
    machine.describe(info)
    assert "node" not in info and "flags" not in info["cpu"]
    assert {"version", "isa", "threads", "torch", "openmp", "load"} <= set(info["fastlstm"])
    for brand, name in {
        "AMD EPYC 9654 96-Core Processor": "amd-epyc-9654-avx2",
        "Intel(R) Xeon(R) Platinum 8581C CPU @ 2.60GHz": "intel-xeon-platinum-8581c-avx2",
    }.items():
        assert machine.slug({"cpu": {"brand_raw": brand}, "fastlstm": {"isa": "avx2"}}) == name


def test_durations():
    assert [tables.duration(s) for s in (3.456e-6, 9.996e-4, 0.02, 2.5)] == [
        "3.46 us",
        "1000 us",
        "20 ms",
        "2.5 s",
    ]
