"""Known answers of PSNR and SSIM."""
import numpy as np
import pytest

from ikmlib.metrics import luma, psnr_y, ssim_y

random = np.random.default_rng(0)
HR = random.integers(0, 256, (40, 50, 3), dtype=np.uint8)


def test_luma_of_known_colours():
    colours = np.array([[[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]]], dtype=np.uint8)
    np.testing.assert_allclose(luma(colours)[0], [16, 235, 81.481, 144.553, 40.966])
    np.testing.assert_array_equal(luma(colours, round_y=True)[0], [16, 235, 81, 145, 41])


def test_psnr_of_a_constant_error():
    """One level on all of R, G and B is 219/255 levels of Y."""
    hr = np.full((20, 20, 3), 100, dtype=np.uint8)
    assert psnr_y(hr + 1, hr, shave=2) == pytest.approx(20 * np.log10(255 / (219 / 255)))
    assert psnr_y(hr, hr, shave=2) == float("inf")
    grey = hr[..., :1]
    assert psnr_y(grey + 1, grey, shave=2) == pytest.approx(20 * np.log10(255))   # a grey image's own full range


def test_shaved_border_does_not_count():
    sr = HR.copy()
    sr[:2], sr[-2:], sr[:, :2], sr[:, -2:] = 0, 0, 0, 0
    assert psnr_y(sr, HR, shave=2) == float("inf") and psnr_y(sr, HR, shave=1) < 40
    assert ssim_y(sr, HR, shave=2) == pytest.approx(1)


def test_ssim_is_wangs():
    """Against the formula of Wang et al. 2004, with an explicit 11 x 11 Gaussian window over valid positions."""
    sr = np.clip(HR.astype(int) + random.integers(-30, 31, HR.shape), 0, 255).astype(np.uint8)
    offsets = np.arange(11) - 5
    window = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * 1.5**2))
    window /= window.sum()

    def blur(image):
        return np.einsum("ijkl,kl->ij", np.lib.stride_tricks.sliding_window_view(image, (11, 11)), window)

    x, y = luma(sr)[3:-3, 3:-3], luma(HR)[3:-3, 3:-3]
    mx, my = blur(x), blur(y)
    vx, vy, vxy = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    expected = ((2 * mx * my + c1) * (2 * vxy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))).mean()
    assert ssim_y(sr, HR, shave=3) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize(("sr", "message"), [
    (HR[:-1], "differ"), (HR.astype(float), "uint8"), (HR[..., :2], "uint8 image")])
def test_wrong_images_are_refused(sr, message):
    with pytest.raises(ValueError, match=message):
        psnr_y(sr, HR if message == "differ" else sr, shave=2)


def test_too_small_to_score():
    with pytest.raises(ValueError, match="shave 20"):
        psnr_y(HR, HR, shave=20)
    with pytest.raises(ValueError, match="11 x 11"):
        ssim_y(HR, HR, shave=16)
