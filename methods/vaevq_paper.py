"""The numbers that VAEVQ's paper prints, to be shown beside ours. Paper: https://arxiv.org/abs/2511.06863."""

from __future__ import annotations

from vqbench.quantizer import PaperRow, Published

_SETTING = "K 16384, d 64, tokens per image and FID implementation not said"


def _row(name: str, *components: str, imagenet: float, brats: float) -> PaperRow:
    return PaperRow(name, frozenset(components), {"rfid": {"ImageNet 256 px": imagenet, "BraTS24": brats}})


def _both(metric: str, imagenet: float, brats: float, source: str) -> tuple[Published, Published]:
    forms = ("", "first", "paper")  # with the authors' code come no results, so `vaevq@released` has none
    return (
        Published(metric, imagenet, f"ImageNet 256 px, {_SETTING}", source, forms),
        Published(metric, brats, f"BraTS24 axial slices, {_SETTING}", source, forms),
    )


def baseline(metric: str, imagenet: float, brats: float, where: str = "table 1") -> tuple[Published, Published]:
    """What the paper prints for another method, which its authors trained."""
    source = f"{where} of the VAEVQ paper, whose authors trained it"
    return (
        Published(metric, imagenet, f"ImageNet 256 px, {_SETTING}", source),
        Published(metric, brats, f"BraTS24 axial slices, {_SETTING}", source),
    )


# Table 3: K = 16384, d = 64; which tokens per image and which FID is not said.
PAPER_ROWS = (
    _row("Baseline", imagenet=8.02, brats=10.47),
    _row("M1", "vlq", imagenet=2.84, brats=5.12),
    _row("M2", "vlq", "rcs", imagenet=1.92, brats=2.98),
    _row("M3", "vlq", "dcr", imagenet=2.18, brats=3.26),
    _row("Full", "vlq", "rcs", "dcr", imagenet=1.14, brats=2.50),
)

PUBLISHED = (
    *_both("rfid", 1.14, 2.50, "table 1 of the paper"),
    *_both("psnr", 22.05, 31.91, "table 1 of the paper"),
    *_both("ssim", 0.68, 0.95, "table 1 of the paper"),
    *_both("usage", 0.999, 0.998, "figure 5 of the paper"),
)
