"""The paper's twelve claims, and what became of them: read from the notebooks' manifests, profile by profile.

A notebook records its verdicts in `results/<profile>/pages/<notebook>.json`; here they are put into one table. Nothing
is computed: a claim that no notebook has recorded is not tested.
"""
from __future__ import annotations

import pandas as pd

from ikmlib import config
from ikmlib.config import PROFILES, Profile
from ikmlib.files import read_json
from ikmlib.study.stats import UNTESTED, seeds_in_words

# The paper's claims -> in a few words, and the notebook that tests it
CLAIMS = {
    "C1": ("IKM beats vanilla convolution", "04_table3_attention"),
    "C2": ("IKM is as good as CA and SA", "04_table3_attention"),
    "C3": ("IKM gains more at larger R", "05_table4_receptive_field"),
    "C4": ("good thresholds", "08_fig9_threshold"),
    "C5": ("IsO beats GO", "09_fig10_iso_vs_go"),
    "C6": ("U-style and hourglass help", "06_table5_ablation"),
    "C7": ("the hourglass beats other orders", "10_fig11_hourglass"),
    "C8": ("quality grows, then saturates", "07_fig8_model_size"),
    "C9": ("U-HDN is best of its table", "02_table1_lightweight"),
    "C10": ("attention follows composition", "11_fig5_6_attention_maps"),
    "C11": ("IKM is slower", "13_cost"),
    "C12": ("IKM adapts to each signal", "01_fig1_synthetic_1d"),
}
# Explanations and hypotheses of this study
OWN = {"E1": "own attention is why", "E2": "mere scale is why", "H1": "rounded luma in Table II"}
UNTRAINED = "not complete"
EVIDENCE = tuple(profile for profile in reversed(PROFILES.values()) if profile.evidence)   # the largest budget first
COLUMNS = ["claim", "paper", "ours", "profile", "rests_on", "verdict", "notebook"]


def pages(profile: Profile) -> list[dict]:
    """The manifests of a profile's notebooks, in their order."""
    folder = config.results_root() / profile.name / "pages"
    return [read_json(path, "notebook", "tables", "figures", "claims") for path in sorted(folder.glob("*.json"))]


def recorded(profile: Profile) -> pd.DataFrame:
    """A row a verdict that a profile's notebooks recorded, in their order; columns as COLUMNS.

    `claim` is a name such as "C1", "C4, zero" or "P1"; `rests_on`: how many seeds, where networks were trained.
    """
    def rests_on(seeds: int | None) -> str:
        return "–" if seeds is None else seeds_in_words(seeds) if seeds else UNTRAINED

    rows = [(c["name"], c["paper"], c["ours"], profile.name, rests_on(c.get("seeds")), c["verdict"], page["notebook"])
            for page in pages(profile) for c in page["claims"]]
    return pd.DataFrame(rows, columns=COLUMNS)


def _complete(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows in the order of the paper's claims, then the others; a claim without a row gets one that says so."""
    missing = [(claim, "–", "–", "–", "–", UNTESTED, notebook) for claim, (_, notebook) in CLAIMS.items()
               if claim not in set(rows.claim.map(_number))]
    table = pd.concat([rows, pd.DataFrame(missing, columns=COLUMNS)], ignore_index=True)
    order = table.claim.map(_number).map({claim: i for i, claim in enumerate(CLAIMS)}).fillna(len(CLAIMS))
    return table.loc[order.sort_values(kind="stable").index].reset_index(drop=True)


def _number(claim: str) -> str:
    """The claim that a name belongs to: "C4, zero" -> "C4"."""
    return claim.partition(",")[0]


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
    """A claim's name with what it says: "C4, median" -> "C4 good thresholds (median)"; unknown names stay as they are.
    """
    number = _number(claim)
    words = CLAIMS[number][0] if number in CLAIMS else OWN.get(number)
    part = claim.rpartition(", ")[2] if ", " in claim else ""
    return f"{number} {words}" + f" ({part})" * bool(part) if words else claim
