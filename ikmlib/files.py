"""Files that are always whole: the old one or the new one, also after a kill or a power cut; and one clear line for
those that are not."""
import fcntl
import hashlib
import io
import json
import os
import time
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pandas as pd
import torch


@contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[bool]:
    """Within the block no other process holds `path`, a lock file; False, if not told to `wait`, where one does.

    The operating system frees the lock however the process ends. Where the file system has no locks, it warns.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    mine = True
    with open(path, "wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            mine = False
        except OSError as error:
            warnings.warn(f"{path} cannot be locked ({error.strerror}): only one process may write here", stacklevel=3)
        yield mine


def _sync(path: Path) -> None:
    """Have the system write a file or a folder to the disk now."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def write_bytes(path: Path, data: bytes) -> None:
    """Write to a temporary file beside `path`, which then takes its place. Raises OSError with the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{time.monotonic_ns()}")   # containers share pids
    try:
        temporary.write_bytes(data)
        _sync(temporary)   # before it gets its name: a power cut finds the old file or the new one
        os.replace(temporary, path)
    except OSError as error:   # such as a full disk; Python does not name the file then
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)
    with suppress(OSError):   # some file systems do not know this of folders
        _sync(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8 by `write_bytes`."""
    write_bytes(path, text.encode())


def write_csv(path: Path, frame: pd.DataFrame) -> None:
    """Write a table with six decimals and without its index by `write_bytes`."""
    write_text(path, frame.to_csv(index=False, float_format="%.6f", lineterminator="\n"))


def save_torch(state: dict, path: Path) -> None:
    """`torch.save` by `write_bytes`."""
    data = io.BytesIO()
    torch.save(state, data)
    write_bytes(path, data.getvalue())


def load_torch(path: Path, key: str, device: torch.device | str = "cpu") -> dict:
    """What `save_torch` wrote under state["key"] = `key`. Raises OSError, and ValueError if the file is damaged or was
    saved under another key."""
    with reading(path, "; delete it" + " to start this run again" * (path.name != "weights.pt")):
        with zipfile.ZipFile(path) as archive:   # torch itself does not look at the checksums
            if wrong := archive.testzip():
                raise zipfile.BadZipFile(f"{wrong} is not what was written")
        state = torch.load(path, map_location=device, weights_only=True)
        if state["key"] != key:
            raise ValueError(f"it belongs to run {state['key']}, not to {key}")
        return state


@contextmanager
def reading(path: Path, advice: str = "") -> Iterator[None]:
    """Whatever goes wrong in the block with the contents of a file becomes ValueError, in one line that names it."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:   # a file that was edited by hand may hold anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"{path} is damaged or of another kind ({reason}){advice}") from error


def read_json(path: Path, *keys: str) -> dict:
    """A JSON file that holds an object with these keys. Raises OSError and ValueError."""
    with reading(path):
        found = json.loads(path.read_bytes())
        return {**found, **{key: found[key] for key in keys}}


def read_csv(path: Path) -> pd.DataFrame:
    """A CSV file; names of images are text. Raises OSError and ValueError."""
    with reading(path):
        return pd.read_csv(path, dtype={"image": str})


def refused(check: Callable, things: Iterable) -> list[str]:
    """The messages of the errors that `check` raises at some of the things."""
    lines = []
    for thing in things:
        try:
            check(thing)
        except (OSError, ValueError) as error:
            lines += str(error).splitlines()
    return lines


def sha256(path: Path) -> str:
    """The sha256 of a file, 64 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
