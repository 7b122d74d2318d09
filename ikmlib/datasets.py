"""The image sets: what they are, where they lie, how they are fetched, checked and read.

A set is looked for in the folder `IKM_DATA`, then in `config.cache_root()`, where `fetch` puts it. Both are laid out as
`registry.csv` says (`Set5/baby.png`, `BSDS500/train/...`) or with a folder HR in between (`Set5/HR/baby.png`). It is
installed when every file is there with its published size. A copy of the user's own serves too: as many images as the
set has, none of them a file of the registry, because then it would be a damaged copy of the published set.
"""
from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from PIL import Image
from tqdm import tqdm

from ikmlib import config, files, pictures

REGISTRY = Path(__file__).with_name("registry.csv")
SUFFIXES = (".png", ".bmp", ".jpg", ".jpeg", ".tif", ".tiff")


class FetchError(RuntimeError):
    """A set could not be downloaded; the message is one line that names file, source and folder, and what to do."""


class File(NamedTuple):
    """A file of a set: its path below the set's folder, and what was published of it."""

    path: str
    bytes: int | None = None
    sha256: str | None = None
    urls: tuple[str, ...] = ()


class ImageSet(NamedTuple):
    """An image set. `folders` below a data root are tried in order; `fetch` writes to the first."""

    name: str
    role: str                       # train | validation | test | known answers
    count: int                      # images
    licence: str                    # licence, and whom to cite
    folders: tuple[str, ...]        # none: the photographs inside the installed scikit-image
    files: tuple[File, ...]         # in order of their path; none: nobody published their names
    archive: File | None = None     # a zip file that holds the files


class Status(NamedTuple):
    """What is there of a set: its image files below the folder `root`, sorted; `own`: they are the user's own copy."""

    expected: int
    root: Path
    files: tuple[Path, ...] = ()
    own: bool = False

    @property
    def installed(self) -> bool:
        """Whether all images are there."""
        return len(self.files) == self.expected


def _listed(folder: str, *subfolders: str) -> tuple[File, ...]:
    """The files that the registry has in `folder`, or only in those subfolders of it."""
    table = pd.read_csv(REGISTRY).sort_values("path")
    mine = table[table.path.str.startswith(tuple(f"{folder}/{sub}" for sub in subfolders or ("",)))]
    return tuple(File(row.path.removeprefix(f"{folder}/"), row.bytes, row.sha256,
                      (f"https://raw.githubusercontent.com/{row.repository}/{row.commit}/{row.repository_path}",))
                 for row in mine.itertuples())


_BSD = "academic use; cite Arbelaez et al. 2011"
_DIV2K = File("DIV2K_train_HR.zip", 3530603713, "9d0b9c463f6e35b6c62cc6a930ee2224f670b34c1df841a57670f9acf0f6c335", (
    "https://data.vision.ee.ethz.ch/cvl/DIV2K/DIV2K_train_HR.zip", "https://huggingface.co/datasets/goodfellowliu/"
    "DIV2K/resolve/d8a7b7e82add5be32adb51d9442b7932b1739e89/DIV2K_train_HR.zip"))

# BSD100 is BSDS500's `val`, so the training set BSDS500 is `train` and `test` only. Its authors pack it in data/images.
SETS = {s.name: s for s in (
    ImageSet("Set5", "test", 5, "academic use; cite Bevilacqua et al. 2012", ("Set5",), _listed("Set5")),
    ImageSet("Set14", "test", 14, "academic use; cite Zeyde et al. 2010", ("Set14",), _listed("Set14")),
    ImageSet("BSD100", "test", 100, _BSD, ("BSDS500/val", "BSDS500/data/images/val", "BSD100"), _listed("BSDS500/val")),
    ImageSet("Urban100", "test", 100, "academic use; cite Huang et al. 2015", ("Urban100",), _listed("Urban100")),
    ImageSet("Manga109", "test", 109, "no redistribution; cite Matsui et al. 2017", ("Manga109",), ()),
    ImageSet("T91", "train", 91, "academic use; cite Yang et al. 2010", ("T91",), _listed("T91")),
    ImageSet("BSDS500", "train", 400, _BSD, ("BSDS500", "BSDS500/data/images"), _listed("BSDS500", "train/", "test/")),
    ImageSet("DIV2K", "train", 800, "academic use only; cite Agustsson and Timofte 2017",
             ("DIV2K/DIV2K_train_HR", "DIV2K"), tuple(File(f"{i:04d}.png") for i in range(1, 801)), _DIV2K),
    ImageSet("Set5_LR", "known answers", 15, "Set5 through MATLAB's imresize", ("Set5_LR",), _listed("Set5_LR")),
    ImageSet("embedded-train", "train", 3, "NASA, public domain (2); Scharstein et al. 2014", (),
             (File("astronaut.png"), File("hubble_deep_field.jpg"), File("motorcycle_left.png"))),
    ImageSet("embedded-val", "validation", 1, "SpaceX, public domain", (), (File("rocket.jpg"),)),
    ImageSet("embedded-test", "test", 2, "CC0, S. van der Walt; CC0, R. Michetti", (),
             (File("chelsea.png"), File("coffee.png"))),
)}


def _places(spec: ImageSet) -> list[Path]:
    """Every folder that may hold the set, in the order of the search."""
    if not spec.folders:
        return [Path(importlib.util.find_spec("skimage").origin).parent / "data"]
    own = config.folder_from("IKM_DATA")
    if own and not own.is_dir():
        raise NotADirectoryError(f"IKM_DATA={own} is not a folder; it should hold Set5/, T91/, BSDS500/ ...")
    roots = [own, config.cache_root()] if own else [config.cache_root()]
    return [root / folder / inner for root in roots for folder in spec.folders for inner in ("", "HR")]


def _inspect(spec: ImageSet, folder: Path) -> Status:
    """What is there of the set in one folder; nothing, if the folder cannot be read."""
    if not (os.path.isdir(folder) and os.access(folder, os.R_OK | os.X_OK)):
        return Status(spec.count, folder)
    published = [folder / f.path for f in spec.files if os.path.isfile(folder / f.path)
                 and f.bytes in (None, os.path.getsize(folder / f.path))]
    if published or any("/" in f.path for f in spec.files):   # a set of subfolders is never taken from another layout
        return Status(spec.count, folder, tuple(sorted(published)))
    own = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    return Status(spec.count, folder, tuple(own), own=bool(own))


def status(name: str) -> Status:
    """What is there of the set `name`, in the first complete place, else in the fullest. Reads sizes, not contents.

    Raises ValueError for an unknown set, NotADirectoryError if IKM_DATA is set to something that is no folder.
    """
    config.require("image set", name, SETS)
    found = [_inspect(SETS[name], folder) for folder in _places(SETS[name])]
    return next((here for here in found if here.installed), max(found, key=lambda here: len(here.files)))


def is_installed(name: str) -> bool:
    """Whether all images of the set `name` are there; raises as `status` does."""
    return status(name).installed


def paths(name: str) -> list[Path]:
    """The image files of the set `name`, sorted. Raises FileNotFoundError, saying what to do, if it is not there."""
    return list(_installed(name).files)


def _installed(name: str) -> Status:
    here = status(name)
    if not here.installed:
        raise FileNotFoundError(f"image set {name} is not installed: {len(here.files)} of {here.expected} images are "
                                f"in {here.root}. {_advice(SETS[name])}")
    return here


def _advice(spec: ImageSet) -> str:
    if not spec.folders:
        return "Reinstall scikit-image, which brings these photographs."
    first = (f"Run `python -m ikmlib data fetch {spec.name}`, which writes to IKM_CACHE, or" if spec.files else
             f"{spec.name} may not be redistributed: ask its authors (http://www.manga109.org), then")
    return f"{first} set IKM_DATA to a folder that holds {spec.folders[0]}/ with its {spec.count} images."


def load(name: str) -> dict[str, np.ndarray]:
    """The set `name` as {path below its folder, without suffix: uint8 (H, W, 3), or (H, W, 1) where the file is grey}.

    DIV2K decoded is 7 GB. Raises FileNotFoundError, ValueError (unreadable file, two that differ in their suffix only).
    """
    here, images = _installed(name), {}
    for path in tqdm(here.files, name, delay=2):
        images[path.relative_to(here.root).with_suffix("").as_posix()] = read_image(path)
    if len(images) < here.expected:
        raise ValueError(f"{here.root}: several files share one name and differ in their suffix only")
    return images


def read_image(path: str | os.PathLike) -> np.ndarray:
    """The image file as uint8 (H, W, 3), or (H, W, 1) if it is stored as grey; transparency is laid over white.

    Raises FileNotFoundError, and ValueError for a file that `pictures.read` refuses, such as one of 16 bits a sample.
    """
    image = pictures.read(path)
    if image.mode in ("RGBA", "LA"):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    pixels = np.array(image)
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def fingerprint(names: Iterable[str]) -> str:
    """Twelve hex digits that identify the installed files of the sets, whatever the order of `names`, for provenance.

    A sha256 over name and contents: the registry's sha256 for its sets, a hash of the decoded pixels for embedded ones.
    For archives and a user's own copies it takes names and sizes only. Raises FileNotFoundError if a set is missing.
    """
    total = hashlib.sha256()
    for name in sorted(set(names)):
        here, spec = _installed(name), SETS[name]
        if not spec.folders:
            lines = [f"{key} {pixels.shape} {hashlib.sha256(pixels).hexdigest()}" for key, pixels in load(name).items()]
        elif here.own or spec.archive:
            lines = [f"{p.relative_to(here.root).as_posix()} {p.stat().st_size}" for p in here.files]
        else:
            lines = [f"{f.path} {f.sha256}" for f in spec.files]
        total.update("\n".join([name, *lines, ""]).encode())
    return total.hexdigest()[:12]


@cache
def pixels_sha256(name: str) -> str:
    """The sha256 over names, shapes and pixels of the images of the set `name` as they are read; once a process.

    Raises as `load` does.
    """
    total = hashlib.sha256()
    for key, pixels in load(name).items():
        total.update(f"{key} {pixels.shape}\n".encode())
        total.update(np.ascontiguousarray(pixels))
    return total.hexdigest()


def verify(name: str) -> pd.DataFrame:
    """Read every file of the set: a table with columns file, state (ok | missing | corrupt).

    Registry files are compared by sha256; the others, whose digests nobody published, must decode to the last pixel.
    Raises FileNotFoundError if the user's own copy has another number of images.
    """
    here, known = status(name), SETS[name].files
    if here.own or not known:
        known = [File(path.name) for path in paths(name)]
    states = [_state(here.root / f.path, f.sha256) for f in tqdm(known, f"verify {name}", delay=2)]
    return pd.DataFrame({"file": [f.path for f in known], "state": states})


def _state(path: Path, sha256: str | None) -> str:
    if not path.is_file():
        return "missing"
    try:
        good = files.sha256(path) == sha256 if sha256 else read_image(path).size > 0
    except ValueError:
        good = False
    return "ok" if good else "corrupt"


def fetch(name: str) -> Path:
    """Download the set to the cache and return its folder; one that is installed elsewhere is left as it is.

    Files that are there and right are kept, broken ones replaced, cut downloads continued; size and sha256 are checked
    before a file gets its name. Raises FetchError.
    """
    here, spec = status(name), SETS[name]
    folder = config.cache_root().joinpath(*spec.folders[:1])
    if here.installed and (here.own or here.root != folder):
        return here.root
    if not (spec.folders and spec.files):
        raise FetchError(_advice(spec))
    try:
        folder = folder.expanduser()   # RuntimeError where the system knows no home folder
        if spec.archive is None:
            with ThreadPoolExecutor(4) as pool:
                done = pool.map(lambda f: files.download(folder / f.path, f.urls, f.bytes, f.sha256), spec.files)
                list(tqdm(done, name, spec.count, delay=2))
        elif not here.installed:
            packed = folder.parent / spec.archive.path
            files.download(packed, spec.archive.urls, spec.archive.bytes, spec.archive.sha256)
            files.unpack(packed, folder, {f.path for f in spec.files})
            packed.unlink()
    except (OSError, RuntimeError) as error:
        raise FetchError(f"{name} could not be fetched into {folder} ({error}). {_advice(spec)}") from error
    return folder
