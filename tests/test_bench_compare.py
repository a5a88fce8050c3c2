"""fastlstm bench compare: what has changed between two runs, and what has not."""

import argparse
import copy
import json
import math
import random
import re
import statistics
from pathlib import Path

import bench_runs
import pytest
import torch
from torch import nn

import fastlstm
from benchmarks import chance, compare, contests, lstm, shapes, storage, timing

RECORDED = Path(__file__).with_name("recorded_runs.json")


def compared(old, new):
    ((found,), _) = compare.changes(bench_runs.run(old), bench_runs.run(new))
    return found


def verdicts(old, new):
    found, _ = compare.changes(bench_runs.run(*old), bench_runs.run(*new))
    return [change.verdict for change in found]


def test_the_same_run_twice_is_the_same():
    benches = [bench_runs.bench(f"b{n}") for n in range(20)]
    assert verdicts(benches, benches) == ["same"] * 20


@pytest.mark.parametrize("noise", [0.002, 0.02])
def test_other_samples_of_the_same_code_are_the_same(noise):
    old, new = (
        [bench_runs.bench(f"b{n}", noise=noise, seed=seed) for n in range(200)] for seed in (1, 2)
    )
    assert verdicts(old, new).count("same") >= 198


@pytest.mark.parametrize("drift", [0.7, 1.0, 1.4])
def test_a_slowdown_of_a_tenth_is_reported_whatever_the_machine_s_speed(drift):
    old = [bench_runs.bench(f"b{n}") for n in range(50)]
    # Ours takes 10% longer, the peer as long: the ratio falls. Both drift alike.
    slow = [bench_runs.bench(f"b{n}", 1.1e-3 * drift, 1.2 / 1.1, seed=1) for n in range(50)]
    drifted = [bench_runs.bench(f"b{n}", 1e-3 * drift, 1.2, seed=1) for n in range(50)]
    assert verdicts(old, slow) == ["slower"] * 50
    assert verdicts(slow, old) == ["faster"] * 50
    assert verdicts(old, drifted) == ["same"] * 50


@pytest.mark.parametrize(
    ("seconds", "ratio", "reason"),
    [
        (1e-3, 1.0, "only the ratio moved; nn.LSTM -17%"),  # the peer was faster
        (1e-3, 1.4, "only the ratio moved; nn.LSTM +17%"),
        (1.2e-3, 1.2, "only our time moved; nn.LSTM +20%"),  # the machine was slower
        (1.2e-3, 1.4, "our time and the ratio disagree; nn.LSTM +40%"),
    ],
)
def test_what_moved_alone_is_undecided(seconds, ratio, reason):
    new = bench_runs.bench(seconds=seconds, ratio=ratio, noise=0.001)
    found = compared(bench_runs.bench(noise=0.001), new)
    assert (found.verdict, found.reason) == ("undecided", reason)


def with_processes(seed, slower=1.0, count=18, between=0.012):
    """A run in which the times of ours and the peer's depend on the process, as measured."""
    draw = random.Random(seed)
    benches = []
    for n in range(count):
        own, peer = (math.exp(draw.gauss(0, between)) for _ in range(2))
        speed = 1e-3 * math.exp(draw.gauss(0, 0.01)) * slower  # of this minute
        benches.append(
            bench_runs.bench(f"b{n}", speed * own, 1.2 * peer / own / slower, 0.01, seed)
        )
    return benches


def test_two_runs_of_the_same_code_report_a_change_once_in_twenty_at_most():
    alarms = 0
    for seed in range(100):
        found = verdicts(with_processes(2 * seed), with_processes(2 * seed + 1))
        alarms += bool({"slower", "faster"} & set(found))
    assert alarms <= 5


def test_a_slowdown_of_a_tenth_shows_in_spite_of_the_processes():
    found = []
    for seed in range(50):
        found += verdicts(with_processes(2 * seed), with_processes(2 * seed + 1, slower=1.1))
    assert found.count("slower") > 0.8 * len(found) and "faster" not in found


def recorded(rows):
    """A run of recorded rounds: seconds of ours and of nn.LSTM, by the name of the benchmark."""
    benches = []
    for name, (own, peer) in rows.items():
        bench = bench_runs.bench(name)
        bench["name"] = name
        bench["stats"] |= {"data": own, "median": statistics.median(own)}
        ratio = contests.quartiles([b / a for a, b in zip(own, peer, strict=True)])
        entry = {"data": peer, "median": statistics.median(peer), "ratio": ratio}
        bench["extra_info"]["peers"]["nn.LSTM"] |= entry
        benches.append(bench)
    return benches


def test_recorded_runs_of_the_same_code_report_no_change():
    # measured within five minutes, while other programs used both cores: nn.LSTM took 74% less
    # time in one benchmark, and its median change was 36%
    old, new = map(recorded, json.loads(RECORDED.read_text()))
    for runs in ((old, new), (new, old)):
        found, _ = compare.changes(*(bench_runs.run(*run) for run in runs))
        assert {change.verdict for change in found} == {"same", "undecided"}
        assert all("would show" in c.reason for c in found if c.verdict == "same")


def test_a_slowdown_of_a_tenth_shows_in_recorded_rounds():
    found = json.loads(next(storage.RESULTS.glob("*/*.json")).read_text())
    table = [bench for bench in found["benchmarks"] if bench["name"].startswith("table")]
    slow = copy.deepcopy(table)
    for bench in slow:
        bench["stats"]["data"] = [1.1 * x for x in bench["stats"]["data"]]
        bench["stats"]["median"] *= 1.1
        for peer in bench["extra_info"]["peers"].values():
            peer["ratio"] = {name: value / 1.1 for name, value in peer["ratio"].items()}
    assert set(verdicts(table, table)) == {"same"}
    found = verdicts(table, slow)
    assert found.count("slower") > len(found) / 2 and "faster" not in found


def test_nothing_is_credible_while_other_programs_run():
    old, new = bench_runs.bench(), bench_runs.bench(seconds=2e-3, ratio=0.6)
    new["extra_info"]["other_cores"] = 0.1
    assert compared(old, new).verdict == "slower"
    new["extra_info"]["other_cores"] = 1.2
    found = compared(old, new)
    assert (found.verdict, found.reason) == ("undecided", "other programs used 1.2 cores")


def test_a_wide_spread_says_what_it_hides():
    found = compared(bench_runs.bench(noise=0.3), bench_runs.bench(noise=0.3))
    assert found.verdict == "same"
    assert re.fullmatch(r"only changes above [2-9]\d% would show", found.reason)
    assert compared(bench_runs.bench(), bench_runs.bench()).reason == ""


def test_the_limits_are_those_of_student_and_of_benjamini_and_hochberg():
    for freedom, expected in ((6, 3.71), (10, 3.17), (16, 2.92)):  # p = 0.01, two-sided
        shift = chance.Shift(expected, 1.0, freedom, 0.0)
        assert shift.deviations() == pytest.approx(2.576, rel=0.02)
    assert chance.Shift(-0.03, 0.0, 10, 0.01).deviations() == pytest.approx(3)

    def limit(*sizes):
        return chance.limit_of([chance.Shift(size, 0.0, 10, 1.0) for size in sizes])

    assert limit(0.1) == pytest.approx(1.96, abs=0.01)
    assert limit(*[0.1] * 18) == pytest.approx(2.99, abs=0.01)  # Bonferroni's
    assert limit(*[4.0] * 9, *[0.1] * 9) == pytest.approx(2.24, abs=0.01)  # p = 0.025
    assert limit(*[4.0] * 18) == pytest.approx(1.96, abs=0.01)
    assert chance.limit_of([]) == 0


def test_without_a_common_peer_the_medians_count():
    def alone(seconds):
        bench = bench_runs.bench(seconds=seconds)
        bench["extra_info"]["peers"] = {}
        return bench

    assert verdicts([alone(1e-3)], [alone(1.2e-3)]) == ["slower"]
    assert verdicts([alone(1e-3)], [alone(1e-3)]) == ["same"]


def options(**how):
    chosen = {"fail_if": None, "only_changed": False, "format": "table", **how}
    return argparse.Namespace(**chosen)


def test_fail_if(capsys):
    old, new = bench_runs.bench(), bench_runs.bench(seconds=1.1e-3, ratio=1.2 / 1.1)
    runs = bench_runs.run(old), bench_runs.run(new)
    for limit in (("ratio", 0.05), ("median", 0.05)):
        with pytest.raises(SystemExit) as failed:
            compare.show(*runs, options(fail_if=limit))
        assert failed.value.code == 1
        assert f"exceeds {limit[0]}:5%: shape[a-" in capsys.readouterr().err
    for limit in (("ratio", 0.2), ("median", 0.2)):
        compare.show(*runs, options(fail_if=limit))
    compare.show(*runs[::-1], options(fail_if=("ratio", 0.05)))


def test_only_what_changed_is_shown(capsys):
    old = [bench_runs.bench("same"), bench_runs.bench("other")]
    new = [old[0], bench_runs.bench("other", seconds=2e-3, ratio=0.6)]
    compare.show(bench_runs.run(*old), bench_runs.run(*new), options(only_changed=True))
    out = capsys.readouterr().out
    assert "shape[other-" in out and "shape[same-" not in out
    assert "0 faster, 1 slower, 1 same" in out


def test_another_machine_is_a_loud_warning(capsys):
    bench = bench_runs.bench()
    compare.show(bench_runs.run(bench), bench_runs.run(bench, torch="2.6.0"), options())
    err = capsys.readouterr().err
    assert err.startswith("WARNING: the runs are not comparable, torch: 2.13.0+cpu and 2.6.0")
    compare.show(bench_runs.run(bench, load=1.5), bench_runs.run(bench), options())
    err = capsys.readouterr().err
    assert (
        err.startswith("WARNING: other programs used 1.5 of 2 cores before")
        and err.count("\n") == 1
    )
    with pytest.raises(ValueError, match="no benchmark in common"):
        compare.show(bench_runs.run(), bench_runs.run(bench), options())


class _Repeated(nn.Module):
    """A module that computes everything four times, and is therefore slower."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        for _ in range(3):
            self.module(x)
        return self.module(x)


def test_a_real_slowdown_is_reported(monkeypatch):
    monkeypatch.setattr(timing, "_SAMPLE_S", {"cpu": 2e-3})
    monkeypatch.setattr(timing, "_PAUSE_S", 0)
    shape = shapes.parse("20,4,16,16")

    def measured(wrap):
        pair = lstm.Pair(shape, False)
        ours = pair.contender(wrap(fastlstm.LSTM.from_torch(pair.theirs)), ("nn.LSTM",))
        theirs = contests.Contender(lambda: pair.call(pair.theirs), threads=(1,))
        contest = contests.Contest({"auto": ours, "nn.LSTM": theirs})
        found = contests.measure(contest, contests.Effort(9, 1, 1))
        bench = bench_runs.bench()
        own = found.best("auto")[1]
        bench["extra_info"] |= found.info("auto") | {"other_cores": 0.0}  # tests run beside it
        bench["stats"] = {"median": torch.tensor(own).median().item(), "data": own}
        return bench

    assert compared(measured(lambda m: m), measured(_Repeated)).verdict == "slower"
