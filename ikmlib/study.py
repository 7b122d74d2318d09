"""The study's runs: what is trained for which artefact, the records they leave, the queue, and moving runs about.

A run is the unit of evidence. Its spec says what was trained; its id is a readable slug and a hash of the spec; its
folder `results/<profile>/runs/<id>/` holds `run.json` (spec, provenance; written last: its presence means finished),
`scores.csv` (a row an image), `curve.csv`; and, not committed, `weights.pt` or an unfinished run's `checkpoint.pt`.
A run is trained once and serves every table that needs it.
"""
from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import os
import platform
import subprocess
import time
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from . import config, datasets
from .config import Profile
from .data import centre_crop, training_data
from .metrics import psnr_y, ssim_y
from .models import ARCHITECTURES, Architecture, SRNetwork, complexity
from .trainers import Trainer, TrainingDiverged, evaluate, load_checkpoint, restored, save_atomically

LEARNING_RATE = 2e-4
FALLBACK = {"train": ("embedded-train",), "test": ("embedded-test",)}


# --- a run ----------------------------------------------------------------------------------------------------------


def slug(arch: Architecture) -> str:
    """Readable name: the nearest of the paper's architectures, the attention, and what else differs."""
    def differing(name):
        named = ARCHITECTURES[name]
        return [f.name for f in fields(arch)
                if f.name != "attention" and getattr(arch, f.name) != getattr(named, f.name)]

    base = min(ARCHITECTURES, key=lambda name: len(differing(name)))
    parts = [base, arch.attention]
    for name in differing(base):
        value = getattr(arch, name)
        parts.append(f"{name}{''.join(map(str, value)) if isinstance(value, tuple) else value}")
    return "-".join(parts)


@dataclass(frozen=True)
class Run:
    """What is trained. `profile` only says in which folder its records lie; everything else makes the id."""

    profile: str
    arch: Architecture
    scale: int
    seed: int
    updates: int
    batch: int
    patch: int                  # LR pixels
    data: tuple[str, ...]       # training sets
    rate: float = LEARNING_RATE

    @classmethod
    def of(cls, profile: Profile, arch: Architecture, seed: int, scale: int = 2) -> Run:
        """The run of an architecture at a profile's budget."""
        return cls(profile.name, arch, scale, seed, profile.updates, profile.batch, profile.patch, profile.train_sets)

    @property
    def spec(self) -> dict:
        """All that decides the trained weights, as JSON types."""
        spec = json.loads(json.dumps(asdict(self)))
        del spec["profile"]
        return spec

    @property
    def id(self) -> str:
        """Slug, scale, seed and a hash of the spec. An architecture's defaults are left out of the hash, so that an
        option added later, whose default changes nothing, leaves the ids as they are."""
        spec, plain = self.spec, json.loads(json.dumps(asdict(Architecture())))
        spec["arch"] = {name: value for name, value in spec["arch"].items() if value != plain[name]}
        digest = hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:8]
        return f"{slug(self.arch)}-x{self.scale}-seed{self.seed}-{digest}"

    @property
    def folder(self) -> Path:
        return config.results_root() / self.profile / "runs" / self.id

    @property
    def finished(self) -> bool:
        return (self.folder / "run.json").exists()

    def build(self) -> SRNetwork:
        """The network, freshly initialised from the seed."""
        torch.manual_seed(self.seed)
        return SRNetwork(self.arch, self.scale)


def found(run: Run) -> Run:
    """The run itself; or, if not finished and its training sets are not installed, its twin on embedded images."""
    if run.finished or all(datasets.is_installed(name) for name in run.data):
        return run
    return replace(run, data=FALLBACK["train"])


def test_images(profile: Profile, data: tuple[str, ...]) -> dict[str, dict[str, np.ndarray]]:
    """Installed test sets of a profile: set -> image -> uint8; embedded ones for a run trained on embedded images."""
    names = [name for name in profile.test_sets if datasets.is_installed(name)]
    if data == FALLBACK["train"] or not names:
        names = list(FALLBACK["test"])
    crop = (lambda image: centre_crop(image, profile.test_crop)) if profile.test_crop else (lambda image: image)
    return {name: {key: crop(image) for key, image in datasets.load(name).items()} for name in names}


# --- records --------------------------------------------------------------------------------------------------------


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file so that it is always whole: the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(data)
    os.replace(temporary, path)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_csv(path: Path, frame: pd.DataFrame) -> None:
    write_text(path, frame.to_csv(index=False, float_format="%.6f", lineterminator="\n"))


def git_commit() -> str:
    """Commit of the code, with "+changes" if the library differs from it; "unknown" outside a git checkout."""
    def git(*words):
        done = subprocess.run(["git", "-C", str(config.ROOT), *words], capture_output=True, text=True, check=True)
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
    with contextlib.suppress(OSError, StopIteration):
        model = next(line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name"))
    return f"{model}, {torch.get_num_threads()} of {os.cpu_count()} cores"


def provenance(run: Run, trainer: Trainer, left_out: tuple[str, ...]) -> dict:
    """Where the numbers of a run come from."""
    device, seconds = trainer.sampler.device, trainer.progress.seconds
    params, multi_adds = complexity(trainer.model, run.scale)
    return {
        "git_commit": git_commit(), "device": device_name(device),
        "python": platform.python_version(), "torch": torch.__version__,
        "numpy": np.__version__, "precision": "float32, TF32 convolutions" if device.type == "cuda" else "float32",
        "finished_utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "train_seconds": round(seconds, 1),
        "updates_per_second": round(run.updates / seconds, 3), "params": params, "multi_adds": multi_adds,
        "data_sha256": datasets.fingerprint(run.data), "left_out_images": list(left_out),
    }


def score(run: Run, model: SRNetwork) -> pd.DataFrame:
    """Every image of every installed test set, under both conventions of Y; done once, after training."""
    rows = []
    for set_name, images in test_images(config.get_profile(run.profile), run.data).items():
        for name, sr, hr in restored(model, images, run.scale):
            values = [metric(sr, hr, shave=run.scale, round_y=rounded)
                      for rounded in (False, True) for metric in (psnr_y, ssim_y)]
            rows.append((set_name, name, *values))
    return pd.DataFrame(rows, columns=["set", "image", "psnr_y", "ssim_y", "psnr_y_rounded", "ssim_y_rounded"])


@contextlib.contextmanager
def _lock(run: Run) -> Iterator[bool]:
    """True if this process has the run to itself; the operating system frees the lock however the process ends."""
    run.folder.mkdir(parents=True, exist_ok=True)
    with open(run.folder / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def train(run: Run, *, deadline: float | None = None, show: bool = True, device: torch.device | None = None) -> bool:
    """Train and score one run, or continue it; True if it is finished, False if time ran out or another process has it.

    Raises TrainingDiverged, UnreadableCheckpoint, FileNotFoundError (training images).
    """
    with _lock(run) as mine:
        if run.finished or not mine:
            return run.finished
        device = device or default_device()
        sampler, validation, left_out = training_data(run.data, run.scale, run.patch, str(device))
        checkpoint = run.folder / "checkpoint.pt"
        trainer = Trainer(
            run.build().to(device), sampler,
            key=run.id, seed=run.seed, updates=run.updates, batch=run.batch, rate=run.rate,
            checkpoint=checkpoint, validations=config.get_profile(run.profile).validations,
            validate=lambda model: float(evaluate(model, validation, run.scale).psnr_y.mean()))
        if not trainer.fit(deadline=deadline, label=run.id, show=show):
            return False
        write_csv(run.folder / "scores.csv", score(run, trainer.model))
        write_csv(run.folder / "curve.csv", pd.DataFrame(trainer.progress.curve))
        save_atomically({"key": run.id, "model": trainer.model.state_dict()}, run.folder / "weights.pt")
        record = {"id": run.id, "profile": run.profile, "spec": run.spec, **provenance(run, trainer, left_out)}
        write_text(run.folder / "run.json", json.dumps(record, indent=1) + "\n")
        checkpoint.unlink()
        return True


# --- which runs an artefact needs -----------------------------------------------------------------------------------


TABLE3_BLOCKS = ("rb", "db", "rdb", "uhdb")
TABLE3_ATTENTIONS = ("none", "ca", "sa", "ikm")


def table3(profile: Profile) -> list[Run]:
    """The 4 x 4 grid of Table III for every seed; seeds outermost, so that a whole grid is complete early."""
    return [Run.of(profile, replace(ARCHITECTURES[block], attention=attention), seed)
            for seed in profile.seeds for attention in ("none", "ikm", "ca", "sa") for block in reversed(TABLE3_BLOCKS)]


# Artefact -> its runs, in order of priority; names are the notebooks'.
QUEUE: dict[str, Callable[[Profile], list[Run]]] = {"04_table3_attention": table3}


def queue(profile: Profile, only: Iterable[str] = ()) -> list[Run]:
    """Runs of the chosen artefacts (all, if none is named) in priority order, each once. Unknown ones: ValueError."""
    only = tuple(only)
    chosen = [name for name in QUEUE if not only or any(name == o or name.split("_")[0] == o for o in only)]
    unknown = [o for o in only if not any(name == o or name.split("_")[0] == o for name in QUEUE)]
    if unknown:
        raise ValueError(f"no runs are known for {', '.join(unknown)}; allowed: {', '.join(QUEUE)}")
    return list(dict.fromkeys(found(run) for name in chosen for run in QUEUE[name](profile)))


def ensure(runs: Iterable[Run], *, train_missing: bool = True, deadline: float | None = None) -> list[Run]:
    """The finished of `runs`, after training what is missing (unless told not to); a diverged run is warned about."""
    done = []
    for run in map(found, runs):
        try:
            if run.finished or train_missing and train(run, deadline=deadline):
                done.append(run)
        except TrainingDiverged as error:
            warnings.warn(str(error), stacklevel=2)
    return done


def work(profile: Profile, *, only: Iterable[str] = (), time_limit: float | None = None, show: bool = True) -> int:
    """Train the queue's unfinished runs in order, until done or `time_limit` seconds have passed; number of diverged.

    Several processes may work at once: each takes the first run that no other has.
    """
    deadline = None if time_limit is None else time.monotonic() + time_limit
    diverged = 0
    for run in queue(profile, only):
        if deadline is not None and time.monotonic() >= deadline:
            break
        try:
            train(run, deadline=deadline, show=show)
        except TrainingDiverged as error:
            print(error, flush=True)
            diverged += 1
    return diverged


def status(profile: Profile) -> pd.DataFrame:
    """The queue: artefact, run, state (finished | in progress | missing), updates done, seconds trained."""
    rows, seen = [], set()
    for artefact, runs in QUEUE.items():
        for run in map(found, runs(profile)):
            if run not in seen:
                seen.add(run)
                rows.append((artefact, run.id, *_state(run)))
    return pd.DataFrame(rows, columns=["artefact", "run", "state", "updates", "seconds"])


def _state(run: Run) -> tuple[str, int, float]:
    if run.finished:
        return "finished", run.updates, record(run)["train_seconds"]
    path = run.folder / "checkpoint.pt"
    if not path.exists():
        return "missing", 0, 0.0
    progress = load_checkpoint(path, run.id)["progress"]
    return "in progress", progress["update"], progress["seconds"]


# --- reading records ------------------------------------------------------------------------------------------------


def record(run: Run) -> dict:
    """`run.json` of a finished run."""
    return json.loads((run.folder / "run.json").read_text())


def all_records(profile: Profile) -> pd.DataFrame:
    """A row a finished run of a profile: its record, the spec's fields flattened; tuples are joined by spaces."""
    rows = []
    for path in sorted((config.results_root() / profile.name / "runs").glob("*/run.json")):
        entry = json.loads(path.read_text())
        spec = entry.pop("spec")
        flat = {**entry, **spec.pop("arch"), **spec}
        rows.append({k: " ".join(map(str, v)) if isinstance(v, list) else v for k, v in flat.items()})
    return pd.DataFrame(rows)


def scores(runs: Iterable[Run]) -> pd.DataFrame:
    """Per-image scores of finished runs: run, block, attention, scale, seed, set, image, psnr_y, ssim_y, *_rounded."""
    frames = [pd.read_csv(run.folder / "scores.csv", dtype={"image": str}).assign(
        run=run.id, block=run.arch.block, attention=run.arch.attention, scale=run.scale, seed=run.seed) for run in runs]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(
        columns=["set", "image", "psnr_y", "ssim_y", "psnr_y_rounded", "ssim_y_rounded", "run", "block", "attention",
                 "scale", "seed"])


def curves(runs: Iterable[Run]) -> pd.DataFrame:
    """Learning curves of finished runs: run, block, attention, seed, update, loss, psnr_y (validation), seconds."""
    frames = [pd.read_csv(run.folder / "curve.csv").assign(
        run=run.id, block=run.arch.block, attention=run.arch.attention, seed=run.seed) for run in runs]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(
        columns=["update", "loss", "psnr_y", "seconds", "run", "block", "attention", "seed"])


# --- moving runs between machines -----------------------------------------------------------------------------------

PACK_FILES, PACK_BYTES = 8, 15_000_000
PACKED = ("run.json", "scores.csv", "curve.csv", "checkpoint.pt", "weights.pt")   # in this order while there is room


def pack(profile: Profile, destination: Path) -> tuple[list[Path], list[str]]:
    """Write all runs of a profile, finished or not, as at most 8 files of at most 15 MB; (the files, what had no room).

    The parts are one zip archive cut in pieces. Records go first, then unfinished runs' checkpoints, then weights, each
    in the queue's order. Raises FileNotFoundError if the profile has no runs.
    """
    root = config.results_root()
    order = {run.id: i for i, run in enumerate(queue(profile))}
    files = [path for path in (root / profile.name / "runs").glob("*/*") if path.name in PACKED]
    if not files:
        raise FileNotFoundError(f"profile {profile.name} has no runs to pack under {root / profile.name / 'runs'}")
    files.sort(key=lambda path: (PACKED.index(path.name), order.get(path.parent.name, len(order)), path))
    room, left_out, archive = PACK_FILES * PACK_BYTES - 100_000, [], io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        for path in files:
            if archive.tell() + path.stat().st_size < room:
                packed.write(path, path.relative_to(root))
            else:
                left_out.append(str(path.relative_to(root)))
    data = archive.getvalue()
    pieces = [data[i:i + PACK_BYTES] for i in range(0, len(data), PACK_BYTES)]
    name = f"runs-{profile.name}-{hashlib.sha256(data).hexdigest()[:8]}"
    destination.mkdir(parents=True, exist_ok=True)
    parts = [destination / f"{name}-{i}of{len(pieces)}.part" for i in range(1, len(pieces) + 1)]
    for part, piece in zip(parts, pieces, strict=True):
        part.write_bytes(piece)
    return parts, left_out


def unpack(parts: Iterable[Path]) -> list[str]:
    """Add packed runs to the records; names of the files written. A finished run here is never touched, and an
    unfinished one only by a state of more updates. Raises ValueError if parts are missing, damaged or hold anything but
    runs."""
    parts = sorted(parts, key=lambda part: int(part.stem.split("-")[-1].split("of")[0]) if "of" in part.stem else 0)
    data = b"".join(part.read_bytes() for part in parts)
    if not parts or f"-{hashlib.sha256(data).hexdigest()[:8]}-" not in parts[0].name:
        given = ", ".join(part.name for part in parts) or "none"
        raise ValueError(f"parts are missing, damaged or of different packs: {given}")
    root, written = config.results_root(), []
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = archive.namelist()
        for name in names:
            profile, *runs, file = name.split("/")
            is_run = len(runs) == 2 and runs[0] == "runs" and ".." not in runs
            if profile not in config.PROFILES or not is_run or file not in PACKED:
                raise ValueError(f"pack holds {name!r}, which is no file of a run")
        for folder in dict.fromkeys(name.rsplit("/", 1)[0] for name in names):
            if (root / folder / "run.json").exists():
                continue
            members = [name for name in names if name.startswith(folder + "/")]
            for name in sorted(members, key=lambda n: n.endswith("run.json")):   # run.json last: it says finished
                content = archive.read(name)
                if not name.endswith("checkpoint.pt") or _updates(io.BytesIO(content)) > _updates(root / name):
                    (root / folder).mkdir(parents=True, exist_ok=True)
                    write_bytes(root / name, content)
                    written.append(name)
    return written


def _updates(checkpoint: Path | io.BytesIO) -> int:
    """Updates done in a checkpoint; -1 if there is none."""
    if isinstance(checkpoint, Path) and not checkpoint.exists():
        return -1
    return torch.load(checkpoint, map_location="cpu", weights_only=True)["progress"]["update"]
