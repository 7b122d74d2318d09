"""Tables I and II: our rows among the paper's."""
from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from ikmlib import config, datasets
from ikmlib.config import Profile
from ikmlib.study.comparisons import paper, rounding_cost, scores
from ikmlib.study.experiments import Variants


def table1_published() -> pd.DataFrame:
    """The paper's own rows of Table I by our labels, x2, x3, x4."""
    table = paper("table1").query("method == 'U-HDN+IKM'")
    return table.set_index("x" + table.scale.astype(str))


def table2_published() -> pd.DataFrame:
    """The paper's own rows of Table II by our labels."""
    table = paper("table2").set_index("method")
    return table.assign(params_k=1e3 * table.params_m)


def by_set(table: pd.DataFrame, states: pd.DataFrame) -> pd.DataFrame:
    """A `summary` with a row a test set instead of columns: variant, set, state (of `set_states`), psnr and ssim."""
    state, rows = states.set_index("set").state, []
    for row in table.to_dict("records"):
        names = [c.removesuffix("_psnr_ours") for c in table if c.endswith("_psnr_ours")]
        rows += [{"variant": row["variant"], "set": name, "state": state.get(name, "scored"),
                  **{c.removeprefix(f"{name}_"): v for c, v in row.items() if c.startswith(f"{name}_")},
                  "seeds": row["seeds"]} for name in names]
    return pd.DataFrame(rows)


def set_states(profile: Profile, done: Variants, sets: Sequence[str] = config.BENCHMARKS) -> pd.DataFrame:
    """A row a test set of the paper: scored | installed, not scored at this profile | not installed."""
    scored = set(scores(done)["set"])
    states = ["scored" if name in scored else "not installed" if not datasets.is_installed(name) else
              "installed, but not scored by these runs" for name in sets]
    return pd.DataFrame({"set": sets, "state": states})


def among_methods(published: pd.DataFrame, ours: pd.DataFrame, labels: Mapping[str, tuple[int, str]]) -> pd.DataFrame:
    """The paper's table with our rows below each scale's. `labels`: label of `ours` -> (scale, name of the row)."""
    mine = ours.set_index("variant").rename(columns=lambda name: name.removesuffix("_ours"))
    mine = mine[[column for column in mine if column in published or column.endswith(("_psnr", "_ssim"))]]
    mine = pd.concat([mine.loc[[label]].assign(scale=scale, method=method)
                      for label, (scale, method) in labels.items()])
    return pd.concat([published, mine]).sort_values("scale", kind="stable").reset_index(drop=True)


def c9(table: pd.DataFrame, own: str, profile: Profile) -> dict[str, str]:
    """C9: our means against the other methods' printed numbers, wherever both exist.

    `table`: of `among_methods`; `own`: the paper's name of the network. There are no per-image scores of theirs to pair
    with; so only a training at the published budget, on the published data, is compared.
    """
    columns = [c for c in table if c.endswith("_psnr") and not c.startswith("embedded")]
    ours = table[table.method == f"{own}, this study"].set_index("scale")[columns]
    rivals = table[~table.method.str.startswith("U-HDN")].groupby("scale")[columns].max()
    wins = (ours > rivals).where(ours.notna() & rivals.notna()).stack().dropna().astype(bool)
    tested = profile.name == "paper" and len(wins) > 0
    verdict = ("supported" if wins.all() else "mixed" if wins.any() else "not supported") if tested else (
        "not tested at this budget")
    known = "; ".join(f"x{scale} {column.removesuffix('_psnr')} {value:.2f}" for (scale, column), value in
                      ours.stack().dropna().items())
    return {"paper": f"{own} has the best PSNR of its table", "ours": known or "no set of the table was scored",
            "verdict": verdict,
            "because": "Holds where our mean is above every other method's printed number; only the profile `paper` "
                       "trains on the published data for the published time."}


def y_rounding(done: Variants) -> pd.DataFrame:
    """What rounding luma to integers costs our own networks, dB, by test set: measured, and predicted from MSE + 1/6.

    Where Table II's rows are scores on rounded luma, a float score beside them is ahead by this much.
    """
    found = scores(done)
    found["measured_db"] = found.psnr_y - found.psnr_y_rounded
    found["predicted_db"] = found.psnr_y.map(rounding_cost)
    table = found.groupby("set", sort=False).agg(
        images=("image", "nunique"), psnr_y=("psnr_y", "mean"), psnr_y_rounded=("psnr_y_rounded", "mean"),
        measured_db=("measured_db", "mean"), predicted_db=("predicted_db", "mean"))
    return table.reset_index()
