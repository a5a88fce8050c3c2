"""What the constants of the model that ranks plans should be, by the steps that were timed.

They are ``Costs`` of csrc/cuda/kernels.h. A fit minimises the squares of log(model / measured). The
model is that of csrc/cuda/plan.cpp itself, which is called for every guess.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

# The clock only says how many ns the cycles are that others count in: one of them must be given.
_GIVEN = ("clock",)
# A constant that comes out e times larger weighs as much as one step that is missed by 2 %: those
# of which no step tells stay where they were.
_PRIOR = 0.02
_ITERATIONS = 60
_SLOPE = 1e-4  # width of a difference, of a logarithm


class Step(NamedTuple):
    """A plan of a problem, and how long a step of it took."""

    direction: str
    dtype: str
    B: int
    G: int
    H: int
    products: str
    plan: dict[str, int]
    ns: float

    def model(self, kernels: Any, costs: dict[str, float]) -> float:
        """ns with these constants."""
        found: float = kernels.step_ns(*self[:5], products=self[5], plan=self.plan, costs=costs)
        return found


def misses(kernels: Any, steps: Sequence[Step], costs: dict[str, float]) -> np.ndarray:
    """log(model / measured) of each step."""
    return np.log([step.model(kernels, costs) / step.ns for step in steps])


def fit(kernels: Any, steps: Sequence[Step]) -> dict[str, float]:
    """The constants with which the model misses the steps least, by Levenberg and Marquardt."""
    before: dict[str, float] = kernels.costs()
    names = [name for name in before if name not in _GIVEN]
    start = np.log([before[name] for name in names])

    def costs(logs: np.ndarray) -> dict[str, float]:
        return before | dict(zip(names, np.exp(logs).tolist(), strict=True))

    def errors(logs: np.ndarray) -> np.ndarray:
        return np.concatenate([misses(kernels, steps, costs(logs)), _PRIOR * (logs - start)])

    logs, found, damping = start, errors(start), 1e-2
    for _ in range(_ITERATIONS):
        nearby = [errors(logs + _SLOPE * unit) for unit in np.eye(len(names))]
        jacobian = (np.stack(nearby, axis=1) - found[:, None]) / _SLOPE
        square = jacobian.T @ jacobian
        damped = square + damping * np.diag(square.diagonal())
        trial = logs - np.linalg.solve(damped, jacobian.T @ found)
        tried = errors(trial)
        if tried @ tried < found @ found:
            logs, found, damping = trial, tried, damping / 3
        else:
            damping *= 5
    return costs(logs)


def report(kernels: Any, steps: Sequence[Step]) -> list[str]:
    """The constants now and fitted, and how well the model tells times and plans with each."""
    now = kernels.costs()
    fitted = fit(kernels, steps)
    lines = ["| constant | now | fitted |", "|---|---|---|"]
    lines += [f"| {name} | {value:.4g} | {fitted[name]:.4g} |" for name, value in now.items()]
    lines.append("")
    for name, costs in (("now", now), ("fitted", fitted)):
        error = float(np.median(np.abs(misses(kernels, steps, costs))))
        lost = float(np.exp(np.mean(np.log(losses(kernels, steps, costs)))))
        lines.append(
            f"- {name}: the model misses a step by a factor of {np.exp(error):.2f} (median), and "
            f"its choice takes {lost:.3f} times as long as the fastest plan (geometric mean)"
        )
    return lines


def losses(kernels: Any, steps: Sequence[Step], costs: dict[str, float]) -> list[float]:
    """For each problem, the time of the plan that the model takes over that of the fastest one."""
    problems: dict[tuple[Any, ...], list[Step]] = {}
    for step in steps:
        problems.setdefault(step[:6], []).append(step)
    chosen = (min(them, key=lambda s: s.model(kernels, costs)) for them in problems.values())
    fastest = (min(step.ns for step in them) for them in problems.values())
    return [step.ns / ns for step, ns in zip(chosen, fastest, strict=True)]
