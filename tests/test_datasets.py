"""Image sets: the split, finding, reading, and downloading from a server of our own on 127.0.0.1."""
import csv
import dataclasses
import hashlib
import io
import os
import socket
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ikmlib import datasets
from ikmlib.datasets import SETS, FetchError

REAL = os.environ.get("IKM_DATA")
NAMES = ("baby", "bird", "butterfly", "head", "woman")


@pytest.fixture(autouse=True)
def no_real_folders(monkeypatch, tmp_path):
    """Every test starts with an empty cache, no IKM_DATA and no waiting."""
    monkeypatch.delenv("IKM_DATA", raising=False)
    monkeypatch.setenv("IKM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(datasets, "BACKOFF", 0.01)


def encoded(seed: int, kind: str = "png", side: int = 24) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)).save(out, kind)
    return out.getvalue()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def tiny(monkeypatch, tmp_path) -> dict[str, bytes]:
    """A registry whose Set5 is five small random images: {file name: contents}."""
    files = {f"{name}.png": encoded(i) for i, name in enumerate(NAMES)}
    with open(tmp_path / "registry.csv", "w", newline="") as out:
        table = csv.writer(out)
        table.writerow(["path", "sha256", "bytes", "repository", "commit", "repository_path"])
        for f, data in files.items():
            table.writerow([f"Set5/{f}", sha256(data), len(data), "me/sets", "c0ffee", f"a b/{f}"])
    monkeypatch.setattr(datasets, "REGISTRY", tmp_path / "registry.csv")
    return files


@pytest.fixture
def own(monkeypatch, tmp_path) -> Path:
    (tmp_path / "data").mkdir()
    monkeypatch.setenv("IKM_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def put(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)


# --- what is in which set -------------------------------------------------------------------------------------------

def test_the_registry_lists_as_many_files_as_the_sets_say():
    for spec in SETS.values():
        files = datasets._known(spec)
        assert len(files) == (0 if spec.source == "manual" else spec.count), spec.name
        assert len({f.path for f in files}) == len(files)
        if spec.source == "registry":
            assert all(len(f.sha256) == 64 and f.bytes > 0 and f.url.startswith("https://") for f in files)
    assert {s.role for s in SETS.values()} == {"train", "validation", "test", "known answers"}
    assert datasets._known(SETS["DIV2K"])[-1].path == "0800.png"    # 0801-0900 are DIV2K's validation images


def test_no_training_set_shares_a_file_with_a_test_set():
    digests = {role: {f.sha256 for s in SETS.values() if s.source == "registry" and s.role == role
                      for f in datasets._known(s)} for role in ("train", "test")}
    assert len(digests["train"]) == 490 and len(digests["test"]) == 219     # T91's t36 and t65 are one image
    assert not digests["train"] & digests["test"]
    stems = {n: {Path(f.path).stem for f in datasets._known(SETS[n])} for n in ("BSDS500", "BSD100")}
    assert len(stems["BSDS500"]) == 400 and len(stems["BSD100"]) == 100 and not stems["BSDS500"] & stems["BSD100"]


@pytest.mark.parametrize("layout", ["BSDS500", "BSDS500/data/images"])
def test_val_is_bsd100_and_never_training(own, layout):
    for row in datasets._registry(datasets.REGISTRY):
        if row.path.startswith("BSDS500/"):
            path = own / layout / row.path.removeprefix("BSDS500/")
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "wb") as file:
                file.truncate(row.bytes)
    assert {p.parent.name for p in datasets.paths("BSDS500")} == {"train", "test"}
    assert {p.parent.name for p in datasets.paths("BSD100")} == {"val"}
    assert datasets.locate("BSDS500") == own / layout and len(datasets.paths("BSDS500")) == 400


def test_a_flat_folder_never_serves_as_bsds500(own):
    put(own / "BSDS500", {f"{i}.png": b"x" for i in range(400)})    # could hold images of val
    assert not datasets.is_installed("BSDS500")


def test_embedded_photographs_need_neither_network_nor_pooch(monkeypatch):
    def refuse(*args):
        raise AssertionError("network used")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setitem(__import__("sys").modules, "pooch", None)
    splits = {n: datasets.load(f"embedded-{n}") for n in ("train", "val", "test")}
    shapes = {k: v.shape for images in splits.values() for k, v in images.items()}
    assert shapes == {"astronaut": (512, 512, 3), "hubble_deep_field": (872, 1000, 3), "motorcycle_left": (500, 741, 3),
                      "rocket": (427, 640, 3), "chelsea": (300, 451, 3), "coffee": (400, 600, 3)}   # and no name twice
    assert [len(s) for s in splits.values()] == [SETS[f"embedded-{n}"].count for n in splits]
    assert splits["train"]["astronaut"][0, 0].tolist() == [154, 147, 151]
    assert set(datasets.verify("embedded-test").state) == {"ok"}
    assert datasets.fetch("embedded-test") == datasets.locate("embedded-test")


def test_unknown_set_is_named():
    with pytest.raises(ValueError, match="'set5'; allowed: Set5, Set14"):
        datasets.paths("set5")


# --- finding --------------------------------------------------------------------------------------------------------

def test_a_partly_present_set_is_not_installed(own, tiny):
    put(own / "Set5", dict(list(tiny.items())[:3]))
    here = datasets.status("Set5")
    assert (here.found, here.expected, here.root, here.installed) == (3, 5, own / "Set5", False)
    assert datasets.locate("Set5") is None and not datasets.is_installed("Set5")
    with pytest.raises(FileNotFoundError, match=r"3 of 5 images are in .*ikmlib data fetch Set5.*IKM_DATA"):
        datasets.load("Set5")


def test_nothing_there(tiny):
    assert datasets.status("Set5") == datasets.Status("Set5", 0, 5, None)
    assert datasets.verify("Set5").state.tolist() == ["missing"] * 5


def test_own_folder_is_searched_before_the_cache(own, tiny, tmp_path):
    put(tmp_path / "cache" / "Set5", tiny)
    assert datasets.locate("Set5") == tmp_path / "cache" / "Set5"
    put(own / "Set5", dict(list(tiny.items())[:3]))
    assert datasets.locate("Set5") == tmp_path / "cache" / "Set5"    # the complete one wins
    put(own / "Set5", tiny)
    assert datasets.locate("Set5") == own / "Set5"


def test_a_folder_of_too_many_images_does_not_hide_the_complete_one(own, tiny, tmp_path):
    put(own / "Set5", {f"{i}.png": b"x" for i in range(7)})
    assert datasets.status("Set5").found == 7 and not datasets.is_installed("Set5")
    put(tmp_path / "cache" / "Set5", tiny)
    assert datasets.locate("Set5") == tmp_path / "cache" / "Set5"


def test_a_folder_that_does_not_exist_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setenv("IKM_DATA", str(tmp_path / "typo"))
    with pytest.raises(NotADirectoryError, match="typo is not a folder"):
        datasets.status("Set5")


def test_a_copy_of_the_users_own(own, tiny):
    put(own / "Set5", {name: encoded(i, "png", 32) for i, name in enumerate(tiny)} | {"notes.txt": b"mine"})
    assert datasets.status("Set5") == datasets.Status("Set5", 5, 5, own / "Set5", own=True)
    assert list(datasets.load("Set5")) == list(NAMES)
    assert set(datasets.verify("Set5").state) == {"ok"}
    put(own / "Set5", {"baby.png": tiny["baby.png"]})     # one file of ours: now it is a damaged copy of ours
    assert datasets.status("Set5").found == 1


def test_own_bsd100_and_manga109(own):
    put(own / "BSD100", {f"{i:03d}.PNG": b"x" for i in range(100)})
    put(own / "Manga109", {f"{i:03d}.jpg": encoded(0, "jpeg") for i in range(108)})
    assert datasets.locate("BSD100") == own / "BSD100"
    assert datasets.status("Manga109").found == 108
    table = datasets.verify("Manga109")
    assert table.state.value_counts().to_dict() == {"ok": 108, "missing": 1}
    with pytest.raises(FileNotFoundError, match="108 of 109 .*may not be redistributed") as error:
        datasets.paths("Manga109")
    assert "data fetch" not in str(error.value)      # it would be of no use
    put(own / "Manga109", {"last.bmp": encoded(0, "bmp")})
    assert datasets.is_installed("Manga109")


def test_only_the_training_images_of_a_mixed_div2k_folder(own):
    put(own / "DIV2K", {f"{i:04d}.png": b"x" for i in range(1, 901)})
    assert [p.name for p in datasets.paths("DIV2K")] == [f"{i:04d}.png" for i in range(1, 801)]


# --- reading --------------------------------------------------------------------------------------------------------

def test_names_order_and_limit(own, tiny):
    put(own / "Set5", tiny)
    images = datasets.load("Set5", limit=2)
    assert list(images) == ["baby", "bird"] and images["baby"].dtype == np.uint8
    assert np.array_equal(images["baby"], np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8))
    with pytest.raises(ValueError, match="limit=0"):
        datasets.load("Set5", limit=0)


def test_two_files_of_one_name(own, tiny):
    put(own / "Set5", {f: encoded(9) for f in ("a.png", "a.jpg", "b.png", "c.png", "d.png")})
    with pytest.raises(ValueError, match="suffix only"):
        datasets.load("Set5")


def saved(tmp_path, image: Image.Image, name: str = "image.png", **options) -> Path:
    image.save(tmp_path / name, **options)
    return tmp_path / name


def test_grey_stays_one_channel(tmp_path):
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    pixels = datasets.read_image(saved(tmp_path, Image.fromarray(grey)))
    assert pixels.shape == (3, 4, 1) and np.array_equal(pixels[..., 0], grey)
    pixels[0, 0] = 7                                        # writable
    assert datasets.read_image(saved(tmp_path, Image.new("1", (2, 2), 1))).ravel().tolist() == [255] * 4


def test_palette_and_transparency_become_rgb(tmp_path):
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    assert datasets.read_image(saved(tmp_path, palette)).tolist() == [[[10, 20, 30], [40, 50, 60]]]
    assert datasets.read_image(saved(tmp_path, palette, transparency=0)).tolist() == [[[255, 255, 255], [40, 50, 60]]]
    rgba = np.array([[[1, 2, 3, 255], [1, 2, 3, 0]]], dtype=np.uint8)
    assert datasets.read_image(saved(tmp_path, Image.fromarray(rgba))).tolist() == [[[1, 2, 3], [255, 255, 255]]]


def test_a_picture_of_16_bits_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"deep\.png has 16 bits a sample; 8 are allowed"):
        datasets.read_image(saved(tmp_path, Image.fromarray(np.zeros((2, 2), np.uint16)), "deep.png"))


def test_no_image_at_all(tmp_path):
    put(tmp_path, {"page.png": b"\n<!DOCTYPE html><title>404</title>", "empty.png": b""})
    with pytest.raises(ValueError, match="page.png is no picture: it is an HTML page"):
        datasets.read_image(tmp_path / "page.png")
    with pytest.raises(ValueError, match="empty.png"):
        datasets.read_image(tmp_path / "empty.png")
    with pytest.raises(FileNotFoundError):
        datasets.read_image(tmp_path / "none.png")


def test_verify_tells_ok_missing_corrupt(own, tiny):
    put(own / "Set5", tiny)
    assert set(datasets.verify("Set5").state) == {"ok"}
    flipped = bytearray(tiny["bird.png"])
    flipped[-1] ^= 1
    put(own / "Set5", {"bird.png": bytes(flipped)})        # same size: only the digest can tell
    assert datasets.is_installed("Set5")
    (own / "Set5" / "head.png").unlink()
    table = datasets.verify("Set5")
    assert dict(zip(table.file, table.state, strict=True)) == {
        "baby.png": "ok", "bird.png": "corrupt", "butterfly.png": "ok", "head.png": "missing", "woman.png": "ok"}


def test_fingerprint(own, tiny, monkeypatch):
    with pytest.raises(FileNotFoundError, match="Set5 is not installed"):
        datasets.fingerprint(["Set5"])
    put(own / "Set5", tiny)
    ours = datasets.fingerprint(["Set5"])
    assert len(ours) == 12 and int(ours, 16) >= 0
    assert datasets.fingerprint(["Set5", "embedded-val"]) == datasets.fingerprint(("embedded-val", "Set5")) != ours
    monkeypatch.setenv("IKM_DATA", str(own.rename(own.with_name("elsewhere"))))
    assert datasets.fingerprint(["Set5"]) == ours           # wherever the files lie
    put(own.with_name("elsewhere") / "Set5", {name: encoded(i, side=32) for i, name in enumerate(tiny)})
    assert datasets.fingerprint(["Set5"]) != ours           # a copy of the user's own is not the published one
    assert datasets.fingerprint(["embedded-val"]) != datasets.fingerprint(["embedded-test"])


# --- downloading ----------------------------------------------------------------------------------------------------

class Server:
    """Answers for {path: contents}; `gone`, `busy`, `cut`, `ranges`, `kind` change what the next answers are."""

    def __init__(self):
        self.files, self.asked = {}, []
        self.gone, self.ranges, self.kind = set(), True, "application/octet-stream"
        self.busy, self.cut = {}, {}         # path -> how many answers are still 503, or stop half way
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.answer(self)

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def answer(self, handler):
        path, wanted = handler.path, handler.headers.get("Range")
        self.asked.append((path, wanted))
        if path in self.gone or path not in self.files:
            return handler.send_error(404)
        if self.busy.get(path, 0):
            self.busy[path] -= 1
            return handler.send_error(503)
        data = self.files[path]
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and self.ranges else 0
        if start and start >= len(data):
            return handler.send_error(416)
        handler.send_response(206 if start else 200)
        handler.send_header("Content-Type", self.kind)
        handler.send_header("Content-Length", str(len(data) - start))
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        handler.end_headers()
        stop = len(data)
        if self.cut.get(path, 0):
            self.cut[path] -= 1
            stop = (start + len(data)) // 2
        handler.wfile.write(data[start:stop])


@pytest.fixture
def server(monkeypatch):
    one = Server()
    monkeypatch.setattr(datasets, "ADDRESS", one.url + "/{repository}/{commit}/{repository_path}")
    yield one
    one.http.shutdown()
    one.http.server_close()


@pytest.fixture
def served(server, tiny):
    """The tiny Set5 at its registry's addresses."""
    server.files = {f"/me/sets/c0ffee/a%20b/{name}": data for name, data in tiny.items()}
    return server


BIRD = "/me/sets/c0ffee/a%20b/bird.png"


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_fetch_completes_then_asks_for_nothing(served, tiny, tmp_path):
    folder = datasets.fetch("Set5", progress=False)
    assert folder == tmp_path / "cache" / "Set5" and contents(folder) == tiny and len(served.asked) == 5
    assert datasets.is_installed("Set5")
    datasets.fetch("Set5", progress=False)
    assert len(served.asked) == 5


def test_fetch_elsewhere_and_repair(served, tiny, tmp_path):
    folder = datasets.fetch("Set5", tmp_path / "mine", progress=False)
    (folder / "bird.png").write_bytes(b"broken")
    datasets.fetch("Set5", tmp_path / "mine", progress=False)
    assert contents(tmp_path / "mine" / "Set5") == tiny and len(served.asked) == 6


def test_fetch_leaves_an_installed_copy_alone(served, own, tiny):
    put(own / "Set5", tiny)
    assert datasets.fetch("Set5", progress=False) == own / "Set5" and not served.asked


def test_a_cut_download_is_resumed(served, tiny):
    served.cut[BIRD] = 2
    folder = datasets.fetch("Set5", progress=False)
    size = len(tiny["bird.png"])
    ranges = [r for path, r in served.asked if path == BIRD]
    assert ranges == [None, f"bytes={size // 2}-", f"bytes={(size // 2 + size) // 2}-"]
    assert contents(folder) == tiny


def test_a_part_of_an_earlier_run_is_resumed(served, tiny, tmp_path):
    put(tmp_path / "cache" / "Set5", {"bird.png.part": tiny["bird.png"][:100], "head.png.part": tiny["head.png"]})
    assert contents(datasets.fetch("Set5", progress=False)) == tiny
    assert (BIRD, "bytes=100-") in served.asked
    assert not [path for path, _ in served.asked if path.endswith("head.png")]   # it was whole: only checked


def test_a_server_without_ranges_starts_anew(served, tiny):
    served.cut[BIRD], served.ranges = 1, False
    assert contents(datasets.fetch("Set5", progress=False)) == tiny
    assert [path for path, _ in served.asked].count(BIRD) == 2


def test_a_wrong_part_is_dropped(served, tiny, tmp_path):
    put(tmp_path / "cache" / "Set5", {"bird.png.part": b"x" * 100})
    assert contents(datasets.fetch("Set5", progress=False)) == tiny
    assert [r for path, r in served.asked if path == BIRD] == ["bytes=100-", None]


def test_a_wrong_digest_never_gets_the_name(served, tiny, tmp_path):
    served.files[BIRD] = bytes(len(tiny["bird.png"]))
    with pytest.raises(FetchError) as error:
        datasets.fetch("Set5", progress=False)
    for part in ("bird.png", sha256(tiny["bird.png"]), sha256(served.files[BIRD]), "IKM_DATA"):
        assert part in str(error.value)
    assert not list((tmp_path / "cache" / "Set5").glob("bird*"))
    assert [path for path, _ in served.asked].count(BIRD) == 1       # the same bytes would come again


def test_a_wrong_size_is_refused_before_it_is_read(served, tmp_path):
    served.files[BIRD] += b"more"
    with pytest.raises(FetchError, match=r"bird\.png(.|\n)*size should be \d+ bytes, found \d+"):
        datasets.fetch("Set5", progress=False)
    assert not list((tmp_path / "cache" / "Set5").glob("bird*"))


@pytest.mark.parametrize("kind, page", [("text/html; charset=utf-8", b"please sign in"),
                                        ("application/octet-stream", b"\n<!DOCTYPE html><p>sign in</p>")])
def test_an_html_page_is_never_data(served, tmp_path, kind, page):
    served.kind, served.files = kind, dict.fromkeys(served.files, page)
    with pytest.raises(FetchError, match="an HTML page came instead of the file"):
        datasets.fetch("Set5", progress=False)
    assert not list((tmp_path / "cache" / "Set5").iterdir())


def test_a_busy_server_is_asked_again_a_missing_file_is_not(served, tiny):
    served.busy[BIRD] = 2
    assert contents(datasets.fetch("Set5", progress=False)) == tiny
    assert [path for path, _ in served.asked].count(BIRD) == 3
    (datasets.config.cache_root() / "Set5" / "bird.png").unlink()
    served.gone, served.asked = {BIRD}, []
    with pytest.raises(FetchError, match="HTTP 404"):
        datasets.fetch("Set5", progress=False)
    assert served.asked == [(BIRD, None)]


def test_no_server_at_all(monkeypatch, tiny):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setattr(datasets, "ADDRESS", f"http://127.0.0.1:{free.getsockname()[1]}/{{repository_path}}")
        with pytest.raises(FetchError, match=r"Set5 could not be fetched(.|\n)*By hand: set IKM_DATA"):
            datasets.fetch("Set5", progress=False)


def test_manga109_is_never_downloaded():
    with pytest.raises(FetchError, match="may not be redistributed"):
        datasets.fetch("Manga109")


# --- archives -------------------------------------------------------------------------------------------------------

PICTURES = {f"{i:04d}.png": encoded(i) for i in (1, 2)}


def zipped(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


def tarred(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        link = tarfile.TarInfo("0002.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        archive.addfile(link)
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return out.getvalue()


@pytest.fixture
def div2k(monkeypatch, server):
    """Serve `data` as a DIV2K of two pictures, from the addresses /a and /b."""
    def serve(data: bytes, file: str = "DIV2K_train_HR.zip", at: str = "ab", size: bool = True):
        server.files = {f"/{letter}": data for letter in at}
        archive = datasets.Archive(file, (server.url + "/a", server.url + "/b"), "sha256:" + sha256(data),
                                   len(data) if size else None)
        small = dataclasses.replace(SETS["DIV2K"], count=2, names=tuple(PICTURES), archives=(archive,))
        monkeypatch.setitem(SETS, "DIV2K", small)
        return server
    return serve


@pytest.mark.parametrize("pack, file", [(zipped, "set.zip"), (tarred, "set.tar")])
def test_an_archive_is_unpacked_flat_and_removed(div2k, tmp_path, pack, file):
    div2k(pack({"DIV2K_train_HR/0001.png": PICTURES["0001.png"], "../../0002.png": PICTURES["0002.png"],
                "LR/0001x2.png": b"small", "../escaped.png": b"x"}), file)
    folder = datasets.fetch("DIV2K", progress=False)
    assert contents(folder) == PICTURES and folder == tmp_path / "cache/DIV2K/DIV2K_train_HR"
    assert {p for p in (tmp_path / "cache").rglob("*") if p.is_file()} == set(folder.iterdir())
    assert list(datasets.load("DIV2K")) == ["0001", "0002"]
    assert set(datasets.verify("DIV2K").state) == {"ok"}


def test_the_second_address_serves_when_the_first_fails(div2k):
    server = div2k(zipped(PICTURES), at="b")
    assert contents(datasets.fetch("DIV2K", progress=False)) == PICTURES
    assert [path for path, _ in server.asked] == ["/a", "/b"]


def test_the_second_address_resumes_what_the_first_began(div2k):
    server = div2k(zipped(PICTURES))
    server.cut["/a"] = 99
    assert contents(datasets.fetch("DIV2K", progress=False)) == PICTURES
    last, wanted = server.asked[-1]
    assert last == "/b" and int(wanted.removeprefix("bytes=").removesuffix("-")) > len(server.files["/a"]) // 2


@pytest.mark.parametrize("have", [0.5, 1.0])
def test_an_archive_of_unknown_size_is_resumed(div2k, tmp_path, have):
    data = zipped(PICTURES)
    server = div2k(data, size=False)
    server.cut["/a"] = 1
    put(tmp_path / "cache" / "DIV2K", {"DIV2K_train_HR.zip.part": data[:int(have * len(data))]})
    assert contents(datasets.fetch("DIV2K", progress=False)) == PICTURES
    assert server.asked[0] == ("/a", f"bytes={int(have * len(data))}-")


def test_an_archive_saved_by_hand_is_used(div2k, tmp_path):
    server = div2k(zipped(PICTURES))
    put(tmp_path / "cache" / "DIV2K", {"DIV2K_train_HR.zip": zipped(PICTURES)})
    assert contents(datasets.fetch("DIV2K", progress=False)) == PICTURES and not server.asked


def test_a_wrong_archive_is_not_unpacked(div2k, tmp_path):
    server = div2k(zipped(PICTURES))
    right = sha256(server.files["/a"])
    server.files = {path: bytes(len(data)) for path, data in server.files.items()}
    with pytest.raises(FetchError) as error:
        datasets.fetch("DIV2K", progress=False)
    for part in (right, sha256(server.files["/a"]), "/a", "/b", "DIV2K_train_HR.zip", "save one of"):
        assert part in str(error.value)
    assert not (tmp_path / "cache/DIV2K/DIV2K_train_HR").exists()


def test_an_archive_that_lacks_images_installs_nothing(div2k, tmp_path):
    div2k(zipped({"0001.png": PICTURES["0001.png"]}))
    with pytest.raises(FetchError, match="lacks 1 of 2 images, first 0002.png"):
        datasets.fetch("DIV2K", progress=False)
    assert not (tmp_path / "cache/DIV2K/DIV2K_train_HR").exists()


# --- the real files -------------------------------------------------------------------------------------------------

@pytest.fixture
def real(monkeypatch):
    if not REAL:
        pytest.skip("IKM_DATA is not set: no real images")
    monkeypatch.setenv("IKM_DATA", REAL)

    def need(*names):
        for name in names:
            if not datasets.is_installed(name):
                pytest.skip(f"{name} is not in IKM_DATA")
    return need


def test_real_set5_is_the_published_one(real):
    real("Set5", "Set5_LR")
    assert datasets.verify("Set5").state.tolist() == ["ok"] * 5
    hr, lr = datasets.load("Set5"), datasets.load("Set5_LR")
    assert hr["baby"].shape == (512, 512, 3) and len(lr) == 15
    for name, image in hr.items():
        for s in (2, 3, 4):
            assert lr[f"x{s}/{name}x{s}"].shape == (image.shape[0] // s, image.shape[1] // s, 3)


def test_real_bridge_is_grey(real):
    real("Set14")
    images = datasets.load("Set14")
    assert [name for name, pixels in images.items() if pixels.shape[2] == 1] == ["bridge"]
    assert images["bridge"].shape == (512, 512, 1) and images["man"].shape[2] == 3 and len(images) == 14


def test_real_training_images_are_not_bsd100(real):
    real("BSDS500", "BSD100", "T91")
    train = {sha256(p.read_bytes()) for name in ("BSDS500", "T91") for p in datasets.paths(name)}
    test = {sha256(p.read_bytes()) for p in datasets.paths("BSD100")}
    assert len(train) == 490 and len(test) == 100 and not train & test
    assert set(datasets.load("BSD100", limit=2)) == {"101085", "101087"}
