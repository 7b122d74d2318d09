"""The image sets: what they are, where they lie, how they are fetched, checked and read.

A set is looked for in the folder `IKM_DATA`, then in `config.cache_root()`; both are laid out as `registry.csv` says
(`Set5/baby.png`, `BSDS500/train/...`), and `fetch` writes to the cache. It is installed when every file is there with
its published size. A copy of the user's own serves too, in `<SetName>/*.png|bmp|jpg|jpeg|tif|tiff`: as many images as
the set has, none of them a file of the registry (else it would be a damaged copy of ours). Only its count is checked.
"""
from __future__ import annotations

import csv
import hashlib
import http.client
import importlib.util
import os
import shutil
import tarfile
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import Request, urlopen

import numpy as np
import pandas as pd
from PIL import Image
from tqdm import tqdm

from ikmlib import config, pictures

REGISTRY = Path(__file__).with_name("registry.csv")
ADDRESS = "https://raw.githubusercontent.com/{repository}/{commit}/{repository_path}"
SUFFIXES = (".png", ".bmp", ".jpg", ".jpeg", ".tif", ".tiff")
THREADS, ATTEMPTS, BACKOFF, TIMEOUT, CHUNK = 4, 4, 1.0, 30, 1 << 20   # backoff (doubled each time), timeout: seconds


class FetchError(RuntimeError):
    """A set could not be downloaded; the message says why, and what can be done by hand."""


class Archive(NamedTuple):
    """A zip or tar of images at several addresses; `digest` is 'algorithm:hex', `bytes` None where not published."""

    file: str
    urls: tuple[str, ...]
    digest: str
    bytes: int | None = None


class Known(NamedTuple):
    """One file of a set: `path` below the set's folder, and what was published of it."""

    path: str
    bytes: int | None = None
    sha256: str | None = None
    url: str | None = None


@dataclass(frozen=True)
class ImageSet:
    """One image set. `folders` below a data root are tried in order; `fetch` writes to the first."""

    name: str
    role: str                           # train | validation | test | known answers
    source: str                         # registry | archive | manual | embedded
    count: int                          # images
    licence: str                        # licence, and whom to cite
    folders: tuple[str, ...] = ()
    parts: tuple[str, ...] = ("",)      # subfolders that belong to the set, each ending in "/"
    names: tuple[str, ...] = ()         # file names, where the registry does not list them
    archives: tuple[Archive, ...] = ()


@dataclass(frozen=True)
class Status:
    """What is there of a set: `found` of `expected` images in `root` (None: nothing); `own`: the user's own copy."""

    name: str
    found: int
    expected: int
    root: Path | None
    own: bool = False

    @property
    def installed(self) -> bool:
        return self.found == self.expected


_HF, _BSD = "https://huggingface.co/datasets/goodfellowliu", "academic use; cite Arbelaez et al. 2011"
_DIV2K = Archive("DIV2K_train_HR.zip", ("https://data.vision.ee.ethz.ch/cvl/DIV2K/DIV2K_train_HR.zip",
                 f"{_HF}/DIV2K/resolve/d8a7b7e82add5be32adb51d9442b7932b1739e89/DIV2K_train_HR.zip"),
                 "sha256:9d0b9c463f6e35b6c62cc6a930ee2224f670b34c1df841a57670f9acf0f6c335", 3530603713)
_FLICKR2K = (Archive("Flickr2K.zip", (f"{_HF}/Flickr2K/resolve/main/Flickr2K.zip",),     # pinned by its digest
                     "sha256:401a5b1d247d18d1114b77b069e3c7bf235c80f06b8b9caaef0086d07f1d42a3"),
             Archive("Flickr2K.tar", ("https://cv.snu.ac.kr/research/EDSR/Flickr2K.tar",),
                     "md5:5d3f39443d5e9489bff8963f8f26cb03"))

# BSD100 is BSDS500's `val`, so the training set BSDS500 is `train` and `test` only. Its authors pack it in data/images.
SETS = {
    s.name: s
    for s in (
        ImageSet("Set5", "test", "registry", 5, "academic use; cite Bevilacqua et al. 2012", ("Set5",)),
        ImageSet("Set14", "test", "registry", 14, "academic use; cite Zeyde et al. 2010", ("Set14",)),
        ImageSet("BSD100", "test", "registry", 100, _BSD, ("BSDS500/val", "BSDS500/data/images/val", "BSD100")),
        ImageSet("Urban100", "test", "registry", 100, "academic use; cite Huang et al. 2015", ("Urban100",)),
        ImageSet("Manga109", "test", "manual", 109, "no redistribution; cite Matsui et al. 2017", ("Manga109",)),
        ImageSet("T91", "train", "registry", 91, "academic use; cite Yang et al. 2010", ("T91",)),
        ImageSet("BSDS500", "train", "registry", 400, _BSD, ("BSDS500", "BSDS500/data/images"), ("train/", "test/")),
        ImageSet("DIV2K", "train", "archive", 800, "academic use only; cite Agustsson and Timofte 2017",
                 ("DIV2K/DIV2K_train_HR", "DIV2K"), names=tuple(f"{i:04d}.png" for i in range(1, 801)),
                 archives=(_DIV2K,)),
        ImageSet("Flickr2K", "train", "archive", 2650, "academic use; cite Lim et al. 2017",
                 ("Flickr2K/Flickr2K_HR", "Flickr2K"), names=tuple(f"{i:06d}.png" for i in range(1, 2651)),
                 archives=_FLICKR2K),
        ImageSet("Set5_LR", "known answers", "registry", 15, "Set5 through MATLAB's imresize", ("Set5_LR",),
                 ("x2/", "x3/", "x4/")),
        ImageSet("embedded-train", "train", "embedded", 3, "NASA, public domain (2); Scharstein et al. 2014",
                 names=("astronaut.png", "hubble_deep_field.jpg", "motorcycle_left.png")),
        ImageSet("embedded-val", "validation", "embedded", 1, "SpaceX, public domain", names=("rocket.jpg",)),
        ImageSet("embedded-test", "test", "embedded", 2, "CC0, S. van der Walt; CC0, R. Michetti",
                 names=("chelsea.png", "coffee.png")),
    )
}


def _spec(name: str) -> ImageSet:
    if name not in SETS:
        raise ValueError(f"unknown image set {name!r}; allowed: {', '.join(SETS)}")
    return SETS[name]


@cache
def _registry(table: Path) -> tuple[Known, ...]:
    with open(table, newline="", encoding="utf-8") as lines:
        return tuple(Known(row["path"], int(row["bytes"]), row["sha256"],
                           ADDRESS.format(**{key: quote(value) for key, value in row.items()}))
                     for row in csv.DictReader(lines))


def _known(spec: ImageSet) -> list[Known]:
    """The files of a set in order of their path; none for a set whose file names nobody published (Manga109)."""
    if spec.source != "registry":
        return [Known(name) for name in spec.names]
    folder = spec.folders[0] + "/"
    mine = tuple(folder + part for part in spec.parts)
    return sorted(k._replace(path=k.path.removeprefix(folder)) for k in _registry(REGISTRY) if k.path.startswith(mine))


def _packaged() -> Path:
    """The folder of photographs inside the installed scikit-image; they come with its wheel: no pooch, no network."""
    return Path(importlib.util.find_spec("skimage").origin).parent / "data"


def _roots() -> list[Path]:
    if not (own := os.environ.get("IKM_DATA")):
        return [config.cache_root()]
    if not Path(own).expanduser().is_dir():
        raise NotADirectoryError(f"IKM_DATA={own} is not a folder; it should hold Set5/, T91/, BSDS500/ ...")
    return [Path(own).expanduser(), config.cache_root()]


def _there(path: Path, size: int | None) -> bool:
    try:
        found = path.stat().st_size
    except OSError:
        return False
    return found > 0 if size is None else found == size


def _images_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))


def _inspect(spec: ImageSet, folder: Path) -> Status:
    found = sum(_there(folder / k.path, k.bytes) for k in _known(spec))
    own = 0 if found or len(spec.parts) > 1 or spec.source == "embedded" else len(_images_in(folder))
    return Status(spec.name, found or own, spec.count, folder if found or own else None, own > 0)


def status(name: str) -> Status:
    """What is there of the set `name`, in the first complete place, else in the fullest. Reads sizes, not contents.

    Raises ValueError for an unknown set, NotADirectoryError if IKM_DATA is set to something that is no folder.
    """
    spec = _spec(name)
    if spec.source == "embedded":
        return _inspect(spec, _packaged())
    best = Status(name, 0, spec.count, None)
    for folder in (root / folder for root in _roots() for folder in spec.folders):
        here = _inspect(spec, folder)
        if here.installed:
            return here
        best = here if here.found > best.found else best
    return best


def is_installed(name: str) -> bool:
    """Whether all images of the set `name` are there; raises as `status` does."""
    return status(name).installed


def locate(name: str) -> Path | None:
    """The folder that holds the complete set `name`, or None; raises as `status` does."""
    here = status(name)
    return here.root if here.installed else None


def _manual_step(spec: ImageSet) -> str:
    if spec.source == "embedded":
        return "These photographs come with scikit-image's wheel: reinstall scikit-image."
    if spec.source == "manual":
        return (f"By hand: {spec.name} may not be redistributed; ask its authors for it (http://www.manga109.org), put "
                f"the {spec.count} benchmark images in {spec.folders[0]}/ below a folder, and point IKM_DATA there.")
    step = f"By hand: set IKM_DATA to a folder that holds {spec.folders[0]}/ with its {spec.count} images"
    for archive in spec.archives:
        place = config.cache_root() / Path(spec.folders[0]).parent / archive.file
        step += f", or save one of {', '.join(archive.urls)} as {place} and fetch again"
    return step + "."


def _installed(name: str) -> Status:
    here, spec = status(name), _spec(name)
    if not here.installed:
        where = f" ({here.found} of {here.expected} images are in {here.root})" if here.root else ""
        fetch_it = f"Run `python -m ikmlib data fetch {name}`. " if spec.source in ("registry", "archive") else ""
        raise FileNotFoundError(f"image set {name} is not installed{where}. {fetch_it}{_manual_step(spec)}")
    return here


def paths(name: str) -> list[Path]:
    """The image files of the set `name`, sorted. Raises FileNotFoundError, saying what to do, if it is not there."""
    here = _installed(name)
    return _images_in(here.root) if here.own else sorted(here.root / k.path for k in _known(_spec(name)))


def load(name: str, limit: int | None = None) -> dict[str, np.ndarray]:
    """The set `name` as {path below its folder, without suffix: uint8 (H, W, 3), or (H, W, 1) where the file is grey}.

    `limit` takes the first so many images. DIV2K decoded is 7 GB. Raises FileNotFoundError (not installed), ValueError
    (unreadable file, unknown set, limit below 1, two files that differ in their suffix only).
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit}: allowed are None and 1 or more")
    files, root = paths(name)[:limit], locate(name)
    images = {p.relative_to(root).with_suffix("").as_posix(): read_image(p) for p in tqdm(files, name, delay=2)}
    if len(images) < len(files):
        raise ValueError(f"{root}: several files share one name and differ in their suffix only")
    return images


def read_image(path: str | os.PathLike) -> np.ndarray:
    """The image file as uint8 (H, W, 3), or (H, W, 1) if it is stored as grey; transparency is laid over white.

    Raises FileNotFoundError, and ValueError for a file that `pictures.read` refuses, such as one of 16 bits a sample.
    """
    try:
        image = pictures.read(path)
    except ValueError as error:
        with open(path, "rb") as file:
            if _is_html(file.read(64)):
                raise ValueError(f"{path} is no picture: it is an HTML page") from error
        raise
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
        here, spec = _installed(name), _spec(name)
        if spec.source == "registry" and not here.own:
            lines = [f"{k.path} {k.sha256}" for k in _known(spec)]
        elif spec.source == "embedded":
            lines = [f"{key} {pixels.shape} {hashlib.sha256(pixels).hexdigest()}" for key, pixels in load(name).items()]
        else:
            lines = [f"{p.relative_to(here.root).as_posix()} {p.stat().st_size}" for p in paths(name)]
        total.update("\n".join([name, *lines, ""]).encode())
    return total.hexdigest()[:12]


def _state(path: Path, sha256: str | None) -> str:
    if not path.is_file():
        return "missing"
    if sha256 is not None:
        return "ok" if _digest(path) == sha256 else "corrupt"
    try:
        read_image(path)
    except ValueError:
        return "corrupt"
    return "ok"


def verify(name: str) -> pd.DataFrame:
    """Read every file of the set: a table with columns file, state (ok | missing | corrupt).

    Registry files are compared by sha256; the others, whose digests nobody published, must decode to the last pixel.
    """
    here, spec = status(name), _spec(name)
    files = _known(spec)
    if here.own and (here.installed or not files):
        files = [Known(p.name) for p in _images_in(here.root)]
    root = here.root or Path(os.devnull)    # nothing is there
    rows = [(k.path, _state(root / k.path, k.sha256)) for k in tqdm(files, f"verify {name}", delay=2)]
    rows += [(f"image {i} of {spec.count}", "missing") for i in range(len(rows) + 1, spec.count + 1)]
    return pd.DataFrame(rows, columns=["file", "state"])


def fetch(name: str, root: str | os.PathLike | None = None, progress: bool = True) -> Path:
    """Download the set into `root` (default: the cache) and return its folder; one that is installed is left as it is.

    Files that are there and right are kept, broken ones replaced, cut downloads resumed; size and digest are checked
    before a file gets its name. Raises FetchError with the manual step when no address gives the file.
    """
    spec, here = _spec(name), status(name)
    target = Path(root or config.cache_root()).joinpath(*spec.folders[:1])
    if spec.source == "embedded" or (root is None and here.installed and (here.own or here.root != target)):
        return _installed(name).root
    try:
        if spec.source == "registry":
            _fetch_files(spec, target, progress)
        elif not _inspect(spec, target).installed:
            _fetch_archive(spec, target, progress)
    except FetchError as error:
        raise FetchError(f"{name} could not be fetched.\n{error}\n{_manual_step(spec)}") from error
    return target


def _fetch_files(spec: ImageSet, folder: Path, progress: bool) -> None:
    files = _known(spec)
    total = sum(k.bytes for k in files)
    with (ThreadPoolExecutor(THREADS) as pool,
          tqdm(total=total, desc=spec.name, unit="B", unit_scale=True, disable=not progress) as bar):
        jobs = {pool.submit(_fetch_one, folder / k.path, (k.url,), f"sha256:{k.sha256}", k.bytes): k for k in files}
        try:
            for job in as_completed(jobs):
                job.result()
                bar.update(jobs[job].bytes)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _fetch_archive(spec: ImageSet, folder: Path, progress: bool) -> None:
    errors = []
    for archive in spec.archives:
        packed = folder.parent / archive.file
        try:
            with tqdm(total=archive.bytes, desc=archive.file, unit="B", unit_scale=True, disable=not progress) as bar:
                _fetch_one(packed, archive.urls, archive.digest, archive.bytes, lambda at: bar.update(at - bar.n))
            _unpack(packed, folder, set(spec.names))
            return packed.unlink()
        except FetchError as error:
            errors.append(str(error))
    raise FetchError("\n".join(errors) or f"{spec.name} has no public address.")


# --- transport: knows nothing of image sets -------------------------------------------------------------------------

def _digest(path: Path, algorithm: str = "sha256") -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def _is_html(head: bytes) -> bool:
    return head.lstrip()[:15].lower().startswith((b"<!doctype html", b"<html"))


def _fetch_one(path: Path, urls: tuple[str, ...], digest: str, size: int | None,
               tick: Callable[[int], object] = lambda at: None) -> None:
    """Download one file to `path`, through `path`.part; every address is tried ATTEMPTS times unless it refuses."""
    algorithm, expected = digest.split(":")
    if path.is_file() and _digest(path, algorithm) == expected:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part, errors = path.with_name(path.name + ".part"), []
    for url in urls:
        for attempt in range(ATTEMPTS):
            time.sleep(BACKOFF * 2 ** (attempt - 1) if attempt else 0)
            resumed = part.exists()
            try:
                _download(url, part, size, tick)
                if (found := _digest(part, algorithm)) != expected:
                    part.unlink()
                    raise FetchError(f"{algorithm} should be {expected}, found {found}")
                return os.replace(part, path)
            except FetchError as error:
                errors.append(f"{url}: {error}")
                if part.exists() or not resumed:    # else a bad old part was to blame: once more, from the start
                    break
            except (OSError, http.client.HTTPException) as error:
                errors.append(f"{url}: {error}")
    raise FetchError("\n  ".join([f"No address gave {path.name}:", *dict.fromkeys(errors)]))


def _download(url: str, part: Path, size: int | None, tick: Callable[[int], object]) -> None:
    """Append to `part` what is missing (HTTP Range), or start anew if the server cannot resume.

    Raises FetchError for an answer that will not get better, OSError for one that may.
    """
    have = part.stat().st_size if part.exists() else 0
    if size is not None and have >= size:
        return
    headers = {"User-Agent": "ikmlib"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urlopen(Request(url, headers=headers), timeout=TIMEOUT)
    except HTTPError as error:
        if error.code == 416:       # nothing is missing: the digest decides
            return
        if error.code < 500 and error.code not in (408, 429):
            raise FetchError(f"HTTP {error.code} {error.reason}") from error
        raise
    with answer:
        resumed = answer.status == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        if answer.headers.get_content_type() == "text/html" or (not resumed and _is_html(answer.peek(64))):
            raise FetchError("an HTML page came instead of the file")
        at = have if resumed else 0
        total = size if answer.length is None else at + answer.length
        if size not in (None, total):
            raise FetchError(f"size should be {size} bytes, found {total}")
        with open(part, "ab" if resumed else "wb") as out:
            while chunk := answer.read(CHUNK):
                out.write(chunk)
                at += len(chunk)
                tick(at)
    if total is not None and at < total:
        raise OSError(f"cut after {at} of {total} bytes")


def _unpack(packed: Path, folder: Path, wanted: set[str]) -> None:
    """Move the `wanted` images of the archive to `folder` once all are unpacked; folders inside it do not count."""
    with tempfile.TemporaryDirectory(dir=packed.parent, prefix=".unpack-") as scratch:
        try:
            for name, stream in tqdm(_members(packed), f"unpack {packed.name}", delay=2):
                if name in wanted:
                    with stream, open(Path(scratch, name), "wb") as out:
                        shutil.copyfileobj(stream, out, CHUNK)
        except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError) as error:
            raise FetchError(f"{packed} cannot be unpacked: {error}") from error
        if lacking := wanted - set(os.listdir(scratch)):
            raise FetchError(f"{packed} lacks {len(lacking)} of {len(wanted)} images, first {min(lacking)}")
        folder.mkdir(parents=True, exist_ok=True)
        for name in wanted:
            os.replace(Path(scratch, name), folder / name)


def _members(packed: Path) -> Iterator[tuple[str, BinaryIO]]:
    """(file name without its folders, open file) for each regular file: no path of an archive leads out of a folder."""
    if packed.suffix == ".zip":
        with zipfile.ZipFile(packed) as archive:
            yield from ((PurePosixPath(m.filename).name, archive.open(m)) for m in archive.infolist() if not m.is_dir())
    else:
        with tarfile.open(packed) as archive:
            yield from ((PurePosixPath(m.name).name, archive.extractfile(m)) for m in archive if m.isfile())
