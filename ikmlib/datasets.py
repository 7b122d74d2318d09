"""The image sets: what they are, where they lie, how they are fetched, checked and read.

A set is a folder of pictures in `IKM_DATA`, or in `config.cache_root()`, where `fetch` puts it. It is laid out as
`registry.csv` says (`Set5/baby.png`, `BSDS500/train/...`) or with a folder HR in between (`Set5/HR/baby.png`). It is
installed when it has as many pictures as the published set; `verify` says whether they are the published ones. Any
other folder of `IKM_DATA` serves as a test set under its own name.
"""
import hashlib
import importlib.util
import os
import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from tqdm import tqdm

from ikmlib import config, files
from ikmlib.pictures import SUFFIXES, read_image

RAW = "https://raw.githubusercontent.com"
REGISTRY = Path(__file__).with_name("registry.csv")   # pixels_sha256: of shape and pixels, where they were at hand


class FetchError(RuntimeError):
    """A set could not be downloaded: one line that names source, folder and error, and says what to do."""


class ImageSet(NamedTuple):
    """An image set. Its folder lies below a data root; the embedded sets lie in the installed scikit-image."""

    name: str
    role: str                       # train | validation | test | known answers
    count: int                      # images
    folder: str = ""
    patterns: tuple[str, ...] = ("*",)   # which of the files below the folder belong to the set


# BSD100 is BSDS500's `val`, so the training set BSDS500 is `train` and `test` only.
SETS = {s.name: s for s in (
    ImageSet("Set5", "test", 5, "Set5"),
    ImageSet("Set14", "test", 14, "Set14"),
    ImageSet("BSD100", "test", 100, "BSDS500/val"),
    ImageSet("Urban100", "test", 100, "Urban100"),
    ImageSet("Manga109", "test", 109, "Manga109"),
    ImageSet("T91", "train", 91, "T91"),
    ImageSet("BSDS500", "train", 400, "BSDS500", ("train/*", "test/*")),
    ImageSet("DIV2K", "train", 800, "DIV2K/DIV2K_train_HR"),
    ImageSet("Set5_LR", "known answers", 15, "Set5_LR", ("x?/*",)),   # of MATLAB's imresize
    ImageSet("embedded-train", "train", 3, patterns=("astronaut.png", "hubble_deep_field.jpg", "motorcycle_left.png")),
    ImageSet("embedded-val", "validation", 1, patterns=("rocket.jpg",)),
    ImageSet("embedded-test", "test", 2, patterns=("chelsea.png", "coffee.png")),
)}
# Address and sha256 of the zip file that holds a set's folder
ARCHIVES = {"DIV2K": ("https://data.vision.ee.ethz.ch/cvl/DIV2K/DIV2K_train_HR.zip",
                      "9d0b9c463f6e35b6c62cc6a930ee2224f670b34c1df841a57670f9acf0f6c335")}


def image_set(name: str) -> ImageSet:
    """The set called `name`: one of SETS, a folder of IKM_DATA that holds pictures, or any folder of pictures by its
    path. ValueError for any other."""
    own = config.folder_from("IKM_DATA")
    if own and name not in SETS and name == Path(name).name and (found := pictures_in(own / name)):
        return ImageSet(name, "test", len(found), name)
    if name not in SETS and os.path.isdir(name):
        if not (found := pictures_in(Path(name))):
            raise ValueError(f"no pictures in the folder {name}; allowed are {', '.join(SUFFIXES)}")
        return ImageSet(name, "test", len(found), os.path.abspath(name))
    config.require("image set or folder", name, SETS)
    return SETS[name]


def pictures_in(folder: Path, patterns: tuple[str, ...] = ("*",)) -> list[Path]:
    """The pictures in a folder that fit the patterns, sorted: what has a picture's suffix and is not hidden."""
    return sorted(path for pattern in patterns for path in folder.glob(pattern)
                  if path.suffix.lower() in SUFFIXES and not path.name.startswith("."))


def _find(spec: ImageSet) -> tuple[Path, list[Path]]:
    """The set's folder and its pictures: of the first place that has all of them, else of the one with the most."""
    own = config.folder_from("IKM_DATA")
    if own and not own.is_dir():
        raise NotADirectoryError(f"IKM_DATA={own} is not a folder; it should hold Set5/, T91/, BSDS500/ ...")
    places = [root / spec.folder / inner for root in (own, config.cache_root()) if root for inner in ("", "HR")]
    if not spec.folder:
        places = [Path(importlib.util.find_spec("skimage").origin).parent / "data"]
    found = [(place, pictures_in(place, spec.patterns)) for place in places]
    return max(found, key=lambda one: (len(one[1]) == spec.count, len(one[1])))


def is_installed(name: str) -> bool:
    """Whether the set is all there. ValueError for an unknown set, NotADirectoryError for a wrong IKM_DATA."""
    spec = image_set(name)
    return len(_find(spec)[1]) == spec.count


def paths(name: str) -> dict[str, Path]:
    """The files of a set by the name of the image, which is its path below the set's folder, without suffix.

    Raises FileNotFoundError, saying what to do, if the set is not installed, and ValueError for two of one name.
    """
    spec = image_set(name)
    root, found = _find(spec)
    if len(found) != spec.count:
        raise FileNotFoundError(f"image set {name} is not installed: {len(found)} of {spec.count} images are in {root}."
                                f" {_advice(spec)}")
    named = {path.relative_to(root).with_suffix("").as_posix(): path for path in found}
    if len(named) < len(found):
        raise ValueError(f"{root}: several files share one name and differ in their suffix only")
    return named


def _advice(spec: ImageSet) -> str:
    if not spec.folder:
        return "Reinstall scikit-image, which brings these photographs."
    first = f"Run `python -m ikmlib data fetch {spec.name}`, which writes to IKM_CACHE, or"
    if spec.name == "Manga109":
        first = "Manga109 may not be redistributed: ask its authors (http://www.manga109.org), then"
    by_hand = f"run `wget -c {ARCHIVES[spec.name][0]}`, unpack it and " if spec.name in ARCHIVES else ""
    return f"{first} {by_hand}set IKM_DATA to a folder that holds {spec.folder}/ with its {spec.count} images."


def load(name: str) -> dict[str, np.ndarray]:
    """The set `name` as {image: uint8 (H, W, 3), or (H, W, 1) where the file is grey}. DIV2K takes 7 GB.

    Warns if images are not the published ones. Raises as `paths` and `read_image` do.
    """
    if _published(image_set(name)) and (wrong := verify(name)):
        warnings.warn(f"{name}: {wrong}", stacklevel=2)
    return {image: read_image(path) for image, path in tqdm(paths(name).items(), name, delay=2)}


# --- what the images are --------------------------------------------------------------------------------------------


def _published(spec: ImageSet) -> dict[str, NamedTuple]:
    """The rows that the registry has of a set, by the name of the image."""
    table = pd.read_csv(REGISTRY, keep_default_na=False)
    return {row.path.removeprefix(f"{spec.folder}/").rpartition(".")[0]: row for row in table.itertuples()
            if any(fnmatchcase(row.path, f"{spec.folder}/{pattern}") for pattern in spec.patterns)}


@lru_cache(maxsize=2000)
def _pixels_sha256(path: Path, changed: int) -> str:
    pixels = read_image(path)
    return hashlib.sha256(f"{pixels.shape} ".encode() + pixels.tobytes()).hexdigest()


def pixels_sha256(name: str) -> str:
    """One sha256 of all names, shapes and pixels of the set as `load` reads it, whatever the format of its files."""
    found = tqdm(sorted(paths(name).items()), f"pixels of {name}", delay=2, leave=False)
    lines = [f"{image} {_pixels_sha256(path, path.stat().st_mtime_ns)}\n" for image, path in found]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def verify(name: str) -> str:
    """Read every image of the set: what is wrong, in words that name up to five images; empty if nothing is.

    Raises as `paths` does. Right is a published file, a copy in another format with its name and pixels or, of a set
    that nobody published, a file that can be read to its last pixel.
    """
    published, found = _published(image_set(name)), paths(name)
    wrong: dict[str, list[str]] = {"differ from the published files": [], "are damaged": []}
    for image, path in tqdm(found.items(), f"verify {name}", delay=2):
        known = published.get(image)
        if known and files.sha256(path) == known.sha256:
            continue
        try:
            if _pixels_sha256(path, path.stat().st_mtime_ns) != getattr(known, "pixels_sha256", "") and published:
                wrong["differ from the published files"].append(image)
        except ValueError:
            wrong["are damaged"].append(image)
    return "; ".join(f"{len(images)} of {len(found)} images {what}: "
                     + ", ".join(images[:5]) + ", ..." * (len(images) > 5)
                     for what, images in wrong.items() if images)


# --- downloading ----------------------------------------------------------------------------------------------------


def fetch(name: str) -> Path:
    """Download the set to the cache and return its folder; one that is installed elsewhere is left as it is.

    Files that are there and right are kept, others replaced. Raises FetchError.
    """
    import pooch  # here, because nothing else needs it

    spec = image_set(name)
    (root, found), published = _find(spec), _published(spec)
    folder = config.cache_root() / spec.folder
    if len(found) == spec.count and (root != folder or not published):
        return root
    sources = {row.path: (f"{RAW}/{row.repository}/{row.commit}/{row.repository_path}", row.sha256)
               for row in published.values()}
    if name in ARCHIVES:
        sources = {f"{spec.folder}.zip": ARCHIVES[name]}
    if not sources:
        raise FetchError(_advice(spec))
    pooch.get_logger().setLevel("WARNING")
    download = pooch.HTTPDownloader(progressbar=name in ARCHIVES)
    try:
        cache = config.cache_root().expanduser()   # RuntimeError where the system knows no home folder
        store = pooch.create(cache, "", urls={path: url for path, (url, _) in sources.items()},
                             registry={path: sha256 for path, (_, sha256) in sources.items()}, retry_if_failed=3)
        for path in sources:   # not by pooch, whose threads would want to be the one that does it
            (cache / path).parent.mkdir(parents=True, exist_ok=True)
        with files.locked(cache / ".lock", wait=True), ThreadPoolExecutor(4) as pool:
            if name in ARCHIVES and is_installed(name):   # another process was first
                return folder
            done = pool.map(lambda path: store.fetch(path, downloader=download), sources)
            list(tqdm(done, name, len(sources), delay=2))
            if name in ARCHIVES:
                packed = cache / f"{spec.folder}.zip"
                shutil.unpack_archive(packed, packed.parent)
                packed.unlink()
    except (OSError, RuntimeError, ValueError) as error:   # ValueError: another sha256
        source, why = ARCHIVES.get(name, (RAW,))[0], " ".join(str(error).split())
        raise FetchError(f"{name} could not be fetched from {source} into {folder} ({why}). {_advice(spec)}") from error
    return folder
