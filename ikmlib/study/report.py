"""From the verdicts that notebooks wrote to what people read: results/REPORT.md, claims.png and report.html.

All of it is made of `results/<profile>/claims.csv`, the finished runs' records and the executed notebook 99, so that no
report can show a number that no run left.
"""
from __future__ import annotations

import io
from pathlib import Path

import pandas as pd

from ikmlib import config
from ikmlib.config import Profile
from ikmlib.files import write_bytes, write_csv, write_text
from ikmlib.study import records
from ikmlib.study.notebook import CLAIMS, EVIDENCE, differences, markdown_table, read_claims, recorded_profile, style
from ikmlib.study.runner import relinked
from ikmlib.study.stats import MIN_SEEDS, SMALLEST, UNTESTED, VERDICTS

# The paper's claims, then explanations and claims of this study, in a few words
WORDS = {
    "C1": "IKM beats vanilla convolution", "C2": "IKM is as good as CA and SA", "C3": "IKM gains more at larger R",
    "C4": "good thresholds", "C5": "IsO beats GO", "C6": "U-style and hourglass help",
    "C7": "the hourglass beats other orders", "C8": "quality grows, then saturates",
    "C9": "U-HDN is best, at lower cost", "C10": "attention follows composition", "C11": "IKM is slower",
    "C12": "IKM adapts to each signal", "E1": "own attention is why", "E2": "mere scale is why",
    "E3": "the authors' own weights", "P1": "our scoring is the paper's", "D1": "works in other networks",
}


def in_words(claim: str) -> str:
    """A claim's name with what it says: "C4, median" -> "C4 good thresholds (median)"; unknown names stay as they are.
    """
    number, _, parts = claim.partition(", ")
    part = parts.rpartition(", ")[2]
    return f"{number} {WORDS[number]}" + f" ({part})" * bool(part) if number in WORDS else claim


def best() -> pd.DataFrame:
    """The rows of claims.csv that count, in the order of WORDS, with `profile` where they are from.

    For each claim those of the largest profile with a verdict, whatever it is: there all declared runs are finished.
    Where there is none, those of the smallest, whose runs are finished first. Profiles that are no evidence are left
    out.
    """
    rows = pd.concat([read_claims(p).assign(profile=p.name, budget=i) for i, p in enumerate(EVIDENCE)])
    waiting = rows.verdict == UNTESTED
    rank = rows.budget.where(~waiting, 2 * len(EVIDENCE) - rows.budget)
    place = rows.claim.str.split(",").str[0].map({number: i for i, number in enumerate(WORDS)}).fillna(len(WORDS))
    rows = rows.assign(place=place)[rank == rank.groupby(rows.claim).transform("min")]
    return rows.sort_values("place", kind="stable")[[*CLAIMS, "profile"]].reset_index(drop=True)


# --- compute --------------------------------------------------------------------------------------------------------


def compute_used(profile: Profile) -> pd.DataFrame:
    """Training of a profile's finished runs: device, torch, git_commit, runs, hours, updates; the last row is the sum.
    """
    runs = records.all_records(profile)
    if runs.empty:
        return pd.DataFrame(columns=["device", "torch", "git_commit", "runs", "hours", "updates"])
    table = runs.groupby(["device", "torch", "git_commit"], dropna=False).agg(
        runs=("id", "count"), hours=("train_seconds", lambda s: s.sum() / 3600), updates=("updates", "sum"))
    total = pd.DataFrame([("all", "", "", *table.sum())], columns=["device", "torch", "git_commit", *table])
    return pd.concat([table.reset_index(), total], ignore_index=True).astype({"runs": int, "updates": int})


# --- the report -----------------------------------------------------------------------------------------------------


def figure_claims(rows: pd.DataFrame):
    """All comparisons of PSNR that have a result or a printed number, a line each below the name of their claim and its
    verdict: the paper's as diamonds, ours with 95 % intervals. `rows`: of `best`; None if nothing is to be drawn."""
    import matplotlib.pyplot as plt

    shown = rows[(rows.unit == "dB") & (rows.paper.notna() | rows.ours.notna()) & (rows.claim != "C1, U-HDB")]
    if shown.empty:
        return None
    first = shown.claim != shown.claim.shift()
    y = pd.Series(range(len(shown)), shown.index) + first.cumsum()   # the name of a claim has a line of its own
    figure, axes = plt.subplots(figsize=(9, 1.2 + 0.17 * (y.max() + 2)))
    axes.plot(shown.paper, y, "D", ms=5, mfc="none", color="C1", label="paper (Set5; Table IV: BSD100)")
    axes.errorbar(shown.ours, y, xerr=[shown.ours - shown.low, shown.high - shown.ours], fmt="o", ms=4, capsize=2,
                  color="C0", label="ours, all test images, 95 % interval")
    axes.axvline(0, color="0.3", lw=1)
    axes.set_yticks(y, shown.comparison, fontsize=8)
    axes.set_ylim(y.max() + 1, -0.5)
    for place, claim, verdict in zip(y[first] - 1, shown.claim[first], shown.verdict[first], strict=True):
        axes.annotate(f"{in_words(claim)}: {verdict.removesuffix(' at this budget')}", (0, place), va="center",
                      xycoords=("axes fraction", "data"), fontsize=10, weight="bold", backgroundcolor="white")
    axes.set_xscale("symlog", linthresh=0.1)
    axes.set_xticks([-0.5, -0.2, -0.1, -0.05, 0, 0.05, 0.1, 0.2, 0.5, 1])
    axes.set_xlim(shown[["paper", "low"]].min(axis=None) - 0.02, shown[["paper", "high"]].max(axis=None) * 1.1)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.set(xlabel="PSNR difference that the claim is about (dB; logarithmic beyond ±0.1)")
    axes.grid(False, axis="y")
    figure.legend(ncols=2, loc="outside lower center", fontsize=10)
    return figure


def verdicts(rows: pd.DataFrame, folder: str = "") -> pd.DataFrame:
    """Claims of `best` as people read them, a row each: claim, verdict, paper, ours, profile, seeds, notebook.
    `folder`: where links to executed notebooks find the results."""
    first = rows.drop_duplicates("claim")
    return pd.DataFrame({
        "claim": first.claim.map(in_words), "verdict": "**" + first.verdict + "**", "paper": first.paper_words,
        "ours": first.ours_words, "profile": first.profile, "seeds": first.seeds,
        "notebook": [f"[{name[:2]}]({folder}{profile}/notebooks/{name}.ipynb)"
                     for name, profile in zip(first.notebook, first.profile, strict=True)]})


def compared(rows: pd.DataFrame) -> pd.DataFrame:
    """The comparisons of `best` that are complete, as people read them, a row each."""
    known = rows[rows.ours.notna() & (rows.outcome != "waits")]
    shown = differences(known)
    shown.insert(0, "claim", [*known.claim])
    return shown


def markdown() -> str:
    """REPORT.md: for every claim the best evidence of all profiles, each row named after its profile."""
    rows = best()
    if rows.empty:
        return ("# Reproduction report\n\n> **No evidence yet.** No profile that counts as evidence has results; "
                "`smoke` only shows that everything runs. `./run_all.sh --profile cpu` makes the first evidence.\n")
    counts = rows.drop_duplicates("claim").loc[lambda table: table.claim.str.match(r"C\d")].verdict.value_counts()
    return "\n\n".join([
        "# Reproduction report: the best evidence so far",
        "![All claims: the paper's differences and ours](claims.png)",
        "What became of the claims of *Image-specific Convolutional Kernel Modulation for Single Image "
        "Super-resolution* (arXiv 2111.08362). Each row is of the profile that it names: the largest budget at which "
        "all declared runs of the claim are finished, whatever the verdict there. Errors found in print, deviations "
        "and compute: [report.html](report.html). Columns of all files: [README.md](README.md).", "## Verdicts",
        "Of the paper's claims (a claim in two parts counts twice): "
        + ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if verdict in counts) + ".",
        markdown_table(verdicts(rows)), "## Comparisons that are complete",
        markdown_table(compared(rows)),
        "Comparisons, seeds and rule were declared before the runs ([PLAN.md](PLAN.md)): 95 % intervals of differences "
        f"paired over images and seeds, all declared runs finished and at least {MIN_SEEDS} seeds; otherwise "
        f"*{UNTESTED}*. The first interval pools the standard deviations over seeds of like networks, and decides; the "
        "second uses the comparison's own. A claim of a gain fails where the whole interval lies below "
        f"{SMALLEST} dB (C6: 0.01 dB), and is *undecided* where it reaches from no gain to one worth a claim. The "
        "minimum detectable effect is for a power of 80 %. The reason of each verdict stands in its notebook."]) + "\n"


def html() -> str | None:
    """The executed notebook 99 of the best profile as a web page without its code; None where it was not executed."""
    import nbformat
    from nbconvert import HTMLExporter

    folder = f"{recorded_profile('99_report').name}/notebooks"
    path = config.results_root() / folder / "99_report.ipynb"
    if not path.exists():
        return None
    exporter = HTMLExporter(exclude_input=True, exclude_input_prompt=True, exclude_output_prompt=True)
    return exporter.from_notebook_node(relinked(nbformat.read(path, as_version=4), folder))[0]


def write_report(profile: str) -> Path:
    """Write runs.csv of a profile and, over all profiles that are evidence, results/REPORT.md, claims.png and
    report.html; returns REPORT.md.

    Raises ValueError, and writes nothing, if a file that it reads is damaged (see `records.all_records`).
    """
    import matplotlib.pyplot as plt

    chosen, root = config.get_profile(profile), config.results_root()
    runs, text, page = records.all_records(chosen), markdown(), html()
    style()
    if (figure := figure_claims(best())) is not None:
        picture = io.BytesIO()
        figure.savefig(picture, format="png")
        plt.close(figure)
        write_bytes(root / "claims.png", picture.getvalue())
    if len(runs):
        write_csv(root / chosen.name / "runs.csv", runs)
    if page is not None:
        write_text(root / "report.html", page)
    write_text(root / "REPORT.md", text)
    return root / "REPORT.md"
