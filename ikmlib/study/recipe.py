"""The training recipe of the CPU profiles: chosen once, before any comparison, on validation images alone.

Each candidate trains U-HDB at x2 without and with IKM, on a seed that no comparison uses. A candidate at which RB
diverges, without or with IKM, is out (see results/PLAN.md, "Amended"). Notebook 00 shows the search.
"""
from __future__ import annotations

import math
from dataclasses import replace

from ikmlib.config import PROFILES
from ikmlib.models import ARCHITECTURES
from ikmlib.study import records

RATES = (5e-4, 1e-3, 2e-3)                       # first, at the first shape
SHAPES = ((4000, 4), (2000, 8), (8000, 2))       # then, at the rate that won: updates x batch, as many pixels each
MARGIN = 0.02    # dB: within it of the best, the candidate with the fewest updates is taken, then the lowest rate

Candidate = tuple[float, int, int]   # rate, updates, batch


def runs(candidate: Candidate, seed: int, block: str) -> list[records.Run]:
    """The two trainings of a step, without and with IKM."""
    rate, updates, batch = candidate
    usual = records.Run.of(PROFILES["recipe"], ARCHITECTURES[block], seed)
    return [replace(usual, arch=replace(usual.arch, attention=attention), rate=rate, updates=updates, batch=batch)
            for attention in ("none", "ikm")]


def psnr(run: records.Run) -> float:
    """PSNR on the validation images after the last update, dB; NaN where the run is not finished."""
    return float(run.curve().psnr_y.iloc[-1]) if run.finished else math.nan


def choose(means: dict[Candidate, float]) -> Candidate:
    """The rule, see MARGIN. `means`: validation PSNR in dB, mean of the two networks."""
    best = max(means.values())
    return min((c for c, mean in means.items() if mean >= best - MARGIN), key=lambda c: (c[1], c[0]))


def _stage(candidates: list[Candidate], seed: int) -> tuple[list[tuple], Candidate | None]:
    """U-HDB at all candidates, RB at the best; and the best at which RB trains, None while runs are missing."""
    steps = [(candidate, seed, "uhdb") for candidate in candidates]
    means = {candidate: sum(map(psnr, runs(candidate, seed, "uhdb"))) / 2 for candidate in candidates}
    while means and not any(map(math.isnan, means.values())):
        best = choose(means)
        steps.append((best, seed, "rb"))
        check = runs(*steps[-1])
        if not any(run.diverged for run in check):
            return steps, best if all(run.finished for run in check) else None
        del means[best]
    return steps, None


def steps() -> list[tuple[Candidate, int, str]]:
    """(candidate, seed, block) of the search as far as runs decide it: the rates, the shapes at the rate that is left,
    the winner on the second seed."""
    first, second = PROFILES["recipe"].seeds
    rates, best = _stage([(rate, *SHAPES[0]) for rate in RATES], first)
    shapes, best = _stage([(best[0], *shape) for shape in SHAPES] if best else [], first)
    last = [(best, second, "uhdb")] if best else []
    return list(dict.fromkeys(rates + shapes + last))
