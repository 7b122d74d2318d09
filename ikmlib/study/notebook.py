"""What a notebook calls: a `Page`, whose tables, figures and verdicts become files under `results/<profile>/`.

`pages/<notebook>.json` lists them; the report is assembled from these files alone.
"""
from __future__ import annotations

import ast
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from ikmlib import config
from ikmlib.config import Profile
from ikmlib.files import read_csv, write_bytes, write_csv, write_text
from ikmlib.study import experiments, training
from ikmlib.study.records import runs_in_words
from ikmlib.study.stats import UNTESTED, VERDICTS

# Decimals shown, by a word in the column's name
DIGITS = (("ssim", 4), ("psnr", 2), ("db", 3), ("_k_", 1), ("_g_", 1))
# Columns of contrasts that the CSV files hold and tables leave out
DETAILS = ("images_error_db", "images_freedom", "seeds_error_db", "seeds_freedom")


# --- pages ----------------------------------------------------------------------------------------------------------


def style() -> None:
    """One look for all figures, whatever the user's matplotlibrc says: a palette that is safe for colour-blind readers,
    readable when a README shows them 900 pixels wide."""
    import matplotlib
    import seaborn

    matplotlib.rcdefaults()
    seaborn.set_theme(context="notebook", style="whitegrid", palette="colorblind", rc={
        "figure.figsize": (9, 5), "figure.constrained_layout.use": True, "axes.spines.top": False,
        "axes.spines.right": False, "legend.frameon": False, "savefig.dpi": 140, "font.size": 12})


def check_parameters(cells: Sequence[str]) -> None:
    """Refuse a papermill parameter that the notebook does not define (papermill itself only warns).

    `cells`: IPython's `In`. papermill injects a cell that starts with "# Parameters" after the notebook's own, the
    first.
    """
    def assigned(source):
        return {name.id for node in ast.parse(source).body if isinstance(node, ast.Assign) for name in node.targets}

    injected = [cell for cell in cells if cell.startswith("# Parameters")]
    if not injected:
        return
    allowed = assigned(next(cell for cell in cells if cell.strip()))
    unknown = assigned("\n".join(injected)) - allowed
    if unknown:
        raise ValueError(f"unknown parameter {', '.join(sorted(unknown))}; "
                         f"this notebook takes {', '.join(sorted(allowed))}")


@dataclass
class Page:
    """A notebook's way to the records: what it writes here is what the report shows.

    A `recorded` page shows what is on disk and writes nothing. Unless `anew`, costly measurements come from the tables
    on disk.
    """

    name: str
    profile: Profile
    recorded: bool = False
    anew: bool = True

    def __post_init__(self):
        self._manifest = {"notebook": self.name, "profile": self.profile.name,
                          "tables": [], "figures": [], "claims": []}

    @property
    def folder(self) -> Path:
        return config.results_root() / self.profile.name

    def _note(self, kind: str, entry: dict) -> None:
        """List an entry in the manifest, in place of an earlier one of the same name."""
        if self.recorded:
            return
        kept = [e for e in self._manifest[kind] if e["name"] != entry["name"]]
        self._manifest[kind] = [*kept, entry]
        write_text(self.folder / "pages" / f"{self.name}.json", json.dumps(self._manifest, indent=1) + "\n")

    def table(self, frame: pd.DataFrame, name: str, caption: str = ""):
        """Write results/<profile>/<name>.csv; returns the table as people read it (see `readable`), for display."""
        if not self.recorded:
            write_csv(self.folder / f"{name}.csv", frame)
        self._note("tables", {"name": name, "caption": caption})
        return readable(frame).style.hide()

    def runs(self, part: str) -> pd.DataFrame:
        """The declared runs of a part of the study at this profile (see `experiments.planned`), after training those
        that are missing, unless nothing is to be trained. Says how many are finished."""
        plan = experiments.planned(self.profile, part)
        if self.anew:
            training.train_runs(plan.run)
        print(f"profile {self.profile.name}, {part}: {runs_in_words(plan.run)}" + " finished" * (len(plan) > 0))
        return plan

    def measured(self, name: str, measure: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        """A costly table: `measure()`, or results/<profile>/<name>.csv where nothing is to be measured anew."""
        path = self.folder / f"{name}.csv"
        return measure() if self.anew or not path.exists() else read_csv(path)

    def figure(self, figure, name: str, caption: str = "", *, any_profile: bool = False):
        """Write results/<profile>/<name>.png, marked with the profile, close the figure and show the file. Unless
        `any_profile`, a profile that is no evidence writes so across it."""
        import matplotlib.pyplot as plt
        from IPython.display import Image

        strip = 0.2 / figure.get_figheight()   # inches above the drawing, for the label
        figure.get_layout_engine().set(rect=(0, 0, 1, 1 - strip))
        figure.text(0.995, 1 - 0.1 * strip, f"profile {self.profile.name}", ha="right", va="top",
                    fontsize=8, color="0.4")
        if not (self.profile.evidence or any_profile):
            figure.text(0.5, 0.5, "not evidence", ha="center", va="center",
                        rotation=25, fontsize=64, color="0.5", alpha=0.25)
        if _nothing_drawn(figure):
            figure.text(0.5, 0.55, "waits for its declared runs", ha="center", fontsize=14, color="0.4")
        picture = io.BytesIO()
        figure.savefig(picture, format="png")
        if not self.recorded:
            write_bytes(self.folder / f"{name}.png", picture.getvalue())
        plt.close(figure)
        self._note("figures", {"name": name, "caption": caption})
        return Image(data=picture.getvalue(), width=900)

    def verdict(self, claim: str, *, paper: str, ours: str, verdict: str, because: str, seeds: int | None = None,
                comparisons: Mapping[str, Sequence[float | None]] | None = None, any_profile: bool = False):
        """Record what became of a claim, resting on so many seeds (None: on no training), and show it.

        `comparisons`: for the picture of all claims, name -> [the paper's difference, ours, low, high], dB.

        Unless `any_profile` (the work is the same in every profile), a profile that is no evidence gives "not tested at
        this budget". Raises ValueError for an unknown verdict.
        """
        from IPython.display import Markdown

        config.require("verdict", verdict, VERDICTS)
        if not (self.profile.evidence or any_profile):
            verdict = UNTESTED
        entry = {"name": claim, "paper": paper, "ours": ours, "verdict": verdict, "because": because, "seeds": seeds}
        entry |= {"comparisons": dict(comparisons)} if comparisons else {}
        self._note("claims", entry)
        return Markdown(f"**{claim}: {verdict}.** {because}\n\nPaper: {paper}\n\nOurs: {ours}")


def _nothing_drawn(figure) -> bool:
    """Whether a figure has no data yet, but axes, zero lines, and empty entries for its legend."""
    return not any(axes.images or axes.patches or any(len(drawn.get_paths()) for drawn in axes.collections) or any(
        line.get_transform() is axes.transData and pd.notna(line.get_xydata()).all(1).any() for line in axes.lines)
                   for axes in figure.axes)


def open_page(name: str, *, profile: str, train: bool = True, cells: Sequence[str] = ()) -> Page:
    """The page of notebook `name`; refuses unknown parameters and profiles, sets the style. `cells`: IPython's `In`.

    `train` False: nothing is trained, and nothing costly measured a second time. The profile "recorded" is the largest
    one whose declared runs for this notebook are finished (see `experiments.recorded`); its page trains nothing and
    writes nothing.
    """
    check_parameters(cells)
    style()
    if profile == "recorded":
        return Page(name, experiments.recorded(name), recorded=True, anew=False)
    return Page(name, config.get_profile(profile), anew=train)


# --- tables as people read them -------------------------------------------------------------------------------------


def _digits(column: str) -> int:
    """Decimals a quantity is shown with, from its name."""
    return next((digits for word, digits in DIGITS if word in column.lower()), 3)


def _text(value, column: str) -> str:
    if isinstance(value, str):
        return value
    if pd.isna(value):
        return "–"
    if isinstance(value, (bool, np.bool_, int, np.integer)):
        return str(value)
    return f"{value:.{_digits(column)}f}"


def readable(frame: pd.DataFrame) -> pd.DataFrame:
    """A frame of records as text: `x_paper`, `x_ours`, `x_sd` become twin columns "x paper" | "x ours" (± sd)."""
    shown = pd.DataFrame(index=frame.index)
    for column in frame.columns.difference(DETAILS, sort=False):
        if column.endswith("_sd") and f"{column[:-3]}_ours" in frame:
            continue
        text = [_text(value, column) for value in frame[column]]
        spread = f"{column[:-5]}_sd"
        if column.endswith("_ours") and spread in frame:
            text = [t if pd.isna(sd) else f"{t} ± {_text(sd, spread)}"
                    for t, sd in zip(text, frame[spread], strict=True)]
        shown[re.sub(r"_(paper|ours)$", r" \1", column).replace("_", " ")] = text
    return shown


def markdown_table(frame: pd.DataFrame) -> str:
    """A GitHub table of `readable(frame)`."""
    shown = readable(frame)
    rows = [list(shown.columns), ["---"] * shown.shape[1], *shown.to_numpy().tolist()]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)
