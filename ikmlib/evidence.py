"""What all artefacts share: from finished runs' records to tables, contrasts, figures and the words of a verdict.

Every artefact is told the same way. `summary` prints its networks beside the paper's numbers; `contrasts` answers its
questions, each a weighted sum of paired scores with an interval; `claim` says what the verdict rule makes of them.
"""
from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from . import study
from .claims import seeds_in_words
from .config import Profile
from .experiments import Variants
from .models import cost
from .report import MIN_SEEDS, SMALLEST, Difference, contrast, judge, outcome

Weights = Mapping[str, float]


# --- tables ---------------------------------------------------------------------------------------------------------


def scores(done: Variants) -> pd.DataFrame:
    """Per-image scores of finished runs with their variant's label, in columns as `study.SCORES` and `variant`."""
    return _labelled(done, study.scores)


def curves(done: Variants) -> pd.DataFrame:
    """Learning curves of finished runs with their variant's label."""
    return _labelled(done, study.curves)


def _labelled(done: Variants, read) -> pd.DataFrame:
    frames = [read(runs).assign(variant=label) for label, runs in done.items() if runs]
    return pd.concat(frames, ignore_index=True) if frames else read([]).assign(variant="")


def common_seeds(scores: pd.DataFrame) -> pd.DataFrame:
    """Only the seeds that every trained variant has, so that no row is the mean of other seeds than its neighbour."""
    trained = scores.groupby("variant").seed.agg(set)
    return scores[scores.seed.isin(set.intersection(*trained))] if len(trained) else scores


def shown_sets(scores: pd.DataFrame, wanted: Sequence[str]) -> list[str]:
    """The paper's test sets; and, where none of them was scored, what was."""
    there = list(scores["set"].unique())
    return [*wanted] if set(there) & set(wanted) or not there else [*wanted, *there]


def summary(planned: Variants, done: Variants, sets: Sequence[str],
            published: pd.DataFrame | None = None) -> pd.DataFrame:
    """A row a variant: #Params (K) and #FLOPs (G) counted live at full size, PSNR and SSIM of each set, paper | ours.

    `published` (index: labels): the paper's numbers, in columns params_k, flops_g, <set>_psnr, <set>_ssim. Ours are
    means over images, then over `common_seeds`, with the standard deviation over seeds.
    """
    ours, rows = common_seeds(scores(done)), []
    published = pd.DataFrame(index=list(planned)) if published is None else published
    order = [label for label in published.index if label in planned]
    for label, runs in ((label, planned[label]) for label in dict.fromkeys([*order, *planned])):
        cells = {}   # quantity -> (ours, standard deviation over seeds)
        params, multi_adds = cost(runs[0].arch, runs[0].scale)
        cells["params_k"], cells["flops_g"] = (params / 1e3, None), (multi_adds / 1e9, None)
        mine = ours[ours.variant == label]
        for name in shown_sets(ours, sets):
            for metric in ("psnr", "ssim"):
                means = mine[mine["set"] == name].groupby("seed")[f"{metric}_y"].mean()
                cells[f"{name}_{metric}"] = means.mean(), means.std()
        row = {"variant": label}
        for quantity, (value, spread) in cells.items():
            if quantity in published:
                row[f"{quantity}_paper"] = published[quantity].get(label)
            row[f"{quantity}_ours"] = value
            if spread is not None:
                row[f"{quantity}_sd"] = spread
        rows.append(row | {"seeds": mine.seed.nunique()})
    return pd.DataFrame(rows)


def contrasts(done: Variants | pd.DataFrame, questions: Mapping[str, Weights],
              published: Mapping[str, float] | None = None, *, sets: Sequence[str] = ()) -> pd.DataFrame:
    """A row a question: what the weights make of the paper's numbers (`published`: label -> dB) and of our records.

    Ours are paired over images and seeds; of all scored test sets, or of `sets` where they were scored. `done`: runs,
    or per-image scores with a column `variant`.
    """
    ours, rows = done if isinstance(done, pd.DataFrame) else scores(done), []
    published = {} if published is None else published
    if set(sets) & set(ours["set"]):
        ours = ours[ours["set"].isin(sets)]
    for name, weights in questions.items():
        theirs = sum(w * published.get(label, float("nan")) for label, w in weights.items())
        d = contrast(ours, weights)
        found = (None,) * 5 if d is None else (d.mean, d.low, d.high, d.images, d.seeds)
        rows.append((name, theirs, *found))
    table = pd.DataFrame(rows, columns=["contrast", "gain_db_paper", "gain_db_ours", "low_db", "high_db", "images",
                                        "seeds"])
    return table.astype({"images": "Int64", "seeds": "Int64"})


def differences(table: pd.DataFrame, names: Sequence[str] | None = None) -> dict[str, Difference | None]:
    """Rows of `contrasts` as what `judge` takes; all of them, or those named."""
    rows = table.set_index("contrast")
    rows = rows if names is None else rows.loc[list(names)]
    return {name: None if pd.isna(row.gain_db_ours) else
            Difference(row.gain_db_ours, row.low_db, row.high_db, int(row.seeds), int(row.images))
            for name, row in rows.iterrows()}


def claim(found: Mapping[str, Difference | None], profile: Profile, *, paper: str, holds: str, margin: float = 0.0,
          smallest: float = SMALLEST) -> dict[str, str | int]:
    """Keyword arguments of `Page.verdict` for a claim that all of `found` are better, or at least as good within
    `margin` (see `report.judge`)."""
    tested = {name: d for name, d in found.items() if d is not None}
    outcomes = {name: outcome(d, margin, smallest) if d.seeds >= MIN_SEEDS else "too few seeds"
                for name, d in tested.items()}
    if not tested:
        ours = "not trained"
    elif len(found) <= 5:
        ours = "; ".join(f"{name} {d} ({outcomes[name]})" if name in tested else f"{name} not trained"
                         for name, d in found.items())
    else:
        means = [d.mean for d in tested.values()]
        counts = ", ".join(f"{n} {name}" for name, n in Counter(outcomes.values()).items())
        ours = (f"{len(tested)} of {len(found)} comparisons trained, from {min(means):+.3f} to {max(means):+.3f} dB: "
                f"{counts}")
    fewest = min((0 if d is None else d.seeds for d in found.values()), default=0)
    return {"paper": paper, "ours": ours, "seeds": fewest,
            "verdict": judge(list(found.values()), margin=margin, smallest=smallest, evidence=profile.evidence),
            "because": f"{holds} Fewest seeds of any comparison: {fewest} ({MIN_SEEDS} needed)."}


# --- figures --------------------------------------------------------------------------------------------------------


def with_seeds(table: pd.DataFrame) -> list[str]:
    """The contrasts' names; with the number of seeds where rows rest on different numbers: one seed's interval, of
    images alone, is narrow for that reason."""
    if table.seeds.dropna().nunique() < 2:
        return list(table.contrast)
    return [f"{row.contrast} ({'not trained' if pd.isna(row.seeds) else seeds_in_words(row.seeds)})"
            for row in table.itertuples()]


def draw_intervals(axes, mean: pd.Series, low: pd.Series, high: pd.Series, y: Sequence[float], seeds: pd.Series,
                   colour: str, label: str) -> None:
    """Points with 95 % intervals; hollow where they rest on fewer seeds than a verdict needs."""
    enough = (seeds >= MIN_SEEDS).fillna(False).to_numpy(dtype=bool)
    for chosen, face, name in ((enough, colour, label), (~enough, "white", None)):
        m, lo, hi = (values[chosen].astype(float) for values in (mean, low, high))
        axes.errorbar(m, np.asarray(y)[chosen], xerr=[m - lo, hi - m], fmt="o", color=colour, mfc=face, capsize=4,
                      label=name)


def figure_contrasts(table: pd.DataFrame, published_on: str = ""):
    """Ours with the 95 % interval, hollow where seeds are too few for a verdict, the paper's as a hollow diamond; a row
    a question of `contrasts`. `published_on`: the test set of the paper's numbers."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 1.7 + 0.42 * len(table)))
    y = range(len(table))
    draw_intervals(axes, table.gain_db_ours, table.low_db, table.high_db, y, table.seeds, "C0",
                   "ours, 95 % interval, all test images")
    if table.gain_db_paper.notna().any():
        axes.scatter(table.gain_db_paper.astype(float), y, marker="D", s=55, facecolors="none", edgecolors="C1", lw=1.6,
                     label=f"paper{published_on and f', {published_on}, no interval'}")
    axes.axvline(0, color="0.3", lw=1)
    axes.set_yticks(y, with_seeds(table))
    axes.set_ylim(len(table) - 0.5, -0.5)
    axes.grid(False, axis="y")
    axes.set(xlabel="PSNR difference (dB)")
    figure.legend(ncols=2, loc="outside lower center", fontsize=11)
    return figure


def figure_gains(panels: Mapping[str, Variants], baseline: str):
    """Validation PSNR minus that of `baseline`, trained from the same seed; a panel each, thin lines are seeds, thick
    ones their mean. The first quarter of the updates, where differences are large, is left out."""
    import matplotlib.pyplot as plt

    figure, grid = plt.subplots(-(-len(panels) // 2), 2, figsize=(9, 1.4 + 2.9 * -(-len(panels) // 2)), sharex=True,
                                sharey=True, squeeze=False)
    for axes, (title, done) in zip(grid.flat, panels.items(), strict=False):
        wide = curves(done).pivot_table(index="update", columns=["variant", "seed"], values="psnr_y")
        wide = wide[wide.index > wide.index.max() / 4]
        for i, label in enumerate(label for label in done if label != baseline):
            if {label, baseline} <= set(wide.columns.get_level_values(0)):
                gains = (wide[label] - wide[baseline]).dropna(axis=1, how="all")
                axes.plot(gains.index, gains, color=f"C{i}", lw=0.8, alpha=0.5)
                axes.plot(gains.index, gains.mean(axis=1), color=f"C{i}", lw=2.2, label=label)
        axes.axhline(0, color="0.3", lw=1)
        axes.set(title=title, xlabel="updates", ylabel=f"minus {baseline} (dB)")
        axes.label_outer()
    if grid[0, 0].get_legend_handles_labels()[0]:
        grid[0, 0].legend(fontsize=10)
    return figure


def figure_curves(panels: Mapping[str, Variants]):
    """Validation PSNR over updates, a panel each for labelled variants; bands are the standard deviation over seeds."""
    import matplotlib.pyplot as plt
    import seaborn

    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(9, 1.2 + 3.1 * rows + 1.2 * (columns == 1)), sharex=True,
                                sharey=True, squeeze=False)
    for axes, (title, done) in zip(grid.flat, panels.items(), strict=False):
        found = curves(done)
        seaborn.lineplot(found, x="update", y="psnr_y", hue="variant", style="variant", errorbar="sd", ax=axes)
        axes.set(title=title, xlabel="updates", ylabel="validation PSNR (dB)")
        if len(found):
            axes.legend(title="", fontsize=10)
    return figure
