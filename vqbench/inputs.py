"""What is handed to a tokenizer from outside: refused in a sentence, or brought to what its modules take.

Training and evaluation hand over what they made themselves, and do not pass here: to look at values is to wait for
the device.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDING = 1 / 127.5
"""How far beyond [-1, 1] a value may lie: one of the 8-bit steps, which is also the first of bfloat16 above 1."""

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
WHOLE = (
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.uint16, torch.uint32, torch.uint64),
)


def to_input(images: Tensor) -> Tensor:
    """8-bit images → float32 in [-1, 1], on whatever device they are, to the last bit what a CPU makes of them."""
    divisor = torch.full((), 127.5, device=images.device)  # CUDA multiplies by the reciprocal of a number of Python's
    return images.to(torch.float32, copy=True).div_(divisor).sub_(1)


def checked_images(images: Tensor, channels: int, downsampling: int, like: Tensor) -> Tensor:
    """Images (B, channels, H, W), uint8 or floats in [-1, 1] → in [-1, 1] and of the dtype of `like`, a weight.

    Raises TypeError for what is no such tensor, ValueError for another shape, device, NaN, and values beyond
    [-1, 1] by more than ROUNDING.
    """
    layout, from_array = f"(B, {channels}, H, W)", "torch.from_numpy(numpy.array(image))"
    way = f"{from_array}[None, None]" if channels == 1 else f"{from_array}.permute(2, 0, 1)[None]"
    _require_tensor(images, "images", layout, way)
    if images.dtype not in (torch.uint8, *_FLOATS):
        floats = "float16, bfloat16, float32 or float64 from -1 to 1"
        raise TypeError(f"images are {_name(images)}; expected uint8 from 0 to 255, or {floats}")
    _require_device(images, "images", like)
    shape, f = tuple(images.shape), downsampling
    if images.ndim != 4 or shape[1] != channels or any(side % f or side == 0 for side in shape[2:]):
        wanted = f"expected images {layout} with H and W divisible by {f}"
        raise ValueError(f"{wanted}, not {shape}{_towards_images(shape, channels)}")
    if images.dtype == torch.uint8:
        return to_input(images).to(like.dtype)
    if len(images):
        _require_range(images)
    return images.to(like.dtype)


def _towards_images(shape: tuple[int, ...], channels: int) -> str:
    if len(shape) == 3 and shape[0] == channels:
        return ": of one image images[None] is a batch"
    if len(shape) == 4 and (shape[1], channels) == (1, 3):
        return ": of grey images images.expand(-1, 3, -1, -1)"
    if len(shape) == 4 and shape[1] != channels and shape[3] == channels:
        return ": channels come first, images.permute(0, 3, 1, 2)"
    return ""


def _require_range(images: Tensor) -> None:
    low, high = torch.stack(torch.aminmax(images)).tolist()  # both are NaN where one value is
    if low >= -1 - ROUNDING and high <= 1 + ROUNDING:
        return
    nan = images.isnan()
    if bool(nan.any()):
        first = int(nan.flatten(1).any(1).nonzero()[0])
        others = images[~nan]
        rest = f", otherwise from {others.min():.6g} to {others.max():.6g}" if len(others) else ""
        raise ValueError(f"images are {_name(images)} with NaN, first in image {first}{rest}; expected -1 to 1")
    way = (
        "pixels from 0 to 255 are taken as uint8" if low >= 0 and high > 2 else "images.clamp(-1, 1) cuts off the rest"
    )
    raise ValueError(f"images are {_name(images)} from {low:.6g} to {high:.6g}, expected -1 to 1; {way}")


def checked_indices(indices: Tensor, per_token: tuple[int, ...], codebook_size: int, like: Tensor) -> Tensor:
    """Indices (B, h, w, *per_token) of any integer dtype → int64.

    Raises TypeError for what is no such tensor, ValueError for another shape or device than that of `like`, and
    indices outside [0, codebook_size).
    """
    layout = f"(B, h, w, {per_token[0]})" if per_token else "(B, h, w)"
    _require_tensor(indices, "indices", layout, "torch.from_numpy(codes)")
    if indices.dtype not in WHOLE:
        raise TypeError(f"indices are {_name(indices)}; expected whole numbers, as int64")
    _require_device(indices, "indices", like)
    shape = tuple(indices.shape)
    if shape[3:] != per_token or len(shape) < 3 or 0 in shape[1:]:
        way = ": of a row of tokens indices.reshape(len(indices), h, -1)" if len(shape) == 2 and not per_token else ""
        raise ValueError(f"expected indices {layout}, not {shape}{way}")
    wide = indices.long()
    if len(wide):
        low, high = torch.stack(torch.aminmax(wide)).tolist()
        if low < 0 or high >= codebook_size:
            known = f"the codebook has {codebook_size} codes, 0 to {codebook_size - 1}"
            raise ValueError(f"indices are {_name(indices)} from {low} to {high}; {known}")
    return wide


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _require_tensor(value: object, name: str, layout: str, way: str) -> None:
    if not isinstance(value, Tensor):
        kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
        raise TypeError(f"{name} must be a torch.Tensor {layout}, not {kind}; of an array: {way}")
    if value.layout != torch.strided or value.is_nested:
        raise TypeError(f"{name} must be a dense torch.Tensor {layout}, not a sparse or nested one")


def _require_device(tensor: Tensor, name: str, like: Tensor) -> None:
    if tensor.device != like.device:
        way = f'{name}.to("{like.device}")'
        raise ValueError(f"{name} are on {tensor.device}, the tokenizer on {like.device}: {way}")
