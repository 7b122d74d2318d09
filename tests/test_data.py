"""imresize against MATLAB's files, the split, and the patch sampler against plain slicing."""
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from ikmlib import config, data, datasets
from ikmlib.data import (
    TEST_TWINS,
    VALIDATION_CROP,
    PatchSampler,
    centre_crop,
    crop_to_multiple,
    imresize,
    split,
    training_data,
)
from ikmlib.metrics import psnr_y, ssim_y

real_data = pytest.mark.skipif(not datasets.is_installed("Set5"), reason="Set5 is not installed (set IKM_DATA)")
random = np.random.default_rng(0)


def written_out(line, scale):
    """One row of MATLAB's bicubic, sample by sample, from its definition."""
    def cubic(x):
        x = abs(x)
        return 1.5 * x**3 - 2.5 * x**2 + 1 if x <= 1 else -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0

    n, stretch, out = len(line), min(scale, 1), []
    for i in range(round(n * scale)):
        centre = (i + 0.5) / scale - 0.5
        first, last = int(centre - 3 / stretch), int(centre + 3 / stretch) + 1
        taps = [(j, cubic(stretch * (centre - j))) for j in range(first, last + 1)]
        mirrored = [(j if j >= 0 else -1 - j, w) for j, w in taps]
        value = sum(w * line[j if j < n else 2 * n - 1 - j] for j, w in mirrored) / sum(w for _, w in taps)
        out.append(int(np.floor(min(max(value, 0), 255) + 0.5)))
    return out


@pytest.mark.parametrize("scale", [1 / 2, 1 / 3, 1 / 4, 2, 3])
def test_imresize_is_its_definition_height_first(scale):
    image = random.integers(0, 256, (12, 24, 1), dtype=np.uint8)
    tall = np.array([written_out([int(v) for v in column], scale) for column in image[..., 0].T]).T
    expected = np.array([written_out([int(v) for v in row], scale) for row in tall])
    np.testing.assert_array_equal(imresize(image, scale)[..., 0], expected)


@pytest.mark.parametrize(("size", "scale", "expected"), [
    ((10, 7), 1 / 3, (4, 3)), ((255, 255), 1 / 3, (85, 85)), ((5, 8), 2, (10, 16)), ((6, 9), 1.5, (9, 14))])
def test_imresize_sizes_and_channels(size, scale, expected):
    for channels in (1, 3, 5):
        image = random.integers(0, 256, (*size, channels), dtype=np.uint8)
        out = imresize(image, scale)
        assert out.shape == (*expected, channels) and out.dtype == np.uint8
        np.testing.assert_array_equal(out[..., :1], imresize(image[..., :1], scale))   # channels are independent


@pytest.mark.parametrize(("image", "scale"), [
    (np.zeros((4, 4, 3)), 0.5), (np.zeros((4, 4), np.uint8), 0.5), (np.zeros((4, 4, 3), np.uint8), 0)])
def test_imresize_refuses_other_input(image, scale):
    with pytest.raises(ValueError):
        imresize(image, scale)


@real_data
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_imresize_equals_matlab_in_every_pixel(scale):
    matlab = datasets.load("Set5_LR")
    for name, hr in datasets.load("Set5").items():
        lr = imresize(crop_to_multiple(hr, scale), 1 / scale)
        np.testing.assert_array_equal(lr, matlab[f"x{scale}/{name}x{scale}"])


@real_data
@pytest.mark.parametrize(("scale", "psnr", "ssim"), [(2, 33.64, 0.9292), (4, 28.42, 0.8101)])
def test_bicubic_row_of_table_1(scale, psnr, ssim):
    """The paper's Set5 row, to the last digit, with rounded Y."""
    rows = []
    for hr in datasets.load("Set5").values():
        hr = crop_to_multiple(hr, scale)
        sr = imresize(imresize(hr, 1 / scale), scale)
        rows.append([metric(sr, hr, shave=scale, round_y=True) for metric in (psnr_y, ssim_y)])
    found = np.mean(rows, 0)
    assert round(found[0], 2) == psnr and round(found[1], 4) == ssim


def test_split_of_embedded_images():
    train, validation = split(("embedded-train",))
    test = datasets.load("embedded-test")
    assert train and validation and test
    names = [{key.split("/")[-1] for key in images} for images in (train, validation, test)]
    assert not (names[0] & names[1] or names[0] & names[2] or names[1] & names[2])
    assert all(max(image.shape[:2]) <= VALIDATION_CROP for image in validation.values())


@pytest.mark.parametrize("name", ["Set5", "BSD100", "embedded-test"])
def test_test_sets_are_never_trained_on(name):
    with pytest.raises(ValueError, match=name):
        split((name,))


@pytest.mark.skipif(not datasets.is_installed("BSDS500"), reason="BSDS500 is not installed (set IKM_DATA)")
def test_real_split_holds_no_test_image():
    train, validation = split(("BSDS500",))
    assert len(train) + len(validation) == 399 and len(validation) == 10
    assert not set(TEST_TWINS) & (set(train) | set(validation))
    assert not any("/val/" in name for name in [*train, *validation])
    bsd100 = {image.tobytes() for image in datasets.load("BSD100").values()}
    assert not any(image.tobytes() in bsd100 for image in train.values())
    folder = Path(os.environ["IKM_DATA"]) / "BSDS500" / "val"
    assert not any(name.split("/")[-1] == path.stem for name in train for path in folder.glob("*.jpg"))


def numbered(height, width, start):
    """An image whose every pixel is different, so that a patch names its place."""
    n = start + np.arange(height * width)
    return np.stack([n % 256, n // 256 % 256, n // 65536], -1).reshape(height, width, 3).astype(np.uint8)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_patches_are_aligned_crops_under_one_of_eight_symmetries(scale):
    images = {"a": numbered(10 * scale + 1, 14 * scale, 0), "b": numbered(9 * scale, 8 * scale, 9000)}
    sampler = PatchSampler(images, scale, 5)
    crops = {}
    for image in images.values():
        hr = crop_to_multiple(image, scale)
        lr = imresize(hr, 1 / scale)
        for top in range(lr.shape[0] - 4):
            for left in range(lr.shape[1] - 4):
                low = lr[top:top + 5, left:left + 5]
                high = hr[top * scale:(top + 5) * scale, left * scale:(left + 5) * scale]
                for turns in range(4):
                    for flip in (False, True):
                        pair = [np.rot90(part[:, ::-1] if flip else part, turns) for part in (low, high)]
                        crops[pair[1].tobytes()] = pair[0]
    seen = set()
    for update in range(20):
        lr, hr = ((x.permute(0, 2, 3, 1) * 255).round().byte().numpy() for x in sampler.batch(0, update, 8))
        for low, high in zip(lr, hr, strict=True):
            np.testing.assert_array_equal(low, crops[high.tobytes()])
            seen.add(high.tobytes())
    assert len(seen) > 130   # of 160 draws: positions and symmetries really vary


def test_batches_depend_on_seed_and_update_alone():
    images = {"a": numbered(40, 50, 0)}
    one, two = (PatchSampler(images, 2, 6) for _ in range(2))
    one.batch(0, 1, 4)
    for u in (3, 2):
        assert all(torch.equal(a, b) for a, b in zip(one.batch(5, u, 4), two.batch(5, u, 4), strict=True))
    assert not torch.equal(one.batch(5, 2, 4)[0], one.batch(5, 3, 4)[0])
    assert not torch.equal(one.batch(5, 2, 4)[0], one.batch(6, 2, 4)[0])


def test_draws_go_to_a_gpu_from_pinned_memory_and_without_waiting(monkeypatch):
    sampler, sent = PatchSampler({"a": numbered(40, 50, 0)}, 2, 6), []
    expected = sampler.draw(5, 3, 4)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: setattr(self, "pinned", True) or self)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *to, **how: sent.append((self, to, how)) or self)
    sampler.device = torch.device("cuda")
    sampler.draw(5, 3, 4)
    (tensor, to, how), = sent
    assert torch.equal(tensor, expected) and tensor.pinned
    assert to == (torch.device("cuda"),) and how == {"non_blocking": True}


def test_grey_pictures_are_trained_on_as_grey_and_other_kinds_are_refused():
    grey = np.random.default_rng(0).integers(100, 110, (48, 48, 1), dtype=np.uint8)
    for patches in PatchSampler({"grey": grey}, 2, 8).batch(0, 0, 4):
        assert 99 / 255 < patches.min() and patches.max() < 111 / 255 and torch.equal(patches[:, 0], patches[:, 2])
    for other in (np.zeros((48, 48, 4), np.uint8), np.zeros((48, 48, 3), np.float32)):
        with pytest.raises(ValueError, match=rf"image other is {other.dtype} \(48, 48, .\); allowed"):
            PatchSampler({"grey": grey, "other": other}, 2, 8)


def test_an_unknown_training_set_is_named():
    with pytest.raises(ValueError, match="nope"):
        split(("nope",))


def test_image_smaller_than_a_patch():
    with pytest.raises(ValueError, match="image tiny of 30 x 50 pixels is smaller than an HR patch of 32 x 32"):
        PatchSampler({"fine": numbered(40, 40, 0), "tiny": numbered(30, 50, 0)}, 2, 16)


def test_training_data_leaves_small_images_out_and_says_so(monkeypatch):
    images = {"large": numbered(64, 64, 0), "small": numbered(20, 64, 0)}
    monkeypatch.setattr(datasets, "load", lambda name: images)
    training_data.cache_clear()
    _, validation, left_out = training_data(("embedded-train",), 2, 16, "cpu")
    training_data.cache_clear()
    assert left_out == ("embedded-train/small",) and set(validation) == {"embedded-val/large", "embedded-val/small"}


def test_centre_crop():
    image = numbered(9, 5, 0)
    np.testing.assert_array_equal(centre_crop(image, 4), image[2:6, 0:4])
    np.testing.assert_array_equal(centre_crop(image, 20), image)


def test_lr_images_of_large_sets_are_made_once(tmp_path, monkeypatch):
    monkeypatch.setenv("IKM_CACHE", str(tmp_path))
    images = [np.random.default_rng(i).integers(0, 256, (24 + i, 30, 3), dtype=np.uint8) for i in (0, 2)]
    expected = data.downsampled(images, 2)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(data, "KEPT_ABOVE", 0)
    assert all(np.array_equal(*both) for both in zip(data.downsampled(images, 2), expected, strict=True))
    monkeypatch.setattr(data, "imresize", None)   # any new one fails
    assert all(np.array_equal(*both) for both in zip(data.downsampled(images, 2), expected, strict=True))
    with pytest.raises(TypeError):
        data.downsampled(images, 3)


def test_auto_says_so_where_there_is_a_driver_but_no_gpu_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 470.57\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.warns(UserWarning, match=r"torch 2\..* finds no GPU: the NVIDIA driver \(470.57\).*IKM_TORCH_INDEX"):
        assert config.get_profile("auto").name == "smoke"
