"""The training recipe of the CPU profiles: chosen once, before any comparison, on validation images alone.

Candidates differ in rate and in how the same number of pixels is cut into updates and batches. Each trains U-HDB at x2
without and with IKM, on a seed that no comparison uses; no test image is seen. A rate at which RB, the network without
dense connections, diverges without or with IKM is out, and so is such a shape (see results/PLAN.md, "Amended").
"""
from __future__ import annotations

from dataclasses import replace

import pandas as pd

from ikmlib.config import PROFILES
from ikmlib.models import ARCHITECTURES
from ikmlib.study import records
from ikmlib.study.records import Run

RATES = (5e-4, 1e-3, 2e-3)                       # first, at the profile's updates x batch
SHAPES = ((4000, 4), (2000, 8), (8000, 2))       # then, at the rate that won: updates x batch, as many pixels each
ATTENTIONS = ("none", "ikm")
MARGIN = 0.02    # dB: within it of the best, the cheaper candidate is taken (fewer updates), then the lower rate
CONFIRM = 0.05   # dB: a second seed of the winner within it of the first confirms the choice

Candidate = tuple[float, int, int]   # rate, updates, batch


def runs(candidate: Candidate, seed: int, block: str = "uhdb") -> dict[str, Run]:
    """The two trainings of a candidate: attention -> run."""
    rate, updates, batch = candidate
    return {attention: replace(Run.of(PROFILES["recipe"], replace(ARCHITECTURES[block], attention=attention), seed),
                               rate=rate, updates=updates, batch=batch) for attention in ATTENTIONS}


def _psnr(run: Run) -> float:
    """PSNR on the validation images after the last update, dB; NaN where the run is not finished."""
    return float(run.curve().psnr_y.iloc[-1]) if run.finished else float("nan")


def validation_psnr(candidate: Candidate, seed: int) -> dict[str, float] | None:
    """PSNR on the validation images after the last update, dB, by attention; None unless both runs are finished."""
    wanted = runs(candidate, seed)
    if not all(run.finished for run in wanted.values()):
        return None
    return {name: _psnr(run) for name, run in wanted.items()}


def choose(means: dict[Candidate, float]) -> Candidate:
    """The rule: of all candidates within MARGIN of the highest mean, the one with the fewest updates, then the lowest
    rate. `means`: validation PSNR in dB, mean of the two networks."""
    best = max(means.values())
    return min((c for c, mean in means.items() if mean >= best - MARGIN), key=lambda c: (c[1], c[0]))


def _means(candidates: list[Candidate]) -> dict[Candidate, float] | None:
    """Mean of the two networks by candidate, first seed; None unless all are finished."""
    found = {c: validation_psnr(c, PROFILES["recipe"].seeds[0]) for c in candidates}
    return None if None in found.values() else {c: sum(psnr.values()) / 2 for c, psnr in found.items()}


Step = tuple[Candidate, int, str]   # candidate, seed, block


def _bearable(means: dict[Candidate, float]) -> tuple[list[Step], Candidate | None]:
    """The best candidate at which RB trains, None while that is unknown; and the steps that tell."""
    taken, means, seed = [], dict(means), PROFILES["recipe"].seeds[0]
    while means:
        best = choose(means)
        taken.append((best, seed, "rb"))
        check = runs(*taken[-1]).values()
        if not any(run.diverged for run in check):
            return taken, best if all(run.finished for run in check) else None
        del means[best]
    return taken, None


def steps() -> list[Step]:
    """The search as far as runs decide it: all rates, and RB at the best; all shapes at the rate that is left, and RB
    at the best; the winner on the second seed."""
    first, second = PROFILES["recipe"].seeds
    taken, candidates = [], [(rate, *SHAPES[0]) for rate in RATES]
    for stage in ("rates", "shapes"):
        taken += [(c, first, "uhdb") for c in candidates]
        means = _means(candidates)
        checks, best = _bearable(means) if means else ([], None)
        taken += checks
        if best is None:
            return list(dict.fromkeys(taken))
        if stage == "rates":
            candidates = [(best[0], *shape) for shape in SHAPES]
    return [*dict.fromkeys(taken), (best, second, "uhdb")]


def wanted() -> list[Run]:
    """Runs of the search, in order, as far as runs decide it; without those that diverged."""
    return [run for step in steps() for run in runs(*step).values() if not run.diverged]


def chosen() -> Candidate | None:
    """The recipe that the search chose, None while it is under way."""
    candidate, seed, _ = steps()[-1]
    return candidate if seed == PROFILES["recipe"].seeds[1] else None


def table() -> pd.DataFrame:
    """The search: rate, updates, batch, seed, block, psnr_none, psnr_ikm, psnr_mean (dB, NaN where not finished),
    diverged (which of the two did), chosen."""
    rows = []
    for candidate, seed, block in steps():
        pair = runs(candidate, seed, block)
        psnr = [_psnr(run) for run in pair.values()]
        rows.append((*candidate, seed, block, *psnr, sum(psnr) / 2,
                     " and ".join(name for name, run in pair.items() if run.diverged) or "-",
                     candidate == chosen() and block == "uhdb"))
    return pd.DataFrame(rows, columns=["rate", "updates", "batch", "seed", "block", "psnr_none", "psnr_ikm",
                                       "psnr_mean", "diverged", "chosen"])
