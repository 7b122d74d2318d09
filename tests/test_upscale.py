"""A trained network in use: its weights file, pictures of many kinds through it, the model card."""
import io
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
from skimage import data as photographs

from ikmlib import config, files
from ikmlib.__main__ import main
from ikmlib.models import Architecture, SRNetwork
from ikmlib.pictures import read
from ikmlib.study import records, weights
from ikmlib.tools import upscale
from ikmlib.tools.upscale import enlarge, plan, png
from ikmlib.trainers import super_resolve

RGB = photographs.astronaut()[100:120, 200:230]      # (20, 30, 3)
TINY = Architecture("db", blocks=1, depths=(1,), channels=8, growth=4)
pytestmark = pytest.mark.filterwarnings("ignore:.*trained too little")


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
    assert not network.training and network.arch == run.arch and record == records.read_record(run.folder)
    listed = weights.index()[file.name]
    assert listed["scores"]["embedded-test"]["psnr_y"] == pytest.approx(run.scores().psnr_y.mean(), abs=1e-4)
    before = file.read_bytes()
    assert weights.export(folder) == file and file.read_bytes() == before   # byte for byte, so that a sha256 means much


def test_weights_that_are_not_what_they_should_be_are_refused(file, tmp_path, capsys):
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(file, "pt") as opened:
        state, told = {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata()
    for other, says, why in (({"tail.bias": torch.ones(4)}, told, "tail.bias"), ({"more": torch.ones(1)}, told, "more"),
                             ({"tail.bias": torch.full((3,), torch.nan)}, told, "not finite"),
                             ({}, None, "of another kind")):
        save_file(state | other, tmp_path / "changed.safetensors", says)
        with pytest.raises(ValueError, match=why):
            weights.load(tmp_path / "changed.safetensors")
    for name, why in (("other.safetensors", "index.json beside it lists nothing"), (file.name, "has sha256 .* lists")):
        file.with_name(name).write_bytes(file.read_bytes()[:-1] + b"?")
        with pytest.raises(ValueError, match=why):
            weights.load(file.with_name(name))
    assert main(["verify"]) == 1 and f"{file} has sha256" in capsys.readouterr().out


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_garbled_weights_are_read_or_refused_in_one_line(file, tmp_path, data):
    (tmp_path / "a").write_bytes(data.draw(garbled(file.read_bytes())))
    try:
        weights.load(tmp_path / "a")
    except ValueError as error:
        assert str(error).startswith(f"{tmp_path / 'a'} ")


def test_best_weights_are_the_largest_profile_s_on_most_images_then_the_highest_psnr(file, monkeypatch, tmp_path):
    entry = weights.index()[file.name]
    images = entry["scores"]["embedded-test"]["images"]
    b, easy = ({**entry, "scores": {"Set5": {"images": n, "psnr_y": 99}}} for n in (images, images - 1))
    third = {**b, "spec": {**entry["spec"], "scale": 3}}
    files.write_text(weights.folder() / "index.json",
                     json.dumps({"a": entry, "b": b, "easy": easy, "c": {**entry, "profile": "cpu"}, "d": third}))
    assert list(weights.table().file) == ["c", "b", "a", "easy", "d"]
    assert weights.best(2) == weights.folder() / "c" and weights.best(3).name == "d"
    monkeypatch.setattr(weights, "SHIPPED", tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"no weights for x4 in .*records.weights"):
        weights.best(4)


def test_shipped_weights_serve_where_the_results_folder_has_none(trained, file, monkeypatch, tmp_path):
    monkeypatch.setattr(weights, "SHIPPED", file.parent)
    monkeypatch.setenv("IKM_RESULTS", str(tmp_path / "elsewhere"))
    assert weights.best(2) == file
    kept, found = weights.load(file)[0].state_dict(), weights.trained_network(trained[0]).state_dict()
    assert all(torch.equal(tensor, kept[name].to(tensor.device)) for name, tensor in found.items())
    assert weights.trained_network(replace(trained[0], seed=1)) is None
    Image.fromarray(RGB).save(tmp_path / "a.png")
    assert main(["upscale", str(tmp_path / "a.png"), "-o", str(tmp_path)]) == 0 and (tmp_path / "a_x2.png").exists()


def pixels(image: Image.Image) -> np.ndarray:
    return np.array(image).astype(int)


def test_the_list_is_of_the_shipped_weights_where_the_results_folder_has_none(results, capsys):
    assert main(["weights", "list"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in weights.index(weights.SHIPPED)) and weights.index(weights.SHIPPED)


def test_rgb_is_what_the_study_scores_and_grey_stays_grey():
    assert np.array_equal(pixels(enlarge(model(), Image.fromarray(RGB))), super_resolve(model(), RGB))
    grey = Image.fromarray(RGB[..., 0])
    grey.info["icc_profile"] = b"grey"
    found = enlarge(model(), grey)
    expected = super_resolve(model(), np.repeat(RGB[..., :1], 3, 2)).mean(2)
    assert found.mode == "L" and abs(pixels(found) - expected).max() <= 0.5
    assert Image.open(io.BytesIO(png(found))).info["icc_profile"] == b"grey"
    for size in ((1, 1), (70, 1)):
        assert enlarge(model(), Image.new("LA", size)).size == (2 * size[0], 2 * size[1])


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_colour_hidden_under_transparency_does_not_reach_the_network(mode):
    """A white disc with soft edges, over hidden black, is white throughout, as an opaque white picture is."""
    y, x = np.mgrid[-24:24, -24:24] + 0.5
    alpha = Image.fromarray((255 * (16 - np.hypot(y, x)).clip(0, 1)).astype(np.uint8))
    disc = Image.merge(mode, [alpha.point(lambda a: 255 * (a > 0))] * (len(mode) - 1) + [alpha])
    found, white = enlarge(model(), disc), enlarge(model(), Image.new(mode[:-1], disc.size, "white"))
    assert found.mode == mode and np.array_equal(pixels(found.convert(mode[:-1])), pixels(white))
    assert np.array_equal(pixels(found.getchannel("A")), pixels(alpha.resize((96, 96), Image.Resampling.BICUBIC)))


@pytest.mark.parametrize(("size", "tiles"), [((60, 70), 12), ((60, 5), 3), ((32, 32), 1)])
def test_tiles_of_convolutions_are_the_whole_picture_where_the_overlap_suffices(size, tiles, monkeypatch):
    """Half of the overlap, 8, is more than what the convolutions reach; attention would be the tile's own."""
    torch.manual_seed(0)
    network, seen = SRNetwork(replace(TINY, attention="none"), 2).eval(), []
    picture = Image.fromarray(photographs.astronaut()[100:, 200:][:size[0], :size[1]])
    whole = pixels(enlarge(network, picture))
    monkeypatch.setattr(upscale, "TILE", 32)
    monkeypatch.setattr(upscale, "OVERLAP", 16)
    network.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape[2:])))
    assert abs(pixels(enlarge(network, picture)) - whole).max() <= 1   # rounding
    assert len(seen) == tiles and set(seen) == {(32, min(size[1], 32))}
    monkeypatch.setattr(upscale, "OVERLAP", 0)
    assert (abs(pixels(enlarge(network, picture)) - whole).max() > 1) == (tiles > 1)


def draw(folder, *names):
    """Pictures of these names in a folder; their paths as words."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.fromarray(RGB).save(folder / name)
    return [str(folder / name) for name in names]


def test_plan(tmp_path):
    inside, out = tmp_path / "in", tmp_path / "in" / "out"
    (inside / "sub").mkdir(parents=True)
    for name in ("a.JPG", "sub/b.png", "notes.txt", "film.mpg", ".hidden.png"):
        (inside / name).touch()
    a, b = inside / "a.JPG", inside / "sub" / "b.png"
    with pytest.warns(UserWarning, match=f"{inside}: files of other kinds are passed over: .mpg, .txt"):
        found = plan([inside, a], out, 2)
    assert found == [(a, out / "a_x2.png"), (b, out / "sub" / "b_x2.png")]
    assert plan([a], tmp_path / "c.png", 2) == [(a, tmp_path / "c.png")]
    for inputs, target, why in (([inside], "c.png", "allowed"), ([a, b], "c.png", "allowed"), ([a], "c.jpg", "allowed"),
                                ([], "out", "no pictures")):
        with pytest.raises(ValueError, match=why):
            plan(inputs, tmp_path / target, 2)


@pytest.mark.parametrize("out", ["holiday/day", "holiday", "."])
def test_results_may_go_to_the_inputs_folder_or_above_and_are_no_inputs(file, tmp_path, capsys, out):
    day, out = tmp_path / "holiday" / "day", tmp_path / out
    draw(day, "a.png", "b_x2.png")   # the second only looks like a result
    for said in (f"2 written to {out}, 0 were there", f"0 written to {out}, 2 were there"):
        assert main(["upscale", str(day), "-o", str(out)]) == 0 and said in capsys.readouterr().out
    assert sorted(p.name for p in set(day.iterdir()) | set(out.glob("*.png"))) == [
        "a.png", "a_x2.png", "b_x2.png", "b_x2_x2.png"]


def test_results_in_another_folder_are_pictures_like_others(file, tmp_path, capsys):
    draw(tmp_path / "a", "a.png")
    for source, target in (("a", "b"), ("b", "c")):
        assert main(["upscale", str(tmp_path / source), "-o", str(tmp_path / target)]) == 0
    assert read(tmp_path / "c" / "a_x2_x2.png").size == (120, 80)


def test_one_bad_file_does_not_stop_the_rest_and_no_other_file_is_overwritten(file, tmp_path, capsys):
    inside, out = tmp_path / "in", tmp_path / "out"
    draw(inside, "b.png", "c.png", "c.bmp", "d.png", "e.png", "e_x2.png")
    draw(out, "d_x2.png")
    (inside / "a.png").write_text("no picture")
    (inside / "paper.pdf").write_text("passed over in a folder")
    Image.fromarray(RGB[..., 0].astype(np.uint16)).save(inside / "deep.png")
    before = (out / "d_x2.png").read_bytes()
    assert main(["upscale", str(inside), str(tmp_path / "absent.png"), "-o", str(out)]) == 1
    said = capsys.readouterr()
    assert "4 written" in said.out and "5 failed" in said.out
    for name, why in (("in/a.png", "is no picture"), ("in/c.png", "not overwritten"), ("in/d.png", "not overwritten"),
                      ("in/deep.png", "has 16 bits a sample; 8 are allowed"), ("absent.png", "No such file")):
        line, = (line for line in said.err.splitlines() if line.startswith(f"error: {tmp_path / name}"))
        assert why in line
    assert np.array_equal(np.array(Image.open(out / "b_x2.png")), super_resolve(weights.load(file)[0], RGB))
    assert (out / "d_x2.png").read_bytes() == before
    assert main(["upscale", str(inside / "b.png"), "-o", str(inside / "b.png")]) == 1
    assert main(["upscale", str(inside / "e.png"), str(inside / "e_x2.png"), "-o", str(inside)]) == 1


def test_results_are_made_anew_when_their_input_or_the_tiles_are_others(file, tmp_path, monkeypatch, capsys):
    command = ["upscale", *draw(tmp_path, "a.png", "b.png"), "-o", str(tmp_path / "out")]
    assert main(command) == 0
    times = os.stat(tmp_path / "a.png")
    Image.fromarray(RGB[::-1]).save(tmp_path / "a.png")   # another picture, of the same age
    os.utime(tmp_path / "a.png", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert main(command) == 0 and "1 written" in capsys.readouterr().out.splitlines()[-1]
    monkeypatch.setattr(upscale, "OVERLAP", 16)   # other tiles
    assert main(command) == 0 and "2 written" in capsys.readouterr().out
    assert main([*command, "--weights", str(file), "--scale", "3"]) == 2
    assert "enlarges 2 times, not 3" in capsys.readouterr().err


def test_after_sigterm_the_same_command_continues_even_with_the_results_among_its_inputs(file, tmp_path, capsys):
    """As a shell sees it that expands `upscale *.png -o .` each time."""
    draw(tmp_path, *(f"{letter}.png" for letter in "abcdefgh"))
    Image.new("RGB", (900, 900)).save(tmp_path / "z.png")

    def command():
        return ["upscale", *map(str, sorted(tmp_path.glob("*.png"))), "-o", str(tmp_path)]

    process = subprocess.Popen([sys.executable, "-m", "ikmlib", *command()], stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "a_x2.png").exists():
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
    gains = card["gains"](weights.index()[file.name]).set_index("image")
    assert gains.gain_db.is_monotonic_increasing and set(gains.index) == {"chelsea", "coffee"}
    assert np.allclose(gains.psnr_y, scores[gains.index], atol=1e-6)
    assert gains.psnr_y_bicubic.between(25, 40).all()      # of 128 x 128 crops, x2
    text = (weights.folder() / "MODEL_CARD.md").read_text()
    for part in ("3 updates of 4 patches", "NASA, public domain", "2 of 2 images are worse", "MIT, as far as",
                 f"| embedded-test | {gains.index[0]} | {gains.psnr_y.iloc[0]:.2f} | {gains.ssim_y.iloc[0]:.4f} |",
                 f"| embedded-test | {gains.psnr_y.mean():.2f} | {gains.ssim_y.mean():.4f} |",
                 "`python -m ikmlib upscale IN -o OUT --weights FILE`", "Do not use it where quality matters"):
        assert part in text, part
    assert main(["weights", "list"]) == 0 and file.name in capsys.readouterr().out
    assert main(["weights", "export"]) == 2 and main(["weights", "list", "x"]) == 2
    for folder, lacks in ((trained[0].folder, "no weights.pt"), (file.parent, "run.json")):
        assert main(["weights", "export", str(folder)]) == 2 and lacks in capsys.readouterr().err
    for psnr, warned in ((36.65, True), (36.67, False)):   # 36.66 dB is SRCNN's, 38.23 dB U-HDN_L's
        said = card["beside_published"]({"spec": {"scale": 2}, "scores": {"Set5": {"psnr_y": psnr}}})
        assert f"36.66 to 38.23 dB, this one {psnr} dB" in said and ("Do not use it" in said) == warned
