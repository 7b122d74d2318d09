"""From finished runs' records to tables, comparisons, figures and the words of a verdict.

Every artefact is told the same way. `summary` prints its networks beside the paper's numbers; `compare` answers its
questions, each a weighted sum of paired scores with an interval; `claim` says what the verdict rule makes of them.
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
from ikmlib.study.records import runs_in_words
from ikmlib.study.stats import (
    MIN_SEEDS,
    SMALLEST,
    UNTESTED,
    Difference,
    judge,
    outcomes,
    paired,
    residual_deviation,
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


def compare(scores: pd.DataFrame, questions: Mapping[str, Mapping], published: pd.Series | None = None, *,
            sets: Sequence[str] = (), family: str = "") -> Found:
    """The answer to each question {cell: weight}: the weighted sum of the cells' PSNR, paired over images and seeds.

    `scores`: as `records.scores` gives them; the columns before `seed` name a cell. A question is answered when all
    runs that it needs are finished: those of its cells with the seeds that all of them have by declaration. Ours are of
    all scored test sets, or of `sets` where they were scored; the paper's are sums of `published` (index: the factors).

    Standard deviations over seeds are pooled over like networks (see `stats.residual_deviation`): over the complete
    cells that share a value of the column `family`, or over all complete cells without it. A question about cells of
    several families, or of none (NaN), uses the standard deviation of its own differences.
    """
    names = list(scores.columns[:scores.columns.get_loc("seed")])
    cells = {_cell(cell): rows for cell, rows in scores.groupby(names, sort=False)}
    if set(sets) & set(scores["set"]):
        scores = scores[scores["set"].isin(sets)]
    finished = scores.dropna(subset=["psnr_y"])
    psnr = {_cell(cell): rows.pivot(index=["set", "image"], columns="seed", values="psnr_y")
            for cell, rows in finished.groupby(names, sort=False)}
    families = {cell: rows[family].iloc[0] if family else "all" for cell, rows in cells.items()}
    members = {}
    for cell, rows in cells.items():
        if cell in psnr and (rows.state == "finished").all():
            members.setdefault(families[cell], []).append(psnr[cell].mean())
    pooled = {name: residual_deviation(pd.DataFrame(means)) for name, means in members.items() if pd.notna(name)}

    def answer(weights: Mapping) -> Difference:
        weights = {_cell(cell): weight for cell, weight in weights.items()}
        name, *others = {families.get(cell) for cell in weights}
        return replace(_difference(weights, cells, psnr, None if others else pooled.get(name)),
                       paper=sum(weight * _of_paper(published, cell) for cell, weight in weights.items()))

    return {name: answer(weights) for name, weights in questions.items()}


def _difference(weights: Mapping[tuple, float], cells: Mapping[tuple, pd.DataFrame], psnr: Mapping[tuple, pd.DataFrame],
                deviation: tuple[float, int] | None) -> Difference:
    """One answer of `compare`. `cells`: scores of all declared cells; `psnr`: images x seeds of those with any;
    `deviation`: the pooled standard deviation over seeds and its degrees of freedom, None for the differences' own."""
    nothing = pd.DataFrame(columns=["seed", "run", "state"])
    declared = [cells.get(cell, nothing)[[*nothing]] for cell in weights]
    seeds = sorted(set.intersection(*(set(rows.seed) for rows in declared)))
    needed = pd.concat([rows[rows.seed.isin(seeds)] for rows in declared])
    waiting = Difference(runs=_states_in_words(needed))
    if not seeds or set(needed.state) != {"finished"} or not set(weights) <= set(psnr):
        return waiting
    table = sum(weight * psnr[cell][seeds] for cell, weight in weights.items()).dropna()   # images x seeds
    if table.empty:   # scored on different images
        return waiting
    if deviation is not None:
        norm = np.sqrt(sum(weight ** 2 for weight in weights.values()) / len(seeds))
        deviation = deviation[0] * norm, deviation[1]
    return replace(paired(table.to_numpy(dtype=float).T, deviation), runs=waiting.runs)


def _states_in_words(rows: pd.DataFrame) -> str:
    """How many of the runs that these scores are of are finished: "3 of 5 runs, 1 diverged"."""
    if rows.empty:
        return "not planned"
    states = rows.groupby("run").state.agg(set)   # a run that is tested in two ways is finished when both are
    done, diverged = (states == {"finished"}).sum(), states.map(lambda found: "diverged" in found).sum()
    return f"{done} of {len(states)} runs" + f", {diverged} diverged" * bool(diverged)


def table(found: Found) -> pd.DataFrame:
    """Answers as a table, a row each, in dB; with the standard errors that made the intervals."""
    rows = []
    for name, d in found.items():
        errors = [value for error in (*d.errors, (None, None), (None, None)) for value in error][:4]
        rows.append((name, d.paper, *d.interval, d.own_low, d.own_high, d.detectable, d.images or None, d.seeds or None,
                     d.runs, *errors))
    frame = pd.DataFrame(rows, columns=["contrast", "gain_db_paper", "gain_db_ours", "low_db", "high_db", "own_low_db",
                                        "own_high_db", "detectable_db", "images", "seeds", "runs", "images_error_db",
                                        "images_freedom", "seeds_error_db", "seeds_freedom"])
    return frame.astype({"images": "Int64", "seeds": "Int64"} | dict.fromkeys(frame.columns[-4:], float))


# --- claims ---------------------------------------------------------------------------------------------------------

_NAMES = {"contrast": "comparison", "gain_db_paper": "paper", "gain_db_ours": "ours", "low_db": "low",
          "high_db": "high", "own_low_db": "own_low", "own_high_db": "own_high", "detectable_db": "detectable",
          "unit": "unit", "outcome": "outcome", "seeds": "seeds", "runs": "runs"}
JUDGED = [*_NAMES.values()]   # columns of comparisons in claims.csv, those of `table` under other names


def claim(found: Found, profile: Profile, *, paper: str, holds: str, margin: float = 0.0, smallest: float = SMALLEST,
          correct: Callable[[Sequence[float]], Sequence[float]] = list, among: Found | None = None) -> dict:
    """Keyword arguments of `Page.verdict` for a claim that all of `found` are better, or at least as good within
    `margin` (see `stats.outcomes`), with a row a comparison as in JUDGED. While one waits for runs, none is judged.

    If all hold by their own intervals, the claim holds and nothing is corrected: each of them had to. Otherwise
    `correct` decides what single ones of them say. `among`: the comparisons that one of them is corrected for, also if
    it holds.
    """
    judged = among or found
    fewest = min(d.seeds for d in judged.values()) if all(d.known for d in judged.values()) else 0
    enough, said = profile.evidence and fewest >= MIN_SEEDS, dict.fromkeys(found, "waits")
    if enough:
        differences = list(judged.values())
        each = outcomes(differences, margin=margin, smallest=smallest)
        if among or set(each) != {"holds"}:
            each = outcomes(differences, margin=margin, smallest=smallest, correct=correct)
        said |= {name: outcome for name, outcome in zip(judged, each, strict=True) if name in found}
    rows = table(found).assign(unit=[d.unit for d in found.values()], outcome=said.values())
    return {"paper": paper, "ours": _ours_in_words(found, said), "comparisons": rows.rename(columns=_NAMES)[JUDGED],
            "verdict": judge(list(said.values())) if enough else UNTESTED,
            "because": f"{holds} " + (f"Fewest seeds of any comparison: {fewest} ({MIN_SEEDS} needed)." if fewest else
                                      "Some of the declared runs are not finished.")}


def _ours_in_words(found: Found, said: Mapping[str, str]) -> str:
    """The comparisons of a claim in one line."""
    if len(found) == 1:
        return str(*found.values())
    known = sorted((d for d in found.values() if d.known), key=lambda d: d.mean)
    if "waits" in said.values():
        return f"{sum(d.seeds >= MIN_SEEDS for d in known)} of {len(found)} comparisons are complete"
    verbs = {"holds": "hold", "fails": "fail"}   # of several
    counts = ", ".join(f"{n} {verbs.get(outcome, outcome)}" for outcome, n in Counter(said.values()).items())
    return f"of {len(found)} comparisons {counts}; from {known[0].mean:+.3f} to {known[-1].mean:+.3f} {known[0].unit}"


# --- figures --------------------------------------------------------------------------------------------------------


def figure_differences(found: Found, published_on: str = "", kinds: Mapping[str, str] | None = None):
    """Ours with the 95 % interval, hollow where seeds are too few for a verdict, the paper's as a hollow diamond; a row
    an answer; None while no answer is known. `published_on`: the test set of the paper's numbers; `kinds`: name of an
    answer -> what its colour says.
    """
    import matplotlib.pyplot as plt

    if not any(d.known for d in found.values()):
        return None
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
    axes.set_yticks(range(len(found)), [name if d.known else f"{name} ({d.runs})" for name, d in found.items()])
    axes.set_ylim(len(found) - 0.5, -0.5)
    axes.grid(False, axis="y")
    axes.set(xlabel="PSNR difference (dB)")
    figure.legend(ncols=2, loc="outside lower center", fontsize=11)
    return figure


def figure_curves(plan: pd.DataFrame, hue: str, style: str | None = None):
    """Validation PSNR over updates of a plan's complete cells; colour and dashes by factor, bands: standard deviation
    over seeds; None while no cell is complete."""
    import matplotlib.pyplot as plt
    import seaborn

    curves = records.curves(complete(plan))
    if curves.empty:
        return None
    figure, axes = plt.subplots(figsize=(9, 5.5))
    curves[hue] = curves[hue].astype(str)
    seaborn.lineplot(curves, x="update", y="psnr_y", hue=hue, style=style or hue, errorbar="sd", ax=axes)
    axes.set(xlabel="updates", ylabel="validation PSNR (dB)")
    return figure
