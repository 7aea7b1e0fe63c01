"""PSNR and SSIM of images of 8 bits, or of floats from 0 to 255."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

PSNR_CAP = 100.0
"""dB. An identical image has infinite PSNR, which no mean and no JSON survives; no tokenizer comes near the cap."""


def _check(a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape or a.ndim != 4 or a.dtype != b.dtype or a.dtype not in (torch.uint8, torch.float32):
        raise ValueError(
            "two (B, C, H, W) of one shape, uint8 or float32, expected, not "
            f"{a.dtype} {tuple(a.shape)} and {b.dtype} {tuple(b.shape)}"
        )


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """PSNR of each pair of images: 10 log10(255² / MSE), capped at `PSNR_CAP`.

    a, b: (B, C, H, W), uint8 or floats from 0 to 255. Returns float64 (B,), in dB.
    """
    _check(a, b)
    mse = (a.double() - b.double()).square().mean(dim=(1, 2, 3))
    return (10 * torch.log10(255.0**2 / mse)).clamp(max=PSNR_CAP)


_GAUSSIAN, _SIGMA, _FLAT = 11, 1.5, 7  # pixels: the sides of windows, and how wide the Gaussian in one is


def _gaussian(device: torch.device) -> Tensor:
    offsets = torch.arange(_GAUSSIAN, dtype=torch.float64, device=device) - (_GAUSSIAN - 1) / 2
    weights = torch.exp(-offsets.square() / (2 * _SIGMA**2))
    return weights / weights.sum()


def _check_side(a: Tensor, least: int, what: str) -> None:
    if min(a.shape[-2:]) < least:
        raise ValueError(f"{what} needs images of at least {least}×{least}, not {a.shape[-2]}×{a.shape[-1]}")


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity of each pair of images (Wang et al., 2004, doi:10.1109/TIP.2003.819861).

    a, b: (B, C, H, W), uint8 or floats from 0 to 255, with H, W ≥ 11. Returns float64 (B,). Each channel on its own,
    range 255, K1 0.01, K2 0.03, only windows that lie inside the image. scikit-image gives the same with
    gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255: it filters with a margin and crops
    the margin off.
    """
    _check(a, b)
    _check_side(a, _GAUSSIAN, "SSIM's window")
    return _means(_of_windows(a.double(), b.double(), _gaussian(a.device))[0], len(a))


def uniform_ssim(a: Tensor, b: Tensor, data_range: float = 255.0) -> Tensor:
    """SSIM of each pair of images as scikit-image has it by default: a flat window, and the sample covariance.

    a, b: (B, C, H, W), uint8 or floats from 0 to 255, with H, W ≥ 7. Returns float64 (B,): larger, the larger
    `data_range` is beside that of the values.
    """
    _check(a, b)
    _check_side(a, _FLAT, "this SSIM's window")
    flat = torch.full((_FLAT,), 1 / _FLAT, dtype=torch.float64, device=a.device)
    sample = _FLAT**2 / (_FLAT**2 - 1)
    return _means(_of_windows(a.double(), b.double(), flat, data_range, sample)[0], len(a))


SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""The powers of MS-SSIM's scales, from fine to coarse."""


def ms_ssim(a: Tensor, b: Tensor) -> Tensor:
    """Multi-scale SSIM of each pair of images (Wang et al., 2003, doi:10.1109/ACSSC.2003.1292216).

    a, b: uint8 (B, C, H, W) with H, W ≥ 161. Returns float64 (B,) in [0, 1]. torchmetrics gives the same with
    data_range=255 and normalize="relu", where it takes the images (from 176 pixels): at the last scale it takes the
    windows at every position of the image mirrored at its border, at the others those inside.
    """
    _check(a, b)
    _check_side(a, (_GAUSSIAN - 1) * 2 ** (len(SCALES) - 1) + 1, "MS-SSIM")
    x, y, product = a.double(), b.double(), a.new_ones(len(a), dtype=torch.float64)
    window = _gaussian(a.device)
    for scale, power in enumerate(SCALES, start=1):
        if scale < len(SCALES):
            _, of_scale = _of_windows(x, y, window)
        else:
            mirrored_x, mirrored_y = (functional.pad(t, (5, 5, 5, 5), mode="reflect") for t in (x, y))
            of_scale, _ = _of_windows(mirrored_x, mirrored_y, window)
        product = product * _means(of_scale, len(a)).clamp(min=0) ** power
        x, y = functional.avg_pool2d(x, 2), functional.avg_pool2d(y, 2)
    return product


def _of_windows(
    a: Tensor, b: Tensor, window: Tensor, data_range: float = 255.0, sample: float = 1.0
) -> tuple[Tensor, Tensor]:
    """SSIM and its contrast-structure term, of every window inside float64 (B, C, H, W).

    `window` are the weights of a line; variances are `sample` times those of the window as a population.
    """

    def blur(x: Tensor) -> Tensor:
        rows = functional.conv2d(x, window.view(1, 1, -1, 1))
        return functional.conv2d(rows, window.view(1, 1, 1, -1))

    x, y = (t.flatten(0, 1).unsqueeze(1) for t in (a, b))  # channels become images of one channel
    mx, my = blur(x), blur(y)
    vx, vy, vxy = (sample * v for v in (blur(x * x) - mx * mx, blur(y * y) - my * my, blur(x * y) - mx * my))
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    similarity = (2 * mx * my + c1) * (2 * vxy + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))
    return similarity, (2 * vxy + c2) / (vx + vy + c2)


def _means(values: Tensor, images: int) -> Tensor:
    return values.view(images, -1).mean(dim=1)
