"""Runs: what one training is, how it is trained and scored once, and the records it leaves.

A run is the unit of evidence: it is trained once and serves every table that needs it. Its folder
`results/<profile>/runs/<id>/` holds `run.json` (spec and provenance; written last, so that it means finished),
`scores.csv` (a row an image) and `curve.csv`, or `diverged.json`. `weights.pt` and the `checkpoint.pt` of an unfinished
run are not committed.
"""
import contextlib
import hashlib
import json
import math
import os
import platform
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from ikmlib import config, datasets, files
from ikmlib.config import Profile
from ikmlib.data import centre_crop, training_data
from ikmlib.fast import keep_memory
from ikmlib.metrics import psnr_y, ssim_y
from ikmlib.models import ARCHITECTURES, Architecture, complexity
from ikmlib.networks import build_model
from ikmlib.peers import OnLuma
from ikmlib.trainers import Pair, Trainer, TrainingDiverged, mae, mae_y, mean_psnr, pairs, super_resolve

LATER = ("schedule", "reverse", "peer")   # fields of a run that came after the first records


# --- a run ----------------------------------------------------------------------------------------------------------


def slug(arch: Architecture) -> str:
    """A readable name: the nearest of the paper's architectures, the attention, and the fields that differ from it."""
    own = asdict(arch)
    attention = own.pop("attention")
    differing = {name: [key for key in own if own[key] != getattr(named, key)] for name, named in ARCHITECTURES.items()}
    base = min(differing, key=lambda name: len(differing[name]))
    own["depths"] = "".join(map(str, arch.depths))
    return "-".join([base, attention, *(f"{key}{own[key]}" for key in differing[base])])


@dataclass(frozen=True)
class Run:
    """What is trained. `profile` says where its records lie and what budget is usual; the rest makes the id's hash."""

    profile: str
    arch: Architecture
    scale: int
    seed: int
    updates: int
    batch: int
    patch: int                  # LR pixels
    data: tuple[str, ...]       # training sets
    rate: float = 2e-4
    schedule: str = "halving"   # how the rate falls, see `trainers.learning_rate`
    reverse: bool = False       # the images of every batch in reverse order: equal but for rounding
    peer: str = ""              # one of `peers.PEERS`, in place of `arch`, which is then ignored

    @classmethod
    def of(cls, profile: Profile, arch: Architecture, seed: int, scale: int = 2) -> "Run":
        """The run of an architecture at a profile's budget."""
        return cls(profile.name, arch, scale, seed, profile.updates, profile.batch, profile.patch, profile.train_sets,
                   profile.rate, profile.schedule)

    @classmethod
    def from_record(cls, record: dict) -> "Run":
        """The run of a `run.json`."""
        spec = {**record["spec"], "data": tuple(record["spec"]["data"])}
        arch = Architecture(**{**spec.pop("arch"), "depths": tuple(record["spec"]["arch"]["depths"])})
        return cls(record["profile"], arch, **spec)

    @property
    def spec(self) -> dict:
        """All that decides the trained weights, as JSON types."""
        spec = json.loads(json.dumps(asdict(self)))
        del spec["profile"]
        return spec

    @property
    def digest(self) -> str:
        """Eight hex digits: a hash of the spec, which identifies the run. Fields of the architecture and of LATER that
        have their default are left out, so that an option that is added later changes no older digest."""
        spec, plain = self.spec, json.loads(json.dumps(asdict(Architecture())))
        spec["arch"] = {name: value for name, value in spec["arch"].items() if value != plain[name]}
        for name in LATER:
            if spec[name] == getattr(type(self), name):
                del spec[name]
        return hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:8]

    @property
    def folder(self) -> Path:
        """Where its records lie: the folder whose name ends in its digest, whatever stands before it. A new one is
        named after the network, what is unusual for the profile, scale and seed."""
        runs, usual = config.results_root() / self.profile / "runs", config.get_profile(self.profile)
        if found := next(runs.glob(f"*-{self.digest}"), None):
            return found
        unusual = [f"-{name}{getattr(self, name):.12g}" for name in ("batch", "updates", "rate")
                   if getattr(self, name) != getattr(usual, name)] + ["-reverse"] * self.reverse
        return runs / f"{self.peer or slug(self.arch)}{''.join(unusual)}-x{self.scale}-seed{self.seed}-{self.digest}"

    @property
    def id(self) -> str:
        """The name of its folder."""
        return self.folder.name

    @property
    def finished(self) -> bool:
        """Whether it was trained and scored: `run.json` is written last."""
        return (self.folder / "run.json").exists()

    @property
    def diverged(self) -> bool:
        """Whether its training diverged; it is not trained again while `diverged.json` lies in its folder."""
        return (self.folder / "diverged.json").exists()

    @property
    def status(self) -> str:
        """finished, diverged or missing."""
        return "finished" if self.finished else "diverged" if self.diverged else "missing"

    def scores(self) -> pd.DataFrame:
        """A row an image of a finished run, of all sets that it was scored on; columns as in SCORES."""
        paths = [self.folder / "scores.csv", *sorted(self.folder.glob("scores_*.csv"))]
        return pd.concat(map(files.read_csv, paths), ignore_index=True)

    def curve(self) -> pd.DataFrame:
        """The validation curve of a finished run; columns as in CURVE."""
        return files.read_csv(self.folder / "curve.csv")

    @property
    def cost(self) -> tuple[int, int]:
        """(#Params, #FLOPs) of the network, see `models.complexity`."""
        return _cost(self.peer or self.arch, self.scale)

    def build(self) -> nn.Module:
        """The network, freshly initialised from the seed."""
        torch.manual_seed(self.seed)
        return build_model(self.peer or self.arch, self.scale)


@cache
def _cost(name: str | Architecture, scale: int) -> tuple[int, int]:
    with torch.device("meta"):   # no weights are made
        return complexity(build_model(name, scale), scale)


def installed_sets(profile: Profile) -> list[str]:
    """The test sets of a profile that are installed; where none is, the first, which cannot be loaded."""
    return [name for name in profile.test_sets if datasets.is_installed(name)] or [profile.test_sets[0]]


def scored_images(profile: Profile) -> dict[str, dict[str, np.ndarray]]:
    """The `installed_sets` of a profile: set -> image -> uint8, cropped where the profile says so. Raises
    FileNotFoundError, saying what to do, if none is installed."""
    crop = profile.test_crop
    return {name: {key: centre_crop(image, crop) if crop else image for key, image in datasets.load(name).items()}
            for name in installed_sets(profile)}


@lru_cache(maxsize=2)
def scored_pairs(profile: Profile, scale: int) -> dict[str, list[Pair]]:
    """Test set -> (name, LR, HR) of each of its images; see `scored_images`. Kept for the last two scales."""
    return {name: list(pairs(images, scale)) for name, images in scored_images(profile).items()}


# --- records --------------------------------------------------------------------------------------------------------


def git_commit() -> str:
    """Commit of the code, with "+changes" if the library differs from it; "unknown" outside a git checkout of its own,
    such as inside another project's."""
    def git(*words):
        done = subprocess.run(["git", "--git-dir=.git", "--work-tree=.", *words], capture_output=True, text=True,
                              check=True, cwd=config.ROOT, env={"PATH": os.environ.get("PATH", os.defpath)})
        return done.stdout.strip()

    try:
        changes = "+changes" if git("status", "--porcelain", "--", "ikmlib") else ""
        return git("rev-parse", "--short=12", "HEAD") + changes
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("IKM_COMMIT", "unknown")


def device_name(device: torch.device) -> str:
    """The machine in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration), open("/proc/cpuinfo", encoding="utf-8") as lines:
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return f"{model}, {torch.get_num_threads()} of {os.cpu_count()} cores"


@cache
def here(device: torch.device) -> dict[str, str]:
    """What this process trains on: commit, machine, the CPU's instruction set, versions, precision. It is read once,
    at the first training, because later commits and installations do not change what this process runs."""
    backends = torch.backends   # the narrowest of the three settings that is set decides
    settings = (backends.cudnn.conv.fp32_precision, backends.cudnn.fp32_precision, backends.fp32_precision)
    tf32 = (device.type == "cuda" and next((s for s in settings if s != "none"), "ieee") == "tf32"
            and torch.cuda.get_device_capability(device) >= (8, 0))
    return {"git_commit": git_commit(), "device": device_name(device),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(), "python": platform.python_version(),
            "torch": str(torch.__version__), "numpy": np.__version__,
            "precision": "float32, TF32 convolutions" if tf32 else "float32"}


def provenance(run: Run, trainer: Trainer, left_out: tuple[str, ...], tested: Iterable[str] = ()) -> dict:
    """What a run is and where its numbers come from: on what its training started (`here`) and, in `continued`, each
    later change of that with the first update done there; time; cost; the pixels of training and of `tested` sets."""
    (_, first), *later = trainer.progress.stretches
    seconds, (params, multi_adds) = trainer.progress.seconds, run.cost
    return {
        "id": run.id, "profile": run.profile, "spec": run.spec, **first,
        "continued": [{"update": update, **where} for update, where in later],
        "finished_utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "train_seconds": round(seconds, 1),
        "updates_per_second": round(trainer.progress.update / max(seconds, 1e-9), 3),
        "params": params, "multi_adds": multi_adds,
        "pixels_sha256": {name: datasets.pixels_sha256(name) for name in (*run.data, *tested)},
        "left_out_images": list(left_out),
    }


def scores_of(model: nn.Module, images: Iterable[Pair], scale: int) -> pd.DataFrame:
    """A row an image: PSNR (dB) and SSIM on Y, floating point and rounded; columns as in SCORES, without the set."""
    def row(name_and_pair):
        name, sr, hr = name_and_pair
        return name, *(metric(sr, hr, shave=scale, round_y=rounded)
                       for rounded in (False, True) for metric in (psnr_y, ssim_y))

    with ThreadPoolExecutor(config.cores()) as pool:   # a GPU restores faster than one core compares
        apply = pool.map if default_device().type == "cuda" else map
        restored = ((name, super_resolve(model, lr, scale), hr) for name, lr, hr in images)
        return pd.DataFrame(apply(row, restored), columns=SCORES[1:])


def digests(folder: Path) -> dict[str, str]:
    """The sha256 of every CSV file of a run, as its record lists them."""
    return {path.name: files.sha256(path) for path in sorted(folder.glob("*.csv"))}


def write_record(run: Run, record: dict) -> None:
    """Write `run.json`, which makes the run finished."""
    files.write_text(run.folder / "run.json", json.dumps(record, indent=1) + "\n")


def default_device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def train(run: Run, *, deadline: float = math.inf, show: bool = True) -> bool:
    """Train and score one run, or continue it, on the default device; True if it is finished, False if time ran out or
    another process has it.

    A run that diverges leaves `diverged.json` in place of `run.json`. Raises TrainingDiverged, FileNotFoundError
    (training images), ValueError (a damaged record or checkpoint).
    """
    with files.locked(run.folder / ".lock", wait=False) as mine:
        if run.finished or not mine:
            return run.finished and bool(read_record(run.folder))   # which can be read
        if run.diverged:
            raise TrainingDiverged(files.read_json(run.folder / "diverged.json", "error")["error"])
        for left in run.folder.glob(".*.[0-9]*"):   # by a process that was killed while it wrote
            left.unlink()
        device = default_device()
        sampler, validation, left_out = training_data(run.data, run.scale, run.patch, str(device))
        keep_memory()
        checkpoint, images = run.folder / "checkpoint.pt", list(pairs(validation, run.scale))
        model = run.build().to(device)
        trainer = Trainer(
            model, sampler, key=run.id, seed=run.seed, updates=run.updates, batch=run.batch, rate=run.rate,
            schedule=run.schedule, reverse=run.reverse, loss=mae_y if isinstance(model, OnLuma) else mae,
            where=here(device), checkpoint=checkpoint, validations=config.get_profile(run.profile).validations,
            validate=lambda model: mean_psnr(model, images, run.scale))
        try:
            if not trainer.fit(deadline=deadline, show=show):
                return False
        except TrainingDiverged as error:
            record = {**provenance(run, trainer, left_out), "error": str(error), "update": trainer.progress.update}
            files.write_text(run.folder / "diverged.json", json.dumps(record, indent=1) + "\n")
            checkpoint.unlink()
            raise
        tested = scored_pairs(config.get_profile(run.profile), run.scale)
        scores = {name: scores_of(trainer.model, images, run.scale) for name, images in tested.items()}
        files.write_csv(run.folder / "scores.csv", pd.concat(scores, names=["set"]).reset_index("set"))
        files.write_csv(run.folder / "curve.csv", pd.DataFrame(trainer.progress.curve))
        files.save_torch({"key": run.id, "model": trainer.model.state_dict()}, run.folder / "weights.pt")
        write_record(run, {**provenance(run, trainer, left_out, tested), "files": digests(run.folder)})
        checkpoint.unlink(missing_ok=True)
        return True


# --- reading records ------------------------------------------------------------------------------------------------


def updates_done(run: Run) -> int:
    """How many updates of a run are done. Raises ValueError for a damaged record or checkpoint."""
    if run.finished:
        return run.updates
    if run.diverged:
        return files.read_json(run.folder / "diverged.json", "update")["update"]
    path = run.folder / "checkpoint.pt"
    if not path.exists():
        return 0
    saved = files.load_torch(path, run.id)
    with files.reading(path):
        return saved["progress"]["update"]


def read_record(folder: Path) -> dict:
    """`run.json` of a run's folder. Raises FileNotFoundError and ValueError."""
    return files.read_json(folder / "run.json", "id", "profile", "spec")


def check(path: Path) -> None:
    """Raise an error that names the file unless a run's `run.json` or `diverged.json` has the spec that its folder
    says, and the run's CSV files have the digests that `run.json` lists."""
    entry = files.read_json(path, "torch")
    with files.reading(path):
        run = Run.from_record(entry)
        if entry["id"] != run.id or run.folder != path.parent:
            raise ValueError(f"its spec is that of {run.folder}, its id {entry['id']}")
        if (entry["params"], entry["multi_adds"]) != run.cost:
            raise ValueError("its params or multi_adds are not those of its network")
        if path.name == "run.json" and (changed := entry["files"].items() ^ digests(path.parent).items()):
            raise ValueError(f"not the files that it lists: {', '.join(sorted({name for name, _ in changed}))}")


def all_records(profile: Profile) -> pd.DataFrame:
    """A row a finished run of a profile: its record, the spec's fields flattened; tuples are joined by spaces. Where
    `peer` names the network, the fields of an architecture are left out.

    Raises ValueError, with a line each, if records are not what they should be (see `check`), or if runs saw other
    images under one name.
    """
    paths, rows, seen = sorted((config.results_root() / profile.name / "runs").glob("*/*.json")), [], {}
    if wrong := files.refused(check, paths):
        raise ValueError("\n".join(wrong))
    for entry in (read_record(path.parent) for path in paths if path.name == "run.json"):
        for name, digest in entry.pop("pixels_sha256", {}).items():   # records before it do not tell
            other, run_id = seen.setdefault(name, (digest, entry["id"]))
            if other != digest:
                raise ValueError(f"{profile.name}: the images of {name} are not the same in {run_id} and {entry['id']}")
        spec, _, continued = entry.pop("spec"), entry.pop("files", None), entry.pop("continued", [])
        arch = spec.pop("arch")
        flat = {**entry, "stretches": 1 + len(continued), **({} if spec.get("peer") else arch), **spec}
        rows.append({k: " ".join(map(str, v)) if isinstance(v, list) else v for k, v in flat.items()})
    return pd.DataFrame(rows)


SCORES = ["set", "image", "psnr_y", "ssim_y", "psnr_y_rounded", "ssim_y_rounded"]
CURVE = ["update", "loss", "psnr_y", "seconds"]


def scores(plan: pd.DataFrame) -> pd.DataFrame:
    """Per-image scores of a plan, which is a frame of runs with a column a factor, then `seed` and `run`.

    Columns: the factors, seed, run (its id), state (finished | diverged | missing), then SCORES. A declared run that is
    not finished is one row without set, image and scores.
    """
    return _gather(plan, Run.scores, SCORES)


def curves(plan: pd.DataFrame) -> pd.DataFrame:
    """As `scores`, learning curves with CURVE in place of SCORES; psnr_y is that of the validation images."""
    return _gather(plan, Run.curve, CURVE)


def _gather(plan: pd.DataFrame, read: Callable[[Run], pd.DataFrame], columns: list[str]) -> pd.DataFrame:
    named = plan.assign(run=plan.run.map(lambda run: run.id), state=plan.run.map(lambda run: run.status))
    finished = {run.id: read(run).assign(run=run.id) for run in plan.run if run.finished}
    found = pd.concat(finished.values()) if finished else pd.DataFrame(columns=["run", *columns])
    return named.merge(found, on="run", how="left")


def states_in_words(states: Iterable[str]) -> str:
    """How many runs with these states are finished: "3 of 5 runs, 1 diverged"."""
    count = Counter(states)
    if not count:
        return "not planned"
    diverged = f", {count['diverged']} diverged" if count["diverged"] else ""
    return f"{count['finished']} of {count.total()} runs{diverged}"


def runs_in_words(runs: Iterable[Run]) -> str:
    """How many runs are finished, each counted once: "3 of 5 runs, 1 diverged"."""
    return states_in_words(run.status for run in dict.fromkeys(runs))
