"""A trained network in use: its weights file, pictures of many kinds through it, the model card."""
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import garbled
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from skimage import data as photographs
from torch import nn

from ikmlib import config, files, networks, upscale
from ikmlib.__main__ import main
from ikmlib.models import Architecture, SRNetwork
from ikmlib.study import records, weights
from ikmlib.trainers import check_network, super_resolve
from ikmlib.upscale import EDGE, enlarge, plan

RGB = photographs.astronaut()[100:120, 200:230]      # (20, 30, 3)
TINY = Architecture("db", blocks=1, depths=(1,), channels=8, growth=4)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """One finished run, of three updates, and its folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IKM_RESULTS", str(tmp_path_factory.mktemp("results")))
        run = replace(records.Run.of(config.PROFILES["smoke"], TINY, seed=0), updates=3)
        records.train(run, show=False)
        yield run, run.folder


@pytest.fixture
def file(trained, tmp_path, monkeypatch):
    """Its exported weights, alone in a results folder that also has its record."""
    run, folder = trained
    monkeypatch.setenv("IKM_RESULTS", str(tmp_path / "records"))
    for name in ("run.json", "scores.csv"):
        files.write_bytes(run.folder / name, (folder / name).read_bytes())
    return weights.export(folder)


def model() -> SRNetwork:
    torch.manual_seed(0)
    return SRNetwork(TINY, 2).eval()


def test_exported_weights_are_the_run_s(trained, file):
    run, folder = trained
    network, record = weights.load(file)
    state = torch.load(folder / "weights.pt", weights_only=True)["model"]
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())
    assert not network.training and network.arch == run.arch
    scores = record["scores"]["embedded-test"]
    assert scores["images"] == 2 and scores["psnr_y"] == pytest.approx(run.scores().psnr_y.mean(), abs=1e-4)
    assert records.read_record(run.folder) == {k: v for k, v in record.items() if k not in ("scores", "sha256")}
    before = file.read_bytes()
    assert weights.export(folder) == file and file.read_bytes() == before   # byte for byte
    later = folder / "scores_Set5.csv"   # of a set that was installed later
    files.write_bytes(later, (folder / "scores.csv").read_bytes().replace(b"embedded-test", b"Set5"))
    assert weights.load(weights.export(folder))[1]["scores"] == {"Set5": scores, "embedded-test": scores}
    later.unlink()
    assert main(["weights", "export", str(folder), "--half"]) == 0
    halved = weights.load(file)[0].state_dict()
    assert all(tensor.dtype == torch.float32 and torch.equal(tensor, state[name].half().float())
               for name, tensor in halved.items())
    content = sum(tensor.numel() for tensor in state.values())
    assert len(before) - file.stat().st_size == pytest.approx(2 * content, abs=64)   # 2 bytes a number


def test_weights_that_are_not_what_they_should_be_are_refused(file, tmp_path, capsys):
    state, record = parts(file)
    better = {**record, "scores": {"Set5": {"images": 5, "psnr_y": 40.0, "ssim_y": 1.0}}}
    for changed, told, signed, why in (
            ({"tail.bias": torch.zeros(3)}, record, False, "its sha256 is not that of its record and tensors"),
            ({}, better, False, "its sha256 is not that"), ({"tail.bias": torch.ones(4)}, record, True, "tail.bias"),
            ({"more": torch.ones(1)}, record, True, "more"), ({}, None, False, "of another kind"),
            ({"tail.bias": torch.full((3,), torch.nan)}, record, True, "not finite")):
        new = state | changed
        told = told and {**told, "sha256": networks.digest(told, new) if signed else told["sha256"]}
        save_file(new, file, told and {"ikmlib": json.dumps(told)})
        with pytest.raises(ValueError, match=f"{file.name} .*{why}"):
            weights.load(file)
    assert main(["verify"]) == 1 and f"{file} is damaged" in capsys.readouterr().out
    assert main(["upscale", str(file), "-o", str(tmp_path)]) == 2 and str(file) in capsys.readouterr().err
    with pytest.raises(FileNotFoundError, match="gone"):
        weights.load(tmp_path / "gone.safetensors")


def parts(file):
    """The tensors and the record of a weights file."""
    with safe_open(file, "pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}, json.loads(opened.metadata()["ikmlib"])


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_garbled_weights_are_read_or_refused_in_one_line(file, tmp_path, data):
    (tmp_path / "a").write_bytes(data.draw(garbled(file.read_bytes())))
    try:
        weights.load(tmp_path / "a")
    except ValueError as error:
        assert str(error).startswith(f"{tmp_path / 'a'} ")


def test_best_weights_have_the_highest_psnr_on_set5(file):
    state, record = parts(file)

    def add(name, scores):
        told = {**record, "scores": {which: {"images": 5, "psnr_y": psnr} for which, psnr in scores.items()}}
        told["sha256"] = networks.digest(told, state)
        save_file(state, file.with_name(f"{name}.safetensors"), {"ikmlib": json.dumps(told)})

    file.unlink()
    for name, scores in (("easy", {"embedded-test": 99}), ("low", {"Set5": 30}), ("high", {"Set5": 31, "Set14": 1})):
        add(name, scores)
        assert weights.best(2) == file.with_name(f"{name}.safetensors")
    add("low again", {"Set5": 30, "Set14": 50})
    assert weights.best(2).stem == "high"
    with pytest.raises(FileNotFoundError, match=r"no weights for x4 in .*records.weights"):
        weights.best(4)


class Of255(nn.Module):
    """As EDSR's published networks: takes and returns 0..255."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return 255 * self.network(x / 255)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_each_scale_has_shipped_weights_and_flat_pictures_stay_flat_up_to_their_edges(monkeypatch, scale):
    monkeypatch.delenv("IKM_RESULTS", raising=False)
    network, record = weights.load(weights.best(scale))
    assert network.scale == scale and record["scores"]["Set5"]["images"] == 5
    check_network(network, scale)
    with pytest.raises(ValueError, match=r"but right if colours are 0\.\.255"):
        check_network(Of255(network), scale)
    for colour in ("white", "blue", (90, 150, 230)):
        for size in ((1, 1), (1, 40), (40, 40)):
            found = pixels(enlarge(network, Image.new("RGB", size, colour), scale))
            truth = pixels(Image.new("RGB", (scale * size[0], scale * size[1]), colour))
            assert found.shape == truth.shape and abs(found - truth).max() <= 3   # up to 154 with zeros around


def test_a_run_s_network_is_found_among_its_weights(trained, file, tmp_path):
    kept, found = weights.load(file)[0].state_dict(), weights.trained_network(trained[0]).state_dict()
    assert all(torch.equal(tensor, kept[name].to(tensor.device)) for name, tensor in found.items())
    assert weights.trained_network(replace(trained[0], seed=1)) is None
    Image.fromarray(RGB).save(tmp_path / "a.png")
    assert main(["upscale", str(tmp_path / "a.png"), "-o", str(tmp_path)]) == 0 and (tmp_path / "a_x2.png").exists()


def pixels(image: Image.Image) -> np.ndarray:
    return np.array(image).astype(int)


def padded(image: np.ndarray) -> np.ndarray:
    return np.pad(image, ((EDGE, EDGE), (EDGE, EDGE), (0, 0)), "edge")


def test_rgb_is_what_the_network_makes_of_repeated_edges_and_grey_stays_grey(tmp_path):
    inner = np.s_[2 * EDGE:-2 * EDGE, 2 * EDGE:-2 * EDGE]
    expected = super_resolve(model(), padded(RGB))[inner]
    assert np.array_equal(pixels(enlarge(model(), Image.fromarray(RGB), 2)), expected)
    grey = Image.fromarray(RGB[..., 0])
    grey.info["icc_profile"] = b"grey"
    found = enlarge(model(), grey, 2)
    expected = super_resolve(model(), padded(np.repeat(RGB[..., :1], 3, 2)))[inner].mean(2)
    assert found.mode == "L" and abs(pixels(found) - expected).max() <= 0.5
    found.save(tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").info["icc_profile"] == b"grey"
    assert enlarge(model(), Image.new("L", (70, 1)), 2).size == (140, 2)


@pytest.mark.parametrize(("network", "picture", "why"), [
    (None, Image.new("P", (9, 9)), "mode P is not enlarged"), (None, Image.new("RGBA", (9, 9)), "mode RGBA"),
    (None, Image.fromarray(np.zeros((9, 9), np.uint16)), "mode I;16"),
    (nn.Upsample(scale_factor=4), Image.fromarray(RGB), "x2 of RGB")])
def test_other_pictures_and_networks_are_refused_by_name(network, picture, why):
    with pytest.raises(ValueError, match=why):
        enlarge(network or model(), picture, 2)


@pytest.mark.parametrize(("size", "tiles"), [((60, 70), 6), ((60, 5), 2), ((32, 32), 1)])
def test_tiles_of_convolutions_are_the_whole_picture_where_the_overlap_suffices(size, tiles, monkeypatch):
    """Half of the overlap, 8, is more than what the convolutions reach; attention would be the tile's own."""
    torch.manual_seed(0)
    network, seen = SRNetwork(replace(TINY, attention="none"), 2).eval(), []
    picture = Image.fromarray(photographs.astronaut()[100:, 200:][:size[0], :size[1]])
    whole = pixels(enlarge(network, picture, 2))
    monkeypatch.setattr(upscale, "TILE", 48)
    monkeypatch.setattr(upscale, "OVERLAP", 16)
    monkeypatch.setattr(upscale, "check_network", lambda *words: None)
    network.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape[2:])))
    assert abs(pixels(enlarge(network, picture, 2)) - whole).max() <= 1   # rounding
    assert len(seen) == tiles and set(seen) == {(48, min(size[1] + 2 * EDGE, 48))}
    monkeypatch.setattr(upscale, "OVERLAP", 0)
    assert (abs(pixels(enlarge(network, picture, 2)) - whole).max() > 1) == (tiles > 1)


def draw(folder, *names):
    """Pictures of these names in a folder; their paths as words."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.fromarray(RGB).save(folder / name)
    return [str(folder / name) for name in names]


def test_plan(tmp_path):
    inside, out = tmp_path / "in", tmp_path / "out"
    (inside / "sub").mkdir(parents=True)
    for name in ("a.JPG", "b.png", "sub/c.png", "notes.txt", ".hidden.png", ".hidden.txt"):
        (inside / name).touch()
    a, b = inside / "a.JPG", inside / "b.png"
    with pytest.warns(UserWarning, match=f"{inside}: passed over are .txt, sub$"):
        found = plan([inside, a], out, 2)
    assert found == [(a, out / "a_x2.png"), (b, out / "b_x2.png")]
    for inputs, target, why in (([a], "c.jpg", "c.jpg is the name of a picture; allowed: a folder"),
                                ([b], "in/b.png", "allowed: a folder"),
                                ([], "out", "no pictures")):
        with pytest.raises(ValueError, match=why):
            plan(inputs, tmp_path / target, 2)


def test_linked_pictures_are_pictures_and_folders_are_named(file, tmp_path, capsys):
    album = tmp_path / "album"
    draw(album, "photo.png")
    draw(tmp_path / "nas", "far.png")
    (album / "favourite.png").symlink_to("photo.png")
    (album / "2019").symlink_to("../nas")
    (album / "lost.png").symlink_to("/gone.png")
    os.mkfifo(album / "pipe.png")
    with pytest.warns(UserWarning, match="album: passed over are 2019$"):
        assert main(["upscale", str(album), "-o", str(tmp_path / "out")]) == 1
    said = capsys.readouterr()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["favourite_x2.png", "photo_x2.png"]
    assert "2 written" in said.out and "2 failed" in said.out
    assert "lost.png: [Errno 2] No such file" in said.err and "pipe.png: is not a file, but a folder" in said.err


@pytest.mark.parametrize("out", ["holiday/day", "holiday", "."])
def test_results_may_go_to_the_inputs_folder_or_above_and_are_no_inputs(file, tmp_path, capsys, out):
    day, out = tmp_path / "holiday" / "day", tmp_path / out
    draw(day, "a.png", "b_x2.png")   # the second only looks like a result
    for said in (f"2 written to {out}, 0 were there", f"0 written to {out}, 2 were there"):
        assert main(["upscale", str(day), "-o", str(out)]) == 0 and said in capsys.readouterr().out
    assert sorted(p.name for p in set(day.iterdir()) | set(out.glob("*.png"))) == [
        "a.png", "a_x2.png", "b_x2.png", "b_x2_x2.png"]


def test_one_bad_file_does_not_stop_the_rest_and_no_file_is_overwritten(file, tmp_path, capsys):
    inside, out = tmp_path / "in", tmp_path / "out"
    draw(inside, "b.png", "c.png", "c.bmp", "d.png", "e.png")
    draw(out, "d_x2.png")
    (inside / "a.png").write_text("no picture")
    (inside / "paper.pdf").write_text("passed over in a folder")
    Image.fromarray(RGB[..., 0].astype(np.uint16)).save(inside / "deep.png")
    before = (out / "d_x2.png").read_bytes()
    with pytest.warns(UserWarning, match=r"passed over are \.pdf"):
        assert main(["upscale", str(inside), str(tmp_path / "absent.png"), "-o", str(out)]) == 1
    said = capsys.readouterr()
    assert f"3 written to {out}, 1 were there and stay, 4 failed" in said.out
    for name, why in (("in/a.png", "is no picture"), ("in/c.png", f"like that of {inside}/c.bmp: rename one"),
                      ("in/deep.png", "has 16 bits a sample; 8 are allowed"), ("absent.png", "No such file")):
        line, = (line for line in said.err.splitlines() if line.startswith(f"error: {tmp_path / name}"))
        assert why in line
    expected = enlarge(weights.load(file)[0], Image.fromarray(RGB), 2)
    assert np.array_equal(pixels(Image.open(out / "b_x2.png")), pixels(expected))
    assert (out / "d_x2.png").read_bytes() == before
    words = ["upscale", str(inside / "b.png"), "-o"]
    assert main([*words, str(inside / "b.png")]) == 2 and "b.png is the name of a picture" in capsys.readouterr().err
    assert main([*words, str(out), "--weights", str(file), "--scale", "3"]) == 2
    assert "enlarges 2 times, not 3" in capsys.readouterr().err


def test_after_sigterm_the_same_command_continues_even_with_the_results_among_its_inputs(file, tmp_path, capsys):
    """As a shell sees it that expands `upscale *.png -o .` each time."""
    draw(tmp_path, *(f"{letter}.png" for letter in "abcdefgh"))
    Image.new("RGB", (900, 900)).save(tmp_path / "z.png")

    def command():
        return ["upscale", *map(str, sorted(tmp_path.glob("*.png"))), "-o", str(tmp_path)]

    process = subprocess.Popen([sys.executable, "-m", "ikmlib", *command()], stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "a_x2.png").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert "the same command continues" in process.communicate()[1] and process.returncode == 130
    done = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*_x2.png")}
    assert 1 <= len(done) < 9 and not list(tmp_path.glob(".*"))
    assert main(command()) == 0
    assert f"{9 - len(done)} written to {tmp_path}, {len(done)} were there" in capsys.readouterr().out
    assert len(list(tmp_path.glob("*_x2.png"))) == 9 and all(path.stat().st_mtime_ns == at for path, at in done.items())


def test_card_is_made_of_the_records(trained, file, capsys):
    assert main(["weights", "export", str(trained[1])]) == 0
    assert f"{file}\n" == capsys.readouterr().out
    card = runpy.run_path(str(config.ROOT / "tools" / "model_card.py"))
    assert card["write"]() == weights.folder() / "MODEL_CARD.md"
    scores = trained[0].scores().set_index("image").psnr_y
    gains = card["gains"](weights.load(file)[1]).set_index("image")
    assert gains.gain_db.is_monotonic_increasing and set(gains.index) == {"chelsea", "coffee"}
    assert np.allclose(gains.psnr_y, scores[gains.index], atol=1e-6)
    assert gains.psnr_y_bicubic.between(25, 40).all()      # of 128 x 128 crops, x2
    text = (weights.folder() / "MODEL_CARD.md").read_text()
    for part in ("3 updates of 4 patches", "NASA, public domain", "2 of 2 images are worse", "MIT, as far as",
                 f"| embedded-test | {gains.index[0]} | {gains.psnr_y.iloc[0]:.2f} | {gains.ssim_y.iloc[0]:.4f} |",
                 f"| {file.name} | {gains.psnr_y.mean():.2f} | {gains.ssim_y.mean():.4f} |",
                 "`python -m ikmlib upscale IN -o OUT --weights FILE`", "Do not use it where quality matters"):
        assert part in text, part
    for folder, lacks in ((trained[0].folder, "no weights.pt"), (file.parent, "run.json")):
        assert main(["weights", "export", str(folder)]) == 2 and lacks in capsys.readouterr().err
    for psnr, told, warned in (([36.65], "this one 36.65", True), ([37.1, 36.67], "these 36.67 to 37.10", False)):
        said = card["beside_published"](2, psnr)   # 36.66 dB is SRCNN's, 38.23 dB U-HDN_L's
        assert f"36.66 to 38.23 dB, {told} dB" in said and ("Do not use it" in said) == warned
