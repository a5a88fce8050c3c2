"""The command ``fastlstm experiment``, which runs experiments of the paper."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fastlstm.experiments.actions import actions, comparison
from fastlstm.experiments.features import features
from fastlstm.experiments.out_of_domain import out_of_domain
from fastlstm.experiments.presets import PRESETS
from fastlstm.experiments.report import write_report
from fastlstm.experiments.setting import Setting
from fastlstm.experiments.time_scales import time_scales
from fastlstm.experiments.variants import moving_mnist, patches

EXPERIMENTS: dict[str, Callable[[Setting], dict[str, Any]]] = {
    "moving_mnist": moving_mnist,
    "patches": patches,
    "time_scales": time_scales,
    "out_of_domain": out_of_domain,
    "features": features,
    "actions": actions,
    "comparison": comparison,
}


def main(words: Sequence[str]) -> None:
    """Run the command ``fastlstm experiment``."""
    parser = argparse.ArgumentParser(
        "fastlstm experiment",
        description="Run experiments of Srivastava, Mansimov and Salakhutdinov (ICML 2015)."
        " Training runs that are finished are used again, interrupted ones are resumed. Arguments"
        " after -- are passed to every `fastlstm fit`.",
    )
    parser.add_argument("name", choices=[*EXPERIMENTS, "all"], help="see docs/experiments.md")
    parser.add_argument(
        "--preset",
        choices=PRESETS,
        default="small",
        help="small: on 2 CPU cores; paper: the paper's sizes, for a GPU. Default: small",
    )
    parser.add_argument("--out", type=Path, help="default: runs/experiments/PRESET[_trial]")
    parser.add_argument("--seeds", type=int, nargs="+", help="default: the preset's")
    parser.add_argument("--trial", type=int, metavar="STEPS", help="train for STEPS only")
    own, further = _split(words)
    parser.add_argument("--report", type=Path, metavar="FILE", help="write a report of all results")
    options = parser.parse_args(own)
    if options.trial is not None and options.trial < 1:
        parser.error(f"--trial: expected at least 1, got {options.trial}")
    kind = options.preset if options.trial is None else f"{options.preset}_trial"
    out = options.out or Path("runs") / "experiments" / kind
    setting = Setting(options.preset, out, options.seeds, options.trial, further)
    for name in EXPERIMENTS if options.name == "all" else [options.name]:
        EXPERIMENTS[name](setting)
        print(f"\nwrote {out / name / 'results.json'}")
    if options.report is not None:
        write_report(out, options.report)
        print(f"wrote {options.report}")


def _split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the arguments before ``--``, and those after it."""
    words = list(words)
    cut = words.index("--") if "--" in words else len(words)
    return words[:cut], words[cut + 1 :]
