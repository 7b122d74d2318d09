"""The paper's twelve claims, and what became of them: read from the notebooks' manifests, profile by profile.

A notebook records its verdicts in `results/<profile>/pages/<notebook>.json`; here they are put into one table. Nothing
is computed: a claim that no notebook has recorded is not tested.
"""
from __future__ import annotations

import json

import pandas as pd

from ikmlib import config
from ikmlib.config import PROFILES, Profile
from ikmlib.study.experiments import PARTS, planned
from ikmlib.study.stats import UNTESTED

UNTRAINED = "nothing trained"
# The paper's claims -> in a few words, and the number of the notebook that tests it
CLAIMS = {
    "C1": ("IKM beats vanilla convolution at no parameter", "04"),
    "C2": ("IKM is at least as good as channel and spatial attention", "04"),
    "C3": ("IKM's gain grows with the receptive field", "05"),
    "C4": ("tau = 0 is a good threshold; the median is better but slow", "08"),
    "C5": ("IsO beats GO, more so in larger batches", "09"),
    "C6": ("U-style residual learning and the hourglass both help", "06"),
    "C7": ("the hourglass beats other orders of the depths", "10"),
    "C8": ("quality grows with N, U and C, and saturates", "07"),
    "C9": ("best of the lightweight and of the large methods", "02"),
    "C10": ("attention shapes follow the image's composition", "11"),
    "C11": ("IKM is slower than vanilla convolution", "13"),
    "C12": ("IKM adapts to each signal", "01"),
}
# The same in fewer words, for the picture of all claims
SHORT = {"C1": "IKM beats vanilla", "C2": "as good as CA, SA", "C3": "more so at larger R", "C4": "threshold",
         "C5": "IsO beats GO", "C6": "U-style, hourglass help", "C7": "hourglass beats other orders",
         "C8": "grows with size, saturates", "C9": "beats others", "C10": "attention follows composition",
         "C11": "IKM is slower", "C12": "adapts to each signal", "E1": "own attention is why",
         "E2": "mere scale is why"}
EVIDENCE = tuple(profile for profile in reversed(PROFILES.values()) if profile.evidence)   # the largest budget first
COLUMNS = ["claim", "paper", "ours", "profile", "rests_on", "verdict", "notebook"]


def seeds_in_words(n: int) -> str:
    return f"{n} seed{'' if n == 1 else 's'}"


def pages(profile: Profile) -> list[dict]:
    """The manifests of a profile's notebooks, in their order."""
    folder = config.results_root() / profile.name / "pages"
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def _rests_on(profile: Profile, notebook: str, seeds: int | None) -> str:
    """What a verdict rests on, such as "3 seeds, 2,000 updates": seeds compared, updates of the finished runs."""
    parts = [part for part, (shown_in, _) in PARTS.items() if shown_in == notebook]
    if not parts:
        return "–"
    runs = sum(planned(profile, parts[0]).values(), [])
    updates = sorted({run.updates for run in runs if run.finished})
    if seeds == 0 or not updates:
        return UNTRAINED
    compared = [] if seeds is None else [seeds_in_words(seeds)]
    return ", ".join([*compared, "–".join(f"{n:,}" for n in dict.fromkeys((updates[0], updates[-1]))) + " updates"])


def recorded(profile: Profile) -> pd.DataFrame:
    """A row a verdict that a profile's notebooks recorded, in their order; columns as COLUMNS.

    `claim` is a name such as "C1", "C4, zero" or "P1"; `rests_on`: seeds and updates, where networks were trained.
    """
    rows = [(c["name"], c["paper"], c["ours"], profile.name, _rests_on(profile, page["notebook"], c.get("seeds")),
             c["verdict"], page["notebook"]) for page in pages(profile) for c in page["claims"]]
    return pd.DataFrame(rows, columns=COLUMNS)


def _number(claim: str) -> str:
    """The claim that a name belongs to: "C4, zero" -> "C4"."""
    return claim.partition(",")[0]


def _complete(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows in the order of the paper's claims, then the others; a claim without a row gets one that says so."""
    missing = []
    for claim in CLAIMS.keys() - set(rows.claim.map(_number)):
        stems = [path.stem for path in (config.ROOT / "notebooks").glob(f"{CLAIMS[claim][1]}_*.ipynb")]
        missing.append((claim, "–", "–", "–", "–", UNTESTED, stems[0] if stems else "–"))
    table = pd.concat([rows, pd.DataFrame(missing, columns=COLUMNS)], ignore_index=True)
    order = table.claim.map(_number).map({claim: i for i, claim in enumerate(CLAIMS)}).fillna(len(CLAIMS))
    return table.loc[order.sort_values(kind="stable").index].reset_index(drop=True)


def table(profile: Profile) -> pd.DataFrame:
    """All claims of the paper in order, then further ones, as one profile found them; columns as COLUMNS."""
    return _complete(recorded(profile))


def best() -> pd.DataFrame:
    """As `table`, each row from the profile with the best evidence for it, and `at_smaller_budgets`: what the smaller
    ones found, so that one sees whether an effect grows, stays or vanishes as training goes on.

    The largest budget at which all declared runs of the claim are finished, whatever the verdict there; where there is
    none, the largest that trained something. Profiles that are no evidence are left out.
    """
    rows = pd.concat([recorded(p).assign(rank=i) for i, p in enumerate(EVIDENCE)], ignore_index=True)
    rows = rows.assign(untested=rows.verdict == UNTESTED, untrained=rows.rests_on == UNTRAINED)
    rows = rows.sort_values(["untested", "untrained", "rank"], kind="stable")
    chosen = rows.drop_duplicates("claim").sort_values("notebook", kind="stable")
    smaller = [" · ".join(f"{row.profile}: {row.verdict} ({row.ours})" for row in rows.itertuples()
                          if row.claim == mine.claim and row.rank > mine.rank and not row.untested
                          and row.rests_on != "–") for mine in chosen.itertuples()]
    table = _complete(chosen.assign(at_smaller_budgets=smaller)[[*COLUMNS, "at_smaller_budgets"]])
    return table.assign(at_smaller_budgets=table.at_smaller_budgets.astype(object).fillna(""))


def in_words(claim: str) -> str:
    """A claim's name with what it says: "C4, zero: tau = 0 is ..."; names that are not the paper's stay as they are."""
    number = _number(claim)
    return f"{claim}: {CLAIMS[number][0]}" if number in CLAIMS else claim
