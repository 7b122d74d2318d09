"""From the verdicts that notebooks wrote to what people read: results/REPORT.md, report.html, and the lines of
README.md that say what was found.

All of it is made of the tables under `results/<profile>/`, the finished runs' records and the executed notebook 99,
which is the article and draws claims.png, so that no report can show a number that no run left.
"""
import re
from pathlib import Path

import pandas as pd

from ikmlib import config
from ikmlib.config import PROFILES
from ikmlib.files import read_csv, write_csv, write_text
from ikmlib.study import records, training
from ikmlib.study.experiments import planned
from ikmlib.study.notebook import EVIDENCE, differences, markdown_table, read_claims, recorded_profile
from ikmlib.study.runner import relinked
from ikmlib.study.stats import MIN_SEEDS, OPEN, SMALLEST, VERDICTS, WAITS, Difference

# The paper's claims, then explanations and claims of this study, in a few words
WORDS = {
    "C1": "IKM beats vanilla convolution", "C2": "IKM is as good as CA and SA", "C3": "IKM gains more at larger R",
    "C4": "good thresholds", "C5": "IsO beats GO", "C6": "U-style and hourglass help",
    "C7": "the hourglass beats other orders", "C8": "quality grows, then saturates",
    "C9": "U-HDN+IKM is best, at lower cost", "C10": "attention follows composition", "C11": "IKM is slower",
    "C12": "IKM adapts to each signal", "E1": "IKM gains by the image's own attention", "E2": "IKM gains by mere scale",
    "E3": "the authors' own weights", "P1": "our scoring gives the Bicubic rows",
    "D1": "can be put into another network",
    "C4, zero": "threshold 0 is at least as good", "C4, median": "the median is better",
    "C9, PSNR": "U-HDN+IKM has the best PSNR", "C9, cost": "U-HDN+IKM costs less",
    "C9, Table II": "the large network is best",
}
CLAIM = r"[CEDP]\d"   # of the paper, or a question of this study
PICTURE = ('<picture><source media="(max-width: 600px)" srcset="claims_narrow.png"><img src="claims.png" '
           'alt="All claims: the differences of the paper and ours with 95 % intervals"></picture>')

NARROW = ("body {max-width: 66em; margin: auto} table {display: block; overflow-x: auto; max-width: 100%} "
          "td {min-width: 3em} td code {white-space: normal}")   # for telephones, too


def in_words(claim: str) -> str:
    """A claim's name with what it says: "C1, U-HDB" -> "C1 IKM beats vanilla convolution (U-HDB)", "C9, cost" ->
    "C9 U-HDN+IKM costs less"; unknown names stay as they are."""
    number, *parts = claim.split(", ")
    if claim in WORDS:
        return f"{number} {WORDS[claim]}"
    return f"{number} {WORDS[number]} ({parts[-1]})" if number in WORDS else claim


# --- what is known --------------------------------------------------------------------------------------------------


def best() -> pd.DataFrame:
    """The rows of claims.csv that count, in the order of WORDS, with `profile` where they are from.

    For each claim those of the largest profile with a verdict, whatever it is: there all declared runs are finished.
    Where there is none, those of the smallest, whose runs are finished first. Profiles that are no evidence are left
    out.
    """
    rows = pd.concat([read_claims(p).assign(profile=p.name) for p in reversed(EVIDENCE)], ignore_index=True)
    judged = rows[~rows.verdict.isin(OPEN)].groupby("claim").profile.last()
    chosen = judged.combine_first(rows.groupby("claim").profile.first())
    place = {number: i for i, number in enumerate(WORDS)}
    order = sorted(dict.fromkeys(rows.claim), key=lambda claim: place.get(claim.partition(",")[0], len(WORDS)))
    rows = rows[rows.profile == rows.claim.map(chosen)]
    return rows.sort_values("claim", key=lambda claims: claims.map(order.index), kind="stable", ignore_index=True)


def once(rows: pd.DataFrame) -> pd.DataFrame:
    """Each comparison once where it serves two claims: as it is judged, else as it waits; where both judge it, as the
    claim that is about it alone does ("C1, U-HDB", not "C1"). Order and columns stay."""
    several = rows.duplicated(["claim", "profile"], keep=False)   # of claims about other comparisons, too
    order = (2 * (rows.outcome == "waits") + several).sort_values(kind="stable").index
    kept = rows.loc[order].drop_duplicates(["comparison", "profile"]).index
    return rows[rows.index.isin(kept)]


def gains(claims: str = "C1(,|$)|Beside") -> pd.DataFrame:
    """The comparisons in dB of claims that match, wherever all declared runs are finished, from the smallest profile
    up, a row each, columns as in `best`. By default IKM minus the vanilla convolution: those of C1, and the one beside
    C9."""
    rows = pd.concat([read_claims(profile).assign(profile=profile.name) for profile in reversed(EVIDENCE)],
                     ignore_index=True)
    return once(rows[rows.claim.str.match(claims) & rows.ours.notna() & (rows.unit == "dB")])


def authors() -> pd.DataFrame:
    """Own minus constant attention in the authors' own weights (notebook 15), dB: network, view, images, difference_db,
    low_db, high_db, a row a network that was measured, on whole images where they were."""
    path = config.results_root() / recorded_profile("15_authors_weights").name / "authors_own.csv"
    rows = read_csv(path) if path.exists() else pd.DataFrame(columns=["network", "view", "contrast", "difference_db"])
    rows = rows[rows.contrast == "own - constant"].dropna(subset=["difference_db"])
    return rows.sort_values(["network", "view"]).drop_duplicates("network", keep="last")


# --- the report -----------------------------------------------------------------------------------------------------


def verdicts(rows: pd.DataFrame, folder: str = "") -> pd.DataFrame:
    """Claims of `best` as people read them, a row each: `short` ("C9 PSNR"), claim, verdict, ours up to its first
    semicolon, profile, notebook. `folder`: where links to executed notebooks find the results."""
    told = []
    for row in rows.drop_duplicates("claim").itertuples():
        number, *parts = row.claim.split(", ")
        told.append((" ".join([number, *parts[-1:]]), in_words(row.claim), row.verdict,
                     row.ours_words.partition(";")[0], row.profile,
                     f"[{row.notebook[:2]}]({folder}{row.profile}/notebooks/{row.notebook}.ipynb)"))
    return pd.DataFrame(told, columns=["short", "claim", "verdict", "ours", "profile", "notebook"])


def named(rows: pd.DataFrame) -> pd.DataFrame:
    """Comparisons as `differences` shows them, each behind its claim, "C1 RB: IKM − none", with profile and seeds."""
    shown = differences(rows).drop(columns="runs")
    shown["comparison"] = rows.claim.str.split(",").str[0] + " " + rows.comparison
    shown.insert(1, "profile", rows.profile)
    shown.insert(2, "seeds", rows.seeds)
    return shown


def compared(rows: pd.DataFrame) -> pd.DataFrame:
    """The comparisons of `best` that are complete, as people read them, a row each."""
    return named(once(rows[rows.ours.notna() & (rows.outcome != "waits")]))


def by_own(rows: pd.DataFrame) -> str:
    """A sentence on the claims of `best` whose verdict would be another by the comparisons' own standard deviations."""
    other = rows.drop_duplicates("claim").set_index("claim").because.str.extract(r"would be: ([a-z ]+)\.", expand=False)
    other = other.dropna()
    told = "; ".join(f"{in_words(claim)}, {verdict}" for claim, verdict in other.items())
    return f"By the comparisons' own standard deviations, these verdicts would be others: {told}. " * bool(told)


def primary() -> str:
    """What became of the primary endpoint, in words; and what IKM adds at half the rate and to the whole U-HDN, if
    these are known."""
    long, paper = PROFILES["cpu-long"], PROFILES["paper"]
    share = paper.updates * paper.batch * paper.patch ** 2 / (long.updates * long.batch * long.patch ** 2)
    budget = (f"trained on 1/{share:.0f} of the pixels of the paper's ablations, as we read its budget, at "
              f"{long.rate / paper.rate:.0f} times its learning rate (`{long.name}`)")
    rows = read_claims(long)
    rows = rows[(rows.claim == "C1, U-HDB") & rows.ours.notna()]
    if rows.empty:
        runs = planned(long, "table3").query("block == 'U-HDB'").run
        return ("**In short: the primary endpoint waits.** It is IKM minus the vanilla convolution in U-HDB, one block "
                f"of the paper's network, {budget}. Finished: {records.runs_in_words(runs)}.")
    row, found = next(rows.itertuples()), differences(rows).iloc[0]
    said = "it is undecided whether IKM gains"
    rule = f"is *undecided*: its interval contains 0 and reaches above {SMALLEST} dB"
    if row.outcome == "holds":
        said, rule = "IKM gains", "*holds*: its interval lies above 0"
    elif row.outcome == "fails":
        said = "IKM loses" if row.high < 0 else f"IKM gains nothing, or at most {row.high:.3f} dB"
        rule = f"*fails*: its interval lies below {SMALLEST} dB"
    return (f"**In short: where this study looked hardest, {said}.** IKM minus the vanilla convolution is "
            f"{found['ours, 95 % interval']} of PSNR (95 % interval) over all test images, and "
            f"{found['ours, Set5 alone']} on Set5 alone, where the paper prints {row.paper:+.2f} dB. This is the "
            f"primary endpoint: U-HDB, one block of the paper's network, {budget}, with {row.seeds} seeds whose "
            f"results nobody had seen. By the rule declared before the runs, the gain over all test images {rule}."
            + "".join(f"\n\n{words} at `{row.profile}`, IKM minus vanilla is "
                      f"**{Difference(row.ours, row.low, row.high)}** ({row.seeds} new seeds): *{row.outcome}*."
                      for claim, words in (("Beside C1", "At half that rate, in U-HDB"),
                                           ("C1, U-HDN$", "In the whole U-HDN, of four blocks,"))
                      for row in gains(claim).tail(1).itertuples()))


def added() -> str:
    """What IKM adds to the vanilla convolution: a table of all complete comparisons, then the authors' own weights."""
    rows, own = gains()[::-1], authors()   # the largest budget first
    above, below = (rows.low > 0).sum(), (rows.high < 0).sum()
    claims = best().drop_duplicates("claim")
    e1 = claims[claims.claim.str.startswith("E1") & ~claims.verdict.isin(OPEN)]
    why = "; ".join(f"{verdict} in {', '.join(names.str.rpartition(', ')[2])}"
                    for verdict, names in e1.groupby("verdict", sort=False).claim)
    told = [f"**What IKM adds** to the vanilla convolution (*none*): of {len(rows)} complete comparisons, the interval "
            f"lies above 0 in {above}, below 0 in {below}, and contains 0 in {len(rows) - above - below}."
            + f" E1, that a gain comes from the image's own attention, is {why}." * bool(why)]
    if len(rows):
        told += [markdown_table(named(rows).drop(columns="interval of its own")),
                 "These are differences of PSNR. The paper's are of Set5 (U-HDN: BSD100) and have no interval. Ours "
                 "are of all test images, and decide; beside them stand those of Set5's five images alone. A gain "
                 f"*holds* if its interval lies above 0. Otherwise it *fails* if all of it lies below {SMALLEST} dB, "
                 "the smallest gain worth a claim, and is *undecided* if not. C1's four architectures are corrected "
                 "for multiple testing by Holm's method (their intervals are shown without it); the primary endpoint "
                 "and U-HDN are judged alone. For a true gain as large as the minimum detectable effect, the interval "
                 "would lie above 0 in about four of five repetitions. Rows marked *Beside* belong to no claim."]
    if len(own):
        told.append("The authors released weights of a later method, whose attention is a softmax. At test time, "
                    "the image's own attention in place of a constant one changes the PSNR of these networks by "
                    f"{own.difference_db.min():+.3f} to {own.difference_db.max():+.3f} dB ({', '.join(own.network)}, "
                    f"{own.view.iloc[0]}). This is exploratory, and compares no trainings.")
    return "\n\n".join(told)


def waiting(claims: pd.DataFrame) -> str:
    """Which of the claims, rows of `verdicts`, wait for runs, and how far the plan is."""
    runs, parts = training.queue(None), [", ".join(claims.short[claims.verdict == WAITS]) or "nothing"]
    for profile in EVIDENCE:   # where a smaller budget has a verdict
        there = verdicts(read_claims(profile).assign(profile=profile.name)).query("verdict == @WAITS").short
        there = there[there.isin(claims.short[claims.verdict != WAITS])]
        parts += [f"at `{profile.name}`: {', '.join(there)}"] * bool(len(there))
    return (f"**Waiting for runs:** {'; '.join(parts)}. Finished of the whole plan: "
            f"{records.runs_in_words(runs)}.")


def opening() -> str:
    """What README and the article say after `primary`: what IKM adds, what is decided, what still waits."""
    every = verdicts(best())
    claims = every[every.short.str.match(CLAIM)]
    papers = claims.short.str.startswith("C")

    def counted(claims: pd.DataFrame) -> str:
        judged = claims[claims.verdict != WAITS].groupby("verdict").short.agg(list)
        return "; ".join(f"{len(judged[one])} {one} ({', '.join(judged[one])})" for one in VERDICTS
                         if one in judged) or "none"

    return "\n\n".join([
        added(), f"**Verdicts** on the paper's claims and parts of claims: {counted(claims[papers])}. On this study's "
        f"own questions: {counted(claims[~papers])}.", waiting(every)])


def readme(text: str) -> str:
    """README.md with what stands between its markers made anew: `answer`, the `primary` endpoint; `found`, the
    `opening`; `map`, the last column, which says what became of the claims of each row's notebook."""
    claims = verdicts(best(), folder="results/")
    claims["said"] = ("waits, " + claims.ours).where(claims.verdict == WAITS, "**" + claims.verdict + "**")

    def judged(row: str) -> str:
        start = row.rstrip("|").rpartition("|")[0]   # all but the last column
        mine = claims[[link.partition("/notebooks/")[2] in start for link in claims.notebook]].copy()
        elsewhere = [link not in start for link in mine.notebook]   # at another budget than that of the row's link
        mine.loc[elsewhere, "said"] += " at `" + mine.profile + "` (" + mine.notebook + ")"
        told = [f"{', '.join(names)}: {said}" for said, names in mine.groupby("said", sort=False).short]
        return f"{start}| {'; '.join(told)} |" if told else row

    for name, made in (("answer", lambda old: primary()), ("found", lambda old: opening()),
                       ("map", lambda old: "\n".join(map(judged, old.split("\n"))))):
        text = re.sub(rf"(?<=<!-- {name} -->\n\n).*?(?=\n\n<!-- end of {name} -->)",
                      lambda old, made=made: made(old[0]), text, flags=re.DOTALL)
    return text


def markdown() -> str:
    """REPORT.md, the summary of the article: for every claim the best evidence of all profiles."""
    rows = best()
    claims = verdicts(rows)
    if rows.empty:
        return ("# Reproduction report\n\n> **No evidence yet.** No profile that counts as evidence has results; "
                "`smoke` only shows that everything runs. `./run_all.sh --profile cpu` makes the first evidence.\n")
    return "\n\n".join([
        "# Reproduction report: the best evidence so far",
        "A reproduction of *Image-specific Convolutional Kernel Modulation for Single Image Super-resolution* (arXiv "
        "2111.08362), which proposes IKM. Budgets, words and abbreviations: [README.md](../README.md). The whole "
        "article, with method, deviations, errors found in print and compute: [report.html](report.html).",
        primary(), added(), waiting(claims), PICTURE,
        "## Verdicts", markdown_table(claims.drop(columns="short")),
        "Each verdict comes from the largest budget (profile) at which all declared runs of its claim are finished. "
        "The paper's words and the reason of each verdict stand in its notebook.",
        "## Comparisons that are judged", markdown_table(compared(rows)),
        "Comparisons, seeds and rule were declared before the runs ([PLAN.md](PLAN.md)): 95 % intervals of differences "
        f"paired over images and seeds, with at least {MIN_SEEDS} seeds. The first interval pools the standard "
        "deviations over seeds of like networks, and decides (C1's four architectures after Holm's correction, the "
        "primary endpoint and U-HDN alone); the second uses the comparison's own, which few seeds tell only roughly. "
        f"{by_own(rows)}A gain that does not hold fails if the whole interval lies below {SMALLEST} "
        f"dB (C6: 0.01 dB; C10: 0.05 of its unit), *at least as good* (C2; C4 zero) where it lies below -{SMALLEST} "
        "dB. The minimum detectable effect is for about 80 % power of a single comparison without a correction, if "
        f"standard errors are as estimated. For *at least as good* it is the true difference whose interval would lie "
        f"above -{SMALLEST} dB, so it can be negative. "
        "Comparisons of a claim that still waits for runs stand in its notebook. Columns of all files: "
        "[README.md](README.md)."]) + "\n"


def html() -> str | None:
    """The executed notebook 99 of the best profile as a web page without its code; None where it was not executed."""
    import nbformat
    from nbconvert import HTMLExporter

    folder = f"{recorded_profile('99_report').name}/notebooks"
    path = config.results_root() / folder / "99_report.ipynb"
    if not path.exists():
        return None
    exporter = HTMLExporter(exclude_input=True, exclude_input_prompt=True, exclude_output_prompt=True)
    page = exporter.from_notebook_node(relinked(nbformat.read(path, as_version=4), folder))[0]
    return page.replace("</head>", f"<style>{NARROW}</style></head>", 1)


def write_report(profile: str) -> Path:
    """Write runs.csv of a profile and of those that are evidence and, over the latter, results/REPORT.md and
    report.html; returns REPORT.md. Where the records are those of this project, README.md's generated parts are made
    anew, too.

    Raises ValueError, and writes nothing, if a file that it reads is damaged (see `records.all_records`).
    """
    root, front = config.results_root(), config.ROOT / "README.md"
    profiles = dict.fromkeys((config.get_profile(profile), *EVIDENCE))
    runs = {chosen.name: records.all_records(chosen) for chosen in profiles}
    text, page = markdown(), html()
    for name, table in runs.items():
        if len(table):
            write_csv(root / name / "runs.csv", table)
    if page is not None:
        write_text(root / "report.html", page)
    if root.resolve() == config.ROOT / "results" and front.exists():
        write_text(front, readme(front.read_text("utf-8")))
    write_text(root / "REPORT.md", text)
    return root / "REPORT.md"
