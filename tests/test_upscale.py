"""A trained network in use: its weights file, pictures of many kinds through it, the model card."""
import io
import json
from dataclasses import replace

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageCms
from skimage import data as photographs

from ikmlib import card, config, files, study, upscale, weights
from ikmlib.__main__ import main
from ikmlib.models import Architecture, SRNetwork
from ikmlib.trainers import super_resolve
from ikmlib.upscale import Picture, enlarge, plan, png, read

RGB = photographs.astronaut()[100:120, 200:230]      # (20, 30, 3)
FRAMES = [Image.new("L", (9, 9), value) for value in (0, 99)]
DEEP = np.random.default_rng(0).integers(0, 65536, (6, 9, 3), dtype=np.uint16)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """One finished run, of three updates, and its folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IKM_RESULTS", str(tmp_path_factory.mktemp("results")))
        arch = Architecture("db", blocks=1, depths=(1, 1), channels=8, growth=4)
        run = replace(study.Run.of(config.PROFILES["smoke"], arch, seed=0), updates=3)
        study.train(run, show=False)
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


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


# --- weights --------------------------------------------------------------------------------------------------------


def test_exported_weights_are_the_run_s(trained, file):
    run, folder = trained
    network, record = weights.load(file)
    state = torch.load(folder / "weights.pt", weights_only=True)["model"]
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())
    assert not network.training and network.arch == run.arch and record == study.record(run)
    listed = weights.index()[file.name]
    assert listed["scores"]["embedded-test"]["psnr_y"] == pytest.approx(study.scores([run]).psnr_y.mean(), abs=1e-4)
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


# --- reading and writing pictures -----------------------------------------------------------------------------------


def test_8_bit_kinds(tmp_path):
    image, grey = Image.fromarray(RGB), Image.fromarray(RGB).convert("L")
    alpha = Image.fromarray(np.arange(600, dtype=np.uint8).reshape(20, 30))
    exif = Image.Exif()
    exif[0x0112] = 6
    with_alpha, grey_alpha, clear = image.copy(), grey.copy(), image.quantize(8)
    with_alpha.putalpha(alpha)
    grey_alpha.putalpha(alpha)
    kinds = {
        "a.png": (encoded(image, "PNG"), RGB), "a.bmp": (encoded(image, "BMP"), RGB),
        "a.tif": (encoded(image, "TIFF", compression="tiff_lzw"), RGB),
        "a.webp": (encoded(with_alpha, "WEBP", lossless=True, exact=True), np.dstack([RGB, alpha])),
        "rgba.png": (encoded(with_alpha, "PNG"), np.dstack([RGB, alpha])),
        "la.png": (encoded(grey_alpha, "PNG"), np.dstack([grey, alpha])),
        "grey.png": (encoded(grey, "PNG"), np.array(grey)[..., None]),
        "bit.png": (encoded(grey.convert("1"), "PNG"), np.array(grey.convert("1").convert("L"))[..., None]),
        "palette.gif": (encoded(clear, "GIF"), np.array(clear.convert("RGB"))),
        "clear.png": (encoded(clear, "PNG", transparency=2),
                      np.dstack([np.array(clear.convert("RGB")), (np.array(clear) != 2) * np.uint8(255)])),
        "turned.png": (encoded(image.transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif), RGB),
    }
    for name, (content, expected) in kinds.items():
        (tmp_path / name).write_bytes(content)
        picture = read(tmp_path / name)
        assert picture.bits == 8 and np.array_equal(picture.channels, expected), name
        assert np.array_equal(np.array(Image.open(io.BytesIO(png(picture)))).reshape(expected.shape), expected), name


def test_16_bit_kinds_keep_every_bit(tmp_path):
    values = (DEEP / 65535).astype(np.float32)
    for colour, alpha in ((values, None), (values, values[..., 0] / 2), (values[..., :1], None)):
        picture = Picture(colour, alpha, 16)
        (tmp_path / "a.png").write_bytes(png(picture))
        assert np.array_equal(read(tmp_path / "a.png").channels, picture.channels)
    assert np.array_equal(Picture(values, bits=16).channels, DEEP)
    for options in ({}, {"compression": "zlib"}, {"byteorder": ">"}):
        tifffile.imwrite(tmp_path / "a.tif", DEEP, photometric="rgb", **options)
        assert np.array_equal(read(tmp_path / "a.tif").channels, DEEP), options
    tifffile.imwrite(tmp_path / "a.tif", DEEP[..., 0])
    assert np.array_equal(read(tmp_path / "a.tif").channels, DEEP[..., :1])


def test_cmyk_becomes_rgb_and_a_profile_is_kept(tmp_path):
    Image.fromarray(RGB).convert("CMYK").save(tmp_path / "a.jpg", quality=100)
    assert abs(read(tmp_path / "a.jpg").colour * 255 - RGB).mean() < 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    plain = read(tmp_path / "a.jpg").colour
    Image.open(tmp_path / "a.jpg").save(tmp_path / "b.jpg", quality=100, icc_profile=profile)   # not one for CMYK
    assert abs(read(tmp_path / "b.jpg").colour - plain).mean() < 0.01
    Image.fromarray(RGB).save(tmp_path / "a.png", icc_profile=profile)
    assert Image.open(io.BytesIO(png(enlarge(model(), read(tmp_path / "a.png"))))).info["icc_profile"] == profile


@pytest.mark.parametrize(("name", "content", "message"), [
    ("text.png", b"hello", "no picture"), ("empty.png", b"", "no picture"),
    ("cut.png", encoded(Image.fromarray(RGB), "PNG")[:-600], "damaged"),
    ("two.gif", encoded(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]), "2 frames"),
    ("float.tif", encoded(Image.fromarray(RGB[..., 0].astype(np.float32)), "TIFF"), "32-bit F; allowed"),
])
def test_what_cannot_be_read_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read(tmp_path / name)


def test_planar_16_bit_tiff_is_not_misread(tmp_path):
    """Pillow decodes it, wrongly and without a word."""
    tifffile.imwrite(tmp_path / "a.tif", np.ascontiguousarray(DEEP.transpose(2, 0, 1)), photometric="rgb",
                     planarconfig="separate")
    with pytest.raises(ValueError, match="16-bit samples laid out as R"):
        read(tmp_path / "a.tif")


# --- through the network --------------------------------------------------------------------------------------------


def test_rgb_is_what_the_study_scores():
    picture = Picture((RGB / 255).astype(np.float32))
    assert np.array_equal(enlarge(model(), picture).channels, super_resolve(model(), RGB))


def test_grey_transparent_and_tiny_pictures():
    grey = (RGB[..., :1] / 255).astype(np.float32)
    through = enlarge(model(), Picture(grey, np.full((20, 30), 0.5, np.float32), 16))
    expected = super_resolve(model(), np.repeat(RGB[..., :1], 3, 2)).mean(2, keepdims=True)
    assert through.channels.shape == (40, 60, 2) and through.channels.dtype == np.uint16
    assert np.allclose(through.colour * 255, expected, atol=1) and np.allclose(through.alpha, 0.5)
    assert enlarge(model(), Picture(grey[:1, :1])).colour.shape == (2, 2, 1)
    assert enlarge(model(), Picture(np.ones((1, 70, 3), np.float32))).colour.shape == (2, 140, 3)


def test_plan(tmp_path):
    for name in ("in/a.JPG", "in/sub/b.png", "in/notes.txt", "in/.hidden.png", "in/out/old.png"):
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
def test_one_bad_file_does_not_stop_the_rest(file, tmp_path, capsys):
    inside, out = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    for name in ("b.png", "c.png", "c.bmp"):
        Image.fromarray(RGB).save(inside / name)
    (inside / "a.png").write_text("no picture")
    assert main(["upscale", str(inside), str(tmp_path / "absent.png"), "-o", str(out)]) == 1
    said = capsys.readouterr()
    assert "2 written" in said.out and "3 failed" in said.out
    for line in (f"error: {inside / 'a.png'}: no picture", f"error: {inside / 'c.png'}: its result",
                 f"error: {tmp_path / 'absent.png'}: "):
        assert line in said.err
    network, _ = weights.load(file)
    assert np.array_equal(np.array(Image.open(out / "b_x2.png")), super_resolve(network, RGB))
    assert sorted(p.name for p in out.iterdir()) == ["b_x2.png", "c_x2.png"]


@pytest.mark.filterwarnings("ignore:.*only to see that everything runs")
def test_inputs_are_never_overwritten(file, tmp_path):
    for name in ("a.png", "a_x2.png"):
        Image.fromarray(RGB).save(tmp_path / name)
    before = (tmp_path / "a_x2.png").read_bytes()
    with pytest.warns(UserWarning, match="only to see that everything runs"):
        written, failed = upscale.upscale([tmp_path / "a.png", tmp_path / "a_x2.png"], tmp_path, show=False)
    assert written == [tmp_path / "a_x2_x2.png"] and list(failed) == [tmp_path / "a.png"]
    assert (tmp_path / "a_x2.png").read_bytes() == before
    assert main(["upscale", str(tmp_path / "a.png"), "-o", str(tmp_path / "a.png")]) == 1


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
    run, text = trained[0], card.write().read_text()
    scores = study.scores([run]).set_index("image").psnr_y
    gains = card.gains(weights.index()[file.name]).set_index("image")
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
    text = card.beside_published({"spec": {"scale": scale}, "scores": {"Set5": {"psnr_y": psnr}}})
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
