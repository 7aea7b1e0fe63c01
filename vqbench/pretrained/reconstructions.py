"""A folder of reconstructions as a tokenizer: images that another program made, scored against the validation images.

Nothing is known of their codes. Whoever scores asks for the reconstruction of an image by its pixels, so that a batch
may be in any order. Torch is imported where it is needed: a plan knows such a folder without it.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from vqbench.data.decode import (
    AS_EVER,
    SHOWN,
    SUFFIXES,
    ImageFileError,
    Reading,
    decode_image,
    measure_image,
    name_unusable,
    read_each,
)
from vqbench.data.encoded import unreadable
from vqbench.data.files import ImageFile, absolute, list_images, listing_key
from vqbench.data.filling import ahead
from vqbench.data.hashing import digest_of_each
from vqbench.data.images import centre_crop
from vqbench.errors import UsageError
from vqbench.facts import Facts
from vqbench.machine.cores import cores
from vqbench.machine.home import home, remembered_digest
from vqbench.pretrained.opened import Opened
from vqbench.registry import file_digest
from vqbench.wording import counted, some

if TYPE_CHECKING:
    from torch import Tensor

    from vqbench.data.prepare import PreparedImages

T = TypeVar("T")

_LOSSY = (".jpg", ".jpeg", ".webp")
_AHEAD = 64  # images


def reconstruction_facts(folder: Path) -> Facts:
    """What is known of a folder of reconstructions by itself; the digest is over names and bytes of its images.

    Raises UsageError where there is no such folder, it holds no image, or one cannot be read.
    """
    return _facts(absolute(folder), _listed(absolute(folder)))


def open_reconstructions(
    folder: Path, originals: Path | None, validation: PreparedImages, reading: Reading = AS_EVER
) -> Opened:
    """The images below `folder`, each as the reconstruction of the validation image of its name.

    Names are paths relative to the folder, without suffix; what all validation images lie in (`val/`) may be left out.
    `originals`, where given, is the folder of what was reconstructed: read as `reading` says, its images must be the
    validation images. Raises UsageError that names what is missing, ambiguous, of another size, or another picture.
    """
    folder = absolute(folder)
    files = _listed(folder)
    matched = _Matched(folder, files, validation.ids)
    problems = [*matched.problems, *_other_sizes(matched.files, validation)]
    if problems:
        hint = f"one image for each validation image, named as it is: {folder / _example(validation.ids[0])}"
        raise UsageError("; ".join(problems), hint)
    if originals is not None:
        _refuse_others(absolute(originals), validation, reading)
    paths, channels = [file.path for file in matched.files], validation.pixels[0].shape[2]
    codec = ReconstructionCodec(paths, _by_pixels(validation), channels)
    facts = _facts(folder, files, [*matched.remarks, *codec.twins(validation.ids)])
    return Opened(codec, facts)


class ReconstructionCodec:
    """Images to the positions of their reconstructions, and these to pixels. It has no codes, and no quantizer."""

    quantizer = None

    def __init__(self, files: Sequence[Path], by_pixels: Mapping[bytes, Sequence[int]], channels: int) -> None:
        self.files, self._by_pixels, self._reading = (
            files,
            by_pixels,
            Reading(whole=True, channels=1 if channels == 1 else 3),
        )

    def to_indices(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1], each a validation image to the last of its 8 bits → positions (B,), int64.

        Raises UsageError for any other image: of that there is no reconstruction.
        """
        import torch

        from vqbench.metrics.values import to_8_bits

        pixels = to_8_bits(images).permute(0, 2, 3, 1).cpu().numpy()
        found = [self._by_pixels.get(_key(one), (-1,))[0] for one in pixels]
        if -1 in found:
            what = f"image {found.index(-1)} of the batch is not one of the validation images"
            raise UsageError(what, "a folder of reconstructions has nothing for other images")
        return torch.tensor(found, device=images.device)

    def from_indices(self, indices: Tensor) -> Tensor:
        """Positions (B,) → their reconstructions (B, C, H, W) in [-1, 1]. Raises ImageFileError for a broken file."""
        import torch

        from vqbench.inputs import to_input

        positions = indices.tolist()
        pixels = np.stack(list(_in_order(lambda k: self.load(positions[k]), len(positions))))
        return to_input(torch.from_numpy(pixels).permute(0, 3, 1, 2).to(indices.device))

    def encode(self, images: Tensor) -> Tensor:
        """As `to_indices`, also of uint8."""
        import torch

        from vqbench.inputs import to_input

        return self.to_indices(to_input(images) if images.dtype == torch.uint8 else images)

    def decode(self, indices: Tensor) -> Tensor:
        """As `from_indices`."""
        return self.from_indices(indices)

    def load(self, position: int) -> NDArray[np.uint8]:
        """(H, W, C) reconstruction at a position, as it is stored."""
        return decode_image(self.files[position], 1, self._reading)

    def twins(self, ids: Sequence[str]) -> list[str]:
        """What must be said where one image is in the validation images twice, and its reconstructions differ."""
        groups = [several for several in self._by_pixels.values() if len(several) > 1]
        loaded = _in_order(lambda k: [self.load(i) for i in groups[k]], len(groups))
        unlike = [group for group, images in zip(groups, loaded, strict=True)
                  if any(not np.array_equal(images[0], other) for other in images[1:])]  # fmt: skip
        if not unlike:
            return []
        pairs = [f"{ids[i]} (scored as {ids[first]})" for first, *others in unlike for i in others]
        same = "the same image as another to the last pixel, and its reconstruction is not"
        return [f"{counted(len(pairs), 'validation image')}: {same}; that of the first is scored: {some(pairs, SHOWN)}"]


def _listed(folder: Path) -> list[ImageFile]:
    files = list_images(folder)
    if not files:
        what = f"{folder} holds no image ({' '.join(SUFFIXES)})"
        raise UsageError(what, "give folders of images: images:RECONSTRUCTIONS[,ORIGINALS]")
    return files


def _facts(folder: Path, files: Sequence[ImageFile], remarks: Sequence[str] = ()) -> Facts:
    def digest() -> str:
        found = read_each(lambda i: _digest_or_error(files[i].path), len(files))
        return digest_of_each(zip((file.id for file in files), found, strict=True))

    key = listing_key(files)
    lossy = sum(file.path.suffix.lower() in _LOSSY for file in files)
    compressed = [f"{counted(lossy, 'file')} in JPEG or WebP: what that loses is part of the scores"] if lossy else []
    return Facts(
        kind="images",
        name=folder.name,
        path=str(folder),
        sha256=remembered_digest(home() / "prepared" / f"reconstructions-{key[:24]}.txt", digest),
        remarks=(*compressed, *remarks),
    )


def _digest_or_error(path: Path) -> str | ImageFileError:
    try:
        return file_digest(path)
    except OSError as error:
        return unreadable(path, error)


def _stem(name: str) -> str:
    """A name without the suffix of an image; dots of other meanings stay."""
    path = PurePosixPath(name)
    return str(path.with_suffix("")) if path.suffix.lower() in SUFFIXES else name


def _example(name: str) -> str:
    return f"{_stem(name)}.png"


class _Matched:
    """Which file is of which validation image."""

    def __init__(self, folder: Path, files: Sequence[ImageFile], ids: Sequence[str]) -> None:
        self.folder = folder
        by_stem: dict[str, list[ImageFile]] = {}
        for file in files:
            by_stem.setdefault(_stem(file.id), []).append(file)
        exact = {file.id: file for file in files}
        wanted = [_stem(name) for name in ids]
        shared = _common_folder(ids)
        times = Counter(wanted)
        self.files: list[ImageFile] = []
        missing: list[str] = []
        ambiguous: list[str] = []
        for name, stem in zip(ids, wanted, strict=True):
            names = (name, name.removeprefix(shared))
            candidates = by_stem.get(stem) or by_stem.get(stem.removeprefix(shared)) or []
            found = next((exact[one] for one in names if one in exact), None)
            if found is None and len(candidates) == 1 and times[stem] == 1:
                found = candidates[0]
            if found is not None:
                self.files.append(found)
            else:
                (ambiguous if candidates else missing).append(name)
        self.left = sorted({file.id for file in files} - {file.id for file in self.files})
        self.problems = list(self._problems(missing, ambiguous, len(ids)))

    def _problems(self, missing: list[str], ambiguous: list[str], count: int) -> Iterator[str]:
        if missing:
            of = f"{len(missing):,} of {count:,} validation images have no reconstruction in {self.folder}"
            yield f"{of}: {some(missing, SHOWN)}"
        if ambiguous:
            of = f"which file of {self.folder} is the reconstruction is not clear from the name"
            yield f"{of}, for {counted(len(ambiguous), 'image')}: {some(ambiguous, SHOWN)}"
        if self.left and (missing or ambiguous):
            yield f"{counted(len(self.left), 'file')} there of no validation image: {some(self.left, SHOWN)}"

    @property
    def remarks(self) -> list[str]:
        """What must be said of files that nobody asked for."""
        if not self.left:
            return []
        of = f"{counted(len(self.left), 'image')} of the folder without a validation image, and not scored"
        return [f"{of}: {some(self.left, SHOWN)}"]


def _common_folder(ids: Sequence[str]) -> str:
    """The folder that all the names lie in, with its slash; empty where there is none."""
    parents = [PurePosixPath(name).parent.parts for name in ids]
    shared = list(parents[0])
    for parts in parents:
        while shared and tuple(shared) != parts[: len(shared)]:
            shared.pop()
    return "".join(f"{part}/" for part in shared)


def _other_sizes(files: Sequence[ImageFile], validation: PreparedImages) -> Iterator[str]:
    """Names of reconstructions that are not as large as their images, where each image has one.

    Raises UsageError that names those whose header, or whatever of them says their size, is broken.
    """
    if len(files) < len(validation.ids):
        return

    def size(k: int) -> tuple[int, int] | ImageFileError:
        try:
            return measure_image(files[k].path, 1, Reading(whole=True))
        except ImageFileError as error:
            return error

    sizes = list(_in_order(size, len(files)))
    if bad := [found for found in sizes if isinstance(found, ImageFileError)]:
        raise name_unusable(bad)
    wanted = (image.shape[:2] for image in validation.pixels)
    odd = [
        f"{file.id} ({found[0]}×{found[1]} for {size[0]}×{size[1]})"
        for file, found, size in zip(files, sizes, wanted, strict=True)
        if not isinstance(found, ImageFileError) and found != size
    ]
    if odd:
        yield f"{len(odd):,} of {len(files):,} reconstructions are not of the size of their images: {some(odd, SHOWN)}"


def _refuse_others(folder: Path, validation: PreparedImages, reading: Reading) -> None:
    """Raise UsageError where the images below `folder` are not the validation images."""
    matched = _Matched(folder, _listed(folder), validation.ids)
    names = [problem.replace("have no reconstruction", "are not").replace("is the reconstruction", "is the image")
             for problem in matched.problems]  # fmt: skip
    if names:
        raise UsageError("; ".join(names), "the originals are named as the images of the dataset, or left out")
    count = len(validation.ids)

    def apart(k: int) -> int | None:
        wanted = validation.pixels[k]
        side = min(wanted.shape[:2])
        found = centre_crop(decode_image(matched.files[k].path, side, reading), side, reading)
        return int(np.abs(found.astype(np.int16) - wanted).max()) if found.shape == wanted.shape else None

    unlike = [
        f"{file.id} ({'of another size' if most is None else f'up to {most} of 255 apart'})"
        for file, most in zip(matched.files, _in_order(apart, count), strict=True)
        if most != 0
    ]
    if unlike:
        what = f"{len(unlike):,} of {count:,} images of {folder} are not those of the dataset"
        raise UsageError(
            f"{what}, once read as the protocol reads them: {some(unlike, SHOWN)}",
            "score against the originals alone, which then are the dataset, or leave the originals out",
        )


def _by_pixels(validation: PreparedImages) -> dict[bytes, list[int]]:
    """Positions of the images, by their pixels."""
    found: dict[bytes, list[int]] = {}
    for i, key in enumerate(_in_order(lambda k: _key(validation.pixels[k]), len(validation.ids))):
        found.setdefault(key, []).append(i)
    return found


def _key(pixels: NDArray[np.uint8]) -> bytes:
    return hashlib.sha256(repr(pixels.shape).encode() + np.ascontiguousarray(pixels).tobytes()).digest()


def _in_order(work: Callable[[int], T], count: int) -> Iterator[T]:
    return ahead(work, range(count), cores(), _AHEAD)
