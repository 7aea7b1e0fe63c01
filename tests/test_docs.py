"""Every snippet in the README and in docs/ does what it says."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
from helpers.commands import REPOSITORY, typed
from helpers.images import write_images

PAGES = ["README.md", *sorted(f"docs/{page.name}" for page in (REPOSITORY / "docs").glob("*.md"))]
INSTALLATION = ("make demo", "make test", "pip install")
"""What installs: run by the slow test of a clone into an empty folder (test_packaging)."""
QUICK = {
    "VQBENCH_IMAGES": "32",
    "VQBENCH_VALIDATION_IMAGES": "6",
    "VQBENCH_METRICS": "psnr,usage",
}
"""The environment that makes a documented command small; what a command says itself still wins."""


def blocks(page: str) -> list[tuple[str, str]]:
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    return [(language, code) for language, code in re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)]


def commands(page: str) -> list[str]:
    lines = [line for language, code in blocks(page) if language == "bash" for line in code.splitlines()]
    return [line for line in lines if line.strip() and not line.startswith(INSTALLATION)]


def file_of(code: str) -> str:
    """The file that a snippet is to be saved as; empty for a program."""
    named = re.match(r"# (my_\w+\.py)\n", code)
    return named.group(1) if named else ""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages speak of: photographs, reconstructions of them, FFHQ, the plugins of the pages on adding one."""
    root = tmp_path_factory.mktemp("docs")
    write_images(root / "my_photos", 150, side=64)
    shutil.copytree(root / "my_photos", root / "their_reconstructions")
    write_images(root / "ffhq", 49, side=256)
    for path in sorted((root / "ffhq").iterdir()):
        path.rename(path.with_name(f"{int(path.stem):05d}.png"))
    for page in PAGES:
        for language, code in blocks(page):
            if language == "python" and (name := file_of(code)):
                (root / name).write_text(code)
    return root


@pytest.fixture
def there(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is in the workplace, where commands are small."""
    monkeypatch.chdir(workplace)
    for name, value in QUICK.items():
        monkeypatch.setenv(name, value)


LONG = (
    "vqbench run --methods vaevq,vqgan,fsq,sqvae --dataset photos --seeds 0,1",
    "vqbench run --methods vqgan,fsq --dataset folder:my_photos --recipe small",
    "vqbench sweep vqgan,fsq --dataset photos --space codebook --trials 6 --workers 2",
    "vqbench run --methods vaevq,vqgan --dataset ffhq --data-root ffhq --recipe vqgan-f16-256 --seeds 0,1,2 "
    "--images 2000000 --devices 1 --set vaevq.dcr_weight=0.2 --dry-run",
    "vqbench run --methods vqgan,fsq --dataset photos --workers 2",
    "vqbench sweep vqgan,fsq --recipe atomic --dataset photos --images 256 --metrics quantization_error,usage "
    "--space optimiser --trials 4 --objective quantization_error,usage",
    "vqbench sweep --resume vqgan+fsq-optimiser --trials 6",
    "vqbench run --methods vqgan,fsq --dataset photos --seeds 0,1,2 --dry-run --probe",
)
"""Many cells, or larger ones (a dry run counts their memory), all parts of which run elsewhere: left to `make slow`."""


def cases() -> list[object]:
    """Each command once, on the first page that has it."""
    pages: dict[str, str] = {}
    for page in PAGES:
        for line in commands(page):
            pages.setdefault(line, page)
    return [pytest.param(page, line, marks=[pytest.mark.slow] if line in LONG else []) for line, page in pages.items()]


@pytest.mark.parametrize(("page", "line"), cases())
def test_commands_run(page: str, line: str, there: None) -> None:
    words = shlex.split(line)
    assert words[0] == "vqbench", f"{page}: only vqbench commands can be tested, not {line!r}"
    done = typed(*words[1:])
    assert done.code == 0, f"{page}: {line}\n{done.out}\n{done.err}"
    assert done.out.strip()


def programs() -> list[object]:
    found = [(page, code) for page in PAGES for language, code in blocks(page) if language == "python"]
    return [
        # long, as above; what README's does, docs/tokens.md does with fewer images
        pytest.param(page, code, marks=[pytest.mark.slow] if "vqbench.sweep(" in code or page == "README.md" else [])
        for page, code in found
        if not file_of(code)
    ]


@pytest.mark.parametrize(("page", "code"), programs())
def test_python_runs(page: str, code: str, there: None) -> None:
    exec(compile(code, page, "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    here = (REPOSITORY / page).parent
    for target in re.findall(r"\]\(([^)#]+)\)", (REPOSITORY / page).read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (here / target).is_file(), f"{page}: {target}"


@pytest.mark.parametrize("page", PAGES)
def test_blocks_are_of_a_language_that_is_tested(page: str) -> None:
    assert {language for language, _ in blocks(page)} <= {"bash", "python", "text"}
