"""What a notebook calls: a `Page`, whose tables, figures and verdicts become files under `results/<profile>/`.

Its verdicts are rows of `claims.csv` there, one a comparison; the report is made of these rows alone.
"""
import ast
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from ikmlib import config
from ikmlib.config import PROFILES, Profile
from ikmlib.files import locked, read_csv, reading, write_bytes, write_csv
from ikmlib.study import experiments, training
from ikmlib.study.comparisons import JUDGED
from ikmlib.study.records import runs_in_words
from ikmlib.study.stats import OPEN, UNTESTED, VERDICTS, Difference, signed

# Columns of claims.csv; those of JUDGED are empty where a claim rests on no comparison
CLAIMS = ["claim", *JUDGED, "verdict", "paper_words", "ours_words", "notebook", "because"]
EVIDENCE = tuple(profile for profile in reversed(PROFILES.values()) if profile.evidence)   # the largest budget first
DIGITS = {"ssim": 4, "psnr": 2, "db": 3, "_k_": 1, "_g_": 1, "_m_": 2, "": 3}   # decimals, by a part of a column's name


def check_parameters(cells: Sequence[str]) -> dict[str, object]:
    """The values that papermill gives the notebook's parameters, by name, each of the type of the notebook's own.

    `cells`: the notebook's cells so far. papermill injects one that starts with "# Parameters" after the first.
    Values with one meaning are converted: 1e2 for a whole number is 100, one text for a list is a list of it,
    and a dictionary's keys "2" are 2. Raises ValueError for any other type, such as the text "false" for True, and for
    a name that the notebook does not define (papermill itself only warns).
    """
    def assigned(source):
        return {target.id: ast.literal_eval(node.value) for node in ast.parse(source).body
                if isinstance(node, ast.Assign) for target in node.targets}

    given = assigned("\n".join(cell for cell in cells if cell.startswith("# Parameters")))
    own = assigned(next(cell for cell in cells if cell.strip())) if given else {}
    if unknown := given.keys() - own.keys():
        raise ValueError(f"unknown parameter {', '.join(sorted(unknown))}; "
                         f"this notebook takes {', '.join(sorted(own))}")
    for name, value in given.items():
        found, wanted = type(value), type(own[name])
        if found is wanted is dict:
            given[name] = {int(key) if str(key).isdecimal() else key: item for key, item in value.items()}
        elif found is str and wanted is list:
            given[name] = [value]
        elif {found, wanted} == {int, float} and value == wanted(value):
            given[name] = wanted(value)
        elif found is not wanted:
            raise ValueError(f"parameter {name} = {value!r} is of type {found.__name__}; this notebook takes "
                             f"{wanted.__name__}, such as {own[name]!r}")
    return given


def read_claims(profile: Profile) -> pd.DataFrame:
    """results/<profile>/claims.csv, columns as CLAIMS; without rows if no notebook has written one. ValueError if it is
    damaged."""
    path = config.results_root() / profile.name / "claims.csv"
    if not path.exists():
        return pd.DataFrame(columns=CLAIMS)
    with reading(path):
        return read_csv(path)[CLAIMS].astype({"seeds": "Int64"})


@dataclass
class Page:
    """A notebook's way to the records: what it writes here is what the report shows.

    A `recorded` page shows what is on disk and writes nothing. With `anew` False, slow measurements are read from their
    CSV. `given`: parameters from papermill, by name, as they are meant (see `check_parameters`).
    """

    name: str
    profile: Profile
    recorded: bool = False
    anew: bool = True
    given: dict[str, object] = field(default_factory=dict)
    _claims: dict[str, pd.DataFrame] = field(default_factory=dict, init=False)   # the rows that this page wrote

    @property
    def folder(self) -> Path:
        return config.results_root() / self.profile.name

    def table(self, frame: pd.DataFrame, name: str, caption: str = ""):
        """Write results/<profile>/<name>.csv; returns the table as people read it (see `readable`), for display."""
        if not self.recorded:
            write_csv(self.folder / f"{name}.csv", frame)
        return readable(frame).style.hide().set_caption(caption)

    def runs(self, part: str) -> pd.DataFrame:
        """The declared runs of a part of the study at this profile (see `experiments.planned`), after training those
        that are missing, unless nothing is to be trained. Says how many are finished."""
        plan = experiments.planned(self.profile, part)
        if self.anew:
            training.train_runs(plan.run)
        print(f"profile {self.profile.name}, {part}: " + "finished " * (len(plan) > 0) + runs_in_words(plan.run))
        return plan

    def measured(self, name: str, measure: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        """A slow measurement: `measure()`, or results/<profile>/<name>.csv where nothing is to be measured anew.

        Raises FileNotFoundError on a `recorded` page where it was never measured.
        """
        path = self.folder / f"{name}.csv"
        if self.recorded and not path.exists():
            raise FileNotFoundError(f"{path} is not measured yet: give this notebook a profile by name, or run "
                                    f"./run_all.sh --profile {self.profile.name} --only {self.name[:2]}")
        return measure() if self.anew or not path.exists() else read_csv(path)

    def figure(self, figure, name: str, caption: str = "", *, any_profile: bool = False):
        """Write results/<profile>/<name>.png, marked with the profile, close the figure and display the file; returns
        its caption, for display. Unless `any_profile`, a profile that is no evidence writes so across it. None in place
        of a figure without data gives a sentence, and takes the file away."""
        import matplotlib.pyplot as plt
        from IPython.display import Image, Markdown, display

        path, picture = self.folder / f"{name}.png", io.BytesIO()
        if figure is None:
            plt.close("all")
            if not self.recorded:
                path.unlink(missing_ok=True)
            return Markdown(f"*{caption or name}*: waits for its declared runs.")
        strip = 0.2 / figure.get_figheight()   # inches above the drawing, for the label
        figure.get_layout_engine().set(rect=(0, 0, 1, 1 - strip))
        figure.text(0.995, 1 - 0.1 * strip, f"profile {self.profile.name}", ha="right", va="top",
                    fontsize=8, color="0.4")
        if not (self.profile.evidence or any_profile):
            figure.text(0.5, 0.5, "not evidence", ha="center", va="center",
                        rotation=25, fontsize=64, color="0.5", alpha=0.25)
        figure.savefig(picture, format="png")
        if not self.recorded:
            write_bytes(path, picture.getvalue())
        plt.close(figure)
        display(Image(data=picture.getvalue(), width=900, alt=caption))
        return Markdown(caption and f"*{caption}*")

    def verdict(self, claim: str, *, paper: str, ours: str, verdict: str, because: str,
                comparisons: pd.DataFrame | None = None, any_profile: bool = False):
        """Write what became of a claim into results/<profile>/claims.csv, in place of this notebook's earlier rows, and
        show it. `paper`, `ours`: what the paper says and what was found, in words; `comparisons`: the differences
        between trainings that the verdict rests on, columns as JUDGED (see `comparisons.claim`), None if it rests on
        none.

        Unless `any_profile` (the work is the same in every profile), a profile that is no evidence gives "not tested at
        this budget". Raises ValueError for an unknown verdict.
        """
        from IPython.display import Markdown

        config.require("verdict", verdict, VERDICTS)
        if not (self.profile.evidence or any_profile):
            verdict = UNTESTED
        words = {"verdict": verdict, "paper_words": paper, "ours_words": ours, "notebook": self.name,
                 "because": because}
        rows = pd.DataFrame(index=[0], columns=JUDGED) if comparisons is None else comparisons
        self._claims[claim] = rows.assign(claim=claim, **words)[CLAIMS]
        if not self.recorded:
            with locked(self.folder / ".lock", wait=True):   # several notebooks are executed at once
                others = read_claims(self.profile).query("notebook != @self.name")
                every = pd.concat([frame.astype(object) for frame in (others, *self._claims.values())])
                every = every.infer_objects().astype({"seeds": "Int64"})
                write_csv(self.folder / "claims.csv", every.sort_values("notebook", kind="stable"))
        told = f"**{claim}: {verdict}.** {because}\n\nPaper: {paper}\n\nOurs: {ours}"
        return Markdown(told if comparisons is None else f"{told}\n\n{markdown_table(differences(comparisons))}")


def recorded_profile(name: str) -> Profile:
    """The profile that is evidence and holds the most verdicts of this notebook (of the report: of any), of several the
    largest; where there is none, the largest at which it was executed, else `cpu`."""
    claims = {profile: read_claims(profile) for profile in EVIDENCE}
    judged = {p: rows.claim[((rows.notebook == name) | (name == "99_report")) & ~rows.verdict.isin(OPEN)].nunique()
              for p, rows in claims.items()}
    executed = [profile for profile in EVIDENCE
                if (config.results_root() / profile.name / "notebooks" / f"{name}.ipynb").exists()]
    most = max(judged, key=judged.get)
    return most if judged[most] else [*executed, PROFILES["cpu"]][0]


def open_page(name: str, *, profile: str, train: bool = True) -> Page:
    """The page of notebook `name`; `train` is its `anew`, and with the profile "recorded" it is a `recorded` page of
    `recorded_profile(name)`. Sets the style. Raises ValueError for unknown parameters and profiles and for values of a
    wrong type."""
    import matplotlib
    import seaborn
    from IPython import get_ipython

    shell = get_ipython()   # None in a script
    given = check_parameters(shell.user_ns["In"] if shell else ())
    # one look for all figures, whatever the user's matplotlibrc says: colours that are safe for colour-blind readers,
    # and readable when a README shows them 900 pixels wide
    matplotlib.rcdefaults()
    seaborn.set_theme(context="notebook", style="whitegrid", palette="colorblind", rc={
        "figure.figsize": (9, 5), "figure.constrained_layout.use": True, "axes.spines.top": False,
        "axes.spines.right": False, "legend.frameon": False, "savefig.dpi": 140, "font.size": 12})
    if profile == "recorded":
        return Page(name, recorded_profile(name), recorded=True, anew=False, given=given)
    config.require("profile", profile, ("recorded", "auto", *PROFILES))
    return Page(name, config.get_profile(profile), anew=train, given=given)


def _text(value, column: str) -> str:
    if pd.isna(value):
        return "–"
    if column.endswith(("gain_db_ours", "gain_db_paper", "low_db", "high_db")):
        return signed(value)
    if column.endswith("detectable_db"):
        return signed(value).removeprefix("+")
    digits = next(digits for part, digits in DIGITS.items() if part in f"{column.lower()}_")
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def readable(frame: pd.DataFrame) -> pd.DataFrame:
    """A frame of records as text: `x_ours` and `x_sd` become one column "x ours" (± sd). The standard errors of
    contrasts and their degrees of freedom are left out, and what it is on Set5 alone."""
    shown = {column: [_text(value, column) for value in frame[column]] for column in frame
             if not re.search("^set5_|_error_db$|_freedom$", column)}
    for column in [column for column in shown if column.endswith("_ours")]:
        spread = shown.pop(f"{column.removesuffix('ours')}sd", [])
        shown[column] = [f"{text} ± {sd}".removesuffix(" ± –")
                         for text, sd in zip(shown[column], spread or ["–"] * len(frame), strict=True)]
    return pd.DataFrame(shown, frame.index).rename(columns=lambda column: column.replace("_", " "))


def differences(rows: pd.DataFrame) -> pd.DataFrame:
    """Comparisons with columns as JUDGED as people read them: ours, with its intervals and unit, in one text."""
    told = []
    for row in rows.itertuples():
        pooled = Difference(row.ours, row.low, row.high, unit=row.unit, runs="–")
        own = f"[{signed(row.own_low)}, {signed(row.own_high)}]" if pooled.known else "–"
        five = Difference(row.set5, row.set5_low, row.set5_high, unit=row.unit, runs="–")
        detectable = "–" if pd.isna(row.detectable) else signed(row.detectable).removeprefix("+")
        paper = "–" if pd.isna(row.paper) else f"{row.paper:+.2f}"
        told.append((row.comparison, paper, str(pooled), own, str(five), detectable, row.outcome, row.runs))
    return pd.DataFrame(told, rows.index, ["comparison", "paper", "ours, 95 % interval", "interval of its own",
                                           "ours, Set5 alone", "minimum detectable effect", "outcome", "runs"])


def markdown_table(frame: pd.DataFrame) -> str:
    """A GitHub table of `readable(frame)`."""
    shown = readable(frame)
    rows = [list(shown.columns), ["---"] * shown.shape[1], *shown.to_numpy().tolist()]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)
