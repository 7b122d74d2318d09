"""Files that are always whole: the old one or the new one, also after a kill, written here or downloaded."""
from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import time
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from urllib.request import Request, urlopen

import pandas as pd
from tqdm import tqdm

ATTEMPTS, PAUSE, TIMEOUT = 4, 1.0, 30   # of a download; seconds of pause (doubled each time), and of a stalled read


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` to write to; it takes the place of `path` if the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[bool]:
    """Within the block no other process holds `path`, a lock file; False, if not told to `wait`, where one does.

    The operating system frees the lock however the process ends.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True


def write_bytes(path: Path, data: bytes) -> None:
    """Write a whole file, see `replacing`; its folder is made if it is not there."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, see `replacing`."""
    write_bytes(path, text.encode())


def write_csv(path: Path, frame: pd.DataFrame) -> None:
    """Write a table with six decimals and without its index, see `replacing`."""
    write_text(path, frame.to_csv(index=False, float_format="%.6f", lineterminator="\n"))


def save_torch(state: dict, path: Path) -> None:
    """`torch.save`, see `replacing`."""
    import torch

    with replacing(path) as temporary:
        torch.save(state, temporary)


def sha256(path: Path) -> str:
    """The sha256 of a file, 64 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download(path: Path, urls: Sequence[str], size: int, digest: str) -> None:
    """Download a file of `size` bytes and this sha256; one that is there already is kept if it is right.

    It grows as `path`.part, which the next attempt or call continues. Each of ATTEMPTS takes the next address. Raises
    OSError, in one line that names file and address, after the last one.
    """
    if path.is_file() and sha256(path) == digest:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    for attempt in range(ATTEMPTS):
        time.sleep(PAUSE * 2 ** (attempt - 1) if attempt else 0)
        url = urls[attempt % len(urls)]
        try:
            _continue(part, url, size)
            if (found := sha256(part)) == digest:
                return os.replace(part, path)
            part.unlink()   # perhaps it began as another file: the next attempt takes the whole
            reason = f"sha256 {found} instead of {digest}"
        except (OSError, HTTPException) as error:
            reason = error
    raise OSError(f"{path.name} cannot be had from {url}: {reason}")


def _continue(part: Path, url: str, size: int) -> None:
    """Append to `part` what it lacks, or start anew if the server cannot resume. Raises OSError and HTTPException."""
    have = part.stat().st_size if part.exists() else 0
    if have >= size:
        return
    with urlopen(Request(url, headers={"User-Agent": "ikmlib", "Range": f"bytes={have}-"}), timeout=TIMEOUT) as answer:
        if not answer.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            have = 0
        if answer.length not in (None, size - have):
            raise OSError(f"{have + answer.length} bytes of {answer.headers.get_content_type()} instead of {size}")
        with (open(part, "ab" if have else "wb") as out,
              tqdm.wrapattr(answer, "read", size, initial=have, desc=part.stem, delay=2, leave=False) as body):
            shutil.copyfileobj(body, out)
    if (found := part.stat().st_size) < size:
        raise OSError(f"cut after {found} of {size} bytes")


def unpack(packed: Path, folder: Path, names: set[str]) -> None:
    """Unpack the named files of a zip archive to `folder`.

    The archive's own folders do not count, so that no path in it leads elsewhere.
    """
    with zipfile.ZipFile(packed) as archive:
        for member in tqdm(archive.infolist(), f"unpack {packed.name}", delay=2):
            name = member.filename.rsplit("/")[-1]
            if name in names:
                write_bytes(folder / name, archive.read(member))
