"""Moving runs between machines as a few files of bounded size."""
from __future__ import annotations

import hashlib
import io
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path

import torch

from . import config
from .config import Profile
from .experiments import queue
from .files import write_bytes

PACK_FILES, PACK_BYTES = 8, 15_000_000
# in this order while there is room
PACKED = ("run.json", "scores.csv", "curve.csv", "controls.csv", "checkpoint.pt", "weights.pt")


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
    directory = 500 * len(files)   # at most: what the archive says of its members, twice
    room, left_out, archive = PACK_FILES * PACK_BYTES - directory, [], io.BytesIO()
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
        write_bytes(part, piece)
    return parts, left_out


def unpack(parts: Iterable[Path]) -> list[str]:
    """Add packed runs to the records; names of the files written. A finished run here is never touched, and an
    unfinished one only by a state of more updates. Raises ValueError if parts are missing, damaged or hold anything but
    runs."""
    parts = sorted(parts, key=_number)
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


def _number(part: Path) -> int:
    """Which part of its pack a file is, from its name; 0 if it is none."""
    found = re.search(r"-(\d+)of\d+$", part.stem)
    return int(found[1]) if found else 0


def _updates(checkpoint: Path | io.BytesIO) -> int:
    """Updates done in a checkpoint; -1 if there is none."""
    if isinstance(checkpoint, Path) and not checkpoint.exists():
        return -1
    return torch.load(checkpoint, map_location="cpu", weights_only=True)["progress"]["update"]
