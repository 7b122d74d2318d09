"""From what runs and notebooks left to what people read: REPORT.md and report.html of a profile and of all of them.

The report is assembled from the notebooks' files and the records alone, so it can never show a number that no run left.
"""
from __future__ import annotations

import io
import os
import re
from pathlib import Path

import numpy as np
import pandas as pd

from ikmlib import config
from ikmlib.config import Profile
from ikmlib.files import read_csv, read_json, write_bytes, write_csv, write_text
from ikmlib.study import claims, records
from ikmlib.study.notebook import markdown_table, style
from ikmlib.study.stats import MIN_SEEDS, SMALLEST, UNTESTED, VERDICTS

ROWS = 40   # of a table that the report shows


# --- sections -------------------------------------------------------------------------------------------------------


def _cells(notebook: str) -> list[dict]:
    """Cells of a notebook of the study; none if there is no such notebook."""
    path = config.ROOT / "notebooks" / f"{notebook}.ipynb"
    return read_json(path, "cells")["cells"] if path.exists() else []


def _link(notebook: str, profile: str, start: Path) -> str:
    """A link from a file in `start` to the notebook, executed where it was; its number is the text."""
    places = (config.results_root() / profile / "notebooks", config.ROOT / "notebooks")
    path = next((p for place in places if (p := place / f"{notebook}.ipynb").exists()), None)
    return f"[{notebook[:2]}]({Path(os.path.relpath(path, start)).as_posix()})" if path else "–"


def _claims_section(table: pd.DataFrame, start: Path) -> list[str]:
    """The verdicts for a report in the folder `start`. `table`: of `claims.best`, or one profile's part of it."""
    shown = table.assign(
        claim=table.claim.map(claims.in_words), verdict="**" + table.verdict + "**",
        notebook=[_link(*pair, start) for pair in zip(table.notebook, table.profile, strict=True)])
    shown.insert(1, "verdict", shown.pop("verdict"))   # where a narrow screen still shows it
    if start != config.results_root():
        shown = shown.drop(columns="profile")   # it stands in the title
    counts = table[table.claim.str.match(r"C\d")].verdict.value_counts()
    text = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if verdict in counts)
    shown = shown[[c for c in shown if c != "at_smaller_budgets" or (shown[c] != "").any()]]
    return ["## Verdicts", f"Of the paper's claims (a claim in two parts counts twice): {text}.",
            markdown_table(shown),
            "Where networks are compared, comparisons, seeds and rule were declared before the runs "
            f"([PLAN.md]({Path(os.path.relpath(config.results_root(), start)).as_posix()}/PLAN.md)): 95 % intervals "
            "(in brackets) of differences paired over images and seeds, all declared runs finished and at least "
            f"{MIN_SEEDS} seeds; otherwise *{UNTESTED}*. A claim of a gain fails where the whole interval lies below "
            f"{SMALLEST} dB, and is *undecided* where it reaches from no gain to one worth a claim. C1's four "
            "comparisons are corrected for their number (Holm), others are not. The reason of each verdict stands with "
            "its notebook."]


def _page_section(page: dict, folder: Path) -> list[str]:
    """What a notebook wrote: verdicts, figures, tables, and Markdown cells tagged `report`, a heading level lower."""
    cells = _cells(page["notebook"])
    title = "".join(cells[0]["source"]).splitlines()[0].lstrip("# ") if cells else page["notebook"]
    executed = f"notebooks/{page['notebook']}.ipynb"
    title = f"[{title}]({executed})" if (folder / executed).exists() else title
    parts = [f"## {title}", *(f"**{c['name']}: {c['verdict']}.** {c['because']}" for c in page["claims"])]
    if page["claims"] and all(claim["seeds"] == 0 for claim in page["claims"]):
        files = ", ".join(f"[{table['name']}.csv]({table['name']}.csv)" for table in page["tables"])
        return [*parts, "None of its comparisons is complete at this budget. The paper's numbers, and which are ours "
                        f"to come: {files}."]
    for figure in page["figures"]:
        parts += [f"![{figure['caption']}]({figure['name']}.png)", f"*{figure['caption']}*"]
    for table in page["tables"]:
        frame = read_csv(folder / f"{table['name']}.csv")
        parts += [f"{table['caption']} ([{table['name']}.csv]({table['name']}.csv))", markdown_table(frame.head(ROWS))]
        if len(frame) > ROWS:
            parts.append(f"*… {len(frame) - ROWS} more rows in the CSV*")
    return parts + [re.sub(r"(?m)^#", "##", "".join(cell["source"])) for cell in cells
                    if "report" in cell["metadata"].get("tags", ())]


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


def _budget(profile: Profile) -> str:
    return (f"{profile.summary}. {profile.updates:,} updates of {profile.batch} patches of {profile.patch} x "
            f"{profile.patch} LR pixels a run")


# --- a profile's report ---------------------------------------------------------------------------------------------


def report_markdown(profile: Profile) -> str:
    """REPORT.md of a profile, from the records under results/<profile>/ alone."""
    folder = config.results_root() / profile.name
    parts = [f"# Reproduction report, profile `{profile.name}`"]
    if not profile.evidence:
        parts.append("> **Not evidence.** This profile only shows that everything runs.")
    parts += [f"Profile: {_budget(profile)}. Columns: [results/README.md](../README.md); other profiles: "
              "[results/REPORT.md](../REPORT.md).", *_claims_section(claims.table(profile), folder)]
    for page in claims.pages(profile):
        parts += _page_section(page, folder)
    parts += ["## Compute", "Each finished run has its folder under [runs/](runs/), and all are listed in "
              "[runs.csv](runs.csv), with spec, machine, versions, data digest and commit.",
              markdown_table(compute_used(profile))]
    return "\n\n".join(parts) + "\n"


_HTML = """<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1">
<title>{title}</title><style>
body{{font:16px/1.55 system-ui,sans-serif;color:#222;max-width:60rem;margin:2rem auto;padding:0 1rem}}
h2{{margin-top:2.5rem;border-top:1px solid #ddd;padding-top:1.2rem}} img{{max-width:100%;height:auto}}
blockquote{{margin:1rem 0;padding:.5rem 1rem;background:#fff3cd;border-left:4px solid #d39e00}}
.table{{overflow-x:auto;margin:1rem 0}} table{{border-collapse:collapse;font-size:.85rem;min-width:42rem}}
th,td{{padding:.3rem .6rem;border-bottom:1px solid #e3e3e3;text-align:left;vertical-align:top}}
.anchor-link{{display:none}} td{{font-variant-numeric:tabular-nums}}
</style>{body}</html>
"""


def report_html(markdown: str) -> str:
    """A report as a web page beside its pictures; tables scroll sideways on a phone."""
    from nbconvert.filters import markdown2html

    body = str(markdown2html(markdown)).replace("<table>", '<div class="table"><table>')
    return _HTML.format(title=markdown.splitlines()[0].lstrip("# "), body=body.replace("</table>", "</table></div>"))


def write_report(profile: str) -> Path:
    """Write results/<profile>/REPORT.md, report.html, claims.csv and runs.csv from the records; returns REPORT.md.

    Raises ValueError, and writes nothing, if a file that it reads is damaged (see `records.all_records`).
    """
    chosen = config.get_profile(profile)
    folder = config.results_root() / chosen.name
    runs, markdown = records.all_records(chosen), report_markdown(chosen)
    write_csv(folder / "claims.csv", claims.table(chosen))
    if len(runs):
        write_csv(folder / "runs.csv", runs)
    write_text(folder / "REPORT.md", markdown)
    write_text(folder / "report.html", report_html(markdown))
    return folder / "REPORT.md"


# --- all profiles ---------------------------------------------------------------------------------------------------


def figure_claims():
    """All claims in one picture, a row each: the paper's differences as diamonds, ours with 95 % intervals, verdicts.

    Of the profile that `claims.best` chooses for each; a claim that is not about differences of PSNR has its verdict
    alone, one that waits for runs the paper's differences.
    """
    import matplotlib.pyplot as plt

    table = claims.best()
    table = table[table.claim.str.match(r"[CE]\d") & (table.claim != "C1, U-HDB")].reset_index(drop=True)
    compared = {(entry["name"], profile.name): list(entry.get("comparisons", {}).values())
                for profile in claims.EVIDENCE for page in claims.pages(profile) for entry in page["claims"]}
    figure, axes = plt.subplots(figsize=(9, 1 + 0.42 * len(table)))
    for y, row in table.iterrows():
        found = compared.get((row.claim, row.profile), [])
        for (paper, *ours), offset in zip(found, np.linspace(-0.3, 0.3, len(found) + 2)[1:-1], strict=True):
            if paper is not None:
                axes.plot(paper, y + offset, "D", ms=5, mfc="none", color="C1")
            if ours:
                mean, low, high = ours
                axes.errorbar(mean, y + offset, xerr=[[mean - low], [high - mean]], fmt="o", ms=4, capsize=2,
                              color="C0")
                if abs(mean) > 0.2:   # outside: an arrow at the edge
                    axes.plot(np.sign(mean) * 0.196, y + offset, ">" if mean > 0 else "<", ms=6, color="C0")
        axes.annotate(row.verdict.removesuffix(" at this budget"), (1.01, y), xycoords=("axes fraction", "data"),
                      va="center", fontsize=10,
                      color={"supported": "C2", "not supported": "C3"}.get(row.verdict, "0.3"))
    axes.axvline(0, color="0.3", lw=1)
    axes.plot([], [], "D", mfc="none", color="C1", label="paper (Set5; Table IV: BSD100)")
    axes.errorbar([], [], xerr=[], fmt="o", color="C0", capsize=2, label="ours, 95 % interval")
    axes.set_yticks(range(len(table)), [claims.in_words(claim) for claim in table.claim], fontsize=10)
    axes.set_ylim(len(table) - 0.5, -0.5)
    axes.set(xlabel="PSNR difference that the claim is about (dB; larger ones lie outside)", xlim=(-0.2, 0.2))
    axes.grid(False, axis="y")
    figure.legend(ncols=2, loc="outside lower center", fontsize=10)
    return figure


def overall_markdown() -> str:
    """The top-level REPORT.md: for every claim the best evidence of all profiles, each row named after its profile."""
    root = config.results_root()
    present = [profile for profile in claims.EVIDENCE if claims.pages(profile)]
    if not present:
        return ("# Reproduction report\n\n> **No evidence yet.** No profile that counts as evidence has results; "
                "`smoke` only shows that everything runs. `./run_all.sh --profile cpu` makes the first evidence.\n")
    profiles = []
    for profile in present:
        used = compute_used(profile)[["runs", "hours"]].tail(1).itertuples(index=False)
        profiles.append((f"[{profile.name}]({profile.name}/REPORT.md)", _budget(profile), *next(used, (0, 0.0))))
    return "\n\n".join([
        "# Reproduction report: the best evidence so far",
        "![All claims: the paper's differences and ours](claims.png)",
        "What became of the claims of *Image-specific Convolutional Kernel Modulation for Single Image "
        "Super-resolution* (arXiv 2111.08362). All numbers of a row are of the one profile that it names: the largest "
        "budget at which all declared runs are finished, whatever the verdict there; where none are, the largest that "
        "trained something. The notebook is the one executed there. Tables, figures, errors found, deviations and "
        "compute: in the profiles' reports. Columns of all files: [README.md](README.md).",
        *_claims_section(claims.best(), root), "## Profiles with evidence",
        markdown_table(pd.DataFrame(profiles, columns=["profile", "budget", "finished runs", "hours of training"]))
    ]) + "\n"


def write_overall() -> Path:
    """Write the top-level REPORT.md (see `overall_markdown`) and its picture of all claims; returns REPORT.md."""
    import matplotlib.pyplot as plt

    path, picture, text = config.results_root() / "REPORT.md", io.BytesIO(), overall_markdown()
    style()
    figure = figure_claims()
    figure.savefig(picture, format="png")
    plt.close(figure)
    write_bytes(path.with_name("claims.png"), picture.getvalue())
    write_text(path, text)
    return path
