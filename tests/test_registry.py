"""One door for plugins: files, entry points, the decorator; names without imports, errors with the way out."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from vqbench.errors import UsageError
from vqbench.planning.choice import choose_method, folder_name
from vqbench.plugin import keep_copies, read_plugin
from vqbench.recipe import load_recipe
from vqbench.registry import METHODS, Registry

PLUGIN = '''
"""A plugin."""
from dataclasses import dataclass, field
from tests_registry import THINGS


@THINGS.register("mine")
class Mine:
    """My own quantizer (Doe, 2026, arXiv:2601.01234)."""

    @dataclass(frozen=True)
    class Config:
        smooth: bool = field(default=True, metadata={"component": "smoothing"})
        """Whether it is smooth."""
'''


@pytest.fixture
def things(monkeypatch: pytest.MonkeyPatch) -> Registry[object]:
    registry: Registry[object] = Registry("thing", "THINGS", "vqbench.tests.things")
    module = type(sys)("tests_registry")
    module.THINGS = registry  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tests_registry", module)
    return registry


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_file_is_outlined_without_running_it(things: Registry[object], tmp_path: Path) -> None:
    path = write(tmp_path / "mine.py", PLUGIN + "\nraise SystemExit('it ran')\n")
    assert things.add_file(path) == ("mine",)
    outline = things.outline("mine")
    assert outline.summary == "My own quantizer (Doe, 2026, arXiv:2601.01234)."
    assert (outline.paper, outline.components) == ("arXiv:2601.01234", ("smoothing",))
    assert outline.origin == str(path)


def test_a_class_of_two_registries_is_found_by_both(things: Registry[object], tmp_path: Path) -> None:
    others = 'OTHERS = type(THINGS)("other", "OTHERS", "vqbench.tests.others")\n\n\n@OTHERS.register("as other")\n'
    path = write(tmp_path / "mine.py", PLUGIN.replace('@THINGS.register("mine")', f'{others}@THINGS.register("mine")'))
    assert things.add_file(path) == ("mine",)
    assert things.outline("mine").components == ("smoothing",)
    assert things.get("mine").__name__ == "Mine"


def test_the_class_is_imported_when_it_is_asked_for(things: Registry[object], tmp_path: Path) -> None:
    things.add_file(write(tmp_path / "mine.py", PLUGIN))
    assert things.get("mine").__name__ == "Mine"
    assert things.get("mine") is things.get("mine")


def test_inherited_fields_are_outlined_from_the_class(things: Registry[object], tmp_path: Path) -> None:
    heir = PLUGIN + (
        '\n\n@THINGS.register("heir")\nclass Heir(Mine):\n    """An heir (Doe, 2026)."""\n\n'
        "    @dataclass(frozen=True)\n    class Config(Mine.Config):\n"
        '        sharp: bool = field(default=True, metadata={"component": "sharpening"})\n'
    )
    things.add_file(write(tmp_path / "heir.py", heir))
    assert things.outline("heir").components == ("smoothing", "sharpening")


def test_a_name_that_the_text_does_not_show_is_found_by_running_the_file(
    things: Registry[object], tmp_path: Path
) -> None:
    things.add_file(write(tmp_path / "m.py", PLUGIN.replace('register("mine")', 'register("".join(["hid", "den"]))')))
    assert things.get("hidden").__name__ == "Mine"


def test_unknown_names_come_with_the_nearest(things: Registry[object], tmp_path: Path) -> None:
    things.add_file(write(tmp_path / "mine.py", PLUGIN))
    with pytest.raises(UsageError, match=r"unknown thing 'nime'; did you mean mine\?"):
        things.get("nime")


def test_a_broken_plugin_fails_only_when_asked_for(things: Registry[object], tmp_path: Path) -> None:
    things.add_file(write(tmp_path / "mine.py", PLUGIN))
    things.add_file(
        write(tmp_path / "bad.py", PLUGIN.replace('"mine"', '"bad"').replace("@THINGS", "import gone\n@THINGS"))
    )
    assert things.names() == ["bad", "mine"]
    assert things.get("mine").__name__ == "Mine"
    with pytest.raises(UsageError, match="No module named 'gone'"):
        things.get("bad")


def test_a_file_that_does_not_parse_names_the_line(things: Registry[object], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"bad\.py, line 2"):
        things.add_file(write(tmp_path / "bad.py", "x = 1\ny = (\n"))
    with pytest.raises(UsageError, match="cannot read plugin"):
        things.add_file(tmp_path / "none.py")


def test_two_classes_of_one_name_are_refused(things: Registry[object]) -> None:
    things.register("a")(type("A", (), {}))
    with pytest.raises(UsageError, match="two things are called 'a'"):
        things.register("a")(type("B", (), {}))


def test_a_file_takes_no_name_that_is_taken_unless_it_may(things: Registry[object], tmp_path: Path) -> None:
    things.add_file(write(tmp_path / "mine.py", PLUGIN))
    first = things.get("mine")
    things.add_file(tmp_path / "mine.py")  # the same file again is nothing new
    other = write(tmp_path / "other.py", PLUGIN.replace("class Mine", "class Other"))
    with pytest.raises(UsageError, match="two things are called 'mine'"):
        things.add_file(other)
    assert things.get("mine") is first
    things.add_file(other, replace=True)
    assert things.get("mine").__name__ == "Other"


def test_an_installed_package_brings_methods_by_its_entry_points(tmp_path: Path) -> None:
    package = tmp_path / "site"
    package.mkdir()
    write(
        package / "elsewhere.py",
        PLUGIN.replace("from tests_registry import THINGS", "from vqbench.registry import METHODS as THINGS"),
    )
    info = package / "elsewhere-2.0.dist-info"
    info.mkdir()
    write(info / "METADATA", "Metadata-Version: 2.1\nName: elsewhere\nVersion: 2.0\n")
    write(info / "entry_points.txt", "[vqbench.methods]\nmine = elsewhere:Mine\nlost = nowhere:Lost\n")
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from vqbench.registry import METHODS\n"
        "print(METHODS.outline('mine').origin, METHODS.outline('mine').components)\n"
        "print(METHODS.outline('lost').problem)\n"
        "print([m for m in ('torch', 'elsewhere', 'lightning', 'mlflow', 'matplotlib') if m in sys.modules])\n"
        "print(METHODS.get('mine').__name__)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(package)], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[0] == "elsewhere 2.0 ('smoothing',)"
    assert "nowhere" in lines[1]
    assert lines[2:] == ["[]", "Mine"]


def test_neighbours_that_cannot_be_used_are_named(things: Registry[object], tmp_path: Path) -> None:
    (tmp_path / "parts.py").write_text("def (\n")
    with pytest.raises(UsageError, match=r"parts\.py, line 1, which plugin .*mine\.py imports: invalid syntax"):
        things.add_file(write(tmp_path / "mine.py", PLUGIN + "\nimport parts\n"))
    (tmp_path / "parts.py").write_text("import nowhere_to_be_found\n")
    things.add_file(tmp_path / "mine.py")
    with pytest.raises(UsageError, match=r"does not import: .*No module named 'nowhere_to_be_found'") as refused:
        things.get("mine")
    assert refused.value.hint == f"`vqbench --debug check {tmp_path / 'mine.py'}` shows the traceback"


def test_a_plugin_may_be_the_neighbour_of_another(
    things: Registry[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = write(tmp_path / "base.py", PLUGIN)
    more = PLUGIN.replace('"mine"', '"more"').replace("class Mine:", "class More(Mine):")
    other = write(tmp_path / "other.py", more.replace("from tests_reg", "from base import Mine\nfrom tests_reg"))
    for files in ((other, base), (base, other), (other,)):
        registry: Registry[object] = Registry("thing", "THINGS", "vqbench.tests.things")
        monkeypatch.setattr(sys.modules["tests_registry"], "THINGS", registry)
        for file in files:
            registry.add_file(file)
        assert registry.get("more").__mro__[1].__name__ == "Mine"
        assert registry.get("mine").__name__ == "Mine"
        assert registry.file_of("mine") == (base if base in files else other)
    registry.add_file(base)
    assert registry.file_of("mine") == base


def test_one_file_has_the_digest_and_the_copy_that_it_always_had(tmp_path: Path) -> None:
    text = "import os, torch, json\nfrom vqbench.registry import METHODS\n"
    for name in ("json.py", "torch.py", "beside.py"):
        write(tmp_path / name, "# not meant\n")
    (tmp_path / "vqbench").mkdir()
    plugin = read_plugin(write(tmp_path / "mine.py", text))
    assert (plugin.digest, plugin.packed()) == (hashlib.sha256(text.encode()).hexdigest(), text.encode())
    whole = read_plugin(write(tmp_path / "whole.py", text + "import beside\n"))
    copy = tmp_path / "cell" / "plugin.zip"
    keep_copies(copy.parent, [whole.packed()])
    assert read_plugin(copy).digest == whole.digest != plugin.digest
    assert list(whole.files) == ["whole.py", "beside.py"]


def test_a_family_has_a_class_for_each_class_of_a_library() -> None:
    pytest.importorskip("vector_quantize_pytorch", reason="vector-quantize-pytorch is not installed: vqbench[vqp]")
    assert "vqp:LFQ" in METHODS
    assert "vqp:LFQ" not in METHODS.names()  # what is any of a library's classes is not one of the methods
    assert METHODS.get("vqp:LFQ") is METHODS.get("vqp:LFQ")
    assert METHODS.outline("vqp:LFQ").summary.startswith("LFQ of vector-quantize-pytorch")
    assert METHODS.outline("vqp:LFQ").origin == METHODS.outline("vqgan").origin
    assert [outline.name for outline in METHODS.families()] == ["vqp:CLASS"]
    assert (folder_name("vqp:LFQ"), folder_name("a:b")) == ("vqp-LFQ", "a:b")
    choice = choose_method("vqp:LFQ", load_recipe("tiny", {}), {"vqp:LFQ": {"entropy_loss_weight": "0.2"}})
    assert (choice.config["codebook_size"], choice.config["entropy_loss_weight"]) == (512, 0.2)
    with pytest.raises(UsageError, match="did you mean VectorQuantize"):
        METHODS.get("vqp:VectorQuantise")
    with pytest.raises(UsageError, match="BinaryMapper of vector-quantize-pytorch gives no codes"):
        METHODS.get("vqp:BinaryMapper")
    with pytest.raises(UsageError, match="FSQ refuses its arguments: turn on `preserve_symmetry`"):
        choose_method("vqp:FSQ", load_recipe("tiny", {}), {"vqp:FSQ": {"levels": "2,3"}})


def test_a_family_whose_library_is_absent_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vector_quantize_pytorch", None)
    with pytest.raises(UsageError, match="needs vector-quantize-pytorch, which is not installed") as refused:
        METHODS.get("vqp:SomeClass")
    assert refused.value.hint == "pip install 'vqbench[vqp]'"
    assert [outline.problem for outline in METHODS.families()] == [""]
    with pytest.raises(UsageError, match="'vqp' needs the name of a class: vqp:CLASS"):
        METHODS.get("vqp")
