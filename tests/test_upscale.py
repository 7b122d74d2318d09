"""A trained network in use: its weights file, pictures of many kinds through it, the model card."""
import io
import json
import os
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data as photographs

from ikmlib import config, files
from ikmlib.__main__ import main
from ikmlib.models import Architecture, SRNetwork
from ikmlib.study import records, weights
from ikmlib.tools import model_card, upscale
from ikmlib.tools.upscale import enlarge, plan, png
from ikmlib.trainers import super_resolve

RGB = photographs.astronaut()[100:120, 200:230]      # (20, 30, 3)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """One finished run, of three updates, and its folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IKM_RESULTS", str(tmp_path_factory.mktemp("results")))
        arch = Architecture("db", blocks=1, depths=(1, 1), channels=8, growth=4)
        run = replace(records.Run.of(config.PROFILES["smoke"], arch, seed=0), updates=3)
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
    return SRNetwork(Architecture("db", blocks=1, depths=(1,), channels=8, growth=4), 2).eval()


# --- weights --------------------------------------------------------------------------------------------------------


def test_exported_weights_are_the_run_s(trained, file):
    run, folder = trained
    network, record = weights.load(file)
    state = torch.load(folder / "weights.pt", weights_only=True)["model"]
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())
    assert not network.training and network.arch == run.arch and record == records.record(run)
    listed = weights.index()[file.name]
    assert listed["scores"]["embedded-test"]["psnr_y"] == pytest.approx(run.scores().psnr_y.mean(), abs=1e-4)
    before = file.read_bytes()
    assert weights.export(folder) == file and file.read_bytes() == before   # byte for byte, so that a sha256 means much


@pytest.mark.parametrize(("change", "message"), [
    (lambda state: state.pop("fuse.weight"), "fuse.weight"), (lambda state: state.update(more=torch.ones(1)), "more"),
    (lambda state: state.update({"tail.bias": torch.ones(4)}), "tail.bias"),
    (lambda state: state.update({"tail.bias": torch.full((3,), float("nan"))}), "not finite: tail.bias")])
def test_weights_that_do_not_fit_are_refused_by_name(file, tmp_path, change, message):
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    state = load_file(file)
    change(state)
    save_file(state, tmp_path / "changed.safetensors", metadata)
    with pytest.raises(ValueError, match=message):
        weights.load(tmp_path / "changed.safetensors")


def test_a_damaged_unlisted_or_foreign_file_is_refused(file, tmp_path):
    from safetensors.torch import save_file

    save_file({"x": torch.ones(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(ValueError, match="no weights file of this project"):
        weights.load(tmp_path / "foreign.safetensors")
    (file.parent / "other.safetensors").write_bytes(file.read_bytes())
    with pytest.raises(ValueError, match="not listed in"):
        weights.load(file.parent / "other.safetensors")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(ValueError, match="sha256"):
        weights.load(file)


def test_no_weights_names_what_there_is(results):
    with pytest.raises(FileNotFoundError, match="no weights for x2 in .*there: none"):
        weights.best(2)


def test_best_weights_are_the_largest_profile_s_on_most_images_then_the_highest_psnr(file):
    entry = weights.index()[file.name]
    images = sum(scores["images"] for scores in entry["scores"].values())
    better = {**entry, "scores": {"Set5": {"images": images, "psnr_y": 99, "ssim_y": 1}}}
    easy = {**entry, "scores": {"Set5": {"images": images - 1, "psnr_y": 100, "ssim_y": 1}}}
    third = {**better, "spec": {**entry["spec"], "scale": 3}}
    files.write_text(weights.folder() / "index.json",
                     json.dumps({"a": entry, "b": better, "easy": easy, "c": {**entry, "profile": "cpu"}, "d": third}))
    assert list(weights.table().file) == ["c", "b", "a", "easy", "d"]
    assert weights.best(2).name == "c" and weights.best(3).name == "d"
    with pytest.raises(FileNotFoundError, match=r"x4 in .*there: c \(x2\), b \(x2\), a \(x2\), easy \(x2\), d \(x3\)"):
        weights.best(4)


def test_unfinished_run_cannot_be_exported(results):
    with pytest.raises(FileNotFoundError, match="run.json"):
        weights.export(results)


# --- through the network --------------------------------------------------------------------------------------------


def pixels(image: Image.Image) -> np.ndarray:
    return np.array(image).astype(int)


def test_rgb_is_what_the_study_scores():
    assert np.array_equal(pixels(enlarge(model(), Image.fromarray(RGB))), super_resolve(model(), RGB))


def test_grey_and_tiny_pictures_and_their_profile():
    grey = Image.fromarray(RGB[..., 0])
    grey.info["icc_profile"] = b"grey"
    found = enlarge(model(), grey)
    expected = super_resolve(model(), np.repeat(RGB[..., :1], 3, 2)).mean(2)
    assert found.mode == "L" and abs(pixels(found) - expected).max() <= 1
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
    opaque = Image.fromarray(RGB)
    opaque.putalpha(255)
    assert np.array_equal(pixels(enlarge(model(), opaque))[..., :3], super_resolve(model(), RGB))


class Doubled(torch.nn.Module):
    """A network whose result does not depend on the tile; it notes the tiles' sizes."""

    scale = 2

    def __init__(self):
        super().__init__()
        self.weight, self.seen = torch.nn.Parameter(torch.ones(1)), []

    def forward(self, x):
        self.seen.append(tuple(x.shape[2:]))
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3)


@pytest.mark.parametrize(("size", "tiles"), [((16, 16), 1), ((16, 17), 2), ((28, 29), 6), ((40, 5), 3)])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_tiles_cover_the_picture_and_are_never_larger_than_a_tile(size, tiles, mode, monkeypatch):
    monkeypatch.setattr(upscale, "TILE", 16)
    monkeypatch.setattr(upscale, "OVERLAP", 4)
    picture = Image.fromarray(np.random.default_rng(0).integers(1, 256, (*size, 4), dtype=np.uint8)).convert(mode)
    network = Doubled()
    found = enlarge(network, picture)
    assert set(network.seen) == {(min(size[0], 16), min(size[1], 16))} and len(network.seen) == tiles
    expected = pixels(picture).repeat(2, 0).repeat(2, 1)
    assert np.array_equal(pixels(found)[..., :3], expected[..., :3])


def test_tiles_of_convolutions_are_the_whole_picture_where_the_overlap_suffices(monkeypatch):
    """Half of the overlap, 8, is more than what the convolutions reach; attention would be the tile's own."""
    torch.manual_seed(0)
    network = SRNetwork(Architecture("db", blocks=1, depths=(1,), channels=8, growth=4, attention="none"), 2).eval()
    picture = Image.fromarray(photographs.astronaut()[100:160, 200:270])
    whole = pixels(enlarge(network, picture))
    monkeypatch.setattr(upscale, "TILE", 32)
    monkeypatch.setattr(upscale, "OVERLAP", 16)
    assert abs(pixels(enlarge(network, picture)) - whole).max() <= 1   # rounding
    monkeypatch.setattr(upscale, "OVERLAP", 0)
    assert abs(pixels(enlarge(network, picture)) - whole).max() > 1


# --- files ----------------------------------------------------------------------------------------------------------


def test_plan(tmp_path):
    for name in ("in/a.JPG", "in/sub/b.png", "in/notes.txt", "in/paper.pdf", "in/film.mpg", "in/.hidden.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    inside, out = tmp_path / "in", tmp_path / "in" / "out"
    pairs = [(inside / "a.JPG", out / "a_x2.png"), (inside / "sub" / "b.png", out / "sub" / "b_x2.png")]
    assert plan([inside, inside / "a.JPG"], out, 2) == pairs
    assert plan([inside / "a.JPG"], tmp_path / "c.png", 2) == [(inside / "a.JPG", tmp_path / "c.png")]
    assert plan(["a.jpg"], "v1.5", 4)[0][1].as_posix() == "v1.5/a_x4.png"
    for inputs, target in (([inside], "c.png"), (["a.png", "b.png"], "c.png"), (["a.png"], "c.jpg")):
        with pytest.raises(ValueError, match="allowed are a folder or, for one input file, a name that ends in .png"):
            plan(inputs, target, 2)
    (tmp_path / "bare").mkdir()
    with pytest.raises(ValueError, match="no pictures in .*bare"):
        plan([tmp_path / "bare"], out, 2)


@pytest.mark.filterwarnings("ignore:.*only to see that everything runs")
@pytest.mark.parametrize("out", ["holiday/day", "holiday", "."])
def test_results_may_go_to_the_inputs_folder_or_above_and_are_no_inputs(file, tmp_path, capsys, out):
    day, out = tmp_path / "holiday" / "day", tmp_path / out
    day.mkdir(parents=True)
    for name in ("a.png", "b_x2.png"):   # the second only looks like a result
        Image.fromarray(RGB).save(day / name)
    for said in ("2 written", "0 written to .*, 2 were there, unchanged"):
        assert main(["upscale", str(day), "-o", str(out)]) == 0
        assert re.search(said, capsys.readouterr().out)
    assert sorted(p.name for p in set(day.iterdir()) | set(out.glob("*.png"))) == [
        "a.png", "a_x2.png", "b_x2.png", "b_x2_x2.png"]


@pytest.mark.filterwarnings("ignore:.*only to see that everything runs")
def test_one_bad_file_does_not_stop_the_rest(file, tmp_path, capsys):
    inside, out = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    for name in ("b.png", "c.png", "c.bmp"):
        Image.fromarray(RGB).save(inside / name)
    (inside / "a.png").write_text("no picture")
    (inside / "paper.pdf").write_text("passed over in a folder")
    (tmp_path / "film.mpg").write_text("an error where it is named")
    assert main(["upscale", str(inside), *(str(tmp_path / name) for name in ("absent.png", "film.mpg")),
                 "-o", str(out)]) == 1
    said = capsys.readouterr()
    assert "2 written" in said.out and "4 failed" in said.out
    for line in (f"error: {inside / 'a.png'} is no picture", f"error: {inside / 'c.png'}: its result",
                 f"'{tmp_path / 'absent.png'}'", f"error: {tmp_path / 'film.mpg'} is no picture"):
        assert line in said.err
    network, _ = weights.load(file)
    assert np.array_equal(np.array(Image.open(out / "b_x2.png")), super_resolve(network, RGB))
    assert sorted(p.name for p in out.iterdir()) == ["b_x2.png", "c_x2.png"]


@pytest.mark.filterwarnings("ignore:.*only to see that everything runs")
def test_neither_inputs_nor_other_files_are_overwritten(file, tmp_path):
    for name in ("a.png", "a_x2.png", "b.png"):
        Image.fromarray(RGB).save(tmp_path / name)
    (tmp_path / "b_x2.png").write_text("mine")
    before = (tmp_path / "a_x2.png").read_bytes()
    inputs = [tmp_path / name for name in ("a.png", "a_x2.png", "b.png")]
    with pytest.warns(UserWarning, match="only to see that everything runs"):
        written, kept, failed = upscale.upscale(inputs, tmp_path, show=False)
    assert written == [tmp_path / "a_x2_x2.png"] and not kept and list(failed) == [inputs[0], inputs[2]]
    assert "is an input" in failed[inputs[0]] and "was not written by this command" in failed[inputs[2]]
    assert (tmp_path / "a_x2.png").read_bytes() == before and (tmp_path / "b_x2.png").read_text() == "mine"
    assert main(["upscale", str(tmp_path / "a.png"), "-o", str(tmp_path / "a.png")]) == 1


@pytest.mark.filterwarnings("ignore:.*only to see that everything runs")
def test_after_a_stop_the_same_command_continues(file, tmp_path, monkeypatch, capsys):
    for name in ("a.png", "b.png"):
        Image.fromarray(RGB).save(tmp_path / name)
    command = ["upscale", *(str(tmp_path / name) for name in ("a.png", "b.png")), "-o", str(tmp_path / "out")]
    reads = iter([None, KeyboardInterrupt()])

    def stopped(path):
        if (stop := next(reads)) is not None:
            raise stop
        return read(path)

    read = upscale.read
    with monkeypatch.context() as patch:
        patch.setattr(upscale, "read", stopped)
        assert main(command) == 130 and "the same command continues" in capsys.readouterr().err
    result = tmp_path / "out" / "a_x2.png"
    first = result.stat().st_mtime_ns
    assert main(command) == 0 and "1 written" in (said := capsys.readouterr().out) and "1 were there" in said
    assert result.stat().st_mtime_ns == first
    times = os.stat(tmp_path / "a.png")
    Image.fromarray(RGB[::-1]).save(tmp_path / "a.png")   # another picture, of the same age
    os.utime(tmp_path / "a.png", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert main(command) == 0 and "1 written" in capsys.readouterr().out
    monkeypatch.setattr(upscale, "OVERLAP", 16)   # other tiles
    assert main(command) == 0 and "2 written" in capsys.readouterr().out


def test_weights_of_another_scale_are_an_error(file, tmp_path, capsys):
    Image.fromarray(RGB).save(tmp_path / "a.png")
    words = ["upscale", str(tmp_path / "a.png"), "-o", str(tmp_path), "--scale", "3"]
    assert main(words) == 2
    assert f"no weights for x3 in {weights.folder()}; there: {file.name} (x2)" in capsys.readouterr().err
    assert main([*words[:-2], "--weights", str(file)]) == 0 and (tmp_path / "a_x2.png").exists()
    assert main([*words, "--weights", str(file)]) == 2
    assert "enlarges 2 times, not 3" in capsys.readouterr().err


# --- the model card -------------------------------------------------------------------------------------------------


def test_card_is_made_of_the_records(trained, file):
    run, text = trained[0], model_card.write().read_text()
    scores = run.scores().set_index("image").psnr_y
    gains = model_card.gains(weights.index()[file.name]).set_index("image")
    assert gains.gain_db.is_monotonic_increasing and set(gains.index) == {"chelsea", "coffee"}
    assert np.allclose(gains.psnr_y, scores[gains.index], atol=1e-6)
    assert gains.psnr_y_bicubic.between(25, 40).all()      # of 128 x 128 crops, x2
    for part in ("Not for use", run.id, "3 updates of 4 patches", "NASA, public domain", "2 of 2 images are worse",
                 f"| embedded-test | {gains.index[0]} | {gains.psnr_y.iloc[0]:.2f} | {gains.ssim_y.iloc[0]:.4f} |",
                 f"| embedded-test | 2 | {gains.psnr_y.mean():.2f} | {gains.ssim_y.mean():.4f} |",
                 "MIT, as far as we hold rights", "`python -m ikmlib upscale IN -o OUT --weights FILE`",
                 "Not scored on Set5", "pauses of the process included"):
        assert part in text, part


@pytest.mark.parametrize(("scale", "psnr", "said", "warned"), [
    (2, 35.22, "have 36.66 to 38.23 dB; this one has 35.22 dB, 1.44 dB below the worst of them", True),
    (2, 37.00, "this one has 37.00 dB.", False), (4, 30.00, "0.49 dB below the worst of them", True)])
def test_card_says_how_far_a_network_is_from_published_ones(scale, psnr, said, warned):
    """36.66 and 30.49 dB are SRCNN's rows of Table I, 38.23 dB is U-HDN_L's of Table II."""
    text = model_card.beside_published({"spec": {"scale": scale}, "scores": {"Set5": {"psnr_y": psnr}}})
    assert said in text and ("do not use it where quality matters" in text) == warned


def test_command_line_exports_writes_the_card_and_lists(trained, file, capsys):
    run, folder = trained
    file.unlink()
    assert main(["weights", "export", str(folder)]) == 0 and file.exists()
    assert f"{file}\n{weights.folder() / 'MODEL_CARD.md'}\n" == capsys.readouterr().out
    assert main(["weights", "list"]) == 0 and file.name in capsys.readouterr().out
    assert main(["weights", "export"]) == 2 and main(["weights", "list", "x"]) == 2
    assert main(["weights", "export", str(run.folder)]) == 2    # the records alone
    assert "no weights.pt" in capsys.readouterr().err
