"""Image sets: the split, finding, reading, what own copies show, and downloading from a server on 127.0.0.1."""
import hashlib
import io
import pwd
import shutil
import socket
import threading
import warnings
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
import pooch
import pytest
from PIL import Image

from ikmlib import config, datasets
from ikmlib.__main__ import main
from ikmlib.datasets import SETS, FetchError
from ikmlib.study import runner

NAMES = ("baby", "bird", "butterfly", "head", "woman")


@pytest.fixture(autouse=True)
def no_real_folders(monkeypatch, tmp_path):
    """Every test starts with an empty cache and no IKM_DATA, and waits for nothing."""
    monkeypatch.delenv("IKM_DATA", raising=False)
    monkeypatch.setenv("IKM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(pooch.core.time, "sleep", lambda seconds: None)


def pixels(seed: int, side: int = 24) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def encoded(seed: int, kind: str = "png", side: int = 24) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels(seed, side)).save(out, kind)
    return out.getvalue()


def put(folder: Path, contents: dict[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in contents.items():
        (folder / name).write_bytes(data)


def put_set(root: Path, name: str, layout: str) -> None:
    """Empty files with the published names of a set."""
    for file in datasets._published(SETS[name]).values():
        path = root / layout / file.path.removeprefix(f"{SETS[name].folder}/")
        put(path.parent, {path.name: b""})


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*")
            if path.is_file() and path.name != ".lock"}


def publish(monkeypatch, tmp_path: Path, images: dict[str, bytes]) -> None:
    """A registry of these files of Set5 alone."""
    rows = [(f"Set5/{name}", hashlib.sha256(data).hexdigest(), len(data), digest(pixels(i)), "owner/name", "c0ffee",
             f"images/{name}") for i, (name, data) in enumerate(images.items())]
    columns = "path,sha256,bytes,pixels_sha256,repository,commit,repository_path".split(",")
    pd.DataFrame(rows, columns=columns).to_csv(tmp_path / "registry.csv", index=False)
    monkeypatch.setattr(datasets, "REGISTRY", tmp_path / "registry.csv")


def digest(image: np.ndarray) -> str:
    return hashlib.sha256(f"{image.shape} ".encode() + image.tobytes()).hexdigest()


@pytest.fixture
def tiny(monkeypatch, tmp_path) -> dict[str, bytes]:
    """A Set5 of five small random images: {file name: contents}."""
    images = {f"{name}.png": encoded(i) for i, name in enumerate(NAMES)}
    publish(monkeypatch, tmp_path, images)
    return images


@pytest.fixture
def own(monkeypatch, tmp_path) -> Path:
    (tmp_path / "data").mkdir()
    monkeypatch.setenv("IKM_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


# --- what is in which set -------------------------------------------------------------------------------------------


def test_the_sets_have_the_published_files_and_training_sees_no_test_file():
    digests = {"train": set(), "test": set(), "known answers": set()}
    for spec in SETS.values():
        files = datasets._published(spec)
        assert len(files) == (spec.count if spec.folder and spec.name not in ("Manga109", "DIV2K") else 0), spec.name
        for file in files.values():
            assert len(file.sha256) == 64
            assert len(file.pixels_sha256) == (0 if spec.name == "Urban100" else 64)
            digests[spec.role].add(file.sha256)
    assert len(digests["train"]) == 490 and len(digests["test"]) == 219     # T91's t36 and t65 are one image
    assert not digests["train"] & digests["test"]
    row = datasets._published(SETS["BSD100"])["101085"]
    assert (row.repository, row.commit, row.repository_path) == (
        "BIDS/BSDS500", "a04b7c6c3a9f0ace74bf205c72a43d32e1c72722", "BSDS500/data/images/val/101085.jpg")


def test_val_is_bsd100_and_never_training(own):
    put_set(own, "BSDS500", "BSDS500")
    put_set(own, "BSD100", "BSDS500/val")
    found = datasets.paths("BSDS500")
    assert {path.parent for path in found.values()} == {own / "BSDS500/train", own / "BSDS500/test"}
    assert len(found) == 400 and "train/100075" in found
    assert {path.parent for path in datasets.paths("BSD100").values()} == {own / "BSDS500/val"}


def test_other_folders_do_not_serve_as_a_training_set(own):
    put(own / "BSDS500", {f"{i}.png": b"x" for i in range(400)})    # could hold images of val
    assert not datasets.is_installed("BSDS500")
    put(own / "DIV2K/DIV2K_train_HR", {f"{i:04d}.png": b"x" for i in range(1, 901)})   # with the validation images
    with pytest.raises(FileNotFoundError, match="900 of 800 images are in .*DIV2K_train_HR"):
        datasets.paths("DIV2K")


def test_embedded_photographs_need_no_network(monkeypatch):
    monkeypatch.setattr(socket, "socket", None)
    splits = {n: datasets.load(f"embedded-{n}") for n in ("train", "val", "test")}
    shapes = {k: v.shape for images in splits.values() for k, v in images.items()}
    assert shapes == {"astronaut": (512, 512, 3), "hubble_deep_field": (872, 1000, 3), "motorcycle_left": (500, 741, 3),
                      "rocket": (427, 640, 3), "chelsea": (300, 451, 3), "coffee": (400, 600, 3)}   # and no name twice
    assert splits["train"]["astronaut"][0, 0].tolist() == [154, 147, 151]
    assert datasets.verify("embedded-test") == ""
    assert datasets.fetch("embedded-test") == datasets.paths("embedded-test")["coffee"].parent


# --- finding and reading --------------------------------------------------------------------------------------------


def test_the_first_complete_place_serves(own, tiny, tmp_path, monkeypatch):
    assert not datasets.is_installed("Set5")
    put(own / "Set5", dict(list(tiny.items())[:3]) | {"notes.txt": b"", ".hidden.png": b""})
    for action in (datasets.load, datasets.verify, datasets.pixels_sha256):
        with pytest.raises(FileNotFoundError, match=r"3 of 5 images are in .*Set5\. .*data fetch Set5.*IKM_DATA"):
            action("Set5")
    put(tmp_path / "cache" / "Set5", tiny)
    assert datasets.paths("Set5")["baby"].parent == tmp_path / "cache" / "Set5"
    put(own / "Set5", {f"{i}.png": b"x" for i in range(7)})   # more than the set has
    assert datasets.paths("Set5")["baby"].parent == tmp_path / "cache" / "Set5"
    put(own / "Set5" / "HR", tiny)
    images = datasets.load("Set5")
    assert datasets.paths("Set5")["baby"].parent == own / "Set5" / "HR" and list(images) == list(NAMES)
    assert np.array_equal(images["bird"], pixels(1))
    (own / "Set5" / "HR" / "woman.png").rename(own / "Set5" / "HR" / "baby.bmp")
    with pytest.raises(ValueError, match="differ in their suffix only"):
        datasets.load("Set5")
    with pytest.raises(ValueError, match="'set5'; allowed: Set5, Set14"):
        datasets.paths("set5")
    monkeypatch.setenv("IKM_DATA", str(tmp_path / "typo"))
    with pytest.raises(NotADirectoryError, match="typo is not a folder"):
        datasets.is_installed("Set5")


def test_an_own_copy_is_the_set_if_names_and_pixels_are(own, tiny, capsys):
    put(own / "Set5", {f"{name}.bmp": encoded(i, "bmp") for i, name in enumerate(NAMES)})
    lines = "".join(f"{name} {digest(pixels(i))}\n" for i, name in enumerate(NAMES))
    published = hashlib.sha256(lines.encode()).hexdigest()
    assert datasets.pixels_sha256("Set5") == published
    assert main(["data", "verify", "Set5"]) == 0
    assert capsys.readouterr().out == f"Set5: 5 images are ok; pixels have sha256 {published}\n"
    with warnings.catch_warnings(action="error"):
        assert np.array_equal(datasets.load("Set5")["bird"], pixels(1))
    put(own / "Set5", {"bird.bmp": encoded(9, "bmp"), "head.bmp": encoded(3, "bmp", side=12)})   # half as large
    said = "2 of 5 images differ from the published files: bird, head"
    assert main(["data", "verify", "Set5"]) == 1
    assert capsys.readouterr().out.startswith(f"Set5: {said}; pixels have sha256 ")
    with pytest.warns(UserWarning, match=f"Set5: {said}"):
        assert datasets.load("Set5")["head"].shape == (12, 12, 3)
    assert datasets.pixels_sha256("Set5") != published
    put(own / "Set5", {"head.bmp": b"junk"})
    assert main(["data", "verify", "Set5"]) == 1
    assert capsys.readouterr().out == ("Set5: 1 of 5 images differ from the published files: bird; 1 of 5 images are "
                                       "damaged: head\n")


def test_any_folder_of_ikm_data_is_a_test_set_under_its_own_name(own, capsys):
    put(own / "holiday", {f"{i}.png": encoded(i) for i in range(3)})
    (own / "empty").mkdir()
    assert datasets.image_set("holiday")[:3] == ("holiday", "test", 3)
    assert np.array_equal(datasets.load("holiday")["2"], pixels(2))
    assert main(["data", "verify", "holiday"]) == 0 and "holiday: 3 images are ok; pixels" in capsys.readouterr().out
    for name, why in (("empty", "unknown image set"), ("no/such", "unknown image set"), (str(own), "no pictures")):
        with pytest.raises(ValueError, match=why):
            datasets.load(name)


def test_own_manga109(own):
    put(own / "Manga109", {f"{i:03d}.jpg": encoded(0, "jpeg") for i in range(108)})
    for action in (datasets.paths, datasets.verify):
        with pytest.raises(FileNotFoundError, match="108 of 109 .*may not be redistributed") as error:
            action("Manga109")
        assert "data fetch" not in str(error.value)      # it would be of no use
    with pytest.raises(FetchError, match="may not be redistributed"):
        datasets.fetch("Manga109")
    put(own / "Manga109", {"last.bmp": encoded(0, "bmp")})
    assert datasets.verify("Manga109") == ""


def test_a_tilde_is_the_home_folder(monkeypatch, tmp_path, tiny):
    monkeypatch.setenv("HOME", str(tmp_path))
    for variable in ("IKM_RESULTS", "IKM_DATA", "IKM_CACHE"):
        monkeypatch.setenv(variable, f"~/{variable}")
    put(tmp_path / "IKM_DATA" / "Set5", tiny)
    assert config.results_root() == tmp_path / "IKM_RESULTS" and config.cache_root() == tmp_path / "IKM_CACHE"
    assert datasets.paths("Set5")["baby"].parent == tmp_path / "IKM_DATA" / "Set5"
    assert runner.places()["IKM_DATA"] == str(tmp_path / "IKM_DATA")   # what the kernels of notebooks get
    assert runner.portable(f"{tmp_path}/IKM_DATA/Set5") == "$IKM_DATA/Set5"
    monkeypatch.setenv("IKM_RESULTS", "~no-such-user/a")
    with pytest.raises(ValueError, match="IKM_RESULTS=~no-such-user/a: there is no such home folder"):
        config.results_root()


@pytest.mark.parametrize("place", ["a file", "~/.cache/ikm"])
def test_a_cache_that_cannot_be_is_an_error_only_when_it_is_needed(monkeypatch, own, tiny, tmp_path, place):
    monkeypatch.chdir(tmp_path)
    Path("a file").touch()
    monkeypatch.setenv("IKM_CACHE", "a file" if place == "a file" else "")
    monkeypatch.delenv("HOME", raising=False)   # and no entry in /etc/passwd, as for the user of a container
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)
    with pytest.raises(FetchError, match=f"Set5 could not be fetched from http.* into {place}/Set5 .* IKM_CACHE"):
        datasets.fetch("Set5")
    put(own / "Set5", tiny)
    assert datasets.fetch("Set5") == own / "Set5" and len(datasets.load("Set5")) == 5 and datasets.load("embedded-val")
    assert set(contents(tmp_path)) == {"a file", "registry.csv", *(f"data/Set5/{name}" for name in tiny)}


REAL = config.folder_from("IKM_DATA")


@pytest.mark.skipif(not REAL, reason="IKM_DATA is not set")
def test_published_sets_have_the_pixels_that_were_published(monkeypatch):
    """A change of the reader, or of Pillow's decoders, that changes a pixel is seen here."""
    monkeypatch.setenv("IKM_DATA", str(REAL))
    known = {"Set5": "e4bc540e2d87f062", "Set14": "3759e08e53ed9bf9", "BSD100": "c49f9d6a4b46298a",
             "T91": "0d179e11cdacd372", "BSDS500": "a99e969c46a273dc"}
    here = {name: start for name, start in known.items() if datasets.is_installed(name)}
    assert {name: datasets.pixels_sha256(name)[:16] for name in here} == here


# --- downloading ----------------------------------------------------------------------------------------------------


class Server:
    """Answers for {path: contents}. `faults` has for a path what is wrong with its next answers, one each."""

    def __init__(self):
        self.files, self.asked, self.faults = {}, [], {}
        kind = type("Handler", (BaseHTTPRequestHandler,), {
            "do_GET": lambda handler: self.answer(handler), "log_message": lambda *words: None})
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), kind)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        data, faults = self.files.get(handler.path, b""), self.faults.get(handler.path)
        fault = faults.pop(0) if faults else ""
        self.asked.append(handler.path)
        if fault.isdigit() or not data:
            return handler.send_error(int(fault or 404))
        data = {"corrupt": bytes(len(data)), "page": b"<html>Sign in!</html>"}.get(fault, data)
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data[:len(data) // 2 if fault == "cut" else None])


@pytest.fixture
def server(monkeypatch, tiny):
    """The tiny Set5 at the addresses that the registry has, on this machine."""
    one = Server()
    one.files = {f"/owner/name/c0ffee/images/{name}": data for name, data in tiny.items()}
    monkeypatch.setattr(datasets, "RAW", one.url)
    yield one
    one.http.shutdown()
    one.http.server_close()


BIRD = "/owner/name/c0ffee/images/bird.png"


def test_fetch_downloads_once_and_repairs_what_verify_found(server, own, tiny, tmp_path):
    folder = datasets.fetch("Set5")
    assert folder == tmp_path / "cache/Set5" and contents(folder) == tiny and len(server.asked) == 5
    put(folder, {"bird.png": b"junk"})
    assert datasets.verify("Set5") == "1 of 5 images are damaged: bird"
    assert contents(datasets.fetch("Set5")) == tiny and server.asked[5:] == [BIRD]
    put(own / "Set5", tiny)
    assert datasets.fetch("Set5") == own / "Set5" and len(server.asked) == 6    # what is installed is left alone


@pytest.mark.parametrize("faults", [["cut", "cut"], ["500", "429", "404"], ["corrupt"], ["page"]])
def test_what_goes_wrong_for_a_while_is_mended(server, tiny, faults):
    server.faults[BIRD] = list(faults)
    assert contents(datasets.fetch("Set5")) == tiny and server.asked.count(BIRD) == 1 + len(faults)


@pytest.mark.parametrize(("fault", "why"), [
    ("404", "404 Client Error"), ("503", "503 Server Error"), ("corrupt", "hash"), ("page", "hash"),
    ("cut", "bytes read"), ("gone", "refused"), ("full", "No space left on device")])
def test_what_stays_wrong_is_one_line_and_no_file(server, tiny, tmp_path, monkeypatch, fault, why):
    server.faults[BIRD] = [fault] * 4
    if fault == "full":
        def move(source, target):
            raise OSError(28, "No space left on device")
        monkeypatch.setattr(shutil, "move", move)
    if fault == "gone":
        server.http.server_close()
    with pytest.raises(FetchError, match=rf"from {server.url} into .*/Set5 .*{why}.* IKM_DATA") as error:
        datasets.fetch("Set5")
    assert len(str(error.value).splitlines()) == 1 and not (tmp_path / "cache/Set5/bird.png").exists()
    assert contents(tmp_path / "cache").items() <= {f"Set5/{name}": data for name, data in tiny.items()}.items()


@pytest.mark.parametrize("fault", ["", "cut", "gone"])
def test_an_archive_is_unpacked_into_its_folder_alone(server, monkeypatch, tmp_path, fault):
    packed, pictures = io.BytesIO(), {f"{i:04d}.png": encoded(i) for i in (1, 2)}
    with zipfile.ZipFile(packed, "w") as archive:
        for name, data in pictures.items():
            archive.writestr(f"DIV2K_train_HR/{name}", data)
        archive.writestr("../escaped.png", b"other")
    server.files, server.faults = {"/a.zip": packed.getvalue()}, {"/a.zip": [fault]}
    source = f"{server.url}/{'gone' if fault == 'gone' else 'a'}.zip", hashlib.sha256(packed.getvalue()).hexdigest()
    monkeypatch.setitem(SETS, "DIV2K", SETS["DIV2K"]._replace(count=2))
    monkeypatch.setitem(datasets.ARCHIVES, "DIV2K", source)
    if fault == "gone":
        with pytest.raises(FetchError, match=rf"from {source[0]} into .* \(404 .*`wget -c {source[0]}`, unpack it"):
            datasets.fetch("DIV2K")
        return
    assert datasets.fetch("DIV2K") == tmp_path / "cache/DIV2K/DIV2K_train_HR" == datasets.fetch("DIV2K")
    assert contents(tmp_path / "cache") == {f"DIV2K/DIV2K_train_HR/{name}": data for name, data in pictures.items()}
    assert list(datasets.load("DIV2K")) == ["0001", "0002"] and datasets.verify("DIV2K") == ""
