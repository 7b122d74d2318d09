"""Statistics: differences paired over seeds and images, their 95 % interval, and the rule that makes verdicts of them.

Declared before the runs: results/PLAN.md.
"""
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.stats import t as student

# Fewer say too little of the spread between trainings: no verdict
MIN_SEEDS = 3
# dB: what is below is not worth a claim; half the smallest gain that the ablations print on Set5 (0.04 dB, Table V)
SMALLEST = 0.02
POWER = 0.8   # of `Difference.detectable`

# "exploratory": reported without a judgement; "not testable": what the paper shows cannot be made again
VERDICTS = ("supported", "not supported", "mixed", "undecided", "exploratory", "not testable", "waits for runs",
            "not tested at this budget")
OPEN = WAITS, UNTESTED = VERDICTS[-2:]

Errors = tuple[tuple[float, float], ...]   # independent standard errors, each with its degrees of freedom


def signed(value: float) -> str:
    """A number with its sign and three decimals, or as many as show, up to six, that it is not 0 or `SMALLEST`."""
    size = abs(value)
    return next(f"{value:+.{digits}f}" for digits in range(3, 7)
                if digits == 6 or round(size, digits) not in (0, SMALLEST) or abs(size - round(size, digits)) < 1e-9)


def half_width(errors: Errors, level: float = 0.05) -> float:
    """Half a 1 - `level` interval: each standard error times Student's t for its degrees of freedom, added up as
    independent errors are. NaN without errors: one value alone has no interval."""
    if not errors:
        return float("nan")
    return float(np.sqrt(sum((error * student.isf(level / 2, freedom)) ** 2 for error, freedom in errors if error)))


@dataclass(frozen=True)
class Difference:
    """A paired difference: its mean, its 95 % interval, and how many seeds and images it rests on. `low` and `high` are
    made of `errors`, which may hold a standard deviation over seeds that was pooled over networks. `own_low` and
    `own_high` are made of `own_errors`, this difference's own; `set5` is the mean with such an interval of the images
    of Set5 alone. While declared runs are missing, the mean is NaN.
    """

    mean: float = float("nan")
    low: float = float("nan")
    high: float = float("nan")
    seeds: int = 0
    images: int = 0
    unit: str = "dB"
    errors: Errors = ()
    paper: float = float("nan")   # what the paper prints
    runs: str = ""                # how many of the declared runs are finished, such as "6 of 10 runs"
    states: tuple[tuple[str, str], ...] = ()   # of each declared run: its id, and finished, diverged or missing
    own_errors: Errors = ()
    set5: tuple[float, float, float] = (float("nan"),) * 3   # NaN where Set5 is not among its images

    @property
    def known(self) -> bool:
        return bool(np.isfinite(self.mean))

    @property
    def interval(self) -> tuple[float, float, float]:
        """Mean, lower and upper end of the 95 % interval."""
        return self.mean, self.low, self.high

    @property
    def own_low(self) -> float:
        return self.mean - half_width(self.own_errors)

    @property
    def own_high(self) -> float:
        return self.mean + half_width(self.own_errors)

    @property
    def detectable(self) -> float:
        """The minimum detectable effect: a true difference whose interval would lie above 0 in about four of five
        repetitions (80 % power), if the standard errors are as estimated and nothing is corrected. NaN without them."""
        if not self.errors:
            return float("nan")
        total = np.sqrt(sum(error ** 2 for error, _ in self.errors))
        return float(half_width(self.errors) + total * student.ppf(POWER, min(freedom for _, freedom in self.errors)))

    def p(self, bound: float = 0.0) -> float:
        """Two-sided p-value of the difference being `bound`: the level at which the interval ends there. It is 1 where
        the interval has no finite ends, and where `bound` equals the mean."""
        if not np.isfinite(half_width(self.errors)) or self.mean == bound:
            return 1.0
        distance, least = abs(self.mean - bound), 1e-100
        if half_width(self.errors, least) <= distance:
            return 0.0
        return float(brentq(lambda level: half_width(self.errors, level) - distance, least, 1.0, xtol=1e-12))

    def __str__(self) -> str:
        return f"{signed(self.mean)} [{signed(self.low)}, {signed(self.high)}] {self.unit}" if self.known else self.runs


def standard_error(values: np.ndarray) -> tuple[float, int]:
    """Standard error of the mean of n > 1 values, and its n - 1 degrees of freedom."""
    return float(values.std(ddof=1) / len(values) ** 0.5), len(values) - 1


def paired(differences: np.ndarray, seed_error: tuple[float, float] | None = None) -> Difference:
    """The mean of paired differences. `differences`: (images,), or (seeds, images).

    Trainings and images are both samples: the standard errors over seeds and over images make the interval.
    `seed_error`: a pooled standard error over seeds, with its degrees of freedom (see `residual_deviation`). With one
    seed, the differences between trainings are unknown and left out. One value alone has an interval of NaN. Raises
    ValueError if `differences` are empty or not finite.
    """
    d = np.atleast_2d(np.asarray(differences, dtype=float))
    if not d.size or not np.isfinite(d).all():
        raise ValueError(f"paired differences must be finite and not empty, got shape {np.shape(differences)}")
    of_images = [standard_error(d.mean(0))] if d.shape[1] > 1 else []
    of_seeds = [standard_error(d.mean(1))] if len(d) > 1 else []
    errors = (*of_images, *([seed_error] if of_seeds and seed_error else of_seeds))
    mean, half = float(d.mean()), half_width(errors)
    return Difference(mean, mean - half, mean + half, *d.shape, errors=errors, own_errors=(*of_images, *of_seeds))


def residual_deviation(means: pd.DataFrame) -> tuple[float, int] | None:
    """Standard deviation of trainings, pooled over networks, and its degrees of freedom; None if there are none.

    `means`: a row a network, a column a seed, NaN where a network was not trained with a seed. Seeds are blocks (their
    networks see the same batches): a mean is network effect + seed effect + residual, fitted by least squares. A
    contrast with weights w over n seeds then has the standard error s sqrt(sum w² / n). This is fair only if all
    networks scatter alike.
    """
    values = means.to_numpy(dtype=float)
    network, seed = np.nonzero(~np.isnan(values))
    values = values[network, seed]
    design = np.hstack([np.eye(len(means))[network], np.eye(means.shape[1])[seed]])
    freedom = len(values) - int(np.linalg.matrix_rank(design)) if len(values) else 0
    if freedom < 1:
        return None
    residuals = values - design @ np.linalg.lstsq(design, values, rcond=None)[0]
    return float(np.sqrt((residuals ** 2).sum() / freedom)), freedom


def holm(p: Sequence[float]) -> list[float]:
    """p-values corrected for their number by Holm's method."""
    corrected = np.sort(p) * np.arange(len(p), 0, -1)
    corrected = np.minimum(np.maximum.accumulate(corrected), 1.0)
    return corrected[np.argsort(np.argsort(p))].tolist()   # in the order of `p`


def outcomes(differences: Sequence[Difference], *, margin: float = 0.0, smallest: float = SMALLEST,
             correct: Callable[[Sequence[float]], Sequence[float]] = list) -> list[str]:
    """What each difference says of "better" (margin 0) or "at least as good, within margin": holds, fails, undecided.

    It holds if its 95 % interval lies above -margin. It fails if the interval lies below -margin or, for "better",
    below the `smallest` difference worth a claim. Otherwise it is undecided. `correct`: `holm`, to correct the p-values
    for the number of differences.
    """
    limit = -margin if margin else smallest
    holds = correct([d.p(-margin) if d.mean > -margin else 1.0 for d in differences])
    fails = correct([d.p(limit) if d.mean < limit else 1.0 for d in differences])
    return ["holds" if h < 0.05 else "fails" if f < 0.05 else "undecided" for h, f in zip(holds, fails, strict=True)]


def judge(found: Collection[str]) -> str:
    """The verdict on a claim that all of several differences hold, from their `outcomes`, the same for every claim."""
    if not found:
        return UNTESTED
    if "fails" in found:
        return "mixed" if "holds" in found else "not supported"
    return "undecided" if "undecided" in found else "supported"
