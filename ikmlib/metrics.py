"""PSNR and SSIM on the luminance channel, as the field scores super-resolution.

Y is ITU-R BT.601 luma (16..235) of the uint8 RGB image, in floating point. With `round_y` it is rounded to an integer
first, as MATLAB's rgb2ycbcr of a uint8 image does: that convention reproduces the paper's Bicubic rows at x2 and x4
(grey images on their own values), the float one the published scores of learned methods, such as IMDN's.
"""
import numpy as np
from skimage.metrics import structural_similarity

RGB_TO_Y = (65.481, 128.553, 24.966)   # BT.601, of RGB in 0..1; 16 is added


def luma(image: np.ndarray, *, round_y: bool = False) -> np.ndarray:
    """Y of a uint8 image: (H, W, 3) -> (H, W) float64 in 16..235; a grey (H, W, 1) image's own values, 0..255."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3):
        raise ValueError(f"expected a uint8 image (H, W, 3) or (H, W, 1), not {image.dtype} {image.shape}")
    if image.shape[2] == 1:
        return image[..., 0].astype(np.float64)
    y = 16 + image.astype(np.float64) @ np.array(RGB_TO_Y) / 255
    return np.floor(y + 0.5) if round_y else y


def _pair(sr: np.ndarray, hr: np.ndarray, shave: int, round_y: bool) -> tuple[np.ndarray, np.ndarray]:
    if sr.shape != hr.shape:
        raise ValueError(f"images differ in shape: {sr.shape} and {hr.shape}")
    if shave < 0 or 2 * shave >= min(hr.shape[:2]):
        raise ValueError(f"cannot shave {shave} pixels from every border of a {hr.shape[0]} x {hr.shape[1]} image")
    window = (slice(shave, hr.shape[0] - shave), slice(shave, hr.shape[1] - shave))
    return luma(sr, round_y=round_y)[window], luma(hr, round_y=round_y)[window]


def psnr_y(sr_uint8: np.ndarray, hr_uint8: np.ndarray, *, shave: int, round_y: bool = False) -> float:
    """Peak signal-to-noise ratio on Y in dB, peak 255; inf for equal images. uint8 (H, W, 3) or (H, W, 1).

    `shave` pixels are left out at every border (the scale factor, by convention). Raises ValueError for other types,
    differing shapes, or a shave that leaves nothing.
    """
    sr, hr = _pair(sr_uint8, hr_uint8, shave, round_y)
    mse = np.mean((sr - hr) ** 2)
    return float(10 * np.log10(255**2 / mse)) if mse > 0 else float("inf")


def ssim_y(sr_uint8: np.ndarray, hr_uint8: np.ndarray, *, shave: int, round_y: bool = False) -> float:
    """Structural similarity on Y (Wang et al. 2004).

    Gaussian 11 x 11 window, sigma 1.5, population covariance, L = 255. Arguments and errors as `psnr_y`; what is left
    after shaving must be at least 11 x 11.
    """
    sr, hr = _pair(sr_uint8, hr_uint8, shave, round_y)
    if min(sr.shape) < 11:
        raise ValueError(f"SSIM needs at least 11 x 11 pixels after shaving, not {sr.shape[0]} x {sr.shape[1]}")
    return float(structural_similarity(sr, hr, gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
                                       data_range=255))
