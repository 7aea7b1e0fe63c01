"""What a method is built around: made of training images or read from a file, hashed, kept, and given to its cells."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.commands import Command, settings, typed
from helpers.training import TINY, Noise
from numpy.typing import NDArray

import vqbench
from vqbench.artifact import FEATURES, Artifact
from vqbench.cell.planned import artifact_facts, receive
from vqbench.data.artifacts import artifact_digest, load_artifact
from vqbench.data.dataset import open_dataset
from vqbench.data.stream import TrainingStream
from vqbench.errors import UsageError, VQBenchError
from vqbench.methods.movq import MoVQ
from vqbench.metrics.inception import Inception, load
from vqbench.metrics.weights import require_weights
from vqbench.planning.plan import check_request, make_plan
from vqbench.planning.request import RunRequest
from vqbench.recipe import load_recipe
from vqbench.tokenizer import Tokenizer, build_tokenizer, configured
from vqbench.training.fit import train

K = 16
OF_PATCHES = Artifact("patch_centres", (K, 768), images=3)


@pytest.fixture(scope="module")
def inception(tmp_path_factory: pytest.TempPathFactory) -> Inception:
    home = tmp_path_factory.mktemp("inception")
    return load(require_weights("inception", None, False, home), home)


def dataset(images: Path) -> Any:
    return open_dataset(f"folder:{images}", 32, None, None)


def squared_distance(patches: NDArray[Any], centres: NDArray[Any]) -> float:
    """Of each patch to the nearest centre, in the mean."""
    return float(torch.cdist(torch.from_numpy(patches), torch.from_numpy(centres)).amin(1).square().mean())


def test_patches_are_what_the_pooled_features_are_the_mean_of(inception: Inception) -> None:
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        patches, before = inception.patches(pixels), inception(pixels)
        inception.net.features_list = ["768"]
        (pooled,) = inception.net(pixels)
        inception.net.features_list = ["2048"]
        assert torch.equal(inception(pixels), before)  # and whoever scores with it next is not disturbed
    assert patches.shape == (2, 768, 17, 17)
    torch.testing.assert_close(patches.mean((2, 3)), pooled)


def test_centres_are_nearer_to_the_patches_than_patches_are(images: Path, inception: Inception, tmp_path: Path) -> None:
    """Nearer, in the mean, than the patches of any of ten draws, and not much further than k-means on them all."""
    from sklearn.cluster import KMeans

    data = dataset(images)
    told: list[tuple[int, int]] = []
    centres = load_artifact(OF_PATCHES, data, None, tmp_path, lambda done, total: told.append((done, total)))
    assert (centres.shape, centres.dtype, told[-1]) == ((K, 768), np.float32, (3, 3))
    again = load_artifact(OF_PATCHES, data, None, tmp_path, lambda *_: pytest.fail("it is there already"))
    assert np.array_equal(centres, again)
    crops = [data.train.load(i)[4:36, 4:36] for i in range(len(data.train))]
    with torch.inference_mode():
        seen = inception.patches(torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).contiguous())
    rows = seen.flatten(2).mT.numpy()  # (images, 289, 768)
    nearest = np.array([squared_distance(rows[i], centres) for i in range(len(rows))])
    used = np.sort(np.argsort(nearest)[:3])  # the images that it is made of are the ones it fits best
    patches = rows[used].reshape(-1, 768)
    random = np.random.default_rng(0)
    drawn = [squared_distance(patches, patches[random.choice(len(patches), K, False)]) for _ in range(10)]
    found = squared_distance(patches, centres)
    assert found < min(drawn)
    assert found < 1.25 * squared_distance(patches, KMeans(K, n_init=3, random_state=1).fit(patches).cluster_centers_)


def test_a_digest_is_of_the_rule_and_of_all_that_goes_into_it(images: Path, tmp_path: Path) -> None:
    data, file = dataset(images), tmp_path / "centres.npy"
    np.save(file, np.ones((K, 4), np.float32))
    of_file = Artifact("file", (K, 4), path=str(file))
    digests = [artifact_digest(of_file, data)]
    np.save(file, np.zeros((K, 4), np.float32))
    digests += [artifact_digest(of_file, data), artifact_digest(OF_PATCHES, data)]
    digests += [artifact_digest(Artifact("patch_centres", (K, 768), images=4), data)]
    digests += [artifact_digest(OF_PATCHES, open_dataset(f"folder:{images}", 16, None, None))]
    digests += [artifact_digest(OF_PATCHES, open_dataset(f"folder:{images / 'train'}", 32, None, None))]
    assert len(set(digests)) == len(digests)
    assert digests[2] == artifact_digest(Artifact.of(json.loads(json.dumps(vars(OF_PATCHES)))), data)


def test_other_features_of_the_same_network_have_another_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other layers have 768 channels of 17 × 17 places too; the digest of today's is in the hashes of stored cells."""
    monkeypatch.setitem(FEATURES, "inception_mixed_6d", FEATURES["inception_mixed_6e"])
    photos = open_dataset("photos", 32)
    assert artifact_digest(OF_PATCHES, photos) == "5dd6a891c546b0c36df36fc389d7c6b560e7548f95d2bea61770bdd7b27bf46f"
    of_others = Artifact("patch_centres", (K, 768), images=3, features="inception_mixed_6d")
    assert artifact_digest(of_others, photos) != artifact_digest(OF_PATCHES, photos)


def test_a_file_that_changes_while_it_is_read_is_what_its_digest_says_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, planned_for = tmp_path / "centres.npy", np.ones((K, 4), np.float32)
    np.save(file, planned_for)
    of_file, read = Artifact("file", (K, 4), path=str(file)), Path.read_bytes
    planned = artifact_digest(of_file, None)

    def read_and_change(path: Path) -> bytes:
        contents = read(path)
        np.save(path, np.zeros((K, 4), np.float32))
        return contents

    monkeypatch.setattr(Path, "read_bytes", read_and_change)
    assert np.array_equal(load_artifact(of_file, None, None, tmp_path, planned=planned), planned_for)
    with pytest.raises(VQBenchError, match=r"centres\.npy has changed since this cell was planned") as refused:
        load_artifact(of_file, None, None, tmp_path, planned=planned)
    assert "plans anew" in refused.value.hint


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file"),
        (np.ones((K, 5), np.float32), r"float32 of the shape \(16, 5\); expected .*\(16, 4\)"),
        (np.ones((K, 4), int), "int64 of the shape"),
        (np.full((K, 4), np.nan), "not finite"),
        (b"no array", "is not a .npy file"),
    ],
)
def test_a_file_that_is_no_codebook_is_refused_by_name(content: Any, said: str, images: Path, tmp_path: Path) -> None:
    file = tmp_path / "centres.npy"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        np.save(file, content)
    with pytest.raises(UsageError, match=said) as refused:
        artifact_digest(Artifact("file", (K, 4), path=str(file)), dataset(images))
    assert "centres.npy" in refused.value.what


def test_more_patches_than_memory_holds_are_refused() -> None:
    photos = open_dataset("photos", 32)
    with pytest.raises(UsageError, match=r"the patches of 5,000 images take 4\.1 GiB") as refused:
        artifact_digest(Artifact("patch_centres", (K, 768), images=5000), photos)
    assert refused.value.hint == "take at most 4,837 images"
    artifact_digest(Artifact("patch_centres", (K, 768), images=4837), photos)


def test_more_centres_than_patches_are_refused_before_anything_is_made(images: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="512 centres cannot be made of the 289 patches of 1 image") as refused:
        plan_of(images, tmp_path, "vqgan_lc.images=1")
    assert refused.value.what.startswith("vqgan_lc: ")
    assert "vqbench show vqgan_lc" in refused.value.hint


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"rule": "kmeans"}, "patch_centres or file, not 'kmeans'"),
        ({"features": "clip"}, "inception_mixed_6e, not 'clip'"),
        ({"shape": (16, 64)}, "768 channels"),
        ({"images": 0}, "at least one image"),
        ({"rule": "file"}, "must name a path"),
        ({"shape": (16,)}, r"\(vectors, channels\)"),
    ],
)
def test_an_artifact_that_cannot_be_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Artifact(**{**vars(OF_PATCHES), **fields})


def plan_of(images: Path, runs: Path, *more: str) -> Any:
    request = RunRequest(("vqgan_lc",), f"folder:{images}", settings=tuple(more), runs=runs)
    return make_plan(check_request(request), ("psnr",))


def test_a_cells_hash_holds_what_is_in_the_file_and_not_where_it_lies(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, hashes = tmp_path / "centres.npy", []
    for value in (0, 1, 0):
        np.save(file, np.full((512, 768), value, np.float32))
        (cell,) = plan_of(images, tmp_path, f"vqgan_lc.centres={file}").cells
        hashes.append(cell.spec["hash"])
    assert hashes[0] == hashes[2] != hashes[1]
    elsewhere = tmp_path / "elsewhere" / "other.npy"
    elsewhere.parent.mkdir()
    shutil.copy(file, elsewhere)
    monkeypatch.chdir(elsewhere.parent)
    (moved,) = plan_of(images, tmp_path, "vqgan_lc.centres=other.npy").cells
    assert moved.spec["hash"] == hashes[0]
    assert moved.spec["config"]["centres"] == str(elsewhere)  # whatever the folder of who trains it
    (without,) = plan_of(images, tmp_path, "vqgan_lc.pretrained=false").cells
    assert "artifact" not in without.spec


def test_of_features_random_vectors_stand_for_it_and_that_is_said(images: Path, tmp_path: Path) -> None:
    request = RunRequest(("vqgan_lc", "movq", "vqgan"), f"folder:{images}", recipe="atomic", runs=tmp_path)
    plan = make_plan(check_request(request), ("usage",))
    assert "artifact" not in plan.cells[0].spec
    assert any("vqgan_lc: of features there are no patches" in note for note in plan.notes)
    assert any("movq: what it does in the decoder is not seen here" in note for note in plan.notes)
    assert sum("decoder" in note for note in plan.notes) == 1


def test_a_method_is_built_once_to_know_its_size_and_its_decoder(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built, begin = [], MoVQ.__init__
    monkeypatch.setattr(MoVQ, "__init__", lambda self, config: built.append(config) or begin(self, config))
    settings = ("movq.beta=0.2503",)  # which nobody has chosen before
    request = RunRequest(("movq",), f"folder:{images}", settings=settings, recipe="atomic", runs=tmp_path)
    (choice,) = check_request(request).choices
    assert choice.conditions_decoder
    assert choice.size is not None
    assert [config.beta for config in built].count(0.2503) == 1  # and once as it would be with nothing set


def test_of_features_a_file_is_taken_all_the_same(images: Path, tmp_path: Path) -> None:
    file = tmp_path / "centres.npy"
    np.save(file, np.random.default_rng(0).normal(size=(K, 6)).astype(np.float32))
    words = ["--set", f"vqgan_lc.centres={file}", "--set", "vqgan_lc.channels=6", "--set", f"codebook_size={K}"]
    answer = typed("run", "--recipe", "atomic", "--methods", "vqgan_lc", "--dataset", f"folder:{images}", *words,
                   "--images", 64, "--metrics", "usage", "--runs", tmp_path / "runs", "--json")  # fmt: skip
    assert answer.code == 0, answer.err
    from safetensors.numpy import load_file

    (weights,) = (tmp_path / "runs").glob("*/cells/*/checkpoints/tokenizer.safetensors")
    (found,) = (value for name, value in load_file(weights).items() if name.endswith("embedding"))
    assert np.array_equal(found, np.load(file))


def test_a_cell_is_trained_around_it_and_carries_it(vqbench_command: Command, images: Path, tmp_path: Path) -> None:
    """Prepared, trained, changed, and loaded where the file is gone."""
    file, runs = tmp_path / "centres.npy", tmp_path / "runs"
    centres = np.random.default_rng(0).normal(size=(K, 6)).astype(np.float32)
    np.save(file, centres)
    words = ["--set", f"vqgan_lc.centres={file}", "--set", "vqgan_lc.channels=6"]
    data = ["--dataset", f"folder:{images}", "--metrics", "psnr", *settings(f"codebook_size={K}")]
    prepared = typed("prepare", *data, "--methods", "vqgan_lc", *words)
    assert f"codebook  vqgan_lc: {K} vectors of 6 channels, file" in prepared.out, prepared.err
    asked = ["run", "--methods", "vqgan_lc", *data, *words, "--runs", runs, "--images", 16, "--json"]
    answer = vqbench_command(*asked)
    assert answer.code == 0, answer.err
    (cell,) = (runs / next(runs.iterdir()).name / "cells").iterdir()
    result = json.loads((cell / "result.json").read_text())
    assert result["artifact_sha256"] == hashlib.sha256(centres.tobytes()).hexdigest()
    np.save(file, centres + 1)
    (row,) = typed(*asked, "--dry-run").objects
    assert row["state"] == "missing"  # other centres, another cell
    file.unlink()
    tokenizer = vqbench.load(cell)
    assert torch.equal(tokenizer.quantizer.embedding.detach(), torch.from_numpy(centres))
    gone = typed(*asked)
    assert gone.code == 2
    assert "centres.npy" in gone.err


def test_a_training_that_goes_on_is_of_the_array_that_it_began_with(tmp_path: Path) -> None:
    """Another machine makes centres of its own, whose last bits may be others; the checkpoint has the first ones."""
    recipe = load_recipe("tiny", TINY)
    config = {"codebook_size": 16, "dim": 8, "centres": "given below", "channels": 6}
    first = np.random.default_rng(0).normal(size=(16, 6)).astype(np.float32)

    def trained(around: NDArray[np.float32], until: int) -> Tokenizer:
        def report(seen: int, rate: float) -> None:
            if seen > until:
                raise InterruptedError

        tokenizer = build_tokenizer("vqgan_lc", configured("vqgan_lc", config), recipe, 0)
        receive(tokenizer.quantizer, around)
        stream = TrainingStream(Noise(), recipe.resolution, 0, recipe.random_crop, recipe.flip)
        with contextlib.suppress(InterruptedError):
            train(tokenizer, stream, recipe, seed=0, folder=tmp_path, report=report)
        return tokenizer

    trained(first, recipe.checkpoint_images)
    quantizer = trained(first + 1e-6, recipe.images).quantizer
    assert torch.equal(quantizer.embedding.detach(), torch.from_numpy(first))
    assert artifact_facts(quantizer) == {"artifact_sha256": hashlib.sha256(first.tobytes()).hexdigest()}


def test_a_sweep_that_draws_what_cannot_be_had_goes_on(images: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "centres.npy", np.random.default_rng(0).normal(size=(512, 6)).astype(np.float32))
    (tmp_path / "sizes.yaml").write_text("recipe: {codebook_size: [512, 1024]}\n")
    answer = typed(
        "sweep", "vqgan_lc", "--recipe", "atomic", "--dataset", f"folder:{images}", "--images", 64, "--sampler", "grid",
        "--space", tmp_path / "sizes.yaml", "--set", f"vqgan_lc.centres={tmp_path / 'centres.npy'}", "--set",
        "vqgan_lc.channels=6", "--metrics", "quantization_error", "--runs", tmp_path / "runs", "--json",
    )  # fmt: skip
    assert answer.code == 0, answer.err
    states = {row["drawn"]["codebook_size"]: (row["state"], row["error"]) for row in answer.objects}
    assert states[512] == ("done", None)
    assert states[1024][0] == "failed"
    assert "centres.npy holds float32 of the shape (512, 6)" in states[1024][1]["message"]


@pytest.fixture(scope="module")
def vqbench_command(vqbench: Command) -> Command:
    return vqbench
