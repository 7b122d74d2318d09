"""The costs that the paper's tables print, beside the same networks counted now."""
from __future__ import annotations

import pandas as pd

from ikmlib import peers
from ikmlib.config import PAPER, PROFILES
from ikmlib.models import complexity, cost
from ikmlib.study.experiments import PARTS
from ikmlib.study.records import Run

# Methods whose printed cost and printed PSNR belong to different networks, by their publications; and which
MIXED = {
    "SRCNN": "cost of 9-1-5, PSNR of 9-5-5 (57.3 K)", "LapSRN": "cost of one level; at x4 its PSNR is of two (870 K)",
    "IDN": "cost without groups on RGB, PSNR as published: luma, 4 groups (553 K)",
    "RDN": "cost of D = 20, C = 6, G = 32, PSNR of D = 16, C = 8, G = 64 (22.1 M)",
    "OISR-RK3": "#Params of the x4 network (44.3 M), the rest of x2 (41.9 M)",
}


def _printed(number: int) -> list[dict[str, str]]:
    """Rows of a table of the paper, its numbers as text, so that their decimals can be counted."""
    return pd.read_csv(PAPER / f"table{number}.csv", dtype=str, keep_default_na=False).to_dict("records")


def rounds_to(ours: float, printed: str) -> bool:
    """Does `ours`, rounded to the decimals of a number as printed, equal it?"""
    return round(ours, len(printed.partition(".")[2])) == float(printed)


def own_costs() -> pd.DataFrame:
    """Every #Params (thousands) and #FLOPs (1e9) that Tables I to V print for the paper's own networks, beside ours: a
    row a number.

    table, network, quantity, paper, ours, and `equal`: whether ours rounds to the printed number. In Table III, "adds"
    is what an attention adds to the vanilla network.
    """
    cells = {number: PARTS[f"table{number}"].cells(PROFILES["paper"]) for number in range(1, 6)}

    def count(run: Run) -> dict[str, float]:
        params, multi_adds = cost(run.arch, run.scale)
        return {"params_k": params / 1e3, "flops_g": multi_adds / 1e9}

    networks = [("Table I", f"U-HDN x{row['scale']}", count(cells[1][int(row["scale"]),]), row)
                for row in _printed(1) if row["method"] == "U-HDN+IKM"]
    networks += [("Table II", row["method"], count(cells[2][row["method"],]), row)
                 for row in _printed(2) if (row["method"],) in cells[2]]
    for row in _printed(3):
        vanilla, ours = count(cells[3][row["architecture"], "none"]), count(
            cells[3][row["architecture"], row["attention"]])
        if row["attention"] == "IKM":
            networks.append(("Table III", row["architecture"], ours, row))
        if row["attention"] != "none":
            networks.append(("Table III", f"{row['architecture']}: {row['attention']} adds", {
                quantity: ours[quantity] - vanilla[quantity] for quantity in ours}, {
                quantity: row[f"extra_{quantity}"] for quantity in ours}))
    networks += [("Table IV", f"k = {row['kernel']}, dilation {row['dilation']}, IKM {row['ikm']}", count(
        cells[4][int(row["kernel"]), int(row["dilation"]), {"yes": "IKM", "no": "none"}[row["ikm"]]]), row)
                 for row in _printed(4)]
    networks += [("Table V", f"residual {row['u_style_residual']}, hourglass {row['hourglass']}",
                  count(cells[5][row["u_style_residual"], row["hourglass"]]), row) for row in _printed(5)]
    rows = []
    for table, network, ours, printed in networks:
        for quantity, value in ours.items():
            unit, text = (1e3, printed["params_m"]) if quantity == "params_k" and "params_m" in printed else (
                1, printed.get(quantity))   # Table II prints millions, Table IV no #FLOPs
            if text:
                rows.append((table, network, quantity, float(text) * unit, value, rounds_to(value / unit, text)))
    return pd.DataFrame(rows, columns=["table", "network", "quantity", "paper", "ours", "equal"])


def peer_costs(number: int) -> pd.DataFrame:
    """Costs of the other methods of Table I or II, a row a row of the table: printed, and counted on the network that
    the paper counts.

    scale, method, #Params (K) paper | ours; #FLOPs (G) paper | ours: of convolutions and biases; `flops_all_g_ours`:
    activation and pooling layers too; `fits`: which of the two rounds to the print; `mixed`: see MIXED.
    """
    rows = []
    for printed in _printed(number):
        name, scale = printed["method"].lower().replace("-", "_").replace("defians", "defian_s"), int(printed["scale"])
        if name not in peers.PEERS:   # Bicubic; our own; and MS3-Conv, whose wiring is not known
            continue
        model = peers.build_peer(name, scale, counted=True)
        (params, convolutions), (_, everything) = (complexity(model, scale, activations=a) for a in (False, True))
        unit, text = (1e3, printed["params_k"]) if number == 1 else (1e6, printed["params_m"])
        fits = [word for word, count in (("convolutions", convolutions), ("with activations", everything))
                if rounds_to(count / 1e9, printed["flops_g"])]
        rows.append((scale, printed["method"], float(text) * unit / 1e3, params / 1e3,
                     "yes" if rounds_to(params / unit, text) else "no", float(printed["flops_g"]), convolutions / 1e9,
                     everything / 1e9, " and ".join(fits) or "neither", MIXED.get(printed["method"], "")))
    return pd.DataFrame(rows, columns=["scale", "method", "params_k_paper", "params_k_ours", "params_fit",
                                       "flops_g_paper", "flops_g_ours", "flops_all_g_ours", "fits", "mixed"])
