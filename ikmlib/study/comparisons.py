"""From finished runs' records to tables, comparisons, figures and the words of a verdict.

Every artefact is told the same way. `summary` prints its networks beside the paper's numbers; `compare` answers its
questions, each a weighted sum of paired scores with an interval; `claim` says what the verdict rule makes of them.
Everywhere a plan is a frame of runs, see `records.factors`.
"""
from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from ikmlib import config
from ikmlib.config import PROFILES, Profile
from ikmlib.study import records
from ikmlib.study.experiments import PARTS, complete, planned
from ikmlib.study.records import factors, runs_in_words
from ikmlib.study.stats import (
    MIN_SEEDS,
    SMALLEST,
    UNTESTED,
    Difference,
    judge,
    outcomes,
    paired,
    residual_deviation,
    seeds_in_words,
)

Found = Mapping[str, Difference]   # a question's name -> its answer


# --- tables ---------------------------------------------------------------------------------------------------------


def paper(name: str, *index: str) -> pd.DataFrame:
    """A table of the paper, such as "table3", indexed by these columns if any. `none` and `-` stay text."""
    table = pd.read_csv(config.PAPER / f"{name}.csv", keep_default_na=False, na_values=[""])
    return table.set_index(list(index)) if index else table


def common_seeds(scores: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Only the seeds that every cell has, so that no row is the mean of other seeds than its neighbour. `names`: of the
    factors."""
    seeds = [set(rows.seed) for _, rows in scores.groupby(list(names))]
    return scores[scores.seed.isin(set.intersection(*seeds))] if seeds else scores


def summary(profile: Profile, part: str, sets: Sequence[str], published: pd.DataFrame | None = None) -> pd.DataFrame:
    """A row a cell of a part: its factors, N as trained, #Params (K) and #FLOPs (G) counted live, PSNR and SSIM of each
    set, paper | ours, and the runs finished. Where none of `sets` was scored, those that were are added.

    `published` (index: the factors): the paper's numbers, in columns params_k, flops_g, <set>_psnr, <set>_ssim; costs
    are then counted on networks of the paper's size, whatever N was trained. Ours are means over images, then over
    `common_seeds`, with the standard deviation over seeds, and stay empty until all declared runs of a cell are
    finished.
    """
    names, plan, cells = list(PARTS[part].factors), planned(profile, part), PARTS[part].cells(profile)
    counted, order = cells, list(cells)
    if published is not None:
        counted = PARTS[part].cells(PROFILES["paper"])
        order = list(dict.fromkeys([cell for cell in map(_cell, published.index) if cell in cells] + order))
    ours = common_seeds(records.scores(complete(plan)), names)
    scored = list(ours["set"].unique())
    shown = [*sets] if set(scored) & set(sets) else [*sets, *scored]
    of_cell, runs_of = dict(list(ours.groupby(names))), dict(list(plan.groupby(names).run))
    rows = []
    for cell in order:
        mine = of_cell.get(cell, ours.iloc[:0])
        params, multi_adds = counted[cell].cost
        values = {"params_k": (params / 1e3, None), "flops_g": (multi_adds / 1e9, None)}   # ours, deviation over seeds
        for name in shown:
            means = mine[mine["set"] == name].groupby("seed")[["psnr_y", "ssim_y"]].mean()
            for metric in ("psnr", "ssim"):
                values[f"{name}_{metric}"] = means[f"{metric}_y"].mean(), means[f"{metric}_y"].std()
        row = dict(zip(names, cell, strict=True)) | {"N_trained": "" if cells[cell].peer else cells[cell].arch.blocks}
        for quantity, (value, spread) in values.items():
            if published is not None and quantity in published:
                row[f"{quantity}_paper"] = _of_paper(published[quantity], cell)
            row |= {f"{quantity}_ours": value} | ({} if spread is None else {f"{quantity}_sd": spread})
        rows.append(row | {"seeds": mine.seed.nunique(), "runs": runs_in_words(runs_of.get(cell, ()))})
    return pd.DataFrame(rows)


def _cell(name) -> tuple:
    """A cell as a tuple, also where it has one factor: "V1" -> ("V1",)."""
    return name if isinstance(name, tuple) else (name,)


def _of_paper(published: pd.Series | None, cell: tuple) -> float:
    """What the paper prints for a cell, NaN where it prints nothing."""
    return float("nan") if published is None else published.get(cell if len(cell) > 1 else cell[0], float("nan"))


def rounding_cost(psnr: float) -> float:
    """dB that an image of `psnr` dB loses by rounding both Y: two errors of variance 1/12 each add 1/6 to the MSE."""
    return 10 * math.log10(1 + 10 ** (psnr / 10) / 255**2 / 6)


# --- comparisons ----------------------------------------------------------------------------------------------------


def minus(a, b) -> dict:
    """The question by how much cell `a` is better than cell `b`."""
    return {a: 1, b: -1}


def compare(plan: pd.DataFrame, questions: Mapping[str, Mapping], published: pd.Series | None = None, *,
            sets: Sequence[str] = (), family: str = "") -> dict[str, Difference]:
    """The answer to each question {cell: weight}: the weighted sum of the cells' PSNR, paired over images and seeds.

    A question is answered when all runs that it needs are finished: those of its cells with the seeds that all of them
    have by declaration. Ours are of all scored test sets, or of `sets` where they were scored; the paper's are sums of
    `published` (index: the factors). Deviations over seeds are pooled over the complete cells that share a value of the
    factor `family`, or over all complete cells without it (see `stats.residual_deviation`). A question about a network
    that is tested otherwise than it was trained uses the deviation of its own differences.
    """
    names, scores = factors(plan), records.scores(plan)
    if set(sets) & set(scores["set"]):
        scores = scores[scores["set"].isin(sets)]
    psnr = {cell: rows.pivot(index=["set", "image"], columns="seed", values="psnr_y")
            for cell, rows in scores.groupby(names)}
    trained = [cell for cell, rows in complete(plan).groupby(names)
               if all(isinstance(run, records.Run) for run in rows.run)]
    families = {cell: cell[names.index(family)] if family else "" for cell in trained}
    pooled = {name: residual_deviation(pd.DataFrame([psnr[cell].mean() for cell in trained if families[cell] == name]))
              for name in set(families.values())}
    runs = {cell: rows.set_index("seed").run for cell, rows in plan.groupby(names)}
    return {name: _difference({_cell(cell): weight for cell, weight in weights.items()}, psnr, runs, published,
                              lambda cells: pooled[families[cells[0]]] if set(cells) <= set(families) else None)
            for name, weights in questions.items()}


def _difference(weights: Mapping[tuple, float], psnr: Mapping[tuple, pd.DataFrame], runs: Mapping[tuple, pd.Series],
                published: pd.Series | None, deviation_of: Callable) -> Difference:
    """One answer of `compare`. `psnr`: images x seeds, of cells with finished runs; `runs`: by seed, of all cells."""
    theirs = sum(weight * _of_paper(published, cell) for cell, weight in weights.items())
    seeds = sorted(set.intersection(*(set(runs[cell].index) if cell in runs else set() for cell in weights)))
    needed = [run for cell in weights if cell in runs for run in runs[cell][seeds]]
    waiting = Difference(paper=theirs, runs=runs_in_words(needed))
    if not needed or not all(run.finished for run in needed):
        return waiting
    table = sum(weight * psnr[cell][seeds] for cell, weight in weights.items()).dropna()   # images x seeds
    if table.empty:   # scored on different images
        return waiting
    pooled = deviation_of(list(weights))
    if pooled is not None:
        pooled = pooled[0] * np.sqrt(sum(weight ** 2 for weight in weights.values()) / len(seeds)), pooled[1]
    return replace(paired(table.to_numpy(dtype=float).T, pooled), paper=theirs, runs=waiting.runs)


def table(found: Found) -> pd.DataFrame:
    """Answers as a table, a row each, in dB; with the standard errors that made the intervals."""
    rows = []
    for name, d in found.items():
        errors = [value for error in (*d.errors, (None, None), (None, None)) for value in error][:4]
        rows.append((name, d.paper, *d.interval, d.detectable, d.images or None, d.seeds or None, d.runs, *errors))
    frame = pd.DataFrame(rows, columns=["contrast", "gain_db_paper", "gain_db_ours", "low_db", "high_db",
                                        "detectable_db", "images", "seeds", "runs", "images_error_db",
                                        "images_freedom", "seeds_error_db", "seeds_freedom"])
    return frame.astype({"images": "Int64", "seeds": "Int64"} | dict.fromkeys(frame.columns[-4:], float))


def _in_words(name: str, d: Difference, outcome: str | None) -> str:
    """A comparison as a verdict tells it: difference, interval, outcome, and what could have been seen."""
    if outcome is None:
        return f"{name} {d}"
    seen = f"; {d.detectable:.3f} could have been seen" if np.isfinite(d.detectable) else ""
    return f"{name} {d} ({outcome}{seen})"


def claim(found: Found, profile: Profile, *, paper: str, holds: str, margin: float = 0.0, smallest: float = SMALLEST,
          correct: Callable[[Sequence[float]], Sequence[float]] = list) -> dict[str, object]:
    """Keyword arguments of `Page.verdict` for a claim that all of `found` are better, or at least as good within
    `margin` (see `stats.outcomes`). While one of them waits for runs, the claim is not tested."""
    known = {name: d for name, d in found.items() if d.known}
    fewest = min((d.seeds for d in known.values()), default=0) if len(known) == len(found) else 0
    said = {}   # outcomes, once all are known: correcting for their number needs all of them
    if fewest:
        said = dict(zip(found, outcomes(list(found.values()), margin=margin, smallest=smallest, correct=correct),
                        strict=True))
    if len(found) <= 5 or not known:
        ours = "; ".join(_in_words(name, d, said.get(name)) for name, d in found.items())
    else:
        means, sizes = [d.mean for d in known.values()], [d.detectable for d in known.values()]
        counts = ", ".join(f"{n} {name}" for name, n in Counter(said.values()).items())
        ours = (f"{len(known)} of {len(found)} comparisons complete, from {min(means):+.3f} to {max(means):+.3f} dB"
                + f": {counts}" * bool(said) + f"; {max(sizes):.3f} dB could have been seen in any of them")
    enough = profile.evidence and fewest >= MIN_SEEDS
    drawn = {name: [None if pd.isna(x) else float(x) for x in ((d.paper, *d.interval) if d.known else (d.paper,))]
             for name, d in found.items()}
    return {"paper": paper, "ours": ours, "seeds": fewest, "comparisons": drawn,
            "verdict": judge(list(said.values())) if enough else UNTESTED,
            "because": f"{holds} " + (f"Fewest seeds of any comparison: {fewest} ({MIN_SEEDS} needed)." if fewest else
                                      "Some of the declared runs are not finished.")}


# --- figures --------------------------------------------------------------------------------------------------------


def with_seeds(found: Found) -> list[str]:
    """The names of answers; with the runs that are finished where some are not, and with the number of seeds where
    answers rest on different numbers: one seed's interval, of images alone, is narrow for that reason."""
    several = len({d.seeds for d in found.values() if d.known}) > 1
    return [name + (f" ({seeds_in_words(d.seeds)})" * several if d.known else f" ({d.runs})")
            for name, d in found.items()]


def figure_differences(found: Found, published_on: str = "", kinds: Mapping[str, str] | None = None):
    """Ours with the 95 % interval, hollow where seeds are too few for a verdict, the paper's as a hollow diamond; a row
    an answer. `published_on`: the test set of the paper's numbers; `kinds`: name of an answer -> what its colour says.
    """
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 1.7 + 0.42 * len(found)))
    kinds = dict.fromkeys(found, "ours, 95 % interval, all test images") if kinds is None else kinds
    colours = {kind: f"C{2 * i}" for i, kind in enumerate(dict.fromkeys(kinds.values()))}
    for y, (name, d) in enumerate(found.items()):
        colour = colours[kinds[name]]
        if d.known:
            axes.errorbar(d.mean, y, xerr=[[d.mean - d.low], [d.high - d.mean]], fmt="o", capsize=4, color=colour,
                          mfc=colour if d.seeds >= MIN_SEEDS else "white")
        axes.plot(d.paper, y, "D", ms=7.5, mfc="none", mec="C1", mew=1.6)
    for kind, colour in colours.items():
        axes.errorbar([], [], xerr=[], fmt="o", capsize=4, color=colour, label=kind)
    if any(np.isfinite(d.paper) for d in found.values()):
        axes.plot([], [], "D", ms=7.5, mfc="none", mec="C1", mew=1.6,
                  label=f"paper{published_on and f', {published_on}, no interval'}")
    axes.axvline(0, color="0.3", lw=1)
    axes.set_yticks(range(len(found)), with_seeds(found))
    axes.set_ylim(len(found) - 0.5, -0.5)
    axes.grid(False, axis="y")
    axes.set(xlabel="PSNR difference (dB)")
    figure.legend(ncols=2, loc="outside lower center", fontsize=11)
    return figure


def figure_curves(plan: pd.DataFrame, hue: str, style: str | None = None):
    """Validation PSNR over updates of a plan's complete cells; colour and dashes by factor, bands: standard deviation
    over seeds."""
    import matplotlib.pyplot as plt
    import seaborn

    figure, axes = plt.subplots(figsize=(9, 5.5))
    curves = records.curves(complete(plan))
    curves[hue] = curves[hue].astype(str)
    seaborn.lineplot(curves, x="update", y="psnr_y", hue=hue, style=style or hue, errorbar="sd", ax=axes)
    axes.set(xlabel="updates", ylabel="validation PSNR (dB)")
    return figure
