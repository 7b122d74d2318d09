"""The paper's artefacts as tables and figures: each from the paper's CSV and the records of finished runs."""
from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from . import config, study
from .config import Profile
from .models import complexity
from .report import MIN_SEEDS, Difference, judge, paired
from .study import TABLE3_ATTENTIONS, TABLE3_BLOCKS, Run

NAMES = {"rb": "RB", "db": "DB", "rdb": "RDB", "uhdb": "U-HDB", "none": "none", "ca": "CA", "sa": "SA", "ikm": "IKM"}
EQUAL = 0.02   # dB: "at least as good"; half the smallest difference that the paper interprets


def paper(name: str) -> pd.DataFrame:
    """A table of the paper, such as "table3". `none` and `-` stay text."""
    return pd.read_csv(config.PAPER / f"{name}.csv", keep_default_na=False, na_values=[""])


def colours() -> dict[str, tuple]:
    """One colour an attention, the same in every figure."""
    import seaborn

    return dict(zip((NAMES[a] for a in TABLE3_ATTENTIONS), seaborn.color_palette("colorblind"), strict=False))


def main_set(scores: pd.DataFrame) -> str:
    """Set5 where it was scored, else the first test set there is ("–" if none)."""
    names = list(scores["set"].unique())
    return "Set5" if "Set5" in names else names[0] if names else "–"


def common_seeds(scores: pd.DataFrame) -> pd.DataFrame:
    """Only the seeds that every trained run of a table has, so that no column is the mean of other seeds than its
    neighbour."""
    trained = scores.groupby(["block", "attention"]).seed.agg(set)
    return scores[scores.seed.isin(set.intersection(*trained))] if len(trained) else scores


def seed_means(scores: pd.DataFrame, metric: str) -> pd.Series:
    """Mean over images for every seed: what a table prints once a training."""
    return scores.groupby("seed")[metric].mean()


# --- Table III ------------------------------------------------------------------------------------------------------


def table3(runs: Sequence[Run]) -> pd.DataFrame:
    """Table III: paper | ours for each architecture and attention; complexity live at paper size, scores from `runs`.

    Scores are over `common_seeds`: seeds that are still being trained do not count yet.
    """
    scores, rows = study.scores(runs), []
    test_set, published = main_set(scores), paper("table3").set_index(["architecture", "attention"])
    scored = common_seeds(scores[scores["set"] == test_set])
    architectures = {(r.arch.block, r.arch.attention): r for r in study.table3(config.PROFILES["paper"])}
    for block in TABLE3_BLOCKS:
        for attention in TABLE3_ATTENTIONS:
            theirs = published.loc[(NAMES[block], NAMES[attention])]
            mine = scored[(scored.block == block) & (scored.attention == attention)]
            params, multi_adds = complexity(architectures[block, attention].build(), 2)
            row = {"block": NAMES[block], "attention": NAMES[attention],
                   "params_k_paper": theirs.params_k + theirs.extra_params_k, "params_k_ours": params / 1e3,
                   "flops_g_paper": theirs.flops_g + theirs.extra_flops_g, "flops_g_ours": multi_adds / 1e9}
            for metric, column in (("psnr", "psnr_y"), ("ssim", "ssim_y")):
                means = seed_means(mine, column)
                row |= {f"{metric}_paper": theirs[f"Set5_{metric}"],
                        f"{metric}_ours": means.mean(), f"{metric}_sd": means.std()}
            rows.append(row | {"test_set": test_set, "seeds": mine.seed.nunique()})
    return pd.DataFrame(rows)


def table3_gains(runs: Sequence[Run]) -> pd.DataFrame:
    """What each attention adds to vanilla convolution, dB: the paper's on Set5, ours paired over all test images."""
    scores, published = study.scores(runs), paper("table3").set_index(["architecture", "attention"]).Set5_psnr
    rows = []
    for block in TABLE3_BLOCKS:
        for attention in TABLE3_ATTENTIONS[1:]:
            gain = _table3_difference(scores, block, attention, "none")
            theirs = published[NAMES[block], NAMES[attention]] - published[NAMES[block], "none"]
            ours = (None,) * 5 if gain is None else (gain.mean, gain.low, gain.high, gain.images, gain.seeds)
            rows.append((NAMES[block], NAMES[attention], theirs, *ours))
    columns = ["block", "attention", "gain_db_paper", "gain_db_ours", "low_db", "high_db", "images", "seeds"]
    return pd.DataFrame(rows, columns=columns)


def _table3_difference(scores: pd.DataFrame, block: str, attention: str, baseline: str) -> Difference | None:
    of_block = scores[scores.block == block]
    return paired(of_block[of_block.attention == attention], of_block[of_block.attention == baseline])


def table3_verdicts(runs: Sequence[Run], profile: Profile) -> dict[str, dict[str, str]]:
    """C1 and C2 as keyword arguments of `Page.verdict`."""
    scores = study.scores(runs)
    gains = {block: _table3_difference(scores, block, "ikm", "none") for block in TABLE3_BLOCKS}
    others = [_table3_difference(scores, block, "ikm", other) for block in TABLE3_BLOCKS for other in ("ca", "sa")]

    tested = [d for d in others if d is not None]
    held = sum(d.low > -EQUAL for d in tested)
    span = f", from {min(d.mean for d in tested):+.3f} to {max(d.mean for d in tested):+.3f} dB" if tested else ""
    return {
        "C1": {"paper": "IKM beats vanilla convolution: RB +0.05, DB +0.08, RDB +0.07, U-HDB +0.09 dB (Set5)",
               "ours": "; ".join(f"{NAMES[b]} {'not trained' if d is None else d}" for b, d in gains.items()),
               "verdict": judge(list(gains.values()), evidence=profile.evidence),
               "because": "Holds for an architecture if the whole 95 % interval of IKM minus vanilla lies above 0."
                          + _seeds_text(list(gains.values()))},
        "C2": {"paper": "IKM is at least as good as channel and as spatial attention",
               "ours": f"holds in {held} of {len(tested)} trained pairs (of {len(others)}): IKM minus CA or SA{span}",
               "verdict": judge(others, margin=EQUAL, evidence=profile.evidence),
               "because": f"Holds for a pair if the whole 95 % interval of IKM minus the other lies above -{EQUAL} dB."
                          + _seeds_text(others)},
    }


def _seeds_text(differences: Sequence[Difference | None]) -> str:
    """How many seeds the weakest comparison rests on."""
    fewest = min((0 if d is None else d.seeds for d in differences), default=0)
    return f" Seeds compared: {fewest} or more; a verdict needs {MIN_SEEDS}."


def figure_table3_gains(gains: pd.DataFrame):
    """Gain over vanilla: ours with its interval, the paper's as a hollow diamond. `gains`: of `table3_gains`."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 4.8))
    blocks = [NAMES[b] for b in TABLE3_BLOCKS]
    for i, attention in enumerate(NAMES[a] for a in TABLE3_ATTENTIONS[1:]):
        rows = gains[gains.attention == attention].set_index("block").drop(columns="attention")
        rows = rows.loc[blocks].astype(float)
        x, colour = [position + 0.22 * (i - 1) for position in range(len(blocks))], colours()[attention]
        axes.errorbar(x, rows.gain_db_ours, [rows.gain_db_ours - rows.low_db, rows.high_db - rows.gain_db_ours],
                      fmt="o", color=colour, capsize=4, label=attention)
        axes.scatter(x, rows.gain_db_paper, marker="D", s=55, facecolors="none", edgecolors=[colour])
    axes.errorbar([], [], [], fmt="o", color="0.4", capsize=4, label="ours, 95 % interval")
    axes.scatter([], [], marker="D", s=55, facecolors="none", edgecolors="0.4", label="paper, Set5")
    axes.axhline(0, color="0.3", lw=1)
    axes.set_xticks(range(len(blocks)), blocks)
    axes.grid(False, axis="x")
    axes.set(ylabel="PSNR gain over vanilla convolution (dB)", title="What each attention adds")
    axes.legend(ncols=5, loc="upper center", bbox_to_anchor=(0.5, -0.1), fontsize=11)
    return figure


def figure_table3_curves(runs: Sequence[Run]):
    """Validation PSNR over updates, a panel an architecture; bands are the spread over seeds."""
    import matplotlib.pyplot as plt
    import seaborn

    curves = study.curves(runs)
    figure, panels = plt.subplots(2, 2, figsize=(9, 7), sharex=True, sharey=True)
    for axes, block in zip(panels.flat, TABLE3_BLOCKS if len(curves) else (), strict=False):
        shown = curves[curves.block == block].assign(attention=lambda frame: frame.attention.map(NAMES))
        seaborn.lineplot(shown, x="update", y="psnr_y", hue="attention", style="attention", errorbar="sd", ax=axes,
                         palette=colours(), hue_order=list(colours()), style_order=list(colours()),
                         legend=block == TABLE3_BLOCKS[0])
        axes.set(title=NAMES[block], xlabel="updates", ylabel="validation PSNR on Y (dB)")
    return figure
