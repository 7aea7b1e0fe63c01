"""The command line as a stranger types it: listings, wrong inputs, start-up."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import termios
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import Answer, Command, settings, typed
from helpers.images import write_images
from helpers.stored import Made, make_runs
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from vqbench.cli.app import _exit_code, main
from vqbench.cli.terminal import Columns
from vqbench.errors import UsageError
from vqbench.machine import streams
from vqbench.machine.home import home_of_nobody
from vqbench.reports.experiment import load_experiment
from vqbench.reports.page import shown_path
from vqbench.running.run import run as run_in_python

HEAVY = ("torch", "lightning", "mlflow", "matplotlib", "pandas", "torchvision", "optuna", "scipy", "numpy")


@pytest.mark.parametrize("arguments", [["--help"], ["methods"], ["datasets"], ["run", "--help"]])
def test_listings_and_help_import_nothing_heavy(arguments: list[str]) -> None:
    script = (
        "import sys, vqbench.cli.app as cli\n"
        "code = cli._exit_code(lambda: cli.app(args=sys.argv[1:], standalone_mode=False), [])\n"
        f"print([m for m in {HEAVY!r} if m in sys.modules], code, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "[] 0"
    assert done.stdout


def test_completion_names_methods_without_importing_them() -> None:
    env = {
        **os.environ,
        "_VQBENCH_COMPLETE": "complete_bash",
        "COMP_WORDS": "vqbench run --methods vqgan,f",
        "COMP_CWORD": "3",
    }
    script = (
        "import sys; sys.argv = ['vqbench']; from vqbench.cli.app import app\n"
        "try: app(prog_name='vqbench')\n"
        "finally: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env, check=False)
    assert done.stdout.split() == ["vqgan,fsq", "False"]


PLUGIN_METHOD = """
from vqbench.methods.vqgan import VQGAN
from vqbench.registry import METHODS

@METHODS.register("mine")
class Mine(VQGAN):
    "Mine."
"""


def test_methods_lists_name_paper_components_origin(vqbench: Command) -> None:
    answer = vqbench("methods")
    assert answer.code == 0
    names = ("vqgan", "fsq", "sqvae", "vaevq", "rfsq", "lfq", "bsq", "llamagen", "ibq", "softvq", "gq", "vqp:CLASS")
    for text in (*names, "arXiv:2511.06863", "vlq, rcs, dcr", "vqbench 0."):
        assert text in answer.out
    for name in ("vqgan_ema", "simvq", "rqvae", "cvq", "wvq"):
        assert name in answer.out
    assert max(map(len, answer.out.splitlines())) <= 100


def test_all_is_every_method_and_the_list_is_json_too(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(PLUGIN_METHOD)
    known = [row["name"] for row in typed("methods", "--json").objects if ":" not in row["name"]]
    asked = ["--dataset", "photos", "--runs", tmp_path, "--metrics", "psnr", "--dry-run", "--json"]
    rows = typed("run", "--plugin", tmp_path / "mine.py", "--methods", "vaevq@first,ALL", *asked).objects
    assert sorted(row["method"] for row in rows) == sorted(["vaevq@first", *known, "mine"])
    assert {"vqgan", "fsq", "sqvae", "vaevq", "lfq", "rqvae"} <= set(known)
    (family,) = (row for row in typed("methods", "--json").objects if ":" in row["name"])
    assert family["paper"] == "https://github.com/lucidrains/vector-quantize-pytorch"
    refused(typed("ablate", "ALL", *asked), "ablate takes one method apart, not ALL")


def test_show_prints_every_field_and_the_components() -> None:
    from vqbench.registry import METHODS

    answer = typed("show", "vaevq")
    assert answer.code == 0
    for name in METHODS.get("vaevq").Config.__dataclass_fields__:
        assert name in answer.out
    assert "components that can be dropped: vlq (field vlq), rcs (field rcs), dcr (field dcr)" in answer.out
    assert "preset vaevq@paper" in answer.out
    assert "learning_rate" in typed("show", "tiny").out


def test_a_broken_plugin_is_listed_as_broken_and_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("def (:\n")
    answer = typed("methods", VQBENCH_PLUGINS=str(tmp_path / "bad.py"))
    assert answer.code == 0
    assert "vqgan" in answer.out
    assert "bad.py" in answer.err


def refused(answer: object, *said: str) -> None:
    """Exit 2, one `error:` line and one `hint:` line, no traceback, and the words that matter."""
    code, err = answer.code, answer.err  # type: ignore[attr-defined]
    assert code == 2, err
    lines = [line for line in err.splitlines() if line.startswith(("error:", "hint:"))]
    assert [line.split(":")[0] for line in lines] == ["error", "hint"], err
    assert "Traceback" not in err
    for text in said:
        assert text in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--methods", "vqgn"], "unknown method 'vqgn'; did you mean vqgan"),
        (["--methods", "vaevq@papr"], "unknown preset of vaevq 'papr'; did you mean paper"),
        (["--recipe", "tinny"], "unknown recipe 'tinny'; did you mean tiny"),
        (["--metrics", "rfdi"], "unknown metric 'rfdi'; did you mean rfid"),
        (["--lpips", "vgg19"], "unknown LPIPS net 'vgg19'; did you mean vgg"),
        (["--set", "vqgan.bta=1"], "unknown setting of vqgan 'bta'; did you mean beta"),
        (["--set", "vqgan.beta=much"], "vqgan.beta must be float, not 'much'"),
        (["--set", "learning_rat=1"], "did you mean learning_rate"),
        (["--set", "batch_size=half"], "recipe.batch_size must be int, not 'half'"),
        (["--set", "beta"], "not of the form method.field=value"),
        (["--set", "fsq.levels=8,8"], "unknown method in --set 'fsq'"),
        (["--set", "vqgan.dcr=false"], "unknown setting of vqgan 'dcr'"),
        (["--set", "vqgan.codebook_size=1"], "codebook_size must be at least 2"),
        (["--set", "codebook_size=1"], "codebook_size must be at least 2"),
        (["--set", "resolution=30"], "not divisible by the downsampling factor 4"),
        (["--seeds", "0,one"], "--seeds 0,one are not whole numbers"),
        (["--set", "learning_rate=nan"], "learning_rate must be finite"),
        (["--set", "dropout=2"], "dropout must be in [0, 1)"),
        (["--set", "channel_multipliers=0,1"], "channel_multipliers must be positive"),
        (["--set", "gan=hinge", "--set", "discriminator_layers=4"], "needs images of at least 64 px"),
        (["--set", "name=../../evil"], "name cannot be set"),
        (["--set", "resolution=8", "--metrics", "ssim"], "ssim is defined from 11 pixels a side"),
        (["--methods", "vqgan,vqgan@legacy", "--set", "vqgan.beta_on=codebook"], "are the same configuration"),
        (["--devices", "3"], "does not divide the batch of 16"),
        (["--micro-batch", "0"], "--micro-batch 0 holds no image"),
        (["--name", "a/b"], "cannot be a folder"),
        (["--plugin", "nowhere.py"], "cannot read plugin"),
        (["--metrics", "lpips_vgg", "--lpips-weights", "nowhere.pth"], "nowhere.pth"),
        (["--inception-weights", "nowhere.pth"], "nowhere.pth"),
        (["--config", "nowhere.yaml"], "cannot read --config"),
        (["--workers", "0"], "--workers 0, but at least one has to work"),
        (
            ["--workers", "2", "--scheduler", "tcp://host:8786"],
            "has workers of its own, --workers 2 would start others",
        ),
        (["--resources", "GPU"], "--resources GPU is not of the form NAME=AMOUNT"),
        (["--cell-timeout", "0"], "--cell-timeout 0 is not a time"),
        (["--recipe", "nowhere.yaml"], "cannot read recipe nowhere.yaml: No such file"),
        (["--frobnicate"], "No such option"),
    ],
)
def test_wrong_inputs_are_refused_with_the_way_out(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], said: str
) -> None:
    base = ["run", "--dataset", "photos", "--runs", tmp_path / "runs", "--metrics", "psnr"]
    methods = [] if "--methods" in arguments else ["--methods", "vqgan"]
    if "--metrics" in arguments or "--inception-weights" in arguments or "--lpips" in arguments:
        base = base[:-2]
    with pytest.raises(SystemExit) as stop:  # in this process: thirty times torch's import would take a minute
        main([str(word) for word in (*base, *methods, *arguments)])
    printed = capsys.readouterr()
    refused(Answer(int(stop.value.code or 0), printed.out, printed.err), said)
    assert not (tmp_path / "runs").exists()


def test_a_component_that_does_not_exist_is_named() -> None:
    answer = typed("run", "--methods", "vaevq", "--dataset", "photos", "--metrics", "psnr", "--set", "vaevq.vlc=false")
    refused(answer, "unknown setting of vaevq 'vlc'", "vlq")


def dataset_refused(tmp_path: Path, dataset: str, *said: str, more: tuple[object, ...] = ()) -> None:
    answer = typed(
        "run", "--methods", "fsq", "--dataset", dataset, "--runs", tmp_path / "runs", "--metrics", "psnr", *more
    )
    refused(answer, *said)
    assert not list(tmp_path.glob("runs/*/cells"))


def test_datasets_that_cannot_be_used(tmp_path: Path) -> None:
    dataset_refused(tmp_path, "fotos", "unknown dataset 'fotos'; did you mean photos")
    (tmp_path / "empty").mkdir()
    dataset_refused(tmp_path, f"folder:{tmp_path / 'empty'}", "holds no image")
    dataset_refused(tmp_path, f"folder:{write_images(tmp_path / 'one', 1)}", "holds only one image")
    dataset_refused(tmp_path, f"folder:{tmp_path / 'gone'}", "does not exist")
    dataset_refused(tmp_path, "ffhq", "--data-root")


def test_a_corrupt_image_is_named_before_anything_is_trained(tmp_path: Path) -> None:
    for side in ("train", "val"):
        folder = tmp_path / side
        write_images(folder / "train", 24)
        write_images(folder / "val", 8, seed=1)
        bad = folder / side / "0003.png"
        bad.write_bytes(bad.read_bytes()[:200])
        dataset_refused(tmp_path, f"folder:{folder}", "0003.png")


def test_a_name_that_is_not_utf_8_is_refused_by_all_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = tmp_path / os.fsdecode(b"na\xefve")
    write_images(odd / "train", 3)
    write_images(odd / "val", 2)
    (odd / "plugin.py").write_text("")
    (odd / "recipe.yaml").write_text("images: 8\n")
    np.save(odd / "f.npy", np.ones((40, 4), np.float32))
    said = f"{tmp_path}/na\\udcefve"
    photos = ["--dataset", "photos", "--metrics", "psnr"]
    run = ["run", "--methods", "fsq", "--runs", tmp_path / "runs"]
    plain = ["--dataset", f"folder:{odd}", "--metrics", "psnr"]
    for words in (
        ["prepare", *plain],
        [*run, *plain],
        ["prepare", *photos, "--recipe", odd / "recipe.yaml"],
        [*run, *photos, "--recipe", odd / "recipe.yaml"],
        [*run, *photos, "--plugin", odd / "plugin.py"],
        [*run, *photos, "--inception-weights", odd / "w.pth"],
        [*run, "--recipe", "atomic", "--features", odd / "f.npy"],
        ["run", "--methods", "fsq", "--runs", odd / "runs", *photos],
    ):
        answer = typed(*words)
        assert answer.code == 2, words
        assert "the name is not UTF-8\nhint: rename" in answer.err, words
    for words, variables in (
        (["prepare", *photos], {"VQBENCH_HOME": odd / "home"}),
        ([*run, "--dataset", "ffhq", "--metrics", "psnr"], {"VQBENCH_DATA_ROOT": odd}),
        (["run", "--methods", "fsq", *photos], {"VQBENCH_RUNS": odd / "runs"}),
        ([*run, "--metrics", "psnr"], {"VQBENCH_DATASET": f"folder:{odd}"}),
    ):
        with monkeypatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, str(value))
            answer = typed(*words)
        assert said in answer.err.splitlines()[-2], words
        assert answer.err.splitlines()[-2].endswith("the name is not UTF-8"), words
    with monkeypatch.context() as patch:
        patch.chdir(odd)
        for words in (["prepare", "--dataset", "folder:.", "--metrics", "psnr"], ["run", "--methods", "fsq", *photos]):
            assert said in typed(*words).err, words
    with pytest.raises(UsageError, match="the name is not UTF-8"):
        run_in_python("fsq", f"folder:{odd}", metrics=["psnr"], runs=tmp_path / "runs")
    with pytest.raises(UsageError, match="the name is not UTF-8"):
        run_in_python("fsq", "photos", metrics=["psnr"], runs=odd / "runs")
    assert not (tmp_path / "runs").exists()
    assert not (odd / "runs").exists()


def test_grey_images_are_taken_and_transparent_or_16_bit_ones_refused(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    write_images(folder / "train", 16)
    write_images(folder / "val", 8, seed=1)
    Image.open(folder / "train" / "0000.png").convert("L").save(folder / "train" / "grey.png")
    plan = ["run", "--methods", "fsq", "--dataset", f"folder:{folder}", "--metrics", "psnr", "--dry-run"]
    assert typed(*plan, "--runs", tmp_path / "runs").code == 0
    rgba = np.zeros((40, 40, 4), np.uint8)
    Image.fromarray(rgba).save(folder / "val" / "rgba.png")
    dataset_refused(tmp_path, f"folder:{folder}", "rgba.png", "transparen")
    (folder / "val" / "rgba.png").unlink()
    Image.fromarray(np.zeros((40, 40), np.uint16)).save(folder / "val" / "deep.png")
    dataset_refused(tmp_path, f"folder:{folder}", "deep.png", "more than 8 bits")


def test_a_runs_directory_that_cannot_be_written(tmp_path: Path, images: Path) -> None:
    (tmp_path / "file").write_text("")
    run = ["run", "--methods", "fsq", "--dataset", f"folder:{images}", "--metrics", "psnr", *settings()]
    refused(typed(*run, "--runs", tmp_path / "file" / "runs"), "cannot write to", "--runs DIR")


def test_no_space_on_disk_is_said_before_training(tmp_path: Path, images: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    if mount is None or os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    if subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], capture_output=True, check=False
    ).returncode:
        pytest.skip("this machine does not let us mount a small disk")
    try:
        run = ["run", "--methods", "fsq", "--dataset", f"folder:{images}", "--metrics", "psnr", *settings()]
        refused(typed(*run, "--runs", disk / "runs"), "GB free", "free some space")
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_plugin_with_a_syntax_error_names_the_line(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("import torch\nclass Mine(\n")
    run = ["run", "--methods", "fsq", "--dataset", "photos", "--metrics", "psnr", "--plugin", tmp_path / "bad.py"]
    refused(typed(*run), "bad.py, line 2")


def test_precedence_is_command_line_then_environment_then_file(tmp_path: Path, images: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(
        f"methods: [fsq, vqgan]\ndataset: 'folder:{images}'\nimages: 111\nmetrics: [psnr]\nname: from-file\n"
    )

    def planned(*arguments: str, **env: str) -> list[dict[str, object]]:
        answer = typed("run", "--config", config, "--dry-run", "--json", *arguments, "--runs", tmp_path / "runs", **env)
        assert answer.code == 0, answer.err
        return answer.objects

    from_file, from_env = planned(), planned(VQBENCH_IMAGES="222", VQBENCH_METHODS="fsq")
    from_line = planned("--images", "333", VQBENCH_IMAGES="222")
    assert [row["method"] for row in from_file] == ["fsq", "vqgan"]
    assert [row["method"] for row in from_env] == ["fsq"]
    assert len({from_file[0]["cell"], from_env[0]["cell"], from_line[0]["cell"]}) == 3
    assert "from-file" in str(from_file[0]["path"])
    explicit = typed(
        "run", "--methods", "fsq,vqgan", "--dataset", f"folder:{images}", "--images", "111", "--metrics", "psnr",
        "--dry-run", "--json", "--runs", tmp_path / "runs",
    )  # fmt: skip
    assert [row["cell"] for row in explicit.objects] == [row["cell"] for row in from_file]
    config.write_text(config.read_text().replace("[fsq, vqgan]", "fsq,vqgan") + "set: vqgan.beta=0.5\njson: true\n")
    answer = typed("run", "--config", config, "--dry-run", "--runs", tmp_path / "runs")
    assert answer.code == 0, answer.err
    assert answer.objects[0]["cell"] == from_file[0]["cell"]
    assert answer.objects[1]["cell"] != from_file[1]["cell"]
    config.write_text("metods: fsq\n")
    refused(typed("run", "--config", config), "unknown option", "did you mean methods")


def test_json_of_a_dry_run_has_the_documented_fields(images: Path, tmp_path: Path) -> None:
    answer = typed(
        "run", "--methods", "vaevq,fsq", "--dataset", f"folder:{images}", "--seeds", "0,1", "--metrics", "psnr",
        "--dry-run", "--json", "--runs", tmp_path,
    )  # fmt: skip
    rows = [json.loads(line) for line in answer.out.splitlines()]
    assert [(row["method"], row["seed"], row["state"]) for row in rows] == [
        ("vaevq", 0, "missing"), ("fsq", 0, "missing"), ("vaevq", 1, "missing"), ("fsq", 1, "missing"),
    ]  # fmt: skip
    assert {"cell", "method", "dataset", "recipe", "seed", "protocol", "state", "scores", "params",
            "train_images_per_s", "path", "collapse", "matched", "error"} == set(rows[0])  # fmt: skip
    assert len({row["protocol"] for row in rows}) == 1


SWALLOWED = """
import signal
from vqbench.machine import interrupts

class Odd:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)

interrupts.hear()
Odd()
print("went on", flush=True)
try:
    interrupts.check()
except KeyboardInterrupt:
    print("heard", flush=True)  # os._exit drops what a pipe has not been given yet
interrupts.check()
signal.raise_signal(signal.SIGINT)
"""


def test_an_interrupt_that_python_swallows_is_heard() -> None:
    done = subprocess.run([sys.executable, "-c", SWALLOWED], capture_output=True, text=True, check=False)
    assert done.stdout == "went on\nheard\n"
    assert "interrupted twice" in done.stderr
    assert done.returncode == 130


def shell(line: str, **env: str) -> subprocess.CompletedProcess[bytes]:
    """A line of shell in which `vqbench` is the command."""
    line = line.replace("vqbench", f'"{sys.executable}" -m vqbench')
    return subprocess.run(["sh", "-c", line], capture_output=True, env={**os.environ, **env}, timeout=120, check=False)


def test_the_version_and_the_name_of_the_command() -> None:
    asked = shell("vqbench --version; vqbench runn")
    assert asked.stdout.decode().startswith("vqbench 0.")
    assert asked.stdout.decode().count("\n") == 1
    assert "`vqbench --help` lists the options" in asked.stderr.decode()
    assert asked.returncode == 2


POSIX = {"PYTHONUTF8": "0", "LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize(
    ("encoding", "env"),
    [("ascii", POSIX), ("latin-1", {"PYTHONIOENCODING": "latin-1"})],
)
def test_signs_that_a_terminal_lacks_cost_nothing(tmp_path: Path, encoding: str, env: dict[str, str]) -> None:
    make_runs(tmp_path, "made", [Made("vaevq", method="vaevq"), Made("vqgan", failed={1: "no ✓ left: λ"})])
    done = shell(f"vqbench compare vaevq vqgan --runs {tmp_path}; vqbench report --help; vqbench methods; "
                 f"vqbench report --runs {tmp_path} --format md,csv,tex,json", **env)  # fmt: skip
    out = done.stdout.decode(encoding)
    assert done.returncode == 0, done.stderr
    assert "rFID v" in out
    assert "PSNR ^" in out
    assert f"{tmp_path}/made/report/report.tex" in out
    ends = {len(line) for line in out.splitlines() if line.startswith(("metric ", "rFID v", "perplexity ^"))}
    assert len(ends) == 1, out  # what is shown otherwise still stands in its column
    assert b"bug" not in done.stderr


@pytest.mark.parametrize("path", ["/dev/full", "&-"])
def test_an_output_that_takes_nothing_is_one_sentence(path: str) -> None:
    done = shell(f"vqbench methods >{path}; echo $? >&2; vqbench methods 2>{path}; vqbench runn 2>{path}; echo $? >&2")
    error, hint, first, last = done.stderr.decode().splitlines()
    assert error.startswith("error: the answer could not be printed to standard output: ")
    assert hint.startswith("hint: ")
    assert (first, last) == ("1", "2")
    assert b"vaevq" in done.stdout


def test_closed_ends_and_readers_that_leave() -> None:
    done = shell("vqbench methods <&- >&- 2>&-; echo $?; vqbench methods | head -1; vqbench methods | true")
    assert done.stdout.decode().splitlines()[0] == "1"
    assert done.stdout.decode().splitlines()[1].startswith("method")
    assert done.stderr == b""


def test_a_file_opened_later_is_not_standard_output(tmp_path: Path) -> None:
    script = (
        "import os, sys; from vqbench.machine import streams; streams.open_standard()\n"
        f"file = open({str(tmp_path / 'a.db')!r}, 'w'); print('lost'); streams.say('too')\n"
        "os.write(1, b'raw'); os.write(2, b'raw'); file.close(); sys.exit(streams.lost() is None)"
    )
    subprocess.run(f"'{sys.executable}' -c \"$SCRIPT\" >&- 2>&-", shell=True, env={**os.environ, "SCRIPT": script},
                   check=True)  # fmt: skip
    assert (tmp_path / "a.db").read_text() == ""


def test_a_note_never_stops_a_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ascii_file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    for stream in (ascii_file, None, open("/dev/full", "w")):  # noqa: SIM115
        monkeypatch.setattr(sys, "stderr", stream)
        streams.say("5 × 3 → λ")
        monkeypatch.undo()
    ascii_file.seek(0)
    assert ascii_file.read() == "5 x 3 -> \\u03bb\n"


def test_a_deleted_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    done = shell(f"cd {tmp_path}/gone && rmdir ../gone && vqbench run --methods fsq --dataset photos")
    refused(Answer(done.returncode, "", done.stderr.decode()), "no longer exists", "cd DIR")


def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is a user's who has no home."""
    for name in ("HOME", "XDG_CACHE_HOME", "TORCH_HOME", "VQBENCH_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: os.fspath(path))  # what it does where there is no such user


def test_a_user_without_a_home_is_told_of_ours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from vqbench.metrics.weights import find_weights

    nobody(monkeypatch)
    refused(typed("run", "--methods", "fsq", "--dataset", "photos", "--runs", tmp_path), "HOME is not set",
            "export VQBENCH_HOME=DIR")  # fmt: skip
    refused(typed("sync", "--runs", tmp_path), "HOME is not set", "export VQBENCH_HOME=DIR")
    monkeypatch.setenv("VQBENCH_HOME", str(tmp_path / "ours"))
    assert "ours/weights" in str(find_weights("alex"))
    assert home_of_nobody() == {"HOME": str(tmp_path / "ours")}
    assert shown_path(tmp_path) == str(tmp_path)
    monkeypatch.undo()
    assert home_of_nobody() == {}


def test_a_disk_that_refuses_is_no_bug() -> None:
    def refuse() -> None:
        raise OSError(28, "No space left on device", "/disk/a")

    with contextlib.redirect_stderr(io.StringIO()) as said:
        assert _exit_code(refuse, []) == 1
    assert said.getvalue().startswith("error: No space left on device (/disk/a)\nhint: ")


words = st.text("abcdef↓±é", min_size=1, max_size=24)
numbers = st.floats(-1e6, 1e6).map(lambda x: f"{x:,.2f}")
cells = st.one_of(st.lists(words, max_size=6).map(" ".join), numbers, st.tuples(numbers, numbers).map("\n± ".join))


tables = st.integers(1, 12).flatmap(lambda n: st.lists(st.lists(cells, min_size=n, max_size=n), min_size=1, max_size=4))


@given(st.integers(20, 200), tables, st.sampled_from(["utf-8", "ascii"]))
@hypothesis_settings(max_examples=60, deadline=None)
def test_no_width_cuts_a_number(width: int, rows: list[list[str]], encoding: str) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="vqbench.readable")
    titles = ["name", *(f"column {i}" for i in range(1, len(rows[0])))]
    table = Columns(titles, [False, *(True for _ in titles[1:])])
    for row in rows:
        table.add(*row)
    table.print(Console(file=out, width=width, highlight=False))
    out.seek(0)
    shown = out.read()
    wanted = Counter(word for row in rows for cell in row for word in cell.split() if any(map(str.isdigit, word)))
    assert not wanted - Counter(shown.split())
    longest = max(len(word) for word in shown.split() or [""])
    assert all(len(line) <= max(width, longest + 4) for line in shown.splitlines())


@pytest.mark.parametrize("kind", ["dumb", "xterm"])
def test_a_terminal_is_as_wide_as_it_says(kind: str) -> None:
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 20, 61, 0, 0))
    env = {name: value for name, value in os.environ.items() if name != "COLUMNS"} | {"TERM": kind}
    asks = "from vqbench.cli.terminal import make_console as m; print(m().width, m(stderr=True).width)"
    with os.fdopen(master, "rb", 0) as shown, os.fdopen(slave, "w") as terminal:
        subprocess.run(
            [sys.executable, "-c", asks], stdin=terminal, stdout=terminal, stderr=terminal, env=env, check=True
        )
        assert shown.read(100).split() == [b"61", b"61"]


def test_a_narrow_terminal_shows_every_number_of_a_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vqbench.cli.terminal_compare import print_versus
    from vqbench.reports.compare import compare_groups

    make_runs(tmp_path, "made", [Made("vaevq", method="vaevq"), Made("vqgan@of-a-long-name", shift=3)])
    found = compare_groups(load_experiment(tmp_path, "made"), "vaevq", "vqgan@of-a-long-name")

    def shown(width: int) -> list[str]:
        console = Console(file=io.StringIO(), width=width, highlight=False)
        monkeypatch.setattr("vqbench.cli.terminal_compare.make_console", lambda: console)
        print_versus(found)
        return [line for line in console.file.getvalue().splitlines() if not line.startswith("results")]  # type: ignore[attr-defined]

    wanted = {word.strip("();,.") for line in shown(200) for word in line.split() if any(map(str.isdigit, word))}
    assert len(wanted) > 20
    for width in (20, 33, 40, 56, 72, 100):
        lines = shown(width)
        assert max(map(len, lines)) <= max(width, 26)
        assert wanted <= {word.strip("();,.") for line in lines for word in line.split()}


GROUPED = """
from dataclasses import dataclass
from vqbench.quantizer import Quantizer
from vqbench.registry import METHODS


@METHODS.register("grouped")
class Grouped(Quantizer):
    @dataclass(frozen=True)
    class Config:
        codebook_size: int = 16
        groups: int = 1
        broken: bool = False

        def __post_init__(self):
            object.__setattr__(self, "codebook_size", 1 << (self.codebook_size - 1).bit_length())

    def __init__(self, config):
        super().__init__(config)
        if config.broken:
            raise RuntimeError("not here")
        self.in_channels = self.out_channels = 4
        self.codebook_size, self.num_codebooks = config.codebook_size, config.groups
"""


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (["codebook_size=2"], {"fsq": "15 codes (3.907 bits per token), where 2 (1 bit) were asked for"}),
        (["codebook_size=3"], {"fsq": "15 codes (3.907 bits per token), where 3 (1.585 bits) were asked for",
                               "grouped": "4 codes (2 bits per token), where 3 (1.585 bits) were asked for"}),
        (["codebook_size=512"], {}),
        (["codebook_size=512", "fsq.levels=8,8", "grouped.codebook_size=32"], {}),
        (["codebook_size=512", "grouped.groups=2"], {}),
        (["codebook_size=512", "grouped.broken=true"], {}),
        (["codebook_size=1024"], {"fsq": "1,000 codes (9.966 bits per token), where 1,024 (10 bits) were asked for"}),
    ],
)  # fmt: skip
def test_a_size_that_is_not_what_was_asked_for_is_said_in_the_plan(
    sets: list[str], said: dict[str, str], tmp_path: Path
) -> None:
    plugin = tmp_path / "grouped.py"
    plugin.write_text(GROUPED)
    words = ["run", "--methods", "fsq,vqgan,grouped", "--dataset", "photos", "--metrics", "psnr", "--dry-run", "--json"]
    words += [part for text in sets for part in ("--set", text)]
    answer = typed(*words, "--plugin", plugin, "--runs", tmp_path)
    assert answer.code == 0, answer.err
    assert {row["method"]: row["matched"] for row in answer.objects if row["matched"]} == said
    assert [line for line in answer.err.splitlines() if "codes (" in line] == [
        f"note: {method}: {text}" for method, text in said.items()
    ]
