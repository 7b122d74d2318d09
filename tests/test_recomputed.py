"""Every judged comparison of the committed records, computed a second time from the images' scores by plain pandas and
numpy, from the words of results/PLAN.md, without this project's statistics. C10 alone rests on other measurements."""
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t as student

RESULTS = Path(__file__).parents[1] / "results"
CLAIMS = {name: pd.read_csv(RESULTS / name / "claims.csv").dropna(subset="comparison") for name in ("cpu", "cpu-long")}
# What comparisons call the networks, and their runs; {}: what stands before the colon; |: the attention at test
BATCHES = {"batch 4": "", "batch 16, equal updates": "-batch16", "batch 16, equal patches": "-batch16-updates1000"}
PLACES = BATCHES | {"RB": "rb", "DB": "db", "RDB": "rdb", "U-HDB": "uhdb", "U-HDN": "uhdn"}
ATTENTION = {"none": "{}-none", "IKM": "{}-ikm", "CA": "{}-ca", "SA": "{}-sa", "constant 1.5": "{}-ikm-contextconstant",
             "shuffled": "{}-ikm-contextshuffled", "none, weights x 1.5": "{}-none-gain1.5",
             "none, rate x 1.5": "{}-none-rate0.0015", "IKM, frozen at test": "{}-ikm|frozen",
             "IKM, swapped at test": "{}-ikm|swapped"}
SWEEPS = {"N": {1: ("uhdb-ikm", 384931), 2: ("uhdn-ikm-blocks2", 720259), 4: ("uhdn-ikm", 1390915)},   # with #Params
          "U": {2: ("uhdb-ikm-depths66", 188835), 4: ("uhdb-ikm-depths6556", 299747), 6: ("uhdb-ikm", 384931)},
          "C": {32: ("uhdb-ikm-channels32", 217283), 64: ("uhdb-ikm", 384931), 96: ("uhdb-ikm-channels96", 583299)}}
NAMES = {
    "C1": ATTENTION, "C2": ATTENTION, "E1": ATTENTION, "E2": ATTENTION,
    "C4": {"threshold 0": "uhdb-ikm"} | {name: f"uhdb-ikm-tau{name.split()[-1]}" for name in (
        "median", "mean", "threshold 0.1", "threshold -0.1", "threshold 0.5", "threshold -0.5")},
    "C5": {"IsO": "uhdb-ikm{}", "GO": "uhdb-ikm-gradientgo{}"},
    "C6": {"both": "uhdb-ikm", "U": "db-ikm-blockuhdb", "hourglass": "db-ikm-depths654456", "neither": "db-ikm"},
    "C7": {"U-HDN": "uhdb-ikm"} | {f"V{i}": f"uhdb-ikm-depths{d}" for i, d in ((1, 456654), (2, 444567), (3, 765444))},
    "C8": {f"{name}={size}": network for name in SWEEPS for size, (network, _) in SWEEPS[name].items()},
    "C9": {"U-HDN+IKM": "uhdn-ikm", "U-HDN": "uhdn-none"}}   # and its rivals, by their own names
MEANT = {"U-style, at equal depths": "U − neither", "U-style, with the hourglass": "both − hourglass",
         "hourglass, without the U": "hourglass − neither", "hourglass, with the U": "both − U"}
WEIGHTS = {   # by the comparison's whole name; the mean of R is 5.8, the sum of squares about it 20.8
    "U-HDB at half the rate: IKM − none": {"uhdb-ikm-rate0.0005": 1, "uhdb-none-rate0.0005": -1},
    "growth of the gain from R = 3 to R = 9": {
        f"uhdb-{name}{kernel}": sign * (9 - 3) * (R - 5.8) / 20.8 for name, sign in (("ikm", 1), ("none", -1))
        for kernel, R in (("", 3), ("-dilation2", 5), ("-kernel5", 5), ("-dilation3", 7), ("-kernel5-dilation2", 9))},
    **{f"growth of IsO − GO to {batch}": {"uhdb-ikm" + run: 1, "uhdb-ikm-gradientgo" + run: -1, "uhdb-ikm": -1,
                                         "uhdb-ikm-gradientgo": 1} for batch, run in BATCHES.items() if run},
    **{f"{name}: first step − last, per doubling of #Params": {
        a: -1 / np.log2(n / m), b: 1 / np.log2(n / m) + 1 / np.log2(o / n), c: -1 / np.log2(o / n)}
       for name in SWEEPS for (a, m), (b, n), (c, o) in [SWEEPS[name].values()]}}
BLOCKS, CONTEXTS = ("rb", "db", "rdb", "uhdb"), "uhdb-ikm-contextconstant uhdb-ikm-contextshuffled"
FAMILIES = {   # networks that are taken to scatter alike, by their declared seeds
    "cpu C1 C2": [{range(5): f"{b}-none {b}-ikm", range(3): f"{b}-ca {b}-sa"} for b in BLOCKS]
                 + [{range(3, 8): "uhdn-none uhdn-ikm"}, {range(5, 10): "uhdb-none-rate0.0005 uhdb-ikm-rate0.0005"}],
    "cpu C3": [{range(3): " ".join(WEIGHTS["growth of the gain from R = 3 to R = 9"])}],
    "cpu C5": [{range(3): f"uhdb-ikm{run} uhdb-ikm-gradientgo{run}" + " uhdb-ikm-gradientautograd" * (not run)}
               for run in BATCHES.values()],
    "cpu C9": [{range(3): networks} for networks in ("uhdn-none uhdn-ikm", "srcnn", "lapsrn", "idn", "carn", "imdn")],
    **{f"cpu {number}": [{range(3): " ".join(NAMES[number].values())}] for number in ("C4", "C6", "C7", "C8")},
    "cpu E1 E2": [{range(3): "rb-none rb-ikm rb-ikm-contextconstant rb-ikm-contextshuffled"}, {
        range(5): f"uhdb-none uhdb-none-rate0.0015 uhdb-ikm {CONTEXTS} uhdb-ikm-strictTrue-transformsoftmax",
        range(3): "uhdb-none-gain1.5 uhdb-ikm-strictTrue uhdb-ikm-transformsoftmax uhdb-ikm-transformresidual "
                  "uhdb-ikm-gradientautograd uhdb-ikm-gradientgo"}],
    "cpu-long C1 C2": [{range(5, 15 if b == "uhdb" else 8): f"{b}-none {b}-ikm"} for b in BLOCKS],
    "cpu-long E1 E2": [{range(5, 15): "uhdb-none uhdb-ikm", range(5, 10): CONTEXTS}]}


@cache
def psnr(profile, network, seeds):
    """Images x seeds, empty while a run is missing; "network|frozen" is the network tested with frozen attention."""
    network, _, attention = network.partition("|")
    name, runs = "controls*.csv" if attention else "scores.csv", RESULTS / profile / "runs"
    files = {seed: [*runs.glob(f"{network}-x2-seed{seed}-{8 * '[0-9a-f]'}/{name}")] for seed in seeds}
    tables = {seed: pd.concat([pd.read_csv(path, index_col=["set", "image"], dtype={"image": str}) for path in paths])
              for seed, paths in files.items() if all(files.values())}
    return pd.DataFrame({seed: table[attention or "psnr_y"] for seed, table in tables.items()})


def half_width(errors, level=0.05):
    """Of an interval, from independent standard errors and their degrees of freedom."""
    return np.linalg.norm(errors[0] * student.isf(level / 2, errors[1]))


def recompute(profile, number, comparison, margin):
    """A comparison's numbers, and the standard errors over images and over seeds that it is judged by."""
    place, _, words = comparison.rpartition(": ")
    pair = MEANT.get(words, words).replace(" minus ", " − ").split(" − ")
    weights = WEIGHTS.get(comparison) or {NAMES[number].get(name, name.lower()).format(PLACES.get(place)): sign
                                          for name, sign in zip(pair, (1, -1), strict=True)}
    families = [{network: seeds for seeds, networks in family.items() for network in networks.split()}
                for key, found in FAMILIES.items() if {profile, number} <= {*key.split()} for family in found]
    declared = {network: seeds for family in families for network, seeds in family.items()}
    d = sum(weight * psnr(profile, network, declared[network.partition("|")[0]]) for network, weight in weights.items())
    d = d.dropna(axis=1).loc[["BSD100"] if number == "C3" else ["BSD100", "Set14", "Set5"]]   # the seeds that all have
    assert len(d) == (100 if number == "C3" else 119)
    parts = {"": d, "own_": d, "set5_": d.query("set == 'Set5'")}
    errors = {key: np.array([(m.sem(), len(m) - 1) for m in (x.mean(axis=1), x.mean())]).T for key, x in parts.items()}
    for family in (family for family in families if weights.keys() <= family.keys()):   # else its own errors decide
        means = pd.concat({name: psnr(profile, name, seeds).reindex(d.index).mean() for name, seeds in family.items()})
        effects = pd.get_dummies(means.index.to_frame().astype(str)).to_numpy(float)   # of networks and of seeds
        residual = np.eye(len(means)) - effects @ np.linalg.pinv(effects)
        variance, freedom = means @ residual @ means / residual.trace(), residual.trace()
        errors[""][:, 1] = np.sqrt(variance * sum(w ** 2 for w in weights.values()) / len(d.columns)), freedom
    power = np.linalg.norm(errors[""][0]) * student.ppf(0.8, errors[""][1].min())
    found = {"seeds": len(d.columns), "detectable": half_width(errors[""]) + power - margin}
    for name, part in parts.items():
        mean, half = part.mean(axis=None), half_width(errors[name])
        found |= {name + "low": mean - half, name + "high": mean + half, "set5" if "5" in name else "ours": mean}
    return found, errors[""]


@pytest.mark.parametrize(("profile", "claim"), [(profile, claim) for profile, rows in CLAIMS.items()
                                                for claim in sorted({*rows.claim[rows.ours.notna()]} - {"C10"})])
def test_a_claim_is_what_the_scores_of_the_images_give(profile, claim):
    rows = CLAIMS[profile].query("claim == @claim").set_index("comparison")
    number, known = claim.removeprefix("Beside ").split(",")[0], rows.dropna(subset="ours")
    margin, smallest = 0.02 if claim in ("C2", "C4, zero") else 0, 0.01 if claim == "C6" else 0.02
    answers = {name: recompute(profile, number, name, margin) for name in known.index}
    for name, row in known.iterrows():
        found = {key: x for key, x in answers[name][0].items() if "set5" not in key or pd.notna(row.get(key))}
        assert row[[*found]].to_dict() == pytest.approx(found, abs=1e-6), name
    if len(known) < len(rows):   # none is judged while one waits
        assert {*rows.outcome} == {"waits"} and {*rows.verdict} <= {"waits for runs", "not tested at this budget"}
        return
    if (profile, claim) == ("cpu", "C1, U-HDB"):   # corrected among the four architectures
        answers = {name: recompute("cpu", "C1", name, 0) for name in CLAIMS["cpu"].query("claim == 'C1'").comparison}
    corrected = claim.startswith("C1") and not all(found["low"] > 0 for found, _ in answers.values())
    outcomes = dict.fromkeys(answers, "undecided")
    for word, sign, bound in (("fails", -1, -margin or smallest), ("holds", 1, -margin)):
        for _ in answers:   # by Holm's method, those that are found leave the others a larger level
            left = [name for name in answers if outcomes[name] != word]
            outcomes |= {name: word for name in left if sign * (answers[name][0]["ours"] - bound)
                         > half_width(answers[name][1], 0.05 / len(left) if corrected else 0.05)}
    assert rows.outcome.to_dict() == {name: outcomes[name] for name in rows.index}
    said = {*rows.outcome}
    verdict = ("exploratory" if claim.startswith("Beside") else "supported" if said == {"holds"} else "undecided"
               if "fails" not in said else "mixed" if "holds" in said else "not supported")
    assert {*rows.verdict} == {verdict}
