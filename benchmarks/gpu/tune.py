"""Compare the layout that the cuda backend chooses for its recurrence with other layouts.

    python -m benchmarks.gpu.tune --out FOLDER [--minutes 9] [--device cpu --small]
    python -m benchmarks.gpu.tune --out FOLDER --report       # report the rows in FOLDER

T = 512; all combinations of H, B, directions and precision, for the forward pass of training and
the backward pass, without the matrix products over all steps. The script times the plans that the
model in csrc/cuda/plan.cpp ranks first, as many again from the rest of its list, and a launch per
step without a plan. Results are compared with the reference in float32 before the timing; a plan
whose error is more than four times that of the reference in the same precision is not timed.
Another run continues where the last one stopped.

tune.json has a row for each plan: the modelled and the measured time of a step, ``model_us`` and
``us``, by paired rounds of CUDA events, and ``ratio``, the time of the model's choice over that of
the plan. tune.md compares the model's choice with the fastest plan, and has fitted constants of the
model (``Costs`` in csrc/cuda/kernels.h). measured.txt has the entries for
fastlstm/backends/gpu/timings.py: the times of both ways of each pass, and the fastest backends, if
FOLDER has a compare.json.

On a CPU the kernels are emulated, as in the tests.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import compare, costs, measured, record
from benchmarks.gpu.passes import Passes, Problem
from benchmarks.timing import median_ms, paired, ratio
from fastlstm.backends import cuda

TESTS = Path(__file__).resolve().parents[2] / "tests"
STEPWISE = "step by step"
_BOX_S = 90  # seconds that a problem may take
# The dtype in which the reference errs as much as a precision: TF32 has the mantissa of float16.
_LIKE = {"bfloat16": torch.bfloat16, "float16": torch.float16, "tf32": torch.float16}


def problems(small: bool) -> Iterator[Problem]:
    """Yield the problems to measure: the sizes of ``compare``, in its order."""
    if small:
        yield from (Problem("bfloat16", 48, 9, 1), Problem("tf32", 16, 3, 2))
        return
    cells = (Problem(cell.precision, cell.H, cell.B, cell.D) for cell in compare.cells(small))
    yield from dict.fromkeys(cells)


def kernels_for(device: str) -> Any:
    """Return the kernels of fastlstm._C, or on a CPU emulated ones."""
    if device == "cuda":
        if not cuda.kernels.built:
            raise SystemExit(f"this build has no CUDA kernels: {cuda.kernels.reason}")
        return cuda.kernels
    sys.path.insert(0, str(TESTS))
    import emulation

    return emulation.module("cuda_emulation")


def spread(plans: Sequence[dict[str, int]], most: int) -> list[int]:
    """Choose ``most`` plans: half from the start of the list, half evenly spaced in the rest."""
    first = range(min(len(plans), most // 2))
    left = len(plans) - len(first)
    count = min(left, most - len(first))
    return [*first, *(len(first) + (2 * i + 1) * left // (2 * count) for i in range(count))]


def measure(
    kernels: Any, problem: Problem, T: int, device: str, most: int
) -> Iterator[dict[str, Any]]:
    """Measure a row for each plan of both passes, and one for each pass step by step."""
    torch.backends.cudnn.allow_tf32 = True  # torch's default, which the kernels follow
    torch.backends.cuda.matmul.allow_tf32 = False  # in the reference
    passes = Passes(kernels, problem, T, device)
    truth, like = (passes.reference(t) for t in (torch.float32, _LIKE[problem.precision]))
    torch.backends.cuda.matmul.allow_tf32 = problem.precision == "tf32"
    for direction, launch in passes.launches.items():
        dtype, *sizes = (launch.arguments[name] for name in ("dtype", "B", "G", "H"))
        of = (direction, dtype, *sizes)
        limit = 4 * compare.errors(like[direction], truth[direction])
        plans, refusal = kernels.plans(
            *of, products=launch.products, device=kernels.device(launch.arguments["device"])
        )
        if refusal:
            yield {**problem._asdict(), "direction": direction, "refused": refusal}
        rows: dict[str, dict[str, Any]] = {}
        contenders: dict[str, Callable[[], object]] = {}
        for place in (*spread(plans, most), None):
            plan = None if place is None else plans[place]
            name = STEPWISE if place is None else str(place)
            row = {**problem._asdict(), "direction": direction, "rank": name}
            row |= {"dtype": dtype, "T": T}
            if plan is not None:
                step = costs.Step(*of, launch.products, plan, ns=0)
                model_us = step.model(kernels, kernels.costs()) / 1e3
                row |= {"products": launch.products, "plan": plan, "model_us": model_us}
            rows[name] = row
            if direction == "forward":
                passes.poison()
            try:
                error = compare.errors(passes.run(direction, plan), truth[direction])
            except RuntimeError as refused:
                if device == "cuda":
                    torch.cuda.synchronize()  # raises too if the device is lost
                row["refused"] = str(refused).splitlines()[0]
                continue
            row["error"] = error
            if error > limit:
                row["refused"] = f"errs by {error:.1e}, more than {limit:.1e}"
                continue
            contenders[name] = lambda way=direction, plan=plan: passes.run(way, plan)
        seconds = paired(contenders, record.ROUNDS, device=device)
        for name, samples in seconds.items():
            rows[name]["us"] = 1e3 * median_ms(samples) / T
            if "0" in seconds:
                rows[name]["ratio"] = ratio(seconds, "0", name)
        yield from rows.values()
        passes.run("forward", None)  # the backward pass needs correct outputs of a forward pass


def layouts(device: str, problem: list[Any], T: int, most: int) -> dict[str, Any]:
    """Measure the rows of one problem; a task of :mod:`benchmarks.gpu.worker`."""
    return {"rows": list(measure(kernels_for(device), Problem(*problem), T, device, most))}


def steps(rows: Sequence[dict[str, Any]]) -> list[costs.Step]:
    """Return the measured steps, to which the constants are fitted."""
    sizes = ("direction", "dtype", "B", "G", "H", "products", "plan")
    timed = (row for row in rows if "plan" in row and "us" in row)
    return [costs.Step(*(row[name] for name in sizes), ns=1e3 * row["us"]) for row in timed]


def choices(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Write a table of each problem and pass: the model's choice, the fastest plan, no plan."""
    lines = [
        "| precision | H | B | G | pass | model's choice | us/step | model | fastest | us/step "
        "| ratio | step by step |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    names = (*Problem._fields, "direction")
    for key in dict.fromkeys(tuple(row[name] for name in names) for row in rows):
        timed = {
            row["rank"]: row
            for row in rows
            if tuple(row[name] for name in names) == key and "us" in row
        }
        stepwise, chosen = timed.pop(STEPWISE, {}), timed.get("0", {})
        best = min(timed.values(), key=lambda row: row["us"], default={})
        cells = [*map(str, key), _short(chosen), _number(chosen, "us"), _number(chosen, "model_us")]
        cells += [_short(best), _number(best, "us"), _number(best, "ratio")]
        lines.append(f"| {' | '.join([*cells, _number(stepwise, 'us')])} |")
    return lines


def _short(row: dict[str, Any]) -> str:
    """Describe the plan of a row in words; "none" for an empty row."""
    if not row:
        return "none"
    words = "{slices}x{tiles} blocks, {units} units, kernel {kernel}, {k_warps} k warps, "
    return (words + "chunks of {chunk_steps}").format(**row["plan"])


def _number(row: dict[str, Any], name: str) -> str:
    return f"{row[name]:.2f}" if name in row else ""


def report(arguments: argparse.Namespace, kernels: Any) -> None:
    """Write and print tune.md, and write measured.txt, from the rows in the folder."""
    found = record.read(arguments.out / "tune.json")
    lines = [f"# {found['device']}, {found['time']}", "", *choices(found["rows"])]
    if timed := steps(found["rows"]):
        lines += ["", *costs.report(kernels, timed)]
    (arguments.out / "tune.md").write_text("\n".join([*lines, ""]))
    print("\n".join(lines))
    text = "PASSES\n" + measured.source_of_passes(found["rows"], _kind(found))
    compared = arguments.out / "compare.json"
    if compared.exists():
        of = record.read(compared)
        text = "TABLES\n" + measured.source(of["rows"], _kind(of)) + text
    else:
        print(f"no table of backends: benchmarks.gpu.compare has left no {compared}")
    (arguments.out / "measured.txt").write_text(text)
    print(f"the entries for timings.py are in {arguments.out / 'measured.txt'}")


def _kind(results: dict[str, Any]) -> tuple[str, int]:
    return results["device"], results["multiprocessors"]


def main() -> None:
    options = record.parser(__doc__, minutes=8.5)
    options.add_argument("--report", action="store_true", help="report without measuring")
    options.add_argument("--plans", type=int, default=16, help="plans to time per problem")
    arguments = options.parse_args()
    if arguments.plans < 2:
        options.error(f"--plans: expected at least 2, got {arguments.plans}")
    kernels = kernels_for(arguments.device)
    if arguments.report:
        report(arguments, kernels)
        return
    results, worker = record.Results(arguments, "tune", resume=True), record.worker(arguments)
    done = {tuple(row[name] for name in Problem._fields) for row in results.rows}
    for problem in problems(arguments.small):
        if tuple(problem) in done:
            continue
        if results.seconds_left < 0:
            break
        T = 4 if arguments.small else 512
        how = {"problem": list(problem), "T": T, "most": arguments.plans}
        answer = worker.ask(
            "benchmarks.gpu.tune:layouts", {"device": arguments.device, **how}, _BOX_S
        )
        refused = {"direction": "both", "refused": answer.get("ended")}
        for row in answer.get("rows", [{**problem._asdict(), **refused}]):
            results.add(**row)
    worker.close()
    report(arguments, kernels)


if __name__ == "__main__":
    main()
