"""From finished runs' records to tables, comparisons, figures and claims.

`summary` puts the networks of an artefact beside the paper's numbers. `compare` answers its questions, each a weighted
sum of paired scores with an interval. `claim` applies the verdict rule to the answers.
"""
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from ikmlib import config
from ikmlib.config import PROFILES, Profile
from ikmlib.study import records, stats
from ikmlib.study.experiments import PARTS, complete, planned
from ikmlib.study.records import runs_in_words, states_in_words
from ikmlib.study.stats import MIN_SEEDS, SMALLEST, Difference, paired, residual_deviation, signed

Found = Mapping[str, Difference]   # a question's name -> its answer


# --- tables ---------------------------------------------------------------------------------------------------------


def paper(name: str, *index: str) -> pd.DataFrame:
    """A table of the paper, such as "table3", indexed by these columns if any. `none` and `-` stay text."""
    table = pd.read_csv(config.PAPER / f"{name}.csv", keep_default_na=False, na_values=[""])
    return table.set_index(list(index)) if index else table


def common_seeds(scores: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Only the seeds that every cell has, so that all means are over the same seeds. `names`: of the factors."""
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
    published = pd.DataFrame() if published is None else published
    printed = {_cell(name): row for name, row in published.to_dict("index").items() if _cell(name) in cells}
    counted = PARTS[part].cells(PROFILES["paper"]) if len(published) else cells
    ours = common_seeds(records.scores(complete(plan)), names)
    scored = ours["set"].unique()
    shown = sets if set(scored) & set(sets) else [*sets, *scored]
    rows = []
    for cell in printed | cells:   # the paper's order, then ours
        mine = ours[(ours[names] == list(cell)).all(axis=1)]
        params, multi_adds = counted[cell].cost
        values = {"params_k": {"ours": params / 1e3}, "flops_g": {"ours": multi_adds / 1e9}}
        for name in shown:
            means = mine[mine["set"] == name].groupby("seed")[["psnr_y", "ssim_y"]].mean()
            for metric in ("psnr", "ssim"):
                values[f"{name}_{metric}"] = {"ours": means[f"{metric}_y"].mean(), "sd": means[f"{metric}_y"].std()}
        row = dict(zip(names, cell, strict=True)) | {"N_trained": "" if cells[cell].peer else cells[cell].arch.blocks}
        for quantity, found in values.items():
            if quantity in published:
                row[f"{quantity}_paper"] = printed.get(cell, {}).get(quantity, math.nan)
            row |= {f"{quantity}_{kind}": value for kind, value in found.items()}
        runs = plan.run[(plan[names] == list(cell)).all(axis=1)]
        rows.append(row | {"seeds": mine.seed.nunique(), "runs": runs_in_words(runs)})
    return pd.DataFrame(rows)


def _cell(name) -> tuple:
    """A cell as a tuple, also where it has one factor: "V1" -> ("V1",)."""
    return name if isinstance(name, tuple) else (name,)


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
    printed = {} if published is None else {_cell(cell): value for cell, value in published.items()}
    cells = dict(iter(scores.groupby(names, sort=False)))
    chosen = scores[scores["set"].isin(sets)] if set(sets) & set(scores["set"]) else scores
    psnr = {cell: rows.pivot(index=["set", "image"], columns="seed", values="psnr_y")   # images x seeds
            for cell, rows in chosen.dropna(subset=["psnr_y"]).groupby(names, sort=False)}
    families = {cell: rows[family].iloc[0] if family else "all" for cell, rows in cells.items()}
    members = {}
    for cell in psnr:
        if (cells[cell].state == "finished").all():
            members.setdefault(families[cell], []).append(psnr[cell])
    # of each family: its networks' means (rows) by seed, over the images on which all its runs were scored
    pooled = {name: residual_deviation(pd.concat(tables, axis=1, keys=range(len(tables))).dropna().mean().unstack())
              for name, tables in members.items() if pd.notna(name)}
    found = {}
    for question, weights in questions.items():
        weights = {_cell(cell): weight for cell, weight in weights.items()}
        name, *others = {families.get(cell) for cell in weights}
        declared = [cells.get(cell, scores[:0]) for cell in weights]
        answer = _difference(weights, declared, psnr, None if others else pooled.get(name))
        paper = sum(weight * printed.get(cell, math.nan) for cell, weight in weights.items())
        found[question] = replace(answer, paper=paper)
    return found


def _difference(weights: Mapping[tuple, float], declared: Sequence[pd.DataFrame], psnr: Mapping[tuple, pd.DataFrame],
                deviation: tuple[float, int] | None) -> Difference:
    """One answer of `compare`. `declared`: all declared rows of each cell; `psnr`: images x seeds of cells with scores;
    `deviation`: the pooled standard deviation over seeds and its degrees of freedom, None for the differences' own."""
    seeds = sorted(set.intersection(*(set(rows.seed) for rows in declared)))
    needed = pd.concat([rows[rows.seed.isin(seeds)] for rows in declared])
    # "missing" is the largest word: a run that is tested in two ways is finished when both are
    states = needed.groupby("run").state.max()
    waiting = Difference(runs=states_in_words(states), states=tuple(states.items()))
    if set(needed.state) != {"finished"} or not set(weights) <= set(psnr):
        return waiting
    table = sum(weight * psnr[cell][seeds] for cell, weight in weights.items()).dropna()
    if table.empty:   # scored on different images
        return waiting
    if deviation is not None:
        norm = np.sqrt(sum(weight ** 2 for weight in weights.values()) / len(seeds))
        deviation = deviation[0] * norm, deviation[1]
    answer = replace(paired(table.to_numpy(dtype=float).T, deviation), runs=waiting.runs, states=waiting.states)
    five = table[table.index.get_level_values("set") == "Set5"]
    return replace(answer, set5=paired(five.to_numpy(dtype=float).T).interval) if len(five) else answer


def table(found: Found) -> pd.DataFrame:
    """Answers as a table, a row each, in dB; with the standard errors that made the intervals."""
    rows = []
    for name, d in found.items():
        errors = [value for error in (*d.errors, (None, None), (None, None)) for value in error][:4]
        rows.append((name, d.paper, *d.interval, d.own_low, d.own_high, d.detectable, *d.set5, d.images or None,
                     d.seeds or None, d.runs, *errors))
    frame = pd.DataFrame(rows, columns=["contrast", "gain_db_paper", "gain_db_ours", "low_db", "high_db", "own_low_db",
                                        "own_high_db", "detectable_db", "set5_db", "set5_low_db", "set5_high_db",
                                        "images", "seeds", "runs", "images_error_db", "images_freedom",
                                        "seeds_error_db", "seeds_freedom"])
    return frame.astype({"images": "Int64", "seeds": "Int64"} | dict.fromkeys(frame.columns[-4:], float))


# --- claims ---------------------------------------------------------------------------------------------------------

_NAMES = {"contrast": "comparison", "gain_db_paper": "paper", "gain_db_ours": "ours", "low_db": "low",
          "high_db": "high", "own_low_db": "own_low", "own_high_db": "own_high", "detectable_db": "detectable",
          "set5_db": "set5", "set5_low_db": "set5_low", "set5_high_db": "set5_high",
          "unit": "unit", "outcome": "outcome", "seeds": "seeds", "runs": "runs"}
JUDGED = [*_NAMES.values()]   # columns of comparisons in claims.csv: those of `table`, `detectable` less the margin


def claim(found: Found, profile: Profile, *, paper: str, holds: str, margin: float = 0.0, smallest: float = SMALLEST,
          correct: Callable[[Sequence[float]], Sequence[float]] = list, among: Found | None = None) -> dict:
    """Keyword arguments of `Page.verdict` for a claim that all of `found` are better, or at least as good within
    `margin` (see `stats.outcomes`), with a row a comparison as in JUDGED. While one waits for runs, none is judged;
    where the profile does not plan all of them, the claim is not tested there.
    `because` says what the comparisons' own intervals would give where that is another verdict.

    If all hold without a correction, the claim holds: each of them had to. Otherwise `correct` (`stats.holm`) decides
    the single outcomes. `among`: all comparisons that `correct` counts; then it is always applied.
    """
    judged = among or found

    def outcomes(differences: Sequence[Difference]) -> dict[str, str]:
        each = stats.outcomes(differences, margin=margin, smallest=smallest)
        if among or set(each) != {"holds"}:
            each = stats.outcomes(differences, margin=margin, smallest=smallest, correct=correct)
        named = dict(zip(judged, each, strict=True))
        return {name: named[name] for name in found}

    said, fewest = dict.fromkeys(found, "waits"), min(d.seeds for d in judged.values())   # 0 where one is not known
    if not profile.evidence or states_in_words(()) in {d.runs for d in judged.values()}:
        verdict, why = stats.UNTESTED, "At this profile, not all that a verdict needs is planned."
    elif fewest < MIN_SEEDS:
        verdict, why = stats.WAITS, ("Some of the declared runs are not finished." if not fewest else
                                     f"A comparison rests on {fewest} seeds; a verdict needs {MIN_SEEDS}.")
    else:
        said = outcomes([*judged.values()])
        own = stats.judge(outcomes([replace(d, errors=d.own_errors) for d in judged.values()]).values())
        verdict, why = stats.judge(said.values()), f"Every comparison rests on {fewest} seeds or more."
        why += f" By each comparison's own standard deviation the verdict would be: {own}." * (own != verdict)
    rows = table(found).assign(unit=[d.unit for d in found.values()], outcome=said.values(),
                               detectable_db=lambda rows: rows.detectable_db - margin)
    rows = rows.rename(columns=_NAMES)[JUDGED]
    return {"paper": paper, "ours": _ours_in_words(found, rows), "comparisons": rows, "verdict": verdict,
            "because": f"{holds} {why}"}


def tally(rows: pd.DataFrame) -> str:
    """The outcomes of a claim's comparisons, with the range of each one's means: "2 hold (+0.043 to +0.071 dB)"."""
    told = []
    for outcome, these in rows.groupby("outcome", sort=False):
        ends = " to ".join(dict.fromkeys(map(signed, (these.ours.min(), these.ours.max()))))
        told.append(f"{len(these)} {outcome if len(these) == 1 else outcome.removesuffix('s')}"
                    + f" ({ends} {rows.unit.iloc[0]})" * (rows.unit.nunique() == 1))
    return ", ".join(told)


def _ours_in_words(found: Found, rows: pd.DataFrame) -> str:
    """The comparisons of a claim in one line; while one waits, how many of the claim's runs are finished."""
    if len(found) == 1:
        return str(*found.values())
    if "waits" in rows.outcome.values:
        states = dict(state for d in found.values() for state in d.states)
        complete = f"{sum(d.seeds >= MIN_SEEDS for d in found.values())} of {len(found)} comparisons complete"
        return f"{states_in_words(states.values())}, {complete}" if states else complete
    return f"{len(found)} comparisons: {tally(rows)}"


# --- figures --------------------------------------------------------------------------------------------------------


def figure_differences(found: Found, published_on: str = "", kinds: Mapping[str, str] | None = None,
                       limits: Sequence[float] = ()):
    """Ours with the 95 % interval, hollow where seeds are too few for a verdict, the paper's as a hollow diamond; a row
    an answer; None while no answer is known. `published_on`: the test set of the paper's numbers; `kinds`: name of an
    answer -> what its colour says; `limits`: dB beside 0 that decide the verdict.
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
    for kind, colour in colours.items():
        axes.errorbar([], [], xerr=[], fmt="o", capsize=4, color=colour, label=kind)
    if any(np.isfinite(d.paper) for d in found.values()):
        axes.plot([d.paper for d in found.values()], range(len(found)), "D", ms=7.5, mfc="none", mec="C1", mew=1.6,
                  label=f"paper{published_on and f', {published_on}, no interval'}")
    axes.axvline(0, color="0.3", lw=1)
    for limit in limits:
        axes.axvline(limit, color="0.3", lw=1.5, ls=":", label="limit of the verdict" if limit == limits[0] else None)
    axes.set_yticks(range(len(found)), [name if d.known else f"{name} ({d.runs})" for name, d in found.items()])
    axes.set_ylim(len(found) - 0.5, -0.5)
    axes.grid(False, axis="y")
    axes.set(xlabel="PSNR difference (dB)")
    figure.legend(ncols=2, loc="outside lower center", fontsize=11)
    return figure


def figure_curves(plan: pd.DataFrame, hue: str, style: str | None = None):
    """Validation PSNR over updates of a plan's complete cells, and its second half enlarged; colour and dashes by
    factor, bands in the left panel: standard deviation over seeds; None while no cell is complete."""
    import matplotlib.pyplot as plt
    import seaborn

    curves = records.curves(complete(plan))
    if curves.empty:
        return None
    figure, panels = plt.subplots(1, 2, figsize=(11, 5.5))
    curves[hue] = curves[hue].astype(str)
    late = curves[curves["update"] >= curves["update"].max() / 2]
    for axes, rows, band, title in zip(panels, (curves, late), ("sd", None), ("all updates", "second half, enlarged"),
                                       strict=True):
        seaborn.lineplot(rows, x="update", y="psnr_y", hue=hue, style=style or hue, errorbar=band, ax=axes,
                         legend=axes is panels[0])
        axes.set(xlabel="updates", ylabel="validation PSNR (dB)", title=title)
    seaborn.move_legend(panels[0], "lower right")
    return figure
