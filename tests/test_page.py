"""The report as a page, in a real browser: it works from disk, asks nobody for anything, and shows what is stored."""

from __future__ import annotations

import base64
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.browser import Browser
from helpers.stored import Made, make_runs, make_sizes
from PIL import Image

from vqbench.reports.experiment import load_experiment
from vqbench.reports.figures import Drawn
from vqbench.reports.figures.reconstructions import Sheet
from vqbench.reports.page import page_html, script_json, shown_address, shown_path, write_page
from vqbench.reports.page.details import mlflow_place
from vqbench.reports.page.pictures import BUDGET, lossless, sheet_data
from vqbench.reports.report import Report, build_report

HOSTILE = (
    "<script>alert(1)</script> & \"quoted\" 'too' </script><!-- \u2028 \u202eright to left\u202c عربي " + "x" * 120
)
THREE = {"vlq": True, "rcs": True, "dcr": True}
METHODS = (
    Made("vaevq", "vaevq", 6, components=THREE),
    Made("vaevq without dcr", "vaevq", 3, components={**THREE, "dcr": False}),
    Made("vqgan", shift=1, mlflow={"uri": "http://me:secret@127.0.0.1:5000/", "run_id": "0005e57afc4c420b"}),
    Made("fsq", "fsq", 5.5, {"levels": [8, 5]}, failed={1: "CUDA out of memory"},
         mlflow={"uri": "sqlite:///x", "run_id": "ab1"}),
    Made(HOSTILE, "sqvae", -4, collapsed={0: "perplexity 1.4 of 64 codes <b>"}),
)  # fmt: skip


def sheets_of(report: Report, side: int = 32, images: int = 3) -> dict[str, list[Sheet]]:
    """Random originals, and methods that err the more the further down the table they stand."""
    draw, found = np.random.default_rng(0), {}
    for section in report.sections:
        originals = draw.integers(30, 220, (images, side, side, 3), dtype=np.uint8)
        by_group = {
            group.label: (originals + draw.integers(0, 2 + 4 * i, originals.shape)).astype(np.uint8)
            for i, group in enumerate(section.rows)
        }
        ids = tuple(f"photo-{i}" for i in range(images))
        found[section.section.protocol["hash"]] = [
            Sheet(ids, originals, by_group, "the same images for all"),
            Sheet(ids[::-1], originals[::-1], {k: v[::-1] for k, v in by_group.items()}, "where methods differ most"),
        ]
    return found


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    runs = tmp_path_factory.mktemp("runs")
    make_runs(runs, "tests & <trials>", METHODS, seeds=(0, 1))
    return build_report(load_experiment(runs, "tests & <trials>"))


@pytest.fixture(scope="module")
def page(report: Report, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    Image.new("RGB", (8, 8), "red").save(folder / "figure.png")
    hash_ = report.sections[0].section.protocol["hash"]
    figure = Drawn("usage", "Usage <over> training", 'of 48 images & "2" seeds', hash_, (folder / "figure.png",))
    flagged = next(cell for group in report.experiment.groups for cell in group.cells if cell.result.get("collapse"))
    Image.new("RGB", (12, 8), "blue").save(folder / "curves.png")
    curves = Drawn("c", "How it went", "Curves & <moment>", hash_, (folder / "curves.png",), flagged.folder.name)
    target = folder / "index.html"
    target.write_text(page_html(report, [figure, curves], sheets_of(report)), encoding="utf-8")
    return target


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    pytest.importorskip("selenium", reason="needs selenium, of the `dev` extra")
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("needs Chromium: apt-get install chromium chromium-driver")
    found = Browser(tmp_path_factory.mktemp("profile"))
    yield found
    found.driver.quit()


@pytest.fixture
def opened(browser: Browser, page: Path) -> Iterator[Browser]:
    """The page, freshly opened; afterwards, nothing was asked of anybody and nothing complained."""
    browser.requests()
    browser.complaints()
    browser.open(page)
    yield browser
    asked = [url for url in browser.requests() if not url.startswith(("data:", "chrome:"))]  # chrome: no page can ask
    assert asked
    assert set(asked) == {page.as_uri()}
    assert browser.complaints() == []


TABLE = "[data-part=table]"
ROWS = f"{TABLE} tbody th .name"


def column(browser: Browser, key: str) -> list[float]:
    return [float(text.replace(",", "")) for text in browser.texts(f"{TABLE} td[data-key={key}] .mean") if text != "–"]


def test_a_column_is_sorted_the_better_first_and_then_the_other_way(opened: Browser) -> None:
    before = column(opened, "psnr")
    opened.click(f"{TABLE} th[data-key=psnr] button")
    assert column(opened, "psnr") == sorted(before, reverse=True)
    assert opened.run(f"return document.querySelector('{TABLE} th[data-key=psnr]').ariaSort") == "descending"
    opened.click(f"{TABLE} th[data-key=psnr] button")
    assert column(opened, "psnr") == sorted(before)
    assert opened.run(f"return document.querySelector('{TABLE} th[data-key=psnr]').ariaSort") == "ascending"
    opened.click(f"{TABLE} th[data-key=name] button")
    assert opened.texts(ROWS)[1:] == ["fsq", "vaevq", "vaevq without dcr", "vqgan"]


def test_rows_are_filtered_and_counted(opened: Browser) -> None:
    opened.driver.find_element("css selector", f"{TABLE} input[type=search]").send_keys("VAEVQ dcr")
    assert opened.texts(ROWS) == ["vaevq without dcr"]
    assert "1 methods (of 5)" in opened.texts(f"{TABLE} .told")[0]
    opened.driver.find_element("css selector", f"{TABLE} input[type=search]").clear()
    opened.type("x")
    opened.driver.find_element("css selector", f"{TABLE} input[type=search]").send_keys("\b" * 9 + "failed")
    assert opened.texts(ROWS) == ["fsq"]


def test_single_runs_stand_for_methods_and_columns_can_be_left_out(opened: Browser) -> None:
    opened.click(f"{TABLE} .choice button", "Single runs")
    assert len(opened.texts(ROWS)) == 10
    assert len(column(opened, "psnr")) == 9  # one failed
    opened.click(f"{TABLE} .menu summary")
    opened.click(f"{TABLE} .menu label", "PSNR")
    assert column(opened, "psnr") == []
    assert len(column(opened, "ssim")) == 9


def test_ties_are_marked_by_more_than_colour(opened: Browser, report: Report) -> None:
    for metric, comparison in report.sections[0].peers[0].comparisons.items():
        cells = opened.run(
            "return [...document.querySelectorAll(arguments[0])].filter((td) => td.textContent.includes('best')"
            " && getComputedStyle(td.querySelector('.mean'), '::before').content.includes('●'))"
            ".map((td) => td.parentNode.querySelector('th .name').textContent)",
            f"{TABLE} td[data-key={metric}]",
        )
        if metric in [column.key for column in report.sections[0].columns]:
            assert set(cells) == comparison.unseparated


def test_rows_of_one_size_stay_together_however_they_are_sorted(browser: Browser, tmp_path: Path) -> None:
    report = build_report(load_experiment(make_sizes(tmp_path, "sizes").parent, "sizes"))
    browser.open(write_page(report, [], tmp_path / "index.html"))
    heads = [
        "576 to 595 bits/image",
        "610 to 620 bits/image",
        "896 bits/image: not tested, no other row is of its size",
        "unknown bits/image: not tested, it has no codes",
        "without a score",
    ]

    def shown() -> list[str]:
        return browser.texts(f"{TABLE} tbody .name, {TABLE} tbody .size th")

    def below(*labels: list[str]) -> list[str]:
        return [text for head, rows in zip(heads, labels, strict=True) for text in (head, *rows)]

    rest = (["llamagen"], ["theirs"], ["sqvae"])
    assert shown() == below(["rqvae", "vqgan", "taming"], ["titok", "fsq"], *rest)
    browser.click(f"{TABLE} th[data-key=psnr] button")
    browser.click(f"{TABLE} th[data-key=psnr] button")
    assert shown() == below(["taming", "vqgan", "rqvae"], ["fsq", "titok"], *rest)
    browser.click(f"{TABLE} .choice button", "Single runs")
    assert shown() == below(["taming", *["vqgan"] * 3, *["rqvae"] * 3], [*["fsq"] * 3, "titok"], *rest)


STAGE = "[data-part=sheets] .stage"


def seen(browser: Browser) -> bytes:
    """The stage as a picture."""
    box = browser.run(
        f"const node = document.querySelector('{STAGE}'); node.scrollIntoView({{ behavior: 'instant' }});"
        "const { x, y, width, height } = node.getBoundingClientRect();"
        "return { x: x + scrollX, y: y + scrollY, width, height, scale: 0.25 }"
    )
    return base64.b64decode(browser.driver.execute_cdp_cmd("Page.captureScreenshot", {"clip": box})["data"])


def state(browser: Browser, name: str) -> str:
    return str(browser.run(f"return document.querySelector('{STAGE}').dataset[arguments[0]]", name))


def test_images_are_flipped_by_slider_and_flicker_and_their_error_is_a_map(opened: Browser) -> None:
    opened.until(f"return document.querySelector('{STAGE} + .stage-controls + .said').textContent.includes('dB')")
    slider = opened.driver.find_element("css selector", "[data-part=sheets] input[type=range]")
    pictures = []
    for key, at in (("\ue010", "100"), ("\ue011", "0")):  # End: the left picture alone; Home: the right one alone
        slider.send_keys(key)
        assert state(opened, "at") == at
        pictures.append(seen(opened))
    opened.click("[data-part=sheets] .choice button", "Flicker")
    opened.click("[data-part=sheets] .stage-controls button", "Flip")  # stops what plays by itself
    first = state(opened, "shown")
    opened.click("[data-part=sheets] .stage-controls button", "Flip")
    assert {first, state(opened, "shown")} == {"first", "second"}
    opened.click("[data-part=sheets] .choice button", "Error map")
    assert state(opened, "shown") == "error"
    assert len({*pictures, seen(opened)}) == 3


def test_the_error_map_and_psnr_are_of_the_pixels_that_were_stored(opened: Browser, report: Report) -> None:
    sheet = sheets_of(report)[report.sections[0].section.protocol["hash"]][0]
    opened.until("return [...document.querySelectorAll('.multiple .db')].filter((n) => n.textContent).length === 5")
    shown = [float(text.split()[0]) for text in opened.texts(".multiple .db")[1:]]
    labels = [group.label for group in report.sections[0].rows]
    squares = [np.square(sheet.originals[0].astype(float) - sheet.by_group[label][0]).mean() for label in labels]
    assert shown == pytest.approx(10 * np.log10(255**2 / np.array(squares)), abs=0.006)
    error = opened.run(
        f"return [...document.querySelector('{STAGE} canvas').getContext('2d').getImageData(0, 0, 32, 32).data]"
    )
    pixels = np.array(error).reshape(32, 32, 4)[..., :3].sum(-1)
    distance = np.abs(sheet.originals[0].astype(float) - sheet.by_group[labels[0]][0]).mean(-1)
    assert np.corrcoef(pixels.ravel(), distance.ravel())[0, 1] > 0.9  # brighter where the error is larger


def test_arrow_keys_turn_to_the_next_image(opened: Browser) -> None:
    opened.run("document.querySelector('[data-part=sheets] .thumbs button').focus()")
    for key, image in zip(["\ue014"] * 3 + ["\ue012"], ("photo-1", "photo-2", "photo-0", "photo-2"), strict=True):
        opened.type(key)  # right, right, right: the first again; left
        assert opened.run("return document.querySelector('[data-part=sheets]').dataset.image") == image
    opened.click("[data-part=sheets] .choice button", "Where methods differ most")
    assert opened.run("return document.querySelector('[data-part=sheets]').dataset.image") == "photo-2"


def opened_run(browser: Browser) -> str:
    """What stands in the run that is open; it is filled in a moment after it was opened."""
    browser.until("return document.querySelector('.run[open] .run-body').textContent !== ''")
    return str(browser.run("return document.querySelector('.run[open]').textContent"))


def test_a_run_is_opened_for_its_settings_place_and_mlflow(opened: Browser) -> None:
    opened.driver.find_element("css selector", "[data-part=cells] input[type=search]").send_keys("vaevq")
    opened.click(".run summary", "vaevq without dcr")
    body = opened_run(opened)
    assert opened.texts(".run[open] .changed th") == ["dcr", "seed"]  # against the line above: vaevq of seed 1
    assert "above: true" in body
    assert "AMD EPYC" in body
    assert "2.14.1" in body
    assert "c2ff82f5fcea28" in body
    opened.click(f"{TABLE} .open", "vqgan")
    opened_run(opened)
    links = opened.run("return [...document.querySelectorAll('.run[open] a')].map((a) => a.href)")
    assert links == ["http://127.0.0.1:5000/#/runs/0005e57afc4c420b"]
    opened.click(f"{TABLE} .open", "fsq")
    opened.click(".run[open] summary")
    opened.click(".run[data-state=failed] summary")
    told = opened_run(opened)
    for text in ("CUDA out of memory", "Traceback", "run it again", "vqbench ui --runs"):
        assert text in told


def test_of_a_flagged_run_it_says_what_happened_with_its_curves_beside_it(opened: Browser) -> None:
    assert opened.texts(f"{TABLE} .tag") == ["1 of 2 failed", "1 of 2 collapsed"]
    opened.click(f"{TABLE} .tag", "collapsed")
    assert "perplexity 1.4 of 64 codes <b>" in opened_run(opened)
    assert opened.texts(".run[open] .problem > p") == [
        "Collapsed from 2,048 of 6,144 images on: perplexity 1.4 of 64 codes <b>"
    ]
    assert opened.texts(".run[open] figcaption") == ["Curves & <moment>"]
    assert len(opened.texts("figure")) == 2  # it stands nowhere else
    opened.click(".run[open] figure button")
    assert opened.run("return document.querySelector('#viewer img').naturalWidth") == 12
    opened.click("#viewer button")
    opened.click(f"{TABLE} .tag", "failed")
    assert "CUDA out of memory" in opened_run(opened)
    assert opened.texts(".run[open] figure") == []


def test_a_hostile_label_is_text_and_runs_nothing(opened: Browser) -> None:
    assert HOSTILE in opened.texts(ROWS)
    assert HOSTILE in opened.texts(".multiple .name")
    assert opened.texts("h1") == ["tests & <trials>"]
    assert any(HOSTILE in text for text in opened.texts(".findings dd"))
    assert any("codes <b>" in text for text in opened.texts(".problems li"))
    assert opened.run("return document.querySelectorAll('script').length") == 2  # ours: the data and the code
    opened.run("document.querySelectorAll('details.run').forEach((node) => { node.open = true; })")
    opened.until("return [...document.querySelectorAll('.run-body')].every((node) => node.firstChild)")
    assert opened.run("return document.querySelectorAll('main script, main b b').length") == 0


def test_dark_and_light(opened: Browser) -> None:
    brightness = "return getComputedStyle(document.body).backgroundColor"
    light = opened.run(brightness)
    opened.click("#theme")
    dark = opened.run(brightness)
    assert sum(map(int, dark[4:-1].split(","))) < 150 < 600 < sum(map(int, light[4:-1].split(",")))
    assert (
        opened.run("return getComputedStyle(document.querySelector('figure button')).backgroundColor")
        == "rgb(255, 255, 255)"
    )
    opened.click("#theme")
    assert opened.run(brightness) == light


FAINT = """
const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
const rgb = (colour) => {
  canvas.clearRect(0, 0, 1, 1);
  canvas.fillStyle = colour;
  canvas.fillRect(0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data];
};
const linear = (v) => v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4;
const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
const ground = (node) => {
  for (; node; node = node.parentElement) {
    const found = rgb(getComputedStyle(node).backgroundColor);
    if (found[3] === 255) return found;
  }
  return [255, 255, 255];
};
const contrast = (node) => {
  const pair = [luminance(rgb(getComputedStyle(node).color)), luminance(ground(node))];
  return (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
};
return [...document.querySelectorAll("main *, header *, footer *")]
  .filter((node) => [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim()))
  .filter((node) => node.checkVisibility() && !node.closest(".stage, :disabled, .unseen"))
  .filter((node) => contrast(node) < 4.5)
  .map((node) => `${node.className}: ${node.textContent.slice(0, 40)} ${contrast(node)}`);
"""
"""The elements whose text stands out from its ground by less than 4.5 to 1."""


def test_text_has_the_contrast_of_wcag_aa(opened: Browser) -> None:
    opened.run("document.querySelectorAll('details.run, details.meanings').forEach((node) => { node.open = true; })")
    assert opened.run(FAINT) == []
    opened.click("#theme")
    assert opened.run(FAINT) == []
    opened.click("#theme")


def test_everything_is_reached_by_keyboard(opened: Browser) -> None:
    tab, enter, space = "\ue004", "\ue007", " "
    opened.type(tab)
    assert opened.run("return document.activeElement.className") == "skip"
    reached: set[str] = set()
    for _ in range(90):
        opened.type(tab)
        found = opened.run(
            "const n = document.activeElement, style = getComputedStyle(n);"
            "return [n.tagName, n.id || n.className || n.textContent.slice(0, 12), style.outlineStyle]"
        )
        if found[0] == "BODY":
            break
        assert found[2] != "none", found  # whoever tabs sees where they are
        reached.add(f"{found[0]} {found[1]}")
    names = " ".join(reached)
    for part in ("theme", "open", "multiple", "SELECT", "INPUT", "SUMMARY", "Flicker", "Single runs"):
        assert part in names
    opened.run(f"document.querySelector('{TABLE} th[data-key=usage] button').focus()")
    opened.type(enter)
    assert opened.run("return document.activeElement.closest('th').ariaSort") == "descending"
    opened.run("document.querySelector('details.run summary').focus()")
    opened.type(enter)
    assert opened.run("return document.querySelector('details.run').open")
    opened.run("document.querySelector('#theme').focus()")
    opened.type(space)
    assert opened.run("return document.documentElement.dataset.theme") == "dark"
    opened.type(space)


def test_a_phone_scrolls_the_table_and_not_the_page(browser: Browser, page: Path) -> None:
    browser.open(page, width=390)
    browser.run("document.querySelectorAll('details').forEach((node) => { node.open = true; })")
    assert browser.run("return document.documentElement.scrollWidth") == 390
    assert browser.run(
        f"const box = document.querySelector('{TABLE} .scroll'); return box.scrollWidth > box.clientWidth"
    )


def test_what_is_printed_has_all_rows_in_dark_ink(opened: Browser) -> None:
    opened.click("#theme")
    opened.run("window.dispatchEvent(new Event('beforeprint'))")
    opened.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert len(opened.texts(ROWS)) == 5
    colours = opened.run("const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]")
    assert colours == ["rgb(27, 31, 36)", "rgb(255, 255, 255)"]
    opened.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    opened.run("window.dispatchEvent(new Event('afterprint'))")
    opened.click("#theme")


def test_a_figure_is_enlarged_and_described(opened: Browser) -> None:
    assert opened.run("return document.querySelector('figure img').alt") == 'of 48 images & "2" seeds'
    opened.click("figure button")
    assert (
        opened.run("return document.getElementById('viewer').open && document.querySelector('dialog img').naturalWidth")
        == 8
    )
    opened.type("\ue00c")
    assert not opened.run("return document.getElementById('viewer').open")


def test_ablations_stand_as_in_the_other_formats(opened: Browser) -> None:
    table = "#p0-ablation table"
    assert opened.texts(f"{table} thead th")[:4] == ["row", "vlq", "rcs", "dcr"]
    assert opened.texts(f"{table} tbody tr:nth-child(2) > *")[:4] == ["without dcr", "✓", "✓", "✗"]
    assert len(opened.texts("#p0-ablation-deltas tbody tr")) == 5  # metrics with a better direction


def test_a_report_of_failures_alone_is_a_page(tmp_path: Path, browser: Browser) -> None:
    make_runs(tmp_path, "x", [Made("gone", failed={0: "no memory"})], seeds=(0,))
    browser.complaints()
    browser.open(write_page(build_report(load_experiment(tmp_path, "x")), [], tmp_path / "index.html"))
    assert browser.texts(ROWS) == ["gone"]
    assert "no memory" in browser.texts(".problems li")[0]
    assert browser.complaints() == []


def test_nothing_but_our_script_would_run(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "default-src 'none'" in text
    assert "unsafe-inline" not in text
    assert "http-equiv" in text.split("<script")[0]  # the policy comes before what it governs
    assert "alert(1)</script>" not in text


@pytest.mark.parametrize("value", ["</script>", "<!--", "\u2028\u2029", "&amp;", "]]>"])
def test_data_cannot_end_the_element_it_stands_in(value: str) -> None:
    written = script_json({"label": value})
    assert not set(written) & set("<>&\u2028\u2029")
    assert json.loads(written) == {"label": value}


def test_numbers_that_are_not_json_are_refused() -> None:
    with pytest.raises(ValueError, match="JSON"):
        script_json(float("nan"))


@pytest.mark.parametrize(
    ("memory", "expected"),
    [
        ({"uri": "https://host/base/", "run_id": "ab12"}, {"run": "ab12", "link": "https://host/base/#/runs/ab12"}),
        ({"uri": "http://me:secret@host:5000", "run_id": "ab"}, {"run": "ab", "link": "http://host:5000/#/runs/ab"}),
        ({"uri": "http://me:a/secret@host", "run_id": "ab"}, {"run": "ab", "link": "http://host/#/runs/ab"}),
        ({"uri": "sqlite:////runs/mlflow.db", "run_id": "ab"}, {"run": "ab"}),
        ({"uri": "javascript://host/%0aalert(1)", "run_id": "ab"}, {"run": "ab"}),
        ({"uri": "http://[host", "run_id": "ab"}, {"run": "ab"}),
        ({"uri": "https://host", "run_id": '"><script>'}, {"run": '"><script>'}),
        ({"uri": "https://host"}, None),
    ],
)
def test_a_link_into_mlflow_is_a_link_to_a_server(memory: dict[str, str], expected: Any, tmp_path: Path) -> None:
    (tmp_path / "mlflow.json").write_text(json.dumps(memory))
    assert mlflow_place(tmp_path / "mlflow.json") == expected


def pixels_of(uri: str) -> Any:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB"))


@pytest.mark.parametrize("side", [1, 7, 32])
def test_images_survive_without_loss(side: int) -> None:
    image = np.random.default_rng(side).integers(0, 256, (side, side, 3), dtype=np.uint8)
    assert np.array_equal(pixels_of(lossless(image)), image)


def test_large_images_are_left_out_and_the_page_says_so() -> None:
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    sheet = Sheet(("a", "b", "c", "d"), images, {f"m{i}": images for i in range(5)}, "the same for all")
    whole = sheet_data([sheet], list(sheet.by_group))
    assert [len(m["images"]) for m in whole[0]["methods"]] == [4] * 5
    assert whole[0]["left_out"] == ""
    one = len(lossless(images[0]))
    small = sheet_data([sheet], list(sheet.by_group), budget=13 * one)
    assert (len(small[0]["originals"]), len(small[0]["methods"])) == (2, 5)
    assert small[0]["left_out"] == "Left out to keep this file small: 2 more images."
    least = sheet_data([sheet], list(sheet.by_group), budget=6 * one)
    assert sum(len(m["images"]) for m in least[0]["methods"]) + len(least[0]["originals"]) <= 6
    assert "3 methods further down the table" in least[0]["left_out"]


def test_twelve_cells_stay_below_five_megabytes(tmp_path: Path) -> None:
    make_runs(tmp_path, "x", [Made(f"m{i}", shift=i, config={"codebook_size": 2**i}) for i in range(4)])
    report = build_report(load_experiment(tmp_path, "x"))
    text = page_html(report, [], sheets_of(report, images=8))
    assert len(text.encode()) < 5e6 - BUDGET  # figures still have their share
    assert text.count("data:image/") > 4 * 8


def test_the_same_report_gives_the_same_page(report: Report, tmp_path: Path) -> None:
    first, second = write_page(report, [], tmp_path / "a.html"), write_page(report, [], tmp_path / "b.html")
    assert first.read_bytes() == second.read_bytes()


def test_paths_do_not_name_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home" / "work").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "home" / "work")
    assert shown_path(tmp_path / "home" / "work" / "runs") == "runs"
    assert shown_path(tmp_path / "home" / "runs") == "~/runs"
    assert shown_path(tmp_path / "runs") == str(tmp_path / "runs")
    assert shown_path(tmp_path / "home" / "my runs") == "~/'my runs'"
    assert shown_address(f"sqlite:///{tmp_path}/home/work/runs/mlflow.db") == "sqlite:///runs/mlflow.db"
    assert shown_address(f"sqlite:///{tmp_path}/home/mlflow.db") == "sqlite:///$HOME/mlflow.db"
    assert shown_address(f"sqlite:///{tmp_path}/mlflow.db") == f"sqlite:///{tmp_path}/mlflow.db"
    assert shown_address("https://me:p@ss@host:5000/ml") == "https://host:5000/ml"
    assert shown_address("postgresql://host/db?user=me&password=secret") == "postgresql://host/db"
    assert shown_address("postgresql://me:a/secret@host/db") == "postgresql://host/db"
    assert shown_address("sqlite:////x y/m.db?uri=true&password=secret") == "sqlite:///'/x y/m.db'"
    assert shown_address("http://host:5000") == "http://host:5000"


def test_protocols_have_sections_of_their_own(tmp_path: Path, browser: Browser) -> None:
    make_runs(tmp_path, "x", [Made("a"), Made("b", shift=4, config={"k": 1})], seeds=(0,), n_images=24)
    make_runs(tmp_path, "x", [Made("c", config={"k": 2})], seeds=(0,), n_images=32)
    page = write_page(build_report(load_experiment(tmp_path, "x")), [], tmp_path / "index.html")
    browser.open(page)
    assert browser.run(
        "return [...document.querySelectorAll('.protocol')].map((s) => s.querySelectorAll('tbody th .name').length)"
    ) == [2, 1]
    assert "2 protocols" in browser.texts(".note")[0]
    assert browser.texts("[data-part=sheets]") == []  # no images were kept: no empty part
