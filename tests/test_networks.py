"""A network of one's own: built by name, kept in a file, loaded, scored on folders of pictures, used to enlarge."""
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import TINY
from PIL import Image
from safetensors.torch import save_file
from skimage import data as photographs
from torch import nn

import ikmlib
from ikmlib import datasets, networks
from ikmlib.__main__ import main
from ikmlib.convert import convert, revert
from ikmlib.peers import build_peer
from ikmlib.study import weights
from ikmlib.trainers import evaluate, super_resolve
from ikmlib.upscale import enlarge

RGB = photographs.astronaut()[100:160, 200:251]   # (60, 51, 3)
SMALL = [(TINY, 2), (TINY, 3), (replace(TINY, attention="none"), 2), ("srcnn", 2), ("idn", 4), ("cfsrcnn", 3)]


def trained(name=TINY, scale=2):
    """In the layout that `Trainer` gives a network."""
    torch.manual_seed(0)
    return ikmlib.build_model(name, scale).to(memory_format=torch.channels_last)


@pytest.fixture
def pictures(tmp_path):
    """A folder with two pictures, one of them grey, a hidden one and a text."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.fromarray(RGB).save(folder / "b.png")
    Image.fromarray(RGB[:41, :, 0]).save(folder / "a.BMP")
    Image.fromarray(RGB).save(folder / ".hidden.png")
    (folder / "notes.txt").touch()
    return folder


def test_every_network_has_a_name_and_is_built_by_it_and_the_package_starts_without_torch():
    names = ikmlib.list_models()
    assert {"uhdn", "rb", "srcnn", "csfm"} < set(names) and len(set(names)) == len(names)
    with torch.device("meta"):   # no weights are made
        for name in names:
            built = ikmlib.build_model(name, 3)
            assert built.scale == 3 and isinstance(built, nn.Module)
    assert not hasattr(ikmlib, "build")
    subprocess.run([sys.executable, "-c", "import sys, ikmlib; assert 'torch' not in sys.modules"], check=True)


@pytest.mark.parametrize(("name", "scale"), SMALL)
def test_a_kept_network_gives_equal_pixels(tmp_path, name, scale):
    network, file = trained(name, scale), tmp_path / "a.safetensors"
    ikmlib.save(network, file, updates=3, data="T91")
    loaded, told = ikmlib.load(file)
    for image in (RGB, photographs.coffee()[:200]):
        assert np.array_equal(super_resolve(loaded, image), super_resolve(network, image))
    assert (told["updates"], told["data"], told["spec"]["scale"]) == (3, "T91", scale) and not loaded.training
    again = ikmlib.build_model(name, scale, weights=file)
    assert repr(again) == repr(network)
    assert all(torch.equal(x, network.state_dict()[key]) for key, x in again.state_dict().items())
    before = file.read_bytes()
    ikmlib.save(loaded, file, updates=3, data="T91")
    assert file.read_bytes() == before


def test_weights_of_another_network_are_refused_though_names_and_shapes_are_equal(tmp_path):
    file = tmp_path / "a.safetensors"
    ikmlib.save(trained(), file)
    for changed in (replace(TINY, attention="none"), replace(TINY, strict=True), "idn"):
        with pytest.raises(ValueError, match="a.safetensors holds another network than"):
            ikmlib.build_model(changed, 2, weights=file)
    with pytest.raises(ValueError, match="a.safetensors enlarges 2 times, not 3"):
        ikmlib.build_model(TINY, 3, weights=file)
    with pytest.raises(FileNotFoundError, match="gone"):
        ikmlib.build_model(TINY, 2, weights=tmp_path / "gone")


def converted(network, change, **options):
    change(network, **options)
    return network


def broken():
    network = trained()
    network.tail.bias.data[0] = torch.nan
    return network


@pytest.mark.parametrize(("make", "why"), [
    (lambda: nn.Upsample(scale_factor=2), "this Upsample is not as `build_model` builds it"),
    (lambda: converted(trained("carn"), convert), "this CARN is not as"),
    (lambda: converted(trained(), revert), "this SRNetwork is not as"),
    (lambda: converted(trained(replace(TINY, attention="none")), convert, strict=True), "this SRNetwork is not as"),
    (lambda: build_peer("idn", 2, counted=True), "not as `build_model` builds it"), (broken, "not finite")])
def test_networks_that_a_file_cannot_describe_are_not_written(tmp_path, make, why):
    with pytest.raises(ValueError, match=why):
        ikmlib.save(make(), tmp_path / "a")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("spec", [
    {}, {"arch": {}, "scale": 2}, {"arch": {"depths": [1], "more": 1}, "scale": 2}, {"peer": "unet", "scale": 2},
    {"peer": "idn", "scale": 9}])
def test_headers_that_name_no_network_are_refused_by_the_name_of_the_file(tmp_path, spec):
    state = {key: tensor.contiguous() for key, tensor in trained().state_dict().items()}
    told = {"spec": spec}
    save_file(state, tmp_path / "a", {"ikmlib": json.dumps({**told, "sha256": networks.digest(told, state)})})
    with pytest.raises(ValueError, match=f"{tmp_path / 'a'} is damaged or of another kind"):
        ikmlib.load(tmp_path / "a")


def test_evaluate_takes_files_folders_and_sets_and_equals_the_scores_of_their_pixels(pictures):
    network = trained().eval()
    images = {"a": RGB[:41, :, :1], "b": RGB}
    expected = evaluate(network, images, 2)
    assert list(expected.image) == ["a", "b"]
    for folder in (pictures, str(pictures)):
        assert evaluate(network, folder, 2).equals(expected)
    listed = evaluate(network, [pictures / "b.png", str(pictures / "a.BMP")], 2)
    assert list(listed.image) == [str(pictures / "b.png"), str(pictures / "a.BMP")]
    assert list(listed.psnr_y) == list(expected.psnr_y[::-1])
    assert evaluate(network, "embedded-test", 2).equals(evaluate(network, datasets.load("embedded-test"), 2))


def test_score_prints_a_row_a_picture_and_their_mean(pictures, tmp_path, capsys):
    file, network = tmp_path / "a.safetensors", trained()
    ikmlib.save(network, file)
    assert main(["score", str(pictures), "--weights", str(file), "--scale", "2"]) == 0
    scores = evaluate(network, pictures, 2)
    rows = [*scores.itertuples(index=False), ("mean", scores.psnr_y.mean(), scores.ssim_y.mean())]
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["image", "psnr_y", "ssim_y"], *([name, f"{psnr:.2f}", f"{ssim:.4f}"] for name, psnr, ssim in rows)]


def test_score_refuses_in_one_line_that_says_what_is_allowed(pictures, tmp_path, capsys):
    file, empty = tmp_path / "a.safetensors", tmp_path / "empty"
    ikmlib.save(trained(), file)
    empty.mkdir()
    tiny = tmp_path / "tiny"
    tiny.mkdir()
    for size in (1, 15):
        Image.fromarray(RGB[:size, :40]).save(tiny / f"{size}.png")
    for where, more, why in (
            (pictures, ["--scale", "3"], f"{file} enlarges 2 times, not 3"),
            (empty, [], f"no pictures in the folder {empty}; allowed are .png, .jpg"),
            ("nowhere", [], "unknown image set or folder 'nowhere'; allowed: Set5,"),
            (tiny, [], "image 1 of 1 x 40 pixels is too small to be scored at x2; allowed: at least 16 x 16")):
        assert main(["score", str(where), "--weights", str(file), *more]) == 2
        error = capsys.readouterr().err
        assert why in error and len(error.splitlines()) == 1
    (tiny / "1.png").unlink()
    assert main(["score", str(tiny), "--weights", str(file)]) == 2   # 15 rows are 14 at x2
    assert "image 15 of 15 x 40 pixels is too small" in capsys.readouterr().err
    Image.fromarray(RGB[:16, :15 + 1]).save(tiny / "15.png")
    assert main(["score", str(tiny), "--weights", str(file)]) == 0


def test_upscale_takes_a_network_of_one_s_own_but_never_by_default(results, pictures, tmp_path):
    network, file = trained(), results / "weights" / "mine.safetensors"
    ikmlib.save(network, file)
    assert main(["upscale", str(pictures / "b.png"), "-o", str(tmp_path), "--weights", str(file)]) == 0
    with pytest.raises(FileNotFoundError, match="no weights for x2"):
        weights.best(2)
    expected = enlarge(network, Image.fromarray(RGB), 2)
    assert np.array_equal(np.array(Image.open(tmp_path / "b_x2.png")), np.array(expected))
