"""Image sets: the split, finding, reading, and downloading from a server of our own on 127.0.0.1."""
import errno
import hashlib
import io
import os
import pwd
import shutil
import socket
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ikmlib import config, datasets, files
from ikmlib.datasets import SETS, FetchError, File
from ikmlib.study import runner

NAMES = ("baby", "bird", "butterfly", "head", "woman")


@pytest.fixture(autouse=True)
def no_real_folders(monkeypatch, tmp_path):
    """Every test starts with an empty cache and no IKM_DATA, and waits for nothing."""
    monkeypatch.delenv("IKM_DATA", raising=False)
    monkeypatch.setenv("IKM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(files, "PAUSE", 0.01)
    monkeypatch.setattr(files, "TIMEOUT", 1)


def encoded(seed: int, kind: str = "png", side: int = 24) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)).save(out, kind)
    return out.getvalue()


def listed(name: str, data: bytes, *urls: str) -> File:
    return File(name, len(data), hashlib.sha256(data).hexdigest(), urls)


def put(folder: Path, contents: dict[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in contents.items():
        (folder / name).write_bytes(data)


def put_sizes(root: Path, name: str) -> None:
    """Files with nothing of a registry set but their names and sizes."""
    for file in SETS[name].files:
        path = root / SETS[name].folders[0] / file.path
        put(path.parent, {path.name: b""})
        os.truncate(path, file.bytes)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def tiny(monkeypatch) -> dict[str, bytes]:
    """A Set5 of five small random images: {file name: contents}."""
    images = {f"{name}.png": encoded(i) for i, name in enumerate(NAMES)}
    monkeypatch.setitem(SETS, "Set5", SETS["Set5"]._replace(files=tuple(listed(*item) for item in images.items())))
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
        assert len({file.path for file in spec.files}) == (spec.count if spec.name != "Manga109" else 0), spec.name
        if spec.files and spec.folders and not spec.archive:
            assert all(len(f.sha256) == 64 and f.bytes > 0 and f.urls[0].startswith("https://") for f in spec.files)
            digests[spec.role] |= {file.sha256 for file in spec.files}
    assert len(digests["train"]) == 490 and len(digests["test"]) == 219     # T91's t36 and t65 are one image
    assert not digests["train"] & digests["test"]
    assert SETS["DIV2K"].files[-1].path == "0800.png"    # 0801 to 0900 are DIV2K's validation images
    address, = SETS["BSD100"].files[0].urls
    assert address.endswith("BIDS/BSDS500/a04b7c6c3a9f0ace74bf205c72a43d32e1c72722/BSDS500/data/images/val/101085.jpg")


@pytest.mark.parametrize("layout", ["BSDS500", "BSDS500/data/images"])
def test_val_is_bsd100_and_never_training(own, layout):
    for name in ("BSDS500", "BSD100"):
        put_sizes(own / "here", name)
    (own / layout).parent.mkdir(parents=True, exist_ok=True)
    (own / "here/BSDS500").rename(own / layout)
    assert {p.parent.name for p in datasets.paths("BSDS500")} == {"train", "test"}
    assert {p.parent.name for p in datasets.paths("BSD100")} == {"val"}
    assert datasets.status("BSDS500").root == own / layout and len(datasets.paths("BSDS500")) == 400


def test_other_folders_do_not_serve_as_a_training_set(own):
    put(own / "BSDS500", {f"{i}.png": b"x" for i in range(400)})    # could hold images of val
    assert not datasets.is_installed("BSDS500")
    put(own / "DIV2K", {f"{i:04d}.png": b"x" for i in range(1, 901)})   # with the validation images
    assert [p.name for p in datasets.paths("DIV2K")] == [f"{i:04d}.png" for i in range(1, 801)]


def test_embedded_photographs_need_no_network(monkeypatch):
    monkeypatch.setattr(socket, "socket", None)
    splits = {n: datasets.load(f"embedded-{n}") for n in ("train", "val", "test")}
    shapes = {k: v.shape for images in splits.values() for k, v in images.items()}
    assert shapes == {"astronaut": (512, 512, 3), "hubble_deep_field": (872, 1000, 3), "motorcycle_left": (500, 741, 3),
                      "rocket": (427, 640, 3), "chelsea": (300, 451, 3), "coffee": (400, 600, 3)}   # and no name twice
    assert splits["train"]["astronaut"][0, 0].tolist() == [154, 147, 151]
    assert set(datasets.verify("embedded-test").state) == {"ok"}
    assert datasets.fetch("embedded-test") == datasets.status("embedded-test").root


# --- finding and reading --------------------------------------------------------------------------------------------


def test_the_first_complete_place_serves(own, tiny, tmp_path, monkeypatch):
    assert not datasets.status("Set5").files and datasets.verify("Set5").state.tolist() == ["missing"] * 5
    put(own / "Set5", dict(list(tiny.items())[:3]))
    assert len(datasets.status("Set5").files) == 3 and not datasets.is_installed("Set5")
    with pytest.raises(FileNotFoundError, match=r"3 of 5 images are in .*Set5\. .*ikmlib data fetch Set5.*IKM_DATA"):
        datasets.load("Set5")
    put(tmp_path / "cache" / "Set5", tiny)
    assert datasets.status("Set5").root == tmp_path / "cache" / "Set5"
    put(own / "Set5", {f"{i}.png": b"x" for i in range(7)})   # more than a copy has
    assert datasets.status("Set5").root == tmp_path / "cache" / "Set5"
    put(own / "Set5", tiny)
    images = datasets.load("Set5")
    assert datasets.status("Set5").root == own / "Set5" and list(images) == list(NAMES)
    assert np.array_equal(images["bird"], np.random.default_rng(1).integers(0, 256, (24, 24, 3), dtype=np.uint8))
    with pytest.raises(ValueError, match="'set5'; allowed: Set5, Set14"):
        datasets.paths("set5")
    monkeypatch.setenv("IKM_DATA", str(tmp_path / "typo"))
    with pytest.raises(NotADirectoryError, match="typo is not a folder"):
        datasets.status("Set5")


@pytest.mark.parametrize("folder", ["Set5", "Set5/HR"])
def test_a_copy_of_the_users_own(own, tiny, folder):
    put(own / folder, {name: encoded(i, side=32) for i, name in enumerate(tiny)} | {"notes.txt": b"", ".a.png": b""})
    put(own / "Set5/LR", {"babyx2.png": b""})
    here = datasets.status("Set5")
    assert here.own and here.installed and here.root == own / folder == datasets.fetch("Set5")
    assert list(datasets.load("Set5")) == list(NAMES) and set(datasets.verify("Set5").state) == {"ok"}
    (own / folder / "woman.png").rename(own / folder / "baby.bmp")
    with pytest.raises(ValueError, match="differ in their suffix only"):
        datasets.load("Set5")
    put(own / folder, {"baby.png": tiny["baby.png"]})     # one file of ours: now it is a damaged copy of ours
    assert len(datasets.status("Set5").files) == 1


def test_own_bsd100_and_manga109(own):
    put(own / "BSD100", {f"{i:03d}.PNG": b"x" for i in range(100)})
    assert datasets.status("BSD100").root == own / "BSD100" and set(datasets.verify("BSD100").state) == {"corrupt"}
    put(own / "Manga109", {f"{i:03d}.jpg": encoded(0, "jpeg") for i in range(108)})
    for action in (datasets.paths, datasets.verify):
        with pytest.raises(FileNotFoundError, match="108 of 109 .*may not be redistributed") as error:
            action("Manga109")
        assert "data fetch" not in str(error.value)      # it would be of no use
    with pytest.raises(FetchError, match="may not be redistributed"):
        datasets.fetch("Manga109")
    put(own / "Manga109", {"last.bmp": encoded(0, "bmp")})
    assert datasets.verify("Manga109").state.tolist() == ["ok"] * 109


def test_a_tilde_is_the_home_folder(monkeypatch, tmp_path, tiny):
    monkeypatch.setenv("HOME", str(tmp_path))
    for variable in ("IKM_RESULTS", "IKM_DATA", "IKM_CACHE"):
        monkeypatch.setenv(variable, f"~/{variable}")
    put(tmp_path / "IKM_DATA" / "Set5", tiny)
    assert config.results_root() == tmp_path / "IKM_RESULTS" and config.cache_root() == tmp_path / "IKM_CACHE"
    assert datasets.status("Set5").root == tmp_path / "IKM_DATA" / "Set5"
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
    with pytest.raises(FetchError, match=f"Set5 could not be fetched into {place}/Set5 .* IKM_CACHE"):
        datasets.fetch("Set5")
    put(own / "Set5", tiny)
    assert datasets.fetch("Set5") == own / "Set5" and len(datasets.load("Set5")) == 5 and datasets.load("embedded-val")
    assert set(contents(tmp_path)) == {"a file", *(f"data/Set5/{name}" for name in tiny)}


@pytest.mark.parametrize(("stored", "pixels"), [
    ([[0, 7]], [[[0], [7]]]), ([[[1, 2, 3], [4, 5, 6]]], [[[1, 2, 3], [4, 5, 6]]]),
    ([[[1, 2, 3, 255], [1, 2, 3, 0]]], [[[1, 2, 3], [255, 255, 255]]])])
def test_grey_stays_grey_and_transparency_lies_over_white(tmp_path, stored, pixels):
    Image.fromarray(np.array(stored, np.uint8)).save(tmp_path / "a.png")
    found = datasets.read_image(tmp_path / "a.png")
    assert found.tolist() == pixels and found.dtype == np.uint8 and found.flags.writeable
    (tmp_path / "page.png").write_bytes(b"<!DOCTYPE html><title>404</title>")
    Image.fromarray(np.zeros((2, 2), np.uint16)).save(tmp_path / "deep.png")
    for name, why in (("page", "is no picture"), ("deep", "has 16 bits a sample")):
        with pytest.raises(ValueError, match=rf"{name}\.png {why}"):
            datasets.read_image(tmp_path / f"{name}.png")


def test_fingerprints_are_those_of_the_committed_records(own, tiny):
    for name in config.CLASSIC:
        put_sizes(own, name)
    assert datasets.fingerprint(config.CLASSIC) == "a727687051b5" == datasets.fingerprint(config.CLASSIC[::-1])
    assert datasets.fingerprint(["embedded-test"]) == "e583a6a50809"
    with pytest.raises(FileNotFoundError, match="Set5 is not installed"):
        datasets.fingerprint(["Set5"])
    put(own / "Set5", tiny)
    ours = datasets.fingerprint(["Set5"])
    put(own / "Set5", {name: encoded(i, side=32) for i, name in enumerate(tiny)})
    assert datasets.fingerprint(["Set5"]) != ours           # a copy of the user's own is not the published one


# --- downloading ----------------------------------------------------------------------------------------------------


class Server:
    """Answers for {path: contents}. `faults` has for a path what is wrong with its next answers, one each."""

    def __init__(self):
        self.files, self.asked, self.faults, self.over = {}, [], {}, threading.Event()
        kind = type("Handler", (BaseHTTPRequestHandler,), {
            "do_GET": lambda handler: self.answer(handler), "log_message": lambda *words: None})
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), kind)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        data, faults = self.files.get(handler.path, b""), self.faults.get(handler.path)
        start, fault = int(handler.headers["Range"][6:-1]), faults.pop(0) if faults else ""
        self.asked.append((handler.path, start))
        if fault.isdigit() or not data:
            return handler.send_error(int(fault or 404))
        data = {"corrupt": bytes(len(data)), "page": b"<html>Sign in!</html>"}.get(fault, data)
        start = 0 if fault in ("page", "whole") else start + 5 if fault == "wrong range" else start
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        if fault != "no length":
            handler.send_header("Content-Length", str(len(data) - start))
        handler.end_headers()
        handler.wfile.write(data[start:(start + len(data)) // 2 if fault in ("cut", "stall") else None])
        if fault == "stall":
            self.over.wait()


@pytest.fixture
def server(monkeypatch, tiny):
    """The tiny Set5 at /baby.png and so on."""
    one = Server()
    one.files = {f"/{name}": data for name, data in tiny.items()}
    found = tuple(listed(name, data, f"{one.url}/{name}") for name, data in tiny.items())
    monkeypatch.setitem(SETS, "Set5", SETS["Set5"]._replace(files=found))
    yield one
    one.over.set()
    one.http.shutdown()
    one.http.server_close()


def test_fetch_downloads_once_and_repairs_what_verify_found(server, own, tiny, tmp_path):
    folder = datasets.fetch("Set5")
    assert folder == tmp_path / "cache/Set5" and contents(folder) == tiny and len(server.asked) == 5
    put(folder, {"bird.png": bytes(len(tiny["bird.png"]))})   # of the right size: only the digest can tell
    assert datasets.is_installed("Set5")
    (folder / "head.png").unlink()
    states = datasets.verify("Set5").set_index("file").state.to_dict()
    assert states == dict.fromkeys(tiny, "ok") | {"bird.png": "corrupt", "head.png": "missing"}
    assert contents(datasets.fetch("Set5")) == tiny and len(server.asked) == 7
    put(own / "Set5", tiny)
    assert datasets.fetch("Set5") == own / "Set5" and len(server.asked) == 7    # what is installed is left alone


BIRD = encoded(1)
HALF = len(BIRD) // 2


@pytest.mark.parametrize(("faults", "part", "starts"), [
    (["cut", "cut"], b"", [0, HALF, (HALF + len(BIRD)) // 2]), (["stall"], b"", [0, 0]), (["no length"], b"", [0]),
    (["500", "429", "404"], b"", [0] * 4), (["cut", "whole"], b"", [0, HALF]), (["corrupt"], b"", [0, 0]),
    (["page"], b"", [0, 0]), (["wrong range"], BIRD[:9], [9, 9]), ([], BIRD[:9], [9]), ([], BIRD, []),
    ([], b"x" * 9, [9, 0]), ([], b"x" * 9999, [0])])
def test_what_goes_wrong_for_a_while_is_mended(server, tiny, tmp_path, faults, part, starts):
    server.faults["/bird.png"] = list(faults)
    if part:
        put(tmp_path / "cache/Set5", {"bird.png.part": part})    # of an earlier run
    assert contents(datasets.fetch("Set5")) == tiny and not server.faults["/bird.png"]
    assert [start for path, start in server.asked if path == "/bird.png"] == starts


@pytest.mark.parametrize(("fault", "why"), [
    ("404", "HTTP Error 404"), ("503", "HTTP Error 503"), ("corrupt", "sha256 .{64} instead of"), ("cut", "cut after"),
    ("page", f"21 bytes of .* instead of {len(BIRD)}"), ("wrong range", "bytes of .* instead of"),
    ("stall", "timed out"), ("gone", "refused"), ("full", "No space left on device")])
def test_what_stays_wrong_is_one_line_and_no_file(server, tiny, tmp_path, monkeypatch, fault, why):
    server.faults["/bird.png"] = [fault] * files.ATTEMPTS
    copy = shutil.copyfileobj

    def on_a_full_disk(source, target):
        if "bird" in target.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        copy(source, target)

    if fault == "full":
        monkeypatch.setattr(files.shutil, "copyfileobj", on_a_full_disk)
    if fault == "gone":
        server.http.server_close()
    with pytest.raises(FetchError, match=rf"/Set5 .*png cannot be had from http.*png: .*{why}.* IKM_DATA") as error:
        datasets.fetch("Set5")
    assert len(str(error.value).splitlines()) == 1 and len(server.asked) <= 4 + files.ATTEMPTS
    named = {name: data for name, data in contents(tmp_path / "cache").items() if not name.endswith(".part")}
    assert named.items() <= {f"Set5/{name}": data for name, data in tiny.items() if name != "bird.png"}.items()


@pytest.mark.parametrize("faults", [[], ["404"], ["cut"], ["corrupt"]])
def test_an_archive_comes_from_any_address_and_writes_to_its_folder_alone(server, monkeypatch, tmp_path, faults):
    packed, pictures = io.BytesIO(), {f"{i:04d}.png": encoded(i) for i in (1, 2)}
    with zipfile.ZipFile(packed, "w") as archive:
        for name in ("DIV2K_train_HR/0001.png", "../../0002.png", "../escaped.png", "/LR/0001x2.png"):
            archive.writestr(name, pictures.get(name[-8:], b"other"))
    server.files, server.faults = dict.fromkeys(("/a", "/b"), packed.getvalue()), {"/a": list(faults)}
    archive = listed("DIV2K.zip", packed.getvalue(), f"{server.url}/a", f"{server.url}/b")
    known = {"count": 2, "files": tuple(map(File, pictures)), "archive": archive}
    monkeypatch.setitem(SETS, "DIV2K", SETS["DIV2K"]._replace(**known))
    assert datasets.fetch("DIV2K") == tmp_path / "cache/DIV2K/DIV2K_train_HR"
    assert contents(tmp_path) == {f"cache/DIV2K/DIV2K_train_HR/{name}": data for name, data in pictures.items()}
    assert [path for path, _ in server.asked] == ["/a", "/b"][:1 + len(faults)] and datasets.fetch("DIV2K")
    assert list(datasets.load("DIV2K")) == ["0001", "0002"] and set(datasets.verify("DIV2K").state) == {"ok"}
