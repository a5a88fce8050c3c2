"""Runs of several processes: how they are divided, joined and compared."""

import math
import os
import random
import signal
import statistics
import sys
import threading
import time
from pathlib import Path

import bench_runs
import psutil
import pytest

from benchmarks import command, compare, processes, storage
from fastlstm_bench import parse

QUIET = {"rounds": 9, "other_cores": None}


def verdicts(old, new):
    found, _ = compare.changes(bench_runs.run(*old), bench_runs.run(*new))
    return [change.verdict for change in found]


def in_processes(seed, slower=1.0, drift=0.0, count=3):
    """A run of some processes: calls of microseconds vary by 10% between them, others by 1.2%.

    The times of all benchmarks of a process are multiplied by a factor that varies by ``drift``.
    """
    runs = []
    for process in range(count):
        draw = random.Random(f"{seed} {process}")
        speed = math.exp(draw.gauss(0, drift))
        benches = []
        for n in range(18):
            seconds, between = (1e-5, 0.1) if n < 3 else (1e-3 * (n + 1), 0.012)
            own, peer = (math.exp(draw.gauss(0, between)) for _ in range(2))
            own *= slower
            ratio = 1.2 * peer / own
            bench = bench_runs.bench(
                f"b{n}", seconds * speed * own, ratio, 0.01, f"{seed} {process}"
            )
            benches.append(bench)
        runs.append(bench_runs.run(*benches))
    return processes.joined(runs)["benchmarks"]


def test_joined_processes_of_the_same_code_report_a_change_once_in_twenty_at_most():
    alarms = 0
    for seed in range(0, 120, 2):
        found = verdicts(in_processes(seed), in_processes(seed + 1))
        alarms += bool({"slower", "faster"} & set(found))
    assert alarms <= 3


@pytest.mark.parametrize("drift", [0.0, 0.2])
def test_joined_processes_show_a_slowdown_of_a_tenth_in_most_rows(drift):
    found = []
    for seed in range(0, 40, 2):
        old, new = in_processes(seed, drift=drift), in_processes(seed + 1, 1.1, drift)
        found += verdicts(old, new)[3:]  # 10% is less than what calls of microseconds vary
    assert found.count("slower") > 0.9 * len(found) and "faster" not in found


def test_one_slower_benchmark_is_reported_alone():
    new = in_processes(1)
    new[7] = in_processes(1, slower=1.2)[7]
    found = verdicts(in_processes(0), new)
    assert found[7] == "slower" and found.count("slower") == 1 and "faster" not in found


def test_files_without_processes_are_compared_with_joined_ones():
    several, alone = in_processes(0), in_processes(1, count=1)
    assert [bench["extra_info"].pop("processes") for bench in alone] == [[QUIET]] * 18
    for runs in ((alone, several), (several, alone), (several, several)):
        assert set(verdicts(*runs)) <= {"same", "undecided"}
    slow = verdicts(alone, in_processes(2, slower=1.2))
    assert slow.count("slower") > 9 and "faster" not in slow


def test_disturbed_processes_do_not_count():
    old, new = in_processes(0), in_processes(1)
    for bench in new:
        info, data = bench["extra_info"], bench["stats"]["data"]
        info["processes"][0]["other_cores"] = info["other_cores"] = 1.0
        data[:9] = [3 * x for x in data[:9]]
        assert list(compare.counted(bench)) == [1, 2] and compare.other_cores(bench) == 0
    assert set(verdicts(old, new)) <= {"same", "undecided"}
    new[5]["extra_info"]["processes"][1]["other_cores"] = 0.5
    assert list(compare.counted(new[5])) == [0, 1, 2] and compare.other_cores(new[5]) == 1


def test_joining_keeps_what_every_process_has():
    benches = [bench_runs.bench(seed=seed) for seed in range(2)]
    benches[0]["extra_info"]["other_cores"] = 0.1
    benches[1]["extra_info"] |= {"other_cores": 0.2}
    benches[1]["extra_info"]["peers"] = {}
    failed = {"name": "b", "error": "wrong"}
    runs = [bench_runs.run(bench) | {"failed": [failed]} for bench in benches]
    joined = processes.joined(runs)
    (bench,) = joined["benchmarks"]
    info = bench["extra_info"]
    assert joined["failed"] == [failed] and info["other_cores"] == 0.2
    assert info["processes"] == [QUIET | {"other_cores": cores} for cores in (0.1, 0.2)]
    assert bench["stats"]["rounds"] == 18
    assert info["peers"] == {} and info["best_peer"] is None and info["ratio"] is None
    data = [x for bench in benches for x in bench["stats"]["data"]]
    assert bench["stats"]["data"] == data and bench["stats"]["median"] == statistics.median(data)


@pytest.mark.parametrize(
    ("words", "number", "rounds", "seconds"),
    [
        ([], 5, 3, 1.2),
        (["--suite", "quick", "--rounds", "18"], 5, 4, 1.2),
        (["--shape", "asr", "--max-seconds", "3"], 5, 3, 0.6),
        (["--suite", "cell"], 1, 7, 6.0),
        (["--grid", "H=8"], 1, 7, 6.0),
        (["--suite", "cell", "--processes", "2"], 2, 4, 3.0),
        (["--rounds", "2"], 5, 2, 1.2),
    ],
)
def test_rounds_and_seconds_are_divided(words, number, rounds, seconds):
    options = parse(["run", *words])
    assert processes.count(options) == number
    shared = parse(["run", *words, *processes.share(options, number)])
    assert (shared.processes, shared.rounds, shared.max_seconds) == (1, rounds, seconds)
    assert processes.count(shared) == 1


def test_new_processes_measure(tmp_path, monkeypatch):
    words = ["--shape", "3,2,4,5", "--mode", "inference", "--peer", "nn.LSTM"]
    words += ["--rounds", "2", "--max-seconds", "0.01", "--processes", "2"]
    run = command.measure(words)
    (bench,) = run["benchmarks"]
    assert [process["rounds"] for process in bench["extra_info"]["processes"]] == [2, 2]
    assert run["words"] == words
    storage.write(run, tmp_path / "run.json")
    assert storage.load(str(tmp_path / "run.json"))["benchmarks"][0]["stats"]["rounds"] == 4


def _fails(words):
    if words[0] == "interrupt":
        raise KeyboardInterrupt
    raise SystemExit("nothing was timed")


def test_what_ends_a_process_ends_the_run():
    with pytest.raises(SystemExit, match="nothing was timed"):
        processes.measure(_fails, ["exit"], 2)
    with pytest.raises(KeyboardInterrupt):
        processes.measure(_fails, ["interrupt"], 2)


def _sleeps(words):
    Path(words[0]).write_text(str(os.getpid()))
    time.sleep(600)


@pytest.mark.skipif(sys.platform != "linux", reason="the process that measures then goes on")
def test_a_killed_run_ends_the_process_that_measures(tmp_path):
    file = tmp_path / "pid"
    with pytest.raises(SystemExit, match="was ended"):
        processes.measure(_is_killed_while_it_measures, [str(file)], 1)
    pid, deadline = int(file.read_text()), time.monotonic() + 60
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _is_killed_while_it_measures(words):
    """Measure in a process of its own, and be killed meanwhile."""
    threading.Thread(target=_kill_when_there, args=words).start()
    processes.measure(_sleeps, words, 1)


def _kill_when_there(file):
    while not (Path(file).is_file() and Path(file).read_text()):
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGKILL)
