"""What the study found beside the claims: costs checked cell by cell, errors with the numbers that show them.

Everything is computed when asked for: costs from networks and layer lists, errors from the traps of notebook 00, what
rounding luma costs from the scores of our own finished runs.
"""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

import pandas as pd

from ikmlib import config
from ikmlib.config import Profile
from ikmlib.layers import attention_range
from ikmlib.models import ARCHITECTURES
from ikmlib.study import artefacts, comparisons, experiments
from ikmlib.study.comparisons import cost_columns, cost_table, rounding_cost, rounds_to
from ikmlib.study.experiments import Variants
from ikmlib.study.records import psnr_by_image
from ikmlib.study.stats import SMALLEST, UNTESTED

FIG2 = (0.63, 1.32)   # least and largest attention that the paper's Fig. 2 shows
# PSNR at x2 that the authors of two methods of Table II published, on floating-point luma. Set5: the mean of the list
# that they released with their weights; other sets: tables of Zhang et al., ECCV 2018 (RCAN) and CVPR 2018 (RDN)
AUTHORS = {
    "RCAN": {"Set5": 38.274, "Set14": 34.12, "BSD100": 32.41, "Urban100": 33.34, "Manga109": 39.44},
    "RDN": {"Set5": 38.242, "Set14": 34.01, "BSD100": 32.34, "Urban100": 32.89, "Manga109": 39.18},
}


# --- costs of the paper's own networks ------------------------------------------------------------------------------


def _printed(table: int) -> pd.DataFrame:
    """A table of the paper with its numbers as text, so that their decimals can be counted."""
    return pd.read_csv(config.PAPER / f"table{table}.csv", dtype=str, keep_default_na=False)


def cost_cells() -> pd.DataFrame:
    """Every #Params and #FLOPs that the paper prints for its own networks: columns as `cost_table`."""
    rows = []
    for label, name in (("U-HDN+IKM", "uhdn"), ("U-HDNL+IKM", "uhdn_l")):
        row, ours = _printed(2).set_index("method").loc[label], cost_columns(ARCHITECTURES[name], 2)
        rows.append(("Table II", label, "params_k", 1e3 * float(row.params_m), ours["params_k"],
                     rounds_to(ours["params_k"] / 1e3, row.params_m)))   # printed in millions
        rows.append(("Table II", label, "flops_g", float(row.flops_g), ours["flops_g"],
                     rounds_to(ours["flops_g"], row.flops_g)))
    for row in _printed(3).query("attention != 'none'").to_dict("records"):
        plain = replace(ARCHITECTURES[row["architecture"].lower().replace("-", "")], attention="none")
        both = cost_columns(replace(plain, attention=row["attention"].lower()), 2)
        for quantity, ours in both.items():
            text, added = row[f"extra_{quantity}"], ours - cost_columns(plain, 2)[quantity]
            rows.append(("Table III", f"{row['architecture']}: {row['attention']} adds", quantity, float(text), added,
                         rounds_to(added, text)))
    return pd.concat([cost_table(), pd.DataFrame(rows, columns=cost_table().columns)], ignore_index=True)


def complexity_check(cells: pd.DataFrame) -> pd.DataFrame:
    """`cost_cells` with a row a network: table, network, #Params and #FLOPs paper | ours, `rounds_to_the_paper`."""
    wide = cells.set_index(["table", "network", "quantity"]).unstack("quantity")
    names = {"params_k": "params_thousands", "flops_g": "flops_billions"}
    table = pd.DataFrame({f"{name}_{source}": wide[source][quantity]
                          for quantity, name in names.items() for source in ("paper", "ours")})
    table["rounds_to_the_paper"] = wide["equal"].fillna(True).all(axis=1).map({True: "yes", False: "no"})
    return table.reset_index()


# --- costs of other methods, from their layers -----------------------------------------------------------------------


class Conv(NamedTuple):
    """`times` like convolutions of a network that makes a 480 x 360 image, each at 480/at x 360/at positions."""

    kernel: int
    inputs: int
    outputs: int
    times: int = 1
    at: int = 1                # 1: every output pixel; 2: the LR pixels of x2; of a transposed one its inputs
    groups: int = 1
    bias: bool = True
    activation: bool = False   # one operation an output
    further: int = 0           # trainable slopes and scalars beside weights and biases


def count(layers: Iterable[Conv]) -> tuple[int, int]:
    """(#Params, #FLOPs) of layers: multiply-adds, biases and activations, the way that fits Tables I and II."""
    params = operations = 0
    for layer in layers:
        weights = layer.kernel**2 * layer.inputs // layer.groups * layer.outputs + layer.bias * layer.outputs
        params += layer.times * (weights + layer.further)
        operations += (layer.times * (weights + layer.activation * layer.outputs)
                       * (480 // layer.at) * (360 // layer.at))
    return params, operations


def srcnn(middle: int) -> list[Conv]:
    """SRCNN 9-`middle`-5 on the luma of the upscaled image, without biases."""
    return [Conv(9, 1, 64, bias=False, activation=True), Conv(middle, 64, 32, bias=False, activation=True),
            Conv(5, 32, 1, bias=False)]


def idn(colours: int, groups: int) -> list[Conv]:
    """IDN at x2: two convolutions, four blocks of seven, a transposed convolution."""
    shapes = [(3, 64, 48, 1), (3, 48, 32, groups), (3, 32, 64, 1), (3, 48, 64, 1), (3, 64, 48, groups), (3, 48, 80, 1),
              (1, 80, 64, 1)]
    block = [Conv(k, i, o, 4, at=2, groups=g, activation=True) for k, i, o, g in shapes]
    return [Conv(3, colours, 64, at=2, activation=True), Conv(3, 64, 64, at=2, activation=True), *block,
            Conv(17, 64, colours, at=2)]


def rdn(blocks: int, layers: int, growth: int) -> list[Conv]:
    """RDN at x2 with 64 features: D blocks of C convolutions of growth G."""
    dense = [Conv(3, 64 + i * growth, growth, blocks, at=2, activation=True) for i in range(layers)]
    return [Conv(3, 3, 64, at=2), Conv(3, 64, 64, at=2), *dense, Conv(1, 64 + layers * growth, 64, blocks, at=2),
            Conv(1, 64 * blocks, 64, at=2), Conv(3, 64, 64, at=2), Conv(3, 64, 256, at=2), Conv(3, 64, 3)]


def oisr_rk3(scale: int) -> list[Conv]:
    """OISR-RK3 at x2 or x4: 22 blocks of three convolutions of 256 features, PReLUs with slopes, 5 scalars a block."""
    up = [Conv(3, 256, 1024, at=at) for at in ((2,) if scale == 2 else (4, 2))]
    return [Conv(3, 3, 256, at=scale), Conv(3, 256, 256, 44, at=scale, activation=True, further=256),
            Conv(3, 256, 256, 22, at=scale, activation=True, further=256 + 5), Conv(3, 256, 256, at=scale), *up,
            Conv(3, 256, 3)]


# (table, method, network, whether the PSNR beside the cost is, by its publication, that of this network, layers)
PEERS = (
    (1, "SRCNN", "9-1-5", False, srcnn(1)), (1, "SRCNN", "9-5-5", True, srcnn(5)),
    (1, "IDN", "RGB, no groups", False, idn(3, 1)), (1, "IDN", "as published: luma, 4 groups", True, idn(1, 4)),
    (2, "RDN", "D = 20, C = 6, G = 32", False, rdn(20, 6, 32)),
    (2, "RDN", "as published: D = 16, C = 8, G = 64", True, rdn(16, 8, 64)),
    (2, "OISR-RK3", "for x2", True, oisr_rk3(2)), (2, "OISR-RK3", "for x4", False, oisr_rk3(4)),
)


def peers() -> pd.DataFrame:
    """Rows of Tables I and II (x2) whose columns describe different networks, each network counted.

    table, method, network, #Params and #FLOPs paper | ours, `fits`: which of the two ours round to, `has_the_psnr`:
    whether the row's PSNR is that network's.
    """
    rows = []
    for table, method, network, psnr, layers in PEERS:
        printed = _printed(table).query("method == @method and scale == '2'").iloc[0]
        unit = 1e3 if table == 1 else 1e6   # thousands in Table I, millions in Table II
        text = printed.params_k if table == 1 else printed.params_m
        params, operations = count(layers)
        fits = [name for name, equal in (("#Params", rounds_to(params / unit, text)),
                                         ("#FLOPs", rounds_to(operations / 1e9, printed.flops_g))) if equal]
        rows.append((f"Table {'I' * table}", method, network, float(text) * unit / 1e3, params / 1e3,
                     float(printed.flops_g), operations / 1e9, " and ".join(fits) or "neither",
                     "yes" if psnr else "no"))
    return pd.DataFrame(rows, columns=["table", "method", "network", "params_thousands_paper", "params_thousands_ours",
                                       "flops_billions_paper", "flops_billions_ours", "fits", "has_the_psnr"])


# --- rounded luma in Table II ---------------------------------------------------------------------------------------


def finished(profile: Profile) -> Variants:
    """All finished runs of a profile at Table II's scale, x2, as one variant."""
    return {"all": [run for run in experiments.queue(profile) if run.finished and run.scale == 2]}


def rounded_table2(done: Variants) -> pd.DataFrame:
    """What scores on floating-point luma become on rounded luma, beside what Table II prints; a row a method and set.

    An image loses what MSE + 1/6 says at its own PSNR (`rounding_cost`). `costs_if_alike_db`: if every image
    had the set's mean, the least that is possible; `rounding_costs_db`: with the spread that our networks' PSNR has
    over the set's images (NaN for a set that they are not scored on). U-HDN_L's printed Set5 score is read as one on
    floating-point luma.
    """
    ours, paper = comparisons.scores(done), artefacts.table2_published()
    rows = []
    for method, published in {**AUTHORS, "U-HDNL+IKM": {"Set5": paper.Set5_psnr["U-HDNL+IKM"]}}.items():
        source = "its authors" if method in AUTHORS else "Table II, if on floating-point luma"
        for name, score in published.items():
            images = ours[ours["set"] == name].groupby("image").psnr_y.mean()
            loss, printed = (images - images.mean() + score).map(rounding_cost).mean(), paper[f"{name}_psnr"][method]
            rows.append((method, name, source, score, printed - score, rounding_cost(score), loss, printed,
                         score - loss, score - loss - printed))
    return pd.DataFrame(rows, columns=[
        "method", "set", "floating_point_score_of", "psnr_floating_point", "printed_minus_it_db", "costs_if_alike_db",
        "rounding_costs_db", "psnr_rounded_paper", "psnr_rounded_ours", "difference_db"])


def beyond_set5(table: pd.DataFrame) -> str:
    """What speaks against H1: printed minus authors' scores on the other sets, beside what rounding predicts."""
    others = table[table.method.isin(AUTHORS) & (table["set"] != "Set5")]
    told = [f"{row.method} {row.set} {row.printed_minus_it_db:+.2f} ({-predicted:+.2f})" for row, predicted in zip(
        others.itertuples(), others.rounding_costs_db.fillna(others.costs_if_alike_db), strict=True)]
    return f"Other sets, printed minus the authors' score, dB (in brackets: by rounding alone): {', '.join(told)}."


def rounding_verdict(table: pd.DataFrame, profile: Profile) -> dict[str, str]:
    """H1: are Table II's Set5 scores of two methods those of rounded luma? `table`: of `rounded_table2`."""
    set5 = table[table["set"] == "Set5"]
    others, own = set5[set5.method.isin(AUTHORS)], set5.set_index("method").loc["U-HDNL+IKM"]
    fits = others.difference_db.abs() < SMALLEST
    verdict = "supported" if fits.all() else "mixed" if fits.any() else "not supported"
    tested = profile.evidence and others.difference_db.notna().all()
    best = artefacts.table2_published().Set5_psnr.drop("U-HDNL+IKM").max()

    def told(column: str) -> str:
        return ", ".join(f"{method} {score:.2f}" for method, score in zip(others.method, others[column], strict=True))

    return {"paper": f"Set5 in Table II: {told('psnr_rounded_paper')} dB; "
                     f"by their authors: {told('psnr_floating_point')} dB",
            "ours": f"Set5, the authors' scores on rounded luma: {told('psnr_rounded_ours')} dB; U-HDN_L's would be "
                    f"{own.psnr_rounded_ours:.2f} dB" if tested else "no network scored on Set5",
            "verdict": verdict if tested else UNTESTED,
            "because": "Hypothesis of this study: the Set5 scores of RCAN and RDN in Table II are consistent with "
                       "scoring on rounded luma. Holds if their authors' scores on Set5, on rounded luma, are within "
                       f"{SMALLEST} dB of the printed ones; of other methods and sets it says nothing." + (
                           f" {beyond_set5(table)} If U-HDN_L's {own.psnr_floating_point:.2f} dB is a floating-point "
                           f"score, its lead over the best other method on Set5 is {own.psnr_rounded_ours - best:+.2f} "
                           f"dB at equal rounding instead of {own.psnr_floating_point - best:+.2f}." if tested else "")}


# --- errors ---------------------------------------------------------------------------------------------------------


def _cost_errors(cells: pd.DataFrame, table: pd.DataFrame) -> list[tuple]:
    wrong = cells[~cells.equal]
    params = cells[cells.quantity == "params_k"]
    dilated = params[(params.table == "Table IV") & params.network.str.startswith("k = 3")]
    base = params[params.table == "Table V"].iloc[-1]
    spatial = params[params.network.isin(["RB: SA adds", "U-HDB: SA adds"])]
    cbam = [count([Conv(7, 2, 1, times, bias=False)])[0] / 1e3 for times in (16, 30)]
    rows = [
        ("costs that the described networks do not have", ", ".join(wrong.table.unique()),
         f"{len(wrong)} of {len(cells)} printed numbers"),
        ("one network with two #Params", "Table IV, k = 3",
         f"{' and '.join(f'{n:.1f}' for n in sorted(dilated.paper.unique()))} K; dilation adds no parameter, "
         f"{dilated.ours.iloc[0]:.1f} K counted"),
        ("#Params in the wrong unit", "Table V", f"{base.paper:.1f} M printed, {base.ours:.1f} K counted"),
        ("spatial attention is not the one of Eq. 6 (mean and maximum, 7 x 7)", "Eq. 6 against Table III",
         f"Eq. 6 adds {cbam[0]:.2f} K to RB and {cbam[1]:.2f} K to U-HDB; printed: {spatial.paper.iloc[0]:.2f} K and "
         f"{spatial.paper.iloc[1]:.2f} K, those of two 1 x 1 convolutions"),
    ]
    for method, pair in table.groupby("method", sort=False):
        fit, other = (pair[pair.fits.str.contains("#Params") == yes].iloc[0] for yes in (True, False))
        what = "#FLOPs are" if method == "OISR-RK3" else "PSNR is"
        rows.append((f"{method}: #Params of one network, {what} another's", fit.table,
                     f"{fit.params_thousands_ours:,.0f} K ({fit.network}), {other.params_thousands_ours:,.0f} K "
                     f"({other.network})"))
    return rows


def known_traps(profile: Profile) -> pd.DataFrame:
    """The traps that notebook 00 measured at this profile or, where it has not, as they are committed for `cpu`."""
    path = config.results_root() / profile.name / "protocol_traps.csv"
    return pd.read_csv(path if path.exists() else config.ROOT / "results" / "cpu" / "protocol_traps.csv")


def _trap_errors(traps: pd.DataFrame) -> list[tuple]:
    def size(trap, what):
        row = traps[(traps.trap == trap) & traps.what_goes_wrong.str.startswith(what)].iloc[0]
        return row["size"], row["source"]

    (relu, network), (strict, _) = (size("attention after ReLU", f"{x}: inputs") for x in ("x >= 0", "x > 0"))
    (low, high), (least, most) = attention_range(), attention_range(transform="softmax")
    (identity, layer), (angle, _) = size("IsO", "Algorithm 1"), size("IsO", "angle")
    (wrapped, image), (shifted, images) = size("LR not clipped", ""), size("luma", "Y shifted")
    (rounded, where), (grey, grey_image) = size("luma", "Y rounded"), size("grey image", "")
    return [
        ("the attention is constant (1.5) on channels that come out of a ReLU", "Eq. 10 as released, x >= 0",
         f"{relu:.1f} % of the modulated inputs; {strict:.1f} % with x > 0 ({network})"),
        ("the attention of Eq. 11 cannot take the values of Fig. 2", "Eq. 11 and the released code against Fig. 2",
         f"Fig. 2: {FIG2[0]} to {FIG2[1]}; with the sigmoid {low:.3f} to {high:.3f}; k·k·softmax alone {least:.3f} to "
         f"{most:.3f} (k = 3)"),
        ("IsO's weight gradient leaves the attention out: it is the vanilla convolution's, divided by B",
         "Algorithm 1, Eq. 15", f"largest deviation {identity:.0e} of the largest value; {angle:.2f} degrees from the "
         f"exact gradient ({layer})"),
        ("LR values are rounded but not clipped", "released code", f"{wrapped:.1f} % of the values of {image} wrap"),
        ("SSIM on luma shifted to 0..219", "released code", f"{1e-3 * shifted:+.6f} SSIM ({images})"),
        ("Bicubic rows on rounded luma, learned rows on floating-point luma", "Table I",
         f"rounding {rounded:+.3f} dB ({where}); the grey image on its own values {grey:+.2f} dB ({grey_image})"),
    ]


def repeats(profile: Profile) -> pd.DataFrame:
    """What rounding alone changes: runs trained twice, the second time with the images of every batch in reverse order.

    Columns: variant, seed, runs finished, and the mean change of PSNR over all test images (dB, reversed minus usual)
    with its standard deviation over images; empty until both are finished.
    """
    first, rows = experiments.planned(profile, "table3"), []
    for label, reversed_runs in experiments.planned(profile, "again").items():
        for run in reversed_runs:
            pair = [*(usual for usual in first[label] if usual.seed == run.seed), run]
            change = pd.Series(dtype=float)
            if all(one.finished for one in pair):
                change = psnr_by_image(pair[1].folder) - psnr_by_image(pair[0].folder)
            rows.append((label, run.seed, comparisons.runs_in_words(pair), change.mean(), change.std()))
    return pd.DataFrame(rows, columns=["variant", "seed", "runs", "change_db", "over_images_sd_db"])


def errors_found(profile: Profile, traps: pd.DataFrame, cells: pd.DataFrame, others: pd.DataFrame) -> pd.DataFrame:
    """Errors of the paper and of the released code: error, where, and the number, computed now, that shows it.

    `traps`: of `known_traps`; `cells`: of `cost_cells`; `others`: of `peers`.
    """
    rows = [*_trap_errors(traps), *_cost_errors(cells, others)]
    question = {"U-HDB: IKM − none": {"U-HDB IKM": 1, "U-HDB none": -1}}
    runs = experiments.planned(profile, "table3")
    pooled = comparisons.contrasts(runs, question, family=comparisons.architecture_of).iloc[0]
    for five in comparisons.contrasts(runs, question, sets=["Set5"], family=comparisons.architecture_of).query(
            "images == 5").itertuples():
        rows.append(("gains of 0.05 to 0.09 dB are read off five images, without a spread", "Tables III and V, Set5",
                     f"width of the 95 % interval of U-HDB: IKM − none, {five.seeds} seeds: "
                     f"{five.high_db - five.low_db:.3f} dB on Set5, {pooled.high_db - pooled.low_db:.3f} dB on all "
                     f"{pooled.images} test images"))
    return pd.DataFrame(rows, columns=["error", "where", "shown_by"])
