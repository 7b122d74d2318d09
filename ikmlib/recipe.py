"""The training recipe of the CPU profiles: chosen once, before any comparison, on validation images alone.

Candidates differ in rate and in how the same number of pixels is cut into updates and batches. Each trains U-HDB at x2
without and with IKM, on a seed that no comparison uses; no test image is seen.
"""
from __future__ import annotations

from dataclasses import replace

import pandas as pd

from . import study
from .config import PROFILES
from .models import ARCHITECTURES
from .study import Run

RATES = (5e-4, 1e-3, 2e-3)                       # first, at the profile's updates x batch
SHAPES = ((4000, 4), (2000, 8), (8000, 2))       # then, at the rate that won: updates x batch, as many pixels each
NETWORKS = {"none": replace(ARCHITECTURES["uhdb"], attention="none"), "ikm": ARCHITECTURES["uhdb"]}
MARGIN = 0.02    # dB: within it of the best, the cheaper candidate is taken (fewer updates), then the lower rate
CONFIRM = 0.05   # dB: a second seed of the winner within it of the first confirms the choice

Candidate = tuple[float, int, int]   # rate, updates, batch


def runs(candidate: Candidate, seed: int) -> dict[str, Run]:
    """The two trainings of a candidate: network -> run."""
    rate, updates, batch = candidate
    return {name: replace(Run.of(PROFILES["recipe"], arch, seed), rate=rate, updates=updates, batch=batch)
            for name, arch in NETWORKS.items()}


def validation_psnr(candidate: Candidate, seed: int) -> dict[str, float] | None:
    """PSNR on the validation images after the last update, dB, by network; None unless both runs are finished."""
    wanted = runs(candidate, seed)
    if not all(run.finished for run in wanted.values()):
        return None
    return {name: float(study.curves([run]).psnr_y.iloc[-1]) for name, run in wanted.items()}


def choose(means: dict[Candidate, float]) -> Candidate:
    """The rule: of all candidates within MARGIN of the highest mean, the one with the fewest updates, then the lowest
    rate. `means`: validation PSNR in dB, mean of the two networks."""
    best = max(means.values())
    return min((c for c, mean in means.items() if mean >= best - MARGIN), key=lambda c: (c[1], c[0]))


def _means(candidates: list[Candidate]) -> dict[Candidate, float] | None:
    """Mean of the two networks by candidate, first seed; None unless all are finished."""
    found = {c: validation_psnr(c, PROFILES["recipe"].seeds[0]) for c in candidates}
    return None if None in found.values() else {c: sum(psnr.values()) / 2 for c, psnr in found.items()}


def steps() -> list[tuple[Candidate, int]]:
    """(candidate, seed) of the search as far as finished runs decide it: all rates, then all shapes at the rate that
    won, then the winner on the second seed."""
    first, second = PROFILES["recipe"].seeds
    candidates = [(rate, *SHAPES[0]) for rate in RATES]
    means = _means(candidates)
    if means is None:
        return [(c, first) for c in candidates]
    rate = choose(means)[0]
    candidates += [(rate, *shape) for shape in SHAPES[1:]]
    means = _means(candidates)
    return [(c, first) for c in candidates] + ([] if means is None else [(choose(means), second)])


def wanted() -> list[Run]:
    """Runs of the search, in order, as far as finished runs decide it."""
    return [run for candidate, seed in steps() for run in runs(candidate, seed).values()]


def table() -> pd.DataFrame:
    """The search: rate, updates, batch, seed, psnr_none, psnr_ikm, psnr_mean (dB), chosen. NaN: not finished."""
    rows = []
    for candidate, seed in steps():
        psnr = validation_psnr(candidate, seed) or {}
        rows.append((*candidate, seed, *(psnr.get(name, float("nan")) for name in NETWORKS)))
    frame = pd.DataFrame(rows, columns=["rate", "updates", "batch", "seed", "psnr_none", "psnr_ikm"])
    frame["psnr_mean"] = frame[["psnr_none", "psnr_ikm"]].mean(axis=1, skipna=False)
    last = steps()[-1]
    decided = last[1] == PROFILES["recipe"].seeds[1]
    return frame.assign(chosen=[decided and step[0] == last[0] for step in steps()])
