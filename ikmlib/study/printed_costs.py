"""The costs that Tables I and II print for the other methods, beside the same networks counted now, and what it would
cost to train them."""
from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch

from ikmlib import peers
from ikmlib.config import PAPER, PROFILES
from ikmlib.models import complexity
from ikmlib.study import experiments
from ikmlib.study.records import Run, read_record

# Methods whose printed cost and printed PSNR belong to different networks, by their publications; and which
MIXED = {
    "SRCNN": "cost of 9-1-5, PSNR of 9-5-5 (57.3 K)", "LapSRN": "cost of one level; at x4 its PSNR is of two (870 K)",
    "IDN": "cost without groups on RGB, PSNR as published: luma, 4 groups (553 K)",
    "RDN": "cost of D = 20, C = 6, G = 32, PSNR of D = 16, C = 8, G = 64 (22.1 M)",
    "OISR-RK3": "#Params of the x4 network (44.3 M), the rest of x2 (41.9 M)",
}


def printed(number: int) -> list[dict[str, str]]:
    """Rows of a table of the paper, its numbers as text, so that their decimals can be counted."""
    return pd.read_csv(PAPER / f"table{number}.csv", dtype=str, keep_default_na=False).to_dict("records")


def rounds_to(ours: float, printed: str) -> bool:
    """Does `ours`, rounded to the decimals of a number as printed, equal it?"""
    return round(ours, len(printed.partition(".")[2])) == float(printed)


def peer_costs(number: int) -> pd.DataFrame:
    """Costs of the other methods of Table I or II, a row a row of the table: printed, and counted on the network that
    the paper counts.

    scale, method, #Params (K) paper | ours; #FLOPs (G) paper | ours: of convolutions and biases; `flops_all_g_ours`:
    activation and pooling layers too; `fits`: which of the two rounds to the print; `mixed`: see MIXED.
    """
    rows = []
    for row in printed(number):
        name, scale = row["method"].lower().replace("-", "_").replace("defians", "defian_s"), int(row["scale"])
        if name not in peers.PEERS:   # Bicubic; our own; and MS3-Conv, whose wiring is not known
            continue
        with torch.device("meta"):   # no weights are made
            model = peers.build_peer(name, scale, counted=True)
        (params, convolutions), (_, everything) = (complexity(model, scale, activations=a) for a in (False, True))
        unit, text = (1e3, row["params_k"]) if number == 1 else (1e6, row["params_m"])
        fits = [word for word, count in (("convolutions", convolutions), ("with activations", everything))
                if rounds_to(count / 1e9, row["flops_g"])]
        rows.append((scale, row["method"], float(text) * unit / 1e3, params / 1e3,
                     "yes" if rounds_to(params / unit, text) else "no", float(row["flops_g"]), convolutions / 1e9,
                     everything / 1e9, " and ".join(fits) or "neither", MIXED.get(row["method"], "")))
    return pd.DataFrame(rows, columns=["scale", "method", "params_k_paper", "params_k_ours", "params_fit",
                                       "flops_g_paper", "flops_g_ours", "flops_all_g_ours", "fits", "mixed"])


def to_train(networks: Mapping[str, Run]) -> pd.DataFrame:
    """What one training each of these networks would take at profile `cpu`: method, #Params (K), #FLOPs (G), hours.

    Hours are an estimate: by its multiply-adds, a network takes as long as U-HDN+IKM of the same-budget comparison did,
    the median of its runs. NaN until these are finished.
    """
    cpu = PROFILES["cpu"]
    known = experiments.complete(experiments.planned(cpu, "same_budget")).query("network == 'U-HDN+IKM'").run
    paces = [read_record(run.folder)["train_seconds"] / run.cost[1] for run in known]
    hours = np.median(paces) / 3600 if paces else np.nan   # of one multiply-add
    rows = []
    for name, run in networks.items():
        params, multi_adds = run.cost
        rows.append((name, params / 1e3, multi_adds / 1e9, multi_adds * hours))
    return pd.DataFrame(rows, columns=["method", "params_k_ours", "flops_g_ours", "hours"])
