"""From what runs and notebooks left to what people read: REPORT.md and report.html of a profile and of all of them.

The report is assembled from the notebooks' files and the records alone, so it can never show a number that no run left.
"""
from __future__ import annotations

import base64
import io
import json
import os
import re
from pathlib import Path

import numpy as np
import pandas as pd

from ikmlib import config
from ikmlib.config import Profile
from ikmlib.files import write_bytes, write_csv, write_text
from ikmlib.study import claims, experiments, records
from ikmlib.study.notebook import markdown_table, style
from ikmlib.study.stats import MIN_SEEDS, SMALLEST, UNTESTED, VERDICTS

# What the top-level report shows, in order of interest, as far as it is there
KEY_FIGURES = ("table3_contrasts", "controls_order", "fig10_batches", "table4_gain", "fig1_errors",
               "protocol_attention")


# --- the report -----------------------------------------------------------------------------------------------------


def _cells(notebook: str) -> list[dict]:
    """Cells of a notebook of the study; none if there is no such notebook."""
    path = config.ROOT / "notebooks" / f"{notebook}.ipynb"
    return json.loads(path.read_text())["cells"] if path.exists() else []


def _title(notebook: str) -> str:
    """First heading of a notebook."""
    cells = _cells(notebook)
    return "".join(cells[0]["source"]).splitlines()[0].lstrip("# ") if cells else notebook


def _prose(notebook: str) -> list[str]:
    """Text that a notebook shares with the report: its Markdown cells tagged `report`, headings one level lower."""
    return [re.sub(r"(?m)^#", "##", "".join(cell["source"])) for cell in _cells(notebook)
            if "report" in cell["metadata"].get("tags", ())]


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
            markdown_table(shown.rename(columns={"rests_on": "seeds, updates"})),
            "Where networks are compared, comparisons, seeds and rule were declared before the runs "
            f"([PLAN.md]({Path(os.path.relpath(config.results_root(), start)).as_posix()}/PLAN.md)): 95 % intervals "
            "(in brackets) of differences paired over images and seeds, all declared runs finished and at least "
            f"{MIN_SEEDS} seeds; otherwise *{UNTESTED}*. A claim of a gain fails where the whole interval lies below "
            f"{SMALLEST} dB, and is *undecided* where it reaches from no gain to one worth a claim. C1's four "
            "comparisons are corrected for their number (Holm), others are not. The reason of each verdict stands with "
            "its notebook."]


def _page_section(page: dict, folder: Path) -> list[str]:
    parts = [f"## {_title(page['notebook'])}"]
    for claim in page["claims"]:
        parts.append(f"**{claim['name']}: {claim['verdict']}.** {claim['because']}")
    if page["claims"] and all(claim["seeds"] == 0 for claim in page["claims"]):
        files = ", ".join(f"[{table['name']}.csv]({table['name']}.csv)" for table in page["tables"])
        return [*parts, f"Nothing was trained for it at this budget. The paper's numbers, and which are ours to come: "
                        f"{files}."]
    for figure in page["figures"]:
        parts.append(f"![{figure['caption'] or figure['name']}]({figure['name']}.png)")
        if figure["caption"]:
            parts.append(f"*{figure['caption']}*")
    for table in page["tables"]:
        frame = pd.read_csv(folder / f"{table['name']}.csv")
        cut = frame.head(40)
        parts += [f"{table['caption']} ([{table['name']}.csv]({table['name']}.csv))".strip(), markdown_table(cut)]
        if len(cut) < len(frame):
            parts.append(f"*… {len(frame) - len(cut)} more rows in the CSV*")
    return parts + _prose(page["notebook"])


def compute_used(profile: Profile) -> pd.DataFrame:
    """Training of a profile's finished runs: artefact, device, runs, hours, updates; the last row is the sum.

    A run that serves several artefacts counts for the first of the queue; one that is in none of them is "other".
    """
    runs = records.all_records(profile)
    if runs.empty:
        return pd.DataFrame(columns=["artefact", "device", "runs", "hours", "updates"])
    artefacts: dict[str, str] = {}
    for part, (notebook, _) in experiments.PARTS.items():
        for run in sum(experiments.planned(profile, part).values(), []):
            artefacts.setdefault(run.id, notebook)
    table = runs.assign(artefact=runs.id.map(artefacts).fillna("other")).groupby(["artefact", "device"]).agg(
        runs=("id", "count"), hours=("train_seconds", lambda s: s.sum() / 3600), updates=("updates", "sum"))
    total = pd.DataFrame([("all", "", *table.sum())], columns=["artefact", "device", *table])
    return pd.concat([table.reset_index(), total], ignore_index=True).astype({"runs": int, "updates": int})


def _compute_section(profile: Profile) -> list[str]:
    runs = records.all_records(profile)
    if runs.empty:
        return ["## Compute", "No finished runs."]
    software = runs.groupby(["device", "torch", "git_commit"], dropna=False).agg(runs=("id", "count")).reset_index()
    text = (f"{len(runs)} finished runs; each has its folder under [runs/](runs/), "
            "all are listed in [runs.csv](runs.csv) with spec, machine, versions, data digest and commit.")
    return ["## Compute", text, markdown_table(compute_used(profile)), markdown_table(software)]


def _budget(profile: Profile) -> str:
    return (f"{profile.summary}. {profile.updates:,} updates of {profile.batch} patches of {profile.patch} x "
            f"{profile.patch} LR pixels a run")


def report_markdown(profile: Profile) -> str:
    """REPORT.md of a profile, from the records under results/<profile>/ alone."""
    folder = config.results_root() / profile.name
    warning = "" if profile.evidence else "> **Not evidence.** This profile only shows that everything runs."
    parts = [f"# Reproduction report, profile `{profile.name}`", warning,
             f"Profile: {_budget(profile)}. Columns: [results/README.md](../README.md); other profiles: "
             "[results/REPORT.md](../REPORT.md).",
             *_claims_section(claims.table(profile), folder)]
    for page in claims.pages(profile):
        parts += _page_section(page, folder)
    return "\n\n".join(part for part in [*parts, *_compute_section(profile)] if part) + "\n"


_HTML = """<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1">
<title>{title}</title><style>
body{{font:16px/1.55 system-ui,sans-serif;color:#222;max-width:60rem;margin:2rem auto;padding:0 1rem}}
h1{{font-size:1.7rem;line-height:1.2}}
h2{{margin-top:2.5rem;border-top:1px solid #ddd;padding-top:1.2rem;font-size:1.3rem}}
img{{max-width:100%;height:auto}}
blockquote{{margin:1rem 0;padding:.5rem 1rem;background:#fff3cd;border-left:4px solid #d39e00}}
.table{{overflow-x:auto;margin:1rem 0}} table{{border-collapse:collapse;font-size:.85rem;min-width:42rem}}
.anchor-link{{display:none}}
th,td{{padding:.3rem .6rem;border-bottom:1px solid #e3e3e3;text-align:left;vertical-align:top}}
th{{background:#f6f6f6}} td{{font-variant-numeric:tabular-nums}} code{{background:#f4f4f4;padding:.1em .3em}}
</style>{body}</html>
"""


def report_html(markdown: str, folder: Path) -> str:
    """The report as one HTML file, pictures inside; tables scroll sideways on a phone."""
    from nbconvert.filters import markdown2html

    body = str(markdown2html(markdown))
    body = body.replace("<table>", '<div class="table"><table>').replace("</table>", "</table></div>")

    def inline(match):
        picture = folder / match[1]
        if not picture.exists():
            return match[0]
        return f'src="data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"'

    return _HTML.format(title=markdown.splitlines()[0].lstrip("# "), body=re.sub(r'src="([\w.-]+\.png)"', inline, body))


def write_report(profile: str) -> Path:
    """Write results/<profile>/REPORT.md, report.html, claims.csv and runs.csv from the records; returns REPORT.md."""
    chosen = config.get_profile(profile)
    folder = config.results_root() / chosen.name
    write_csv(folder / "claims.csv", claims.table(chosen))
    if len(runs := records.all_records(chosen)):
        write_csv(folder / "runs.csv", runs)
    markdown = report_markdown(chosen)
    write_text(folder / "REPORT.md", markdown)
    write_text(folder / "report.html", report_html(markdown, folder))
    return folder / "REPORT.md"


IN_OTHER_UNITS = ("C10",)   # claims whose comparisons are no differences of PSNR
FACTORS = {"C3": 6.0}       # a slope, dB per pixel of R: drawn as the difference from R = 3 to R = 9


def figure_claims():
    """All claims in one picture, a row each: the paper's differences as diamonds, ours with 95 % intervals, verdicts.

    Of the profile that `claims.best` chooses for each; a claim that is not about differences of PSNR has its verdict
    alone.
    """
    import matplotlib.pyplot as plt

    table = claims.best()
    table = table[table.claim.str.match(r"[CE]\d") & ~table.claim.str.fullmatch("C1, U-HDB")].reset_index(drop=True)
    figure, axes = plt.subplots(figsize=(9, 1 + 0.42 * len(table)))
    for y, row in table.iterrows():
        comparisons = _comparisons(row.profile, row.claim) if row.claim not in IN_OTHER_UNITS else []
        factor = FACTORS.get(row.claim, 1.0)
        for (paper, *ours), offset in zip(comparisons, np.linspace(-0.3, 0.3, len(comparisons) + 2)[1:-1], strict=True):
            if paper is not None:
                axes.plot(factor * paper, y + offset, "D", ms=5, mfc="none", color="C1")
            if ours:
                mean, low, high = (factor * value for value in ours)
                axes.errorbar(mean, y + offset, xerr=[[mean - low], [high - mean]], fmt="o", ms=4, capsize=2,
                              color="C0")
        axes.annotate(row.verdict.removesuffix(" at this budget"), (1.01, y), xycoords=("axes fraction", "data"),
                      va="center", fontsize=10,
                      color={"supported": "C2", "not supported": "C3"}.get(row.verdict, "0.3"))
    axes.axvline(0, color="0.3", lw=1)
    axes.plot([], [], "D", mfc="none", color="C1", label="paper (Set5; Table IV: BSD100)")
    axes.errorbar([], [], xerr=[], fmt="o", color="C0", capsize=2, label="ours, 95 % interval")
    axes.set_yticks(range(len(table)), [_short(c) for c in table.claim], fontsize=10)
    axes.set_ylim(len(table) - 0.5, -0.5)
    axes.set(xlabel="PSNR difference that the claim is about (dB)", xlim=(-0.2, 0.2))
    axes.grid(False, axis="y")
    figure.legend(ncols=2, loc="outside lower center", fontsize=10)
    return figure


def _comparisons(profile: str, claim: str) -> list[list[float | None]]:
    """What a claim compares at a profile: [the paper's difference, ours, low, high] each; the paper's alone while it
    waits for runs."""
    pages = claims.pages(config.PROFILES[profile]) if profile in config.PROFILES else []
    return [values for page in pages for entry in page["claims"] if entry["name"] == claim
            for values in entry.get("comparisons", {}).values()]


def _short(claim: str) -> str:
    """A claim in a few words, for the picture: "C4 threshold (median)"."""
    number, *_, part = claim.split(", ") if ", " in claim else (claim, "")
    return f"{number} {claims.SHORT.get(number, '')}" + f" ({part})" * bool(part)


def _key_figures() -> list[str]:
    """The first four of KEY_FIGURES that are there, each from the profile with the most evidence that has it."""
    parts, root = [], config.results_root()
    for name in KEY_FIGURES:
        for profile in claims.EVIDENCE:
            captions = {f["name"]: f["caption"] for page in claims.pages(profile) for f in page["figures"]
                        if any(claim["seeds"] != 0 for claim in page["claims"])}   # not of what nobody trained
            if name in captions and (root / profile.name / f"{name}.png").exists():
                parts += [f"![{captions[name]}]({profile.name}/{name}.png)",
                          f"*Profile {profile.name}: {captions[name]}*"]
                break
    return parts[:8]


def overall_markdown() -> str:
    """The top-level REPORT.md: for every claim the best evidence of all profiles, each row named after its profile."""
    root = config.results_root()
    present = [profile for profile in claims.EVIDENCE if claims.pages(profile)]
    if not present:
        return ("# Reproduction report\n\n> **No evidence yet.** No profile that counts as evidence has results; "
                "`smoke` only shows that everything runs. `./run_all.sh --profile cpu` makes the first evidence.\n")
    profiles = []
    for profile in present:
        runs = records.all_records(profile)
        hours = f"{runs.train_seconds.sum() / 3600:.1f}" if len(runs) else "0"
        profiles.append((f"[{profile.name}]({profile.name}/REPORT.md)", _budget(profile), len(runs), hours))
    return "\n\n".join([
        "# Reproduction report: the best evidence so far",
        "![All claims: the paper's differences and ours](claims.png)",
        "What became of the claims of *Image-specific Convolutional Kernel Modulation for Single Image "
        "Super-resolution* (arXiv 2111.08362). All numbers of a row are of the one profile that it names: the largest "
        "budget at which all declared runs are finished, whatever the verdict there; where none are, the largest that "
        "trained something. The notebook is the one "
        "executed there. Tables, errors found, deviations and compute: in the profiles' reports. Columns of all files: "
        "[README.md](README.md).",
        *_claims_section(claims.best(), root),
        "## Profiles with evidence",
        markdown_table(pd.DataFrame(profiles, columns=["profile", "budget", "finished runs", "hours of training"])),
        "## Key figures", *_key_figures()]) + "\n"


def write_overall() -> Path:
    """Write the top-level REPORT.md (see `overall_markdown`) and its picture of all claims; returns REPORT.md."""
    import matplotlib.pyplot as plt

    path, picture = config.results_root() / "REPORT.md", io.BytesIO()
    style()
    figure = figure_claims()
    figure.savefig(picture, format="png")
    plt.close(figure)
    write_bytes(path.with_name("claims.png"), picture.getvalue())
    write_text(path, overall_markdown())
    return path
