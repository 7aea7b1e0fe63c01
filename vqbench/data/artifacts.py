"""What methods are built around (`vqbench.quantizer.Artifact`): made of training images or read, once, and cached."""

from __future__ import annotations

import hashlib
import io
import itertools
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqbench.artifact import FIRST, Artifact, PatchFeatures
from vqbench.data.cache import PIXELS, cached_folder
from vqbench.data.dataset import Dataset
from vqbench.data.hashing import digest_of, first_by_hash
from vqbench.data.images import Chosen, centre_crop
from vqbench.data.kept import Advance
from vqbench.data.prepare import decode_or_name, not_kept
from vqbench.errors import UsageError, VQBenchError
from vqbench.machine.home import expanded
from vqbench.metrics.kinds import RGB, pictures_of
from vqbench.metrics.weights import pin_of
from vqbench.wording import counted

VERSION = 1
"""Goes up when a rule gives other numbers."""
_CHUNK = 16  # images at a time, on a CPU: so that the numbers do not depend on whether there is a GPU
_ITERATIONS = 20  # passes of k-means over all patches, at most
_BATCH = 4096  # patches of one of its steps
_MOST_BYTES = 4 * 2**30  # of all patches, which k-means has in memory
_ORDER = "patch centres"  # in which images are taken


def artifact_digest(artifact: Artifact, dataset: Any) -> str:
    """sha256 over the rule and all that goes into it: of a file what is in it; else images of a Dataset, and name and
    weights of the features. Libraries may round otherwise: which ones made a result is in its `versions`, and what
    they made in its `artifact_sha256`.

    Raises UsageError for a file that is no such array, and for fewer patches than centres.
    """
    if (features := artifact.made_of) is None:
        return _read(artifact)[1]
    each = features.patches * pictures_of(dataset.channels)
    found = each * min(artifact.images, len(dataset.train))
    if found < artifact.shape[0]:
        images = counted(found // each, "image")
        what = f"{artifact.shape[0]:,} centres cannot be made of the {found:,} patches of {images}"
        raise UsageError(what, "take more images, fewer codes, or a file of centres")
    of_image = 4 * each * artifact.shape[1]
    if (count := found // each) * of_image > _MOST_BYTES:
        what = f"the patches of {count:,} images take {count * of_image / 2**30:.1f} GiB at one time"
        raise UsageError(what, f"take at most {_MOST_BYTES // of_image:,} images")
    named = () if artifact.features == FIRST else (artifact.features,)
    made_with = (artifact.images, pin_of(features.weights).digest, *named)
    of_channels = () if dataset.channels == RGB else (dataset.channels,)  # digests of RGB are older than others
    return digest_of(
        VERSION, "patch_centres", artifact.shape, made_with, dataset.train_digest, dataset.resolution, *of_channels
    )


def load_artifact(
    artifact: Artifact,
    dataset: Any,
    weights: Path | None,
    home: Path,
    progress: Advance | None = None,
    planned: str | None = None,
) -> NDArray[np.float32]:
    """The array of an artifact, from the cache below `home` or made now; `weights` is a file of the user's, if any.

    Raises UsageError for what cannot be read, made or kept, and VQBenchError where its digest is not what was
    `planned`: it is that of the very bytes that the array is read from.
    """
    if (features := artifact.made_of) is None:
        array, digest = _read(artifact)
    else:
        digest = artifact_digest(artifact, dataset)
    if planned is not None and digest != planned:
        what = f"{artifact.path or 'what the codebook is made of'} has changed since this cell was planned"
        raise VQBenchError(what, "give the command again, it plans anew")
    if features is None:
        return array
    key = digest_of(digest, dataset.train.content_key)[:24]  # images that changed in place
    name = f"{dataset.slug}-{dataset.resolution}px-centres-{key}"

    def fill(file: Path) -> dict[str, Any]:
        centres = _centres(_patches(artifact, features, dataset, weights, home, progress), artifact)
        file.write_bytes(centres.tobytes())
        return {}

    try:
        folder = cached_folder(home / "prepared", name, fill)
    except OSError as error:
        raise not_kept(home, error) from None
    return np.fromfile(folder / PIXELS, np.float32).reshape(artifact.shape)


def _read(artifact: Artifact) -> tuple[NDArray[np.float32], str]:
    """The array of a file and its digest, of the same bytes."""
    path = expanded(Path(artifact.path)).absolute()
    wanted = f"a .npy file of floats of the shape {artifact.shape}, one vector a code"
    try:
        contents = path.read_bytes()
        array = np.load(io.BytesIO(contents), allow_pickle=False)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}", f"give {wanted}") from None
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UsageError(f"{path} is not {wanted} ({' '.join(str(error).split())})", "numpy.save writes one") from None
    whole = isinstance(array, np.ndarray) and array.shape == artifact.shape
    if not whole or not np.issubdtype(array.dtype, np.floating):
        found = f"{array.dtype} of the shape {array.shape}" if isinstance(array, np.ndarray) else "several arrays"
        raise UsageError(
            f"{path} holds {found}; expected {wanted}", "set codebook_size and channels to those of the file"
        )
    with np.errstate(over="ignore"):
        values: NDArray[np.float32] = array.astype(np.float32)
    if not np.isfinite(values).all():
        raise UsageError(f"{path} has values that are not finite in float32", f"give {wanted}")
    return values, digest_of("file", artifact.shape, hashlib.sha256(contents).hexdigest())


def _patches(
    artifact: Artifact,
    features: PatchFeatures,
    dataset: Dataset,
    weights: Path | None,
    home: Path,
    progress: Advance | None,
) -> NDArray[np.float32]:
    """(N, channels): what the network sees at each place of each image."""
    images = Chosen(dataset.train, first_by_hash(dataset.train.ids, artifact.images, _ORDER))
    crops = (centre_crop(pixels, dataset.resolution) for pixels in decode_or_name(images, None))
    network, done, each = _network(weights, home), 0, features.patches * pictures_of(dataset.channels)
    found = np.empty((len(images) * each, artifact.shape[1]), np.float32)
    for batch in _batches(crops):
        found[done * each : (done + len(batch)) * each] = network(batch)
        done += len(batch)
        if progress is not None:
            progress(done, len(images))
    return found


def _batches(crops: Iterator[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
    while batch := list(itertools.islice(crops, _CHUNK)):
        yield np.stack(batch)


def _network(weights: Path | None, home: Path) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    import torch

    from vqbench.metrics.channels import for_rgb
    from vqbench.metrics.inception import load
    from vqbench.metrics.weights import require_weights
    from vqbench.precision import plain_float32

    inception = load(require_weights("inception", weights, False, home), home)

    def network(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 (B, R, R, C) → (B · 289, 768); where that is not RGB (B · C · 289, 768), of each channel repeated."""
        with torch.inference_mode(), plain_float32(torch.device("cpu")):
            seen = inception.patches(for_rgb(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()))
            rows: NDArray[np.float32] = seen.flatten(2).mT.flatten(0, 1).numpy()
        return rows

    return network


def _centres(patches: NDArray[np.float32], artifact: Artifact) -> NDArray[np.float32]:
    """k-means centres (count, channels) of patches (N, channels), in mini-batches, from patches as they come."""
    count = artifact.shape[0]
    from sklearn.cluster import MiniBatchKMeans

    search = MiniBatchKMeans(
        count, init="random", n_init=1, random_state=0, batch_size=_BATCH, max_iter=_ITERATIONS, compute_labels=False
    )
    centres: NDArray[np.float32] = search.fit(patches).cluster_centers_.astype(np.float32)
    return centres
