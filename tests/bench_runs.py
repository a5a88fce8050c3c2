"""Runs of ``fastlstm bench`` that were never measured, for the tests of what is done with runs."""

import random
import statistics

from benchmarks.contests import SCHEMA, quartiles

PARAMS = {"T": 5, "B": 1, "I": 8, "H": 8, "L": 1, "D": 1, "mode": "inference", "dtype": "float32"}


def bench(name="a", seconds=1e-3, ratio=1.2, noise=0.01, seed=0, suite="shape", **params):
    """A benchmark whose rounds have normally distributed noise."""
    generator = random.Random(f"{seed} {name}")

    def samples(center):
        return [center * generator.gauss(1, noise) for _ in range(9)]

    own, peer = samples(seconds), samples(seconds * ratio)
    rounds = [b / a for a, b in zip(own, peer, strict=True)]
    q = statistics.quantiles(own, n=4)
    entry = {"threads": 2, "data": peer, "median": statistics.median(peer), "own": False}
    params = {**PARAMS, "shape": name, "backend": "auto", **params}
    entry["ratio"] = quartiles(rounds)
    return {
        "group": f"{params['mode']}-{params['dtype']}",
        "name": f"{suite}[{name}-{params['mode']}-{params['dtype']}-{params['backend']}]",
        "fullname": name,
        "params": params,
        "stats": {"median": statistics.median(own), "iqr": q[2] - q[0], "data": own},
        "extra_info": {
            "schema": SCHEMA,
            "threads": 2,
            "peers": {"nn.LSTM": entry},
            "best_peer": "nn.LSTM",
            "ratio": entry["ratio"],
            "flop": 1e6,
            "bytes": 1e4,
            "peak_gflops": 100.0,
            "error": {"ours": 1e-7, "peer": 2e-7},
            "failed_peers": {},
        },
    }


def run(*benches, **machine):
    """A run of these benchmarks, on a machine of which some entries are others."""
    ours = {"version": "0.1.0", "isa": "avx512", "threads": 2, "cores": 2, "torch": "2.13.0+cpu"}
    ours |= {"load": 0.1, "peak_gflops": 100.0, "bandwidth_gbs": 20.0, "packages": {}, "gpu": None}
    return {
        "machine_info": {
            "cpu": {"brand_raw": "CPU"},
            "machine": "x86_64",
            "fastlstm": ours | machine,
        },
        "commit_info": {"id": "0123456789", "dirty": False},
        "benchmarks": list(benches),
        "datetime": "2026-11-29T10:00:00+00:00",
        "version": "5.3.1",
        "failed": [],
    }
