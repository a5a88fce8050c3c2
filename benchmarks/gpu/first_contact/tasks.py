"""What is asked of the worker, in which order, and for how long."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

CHECKS, TIMES = "benchmarks.gpu.first_contact.checks", "benchmarks.gpu.first_contact.times"
PLANTED = "benchmarks.gpu.planted"
# What compute-sanitizer runs, which is slow: the fewest units with several blocks in each dtype.
SANITIZED = ((160, 3), (256, 9))
# Files with tests of kernels that run on a GPU, those first that nothing else can show. Other files
# have some too, of the layers above the kernels.
TESTS = (
    "test_gpu.py",
    "test_gpu_barrier.py",
    "test_sequence.py",
    "test_lengths_and_resets.py",
    "test_triton.py",
    "test_option_gpu.py",
    "test_layer_norm_gpu.py",
)


class Task(NamedTuple):
    """A function that the worker calls, and the seconds it may take."""

    function: str
    arguments: dict[str, Any]
    box: float

    @property
    def name(self) -> str:
        """The function and its arguments; a second run knows a task by it."""
        words = [self.function.rpartition(":")[2]]
        for name, value in self.arguments.items():
            if name != "device":
                words.append(f"{value}" if isinstance(value, str) else f"{name}={value}")
        return " ".join(words).replace("=True", "")


def planted() -> Iterator[Task]:
    """Yield tasks that go wrong on purpose, and one in between that asks who is there."""
    for name in ("raise_an_error", "lose_the_device", "hang", "leave", "die"):
        yield Task(f"{PLANTED}:{name}", {}, 2)


def baselines(device: str, small: bool) -> Iterator[Task]:
    """Yield cuDNN's times, which need no build of this package."""
    sizes = [(B, H) for B in (16, 64, 1, 128) for H in (768, 1024, 512, 2048, 256, 128)]
    for precision in ("bfloat16", "float16"):
        for train in (False, True):
            for B, H in [(2, 8)] if small else sizes:
                how = {"device": device, "precision": precision, "B": B, "H": H}
                yield Task(
                    f"{TIMES}:baseline", {**how, "T": 4 if small else 512, "train": train}, 20
                )


def checks(device: str, small: bool) -> Iterator[Task]:
    """Yield what says whether it runs, and whether it is right."""

    def ask(function: str, box: float, **problem: Any) -> Task:
        if small:  # the sizes say nothing of blocks on a CPU
            problem["H"] = max(4, problem["H"] // 32)
            problem["T"] = min(problem["T"], 6)
        return Task(f"{CHECKS}:{function}", {"device": device, **problem}, box)

    for precision in ("bfloat16", "float16", "tf32", "float32"):
        for H, B in ((256, 3), (1024, 17)):  # several blocks in each dtype, which wait for others
            yield ask("contact", 40, precision=precision, H=H, B=B, T=6, peephole=True)
    bfloat16 = {"precision": "bfloat16"}
    yield ask("contact", 40, **bfloat16, H=2048, B=65, T=6)
    ways = {"bidirectional": True, "lengths": True}
    yield ask("contact", 40, **bfloat16, H=256, B=9, T=9, **ways)
    yield ask("contact", 40, **bfloat16, H=256, B=9, T=9, reset=True, peephole=True)
    yield ask("contact", 40, **bfloat16, H=256, B=16, T=12, num_layers=3)
    yield ask("contact", 40, **bfloat16, H=96, B=9, T=9, peephole=True)  # a single block
    yield ask("contact", 40, **bfloat16, H=4096, B=2, T=4, peephole=True)  # step by step
    yield ask("contact", 40, precision="float64", H=256, B=3, T=4, peephole=True)
    norm = {"layer_norm": True, "peephole": True, "T": 6}
    yield ask("contact", 40, **bfloat16, **norm, H=1024, B=17, bidirectional=True, lengths=True)
    yield ask("contact", 40, precision="float64", **norm, H=300, B=3, reset=True)
    yield ask("contact", 60, backend="triton", **bfloat16, **norm, H=1024, B=17, lengths=True)
    for H in (96, 256):
        p = {"precision": "float16", "H": H, "B": 9, "T": 6, "peephole": True}
        yield ask("contact", 60, backend="triton", **p)
    times = 2 if small else 100
    for H, B in ((256, 64), (1024, 16), (2048, 65)):  # other bits would be a race
        yield ask("repeat", 40, times=times, **bfloat16, H=H, B=B, T=50, peephole=True)
    # Launches one by one at first, then replays of a graph of all steps.
    yield ask("repeat", 40, times=2 if small else 20, **bfloat16, H=1024, B=16, T=50, stepwise=True)
    yield ask("graph", 30, **bfloat16, H=1024, B=16, T=20)
    yield ask("threads", 30, **bfloat16, H=1024, B=64, T=20, times=1 if small else 20)


def cells(small: bool) -> Iterator[list[Any]]:
    """Yield the sizes of the table, as in ``compare.Cell``; the ones that decide most first."""
    if small:
        yield from (["float32", H, B, 1, 1, train] for train in (False, True) for H, B in ((8, 2),))
        return
    for train in (False, True):
        for B in (16, 64, 1, 128):
            for H in (1024, 512, 768, 2048, 256, 128):
                yield ["bfloat16", H, B, 1, 1, train]
    yield from (
        ["float16", 768, 16, 1, 1, False],
        ["float16", 1024, 64, 1, 1, True],
        ["tf32", 512, 64, 1, 1, True],
        ["bfloat16", 512, 16, 2, 1, True],
        ["bfloat16", 1024, 16, 2, 1, True],
        ["bfloat16", 512, 64, 1, 2, True],
    )


def times(device: str, small: bool) -> Iterator[Task]:
    """Yield what says how fast it is; only when nothing else runs on the GPU."""
    new = {"device": device}
    for cell in cells(small):
        # As compiled, both kernels of few units are slow or unmeasured: they are compared there.
        backends = ["cuda", "triton"] if cell[1] <= 128 else ["cuda"]
        how = {"cell": cell, "T": 4 if small else 512, "backends": backends}
        yield Task("benchmarks.gpu.compare:row", {**new, **how}, 25)
    H, steps = (16, [2, 4]) if small else (2048, [2, 10, 50, 250])
    for stepwise in (False, True):
        how = {"precision": "bfloat16", "H": H, "B": 16, "steps": steps, "stepwise": stepwise}
        yield Task(f"{TIMES}:startup", {**new, **how}, 40)
    H, steps = (16, [2, 4]) if small else (1024, [10, 250])
    for how in ({"stepwise": True}, {"layer_norm": True}):  # what the norms add to single steps
        problem = {"precision": "bfloat16", "H": H, "B": 64, "steps": steps}
        yield Task(f"{TIMES}:startup", {**new, **problem, **how}, 40)
    if device == "cuda":
        for H in (1024, 768, 2048):
            problem = {"problem": ["bfloat16", H, 16, 1], "T": 256, "most": 8}
            yield Task("benchmarks.gpu.tune:layouts", {**new, **problem}, 40)
