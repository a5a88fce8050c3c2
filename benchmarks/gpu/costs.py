"""Fit the constants of the model that ranks plans to measured times.

The constants are ``Costs`` in csrc/cuda/kernels.h. The fit minimises the squares of log(model /
measured), and calls the model in csrc/cuda/plan.cpp itself for every guess.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

# The clock only converts the unit of the other constants, cycles, to ns. One scale must be fixed.
_GIVEN = ("clock",)
# A regulariser: changing a constant by a factor of e costs as much as an error of 2 % in a step.
# Constants that no measured step depends on keep their values.
_PRIOR = 0.02
_ITERATIONS = 60
_SLOPE = 1e-4  # of the logarithm of a constant, for finite differences


class Step(NamedTuple):
    """A plan of a problem, and the measured time of a step."""

    direction: str
    dtype: str
    B: int
    G: int
    H: int
    products: str
    plan: dict[str, int]
    ns: float

    def model(self, kernels: Any, costs: dict[str, float]) -> float:
        """Return the ns that the model gives with these constants."""
        found: float = kernels.step_ns(*self[:5], products=self[5], plan=self.plan, costs=costs)
        return found


def misses(kernels: Any, steps: Sequence[Step], costs: dict[str, float]) -> np.ndarray:
    """Return log(model / measured) of each step."""
    return np.log([step.model(kernels, costs) / step.ns for step in steps])


def fit(kernels: Any, steps: Sequence[Step]) -> dict[str, float]:
    """Fit the constants by the method of Levenberg and Marquardt."""
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
    """Write a table of the constants now and fitted, and how well the model does with each."""
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
    """Return for each problem the time of the model's plan over that of the fastest plan."""
    problems: dict[tuple[Any, ...], list[Step]] = {}
    for step in steps:
        problems.setdefault(step[:6], []).append(step)
    chosen = (min(them, key=lambda s: s.model(kernels, costs)) for them in problems.values())
    fastest = (min(step.ns for step in them) for them in problems.values())
    return [step.ns / ns for step, ns in zip(chosen, fastest, strict=True)]
