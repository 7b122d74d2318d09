"""The costs that the paper's tables print: of the other methods of Tables I and II, beside the same networks counted
now; and what it would cost to train them."""
from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch

from ikmlib import peers
from ikmlib.config import PAPER, PROFILES
from ikmlib.models import complexity
from ikmlib.study import experiments
from ikmlib.study.records import Run, read_record

# Methods and scales whose printed cost and printed PSNR, by what is known of them, belong to different networks; which
MIXED = {
    ("SRCNN", (2, 3, 4)): "cost of 9-1-5, PSNR of 9-5-5 (57.3 K)",
    ("LapSRN", (4,)): "cost of one level, PSNR of two (870 K)",
    ("IDN", (2, 3, 4)): "cost without groups on RGB, PSNR of the published network: luma, 4 groups (553 K)",
    ("RDN", (2,)): "cost of D = 20, C = 6, G = 32, PSNR of D = 16, C = 8, G = 64 (22.1 M)",
    ("OISR-RK3", (2,)): "#Params of the x4 network (44.3 M), the rest of x2 (41.9 M)",
}


def printed(number: int) -> list[dict[str, str]]:
    """Rows of a table of the paper, its numbers as text, so that their decimals can be counted."""
    return pd.read_csv(PAPER / f"table{number}.csv", dtype=str, keep_default_na=False).to_dict("records")


def rounds_to(ours: float, printed: str) -> bool:
    """Whether `ours`, rounded to the decimals of a printed number, equals it."""
    return round(ours, len(printed.partition(".")[2])) == float(printed)


def peer_costs(number: int) -> pd.DataFrame:
    """Costs of the other methods of Table I or II, a line for each of its rows: printed, and counted on the network
    that the paper counts.

    scale, method, #Params (K) paper | ours; `params_fit`: whether ours round to the print; #FLOPs (G) paper | ours: of
    convolutions and biases; `flops_all_g_ours`: activation and pooling layers too; `fits`: which of the two rounds to
    the print; `mixed`: see MIXED. MS3-Conv's row has the print alone: its wiring is not known.
    """
    rows = []
    for row in printed(number):
        name, scale = row["method"].lower().replace("-", "_").replace("defians", "defian_s"), int(row["scale"])
        if row["method"] == "MS3-Conv":
            rows.append((scale, row["method"], float(row["params_k"]), np.nan, "not built", float(row["flops_g"]),
                         np.nan, np.nan, "not built", ""))
        if name not in peers.PEERS:   # nor are Bicubic and the paper's own networks
            continue
        with torch.device("meta"):   # no weights are made
            model = peers.build_peer(name, scale, counted=True)
        (params, convolutions), (_, everything) = (complexity(model, scale, activations=a) for a in (False, True))
        unit, text = (1e3, row["params_k"]) if number == 1 else (1e6, row["params_m"])
        fits = [word for word, count in (("convolutions", convolutions), ("with activations", everything))
                if rounds_to(count / 1e9, row["flops_g"])]
        rows.append((scale, row["method"], float(text) * unit / 1e3, params / 1e3,
                     "yes" if rounds_to(params / unit, text) else "no", float(row["flops_g"]), convolutions / 1e9,
                     everything / 1e9, " and ".join(fits) or "neither",
                     next((what for (method, scales), what in MIXED.items()
                           if method == row["method"] and scale in scales), "")))
    return pd.DataFrame(rows, columns=["scale", "method", "params_k_paper", "params_k_ours", "params_fit",
                                       "flops_g_paper", "flops_g_ours", "flops_all_g_ours", "fits", "mixed"])


def to_train(networks: Mapping[str, Run]) -> pd.DataFrame:
    """What one training each of these networks would take at profile `cpu`: method, #Params (K), #FLOPs (G), hours.

    Hours are an estimate: by its multiply-adds, a network takes as long as U-HDN+IKM of the same-budget comparison did,
    the median of its runs. NaN until these are finished.
    """
    planned = experiments.planned(PROFILES["cpu"], "same_budget")
    known = experiments.complete(planned).query("network == 'U-HDN+IKM'").run
    hours = pd.Series([read_record(run.folder)["train_seconds"] / 3600 / run.cost[1] for run in known], dtype=float)
    costs = pd.DataFrame([run.cost for run in networks.values()], columns=["params", "multi_adds"])
    return pd.DataFrame({"method": list(networks), "params_k_ours": costs.params / 1e3,
                         "flops_g_ours": costs.multi_adds / 1e9, "hours": costs.multi_adds * hours.median()})
