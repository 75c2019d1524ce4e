"""The report in a real browser: Debian's Chromium without a window. Under CI it may not be missing."""

import os
import re
import shutil
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from io import BytesIO, StringIO
from pathlib import Path

import pytest
from merging import merge_of
from PIL import Image
from playwright.sync_api import expect, sync_playwright

from lcmmerge.output import Output
from lcmmerge.search.request import SearchRequest
from lcmmerge.search.run import search

pytestmark = pytest.mark.e2e

HOSTILE = '</script><img src="http://127.0.0.1:9/x" onerror="window.hacked = 1"><!-- ${1} &lt; a fox'
AXES = {"style": (0.5, 1.0), "lcm": (0.5, 1.0, 1e38)}  # the last overflows
ARTEFACTS = os.environ.get("LCMMERGE_ARTEFACTS")  # a folder where screenshots are kept
PHONE = {"viewport": {"width": 375, "height": 740}, "has_touch": True, "is_mobile": True}


class Terminal(StringIO):
    def isatty(self):
        return True


@dataclass(frozen=True)
class Study:
    """``said``: what was seen in the terminal while it ran."""

    result: object
    said: str

    @property
    def path(self):
        return self.result.prepared.request.work / "report.html"

    @property
    def best(self):
        return "style {:.3g}, lcm {:.3g}".format(*self.result.scored.best.cell.lambdas)

    def number(self, name):
        """Of a cell's row: ``0.5 1.0``."""
        style, lcm = map(float, name.split())
        rows = self.result.scored.rows
        return next(at for at, row in enumerate(rows) if row.kind == "cell" and row.cell.lambdas == (style, lcm))


@pytest.fixture(scope="module")
def study(files, tmp_path_factory):
    inputs, said = files("sd1"), Terminal()
    merge = merge_of(str(inputs.folder("fp32")), style=str(inputs.style), lcm=str(inputs.lcm), accelerator="lcm")
    work = tmp_path_factory.mktemp("study") / "work"
    asked = SearchRequest(
        merge, work, (HOSTILE, "a hat"), AXES, steps=1, count=2, size=(64, 64), guidance=1, teacher_steps=2
    )
    with redirect_stderr(said):
        return Study(search(asked, Output()), said.getvalue())


@pytest.fixture(scope="module")
def browser():
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        assert "CI" not in os.environ, "no Chromium: apt-get install chromium"
        pytest.skip("no Chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser):
    """``visit(path, …)``: the page in a fresh profile. What it says on the console or asks for is a failure."""
    said, asked, contexts = [], [], []

    def go(path, **options):
        contexts.append(browser.new_context(**{"viewport": {"width": 1360, "height": 900}, **options}))
        page = contexts[-1].new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: request.url.startswith("data:") or asked.append(request.url))
        page.goto(path.as_uri())
        expect(page.locator("#cell h2")).to_be_visible()
        return page

    yield go
    for context in contexts:
        context.close()
    assert len(asked) == len(contexts)  # the files themselves
    assert said == []


@pytest.fixture
def page(study, visit):
    return visit(study.path)


def of(page, study, name, where="[aria-label='score']"):
    """What stands for a cell in a map, or in the contact sheet (``#sheet``)."""
    return page.locator(f"{where} [data-row='{study.number(name)}']")


def numbers(page, column):
    """The figures of a column, top down; None where there is none."""
    texts = page.locator(f"#drawings tbody td:nth-child({column})").all_inner_texts()
    return [float(text.replace("−", "-")) if text.strip() else None for text in texts]


def shown(page):
    return page.locator("#cell img").evaluate_all("images => images.map(image => image.src)")


def test_it_opens_with_the_verdict_and_what_is_not_beaten_comes_first(study, page):
    verdict = [f"{sentence[0].upper()}{sentence[1:]}." for sentence in study.result.scored.verdict]
    found = page.locator(".verdict li").all_inner_texts()
    assert sorted(found) == sorted(verdict)
    lost = ["NO CELL" in sentence for sentence in found]
    assert lost == sorted(lost, reverse=True)
    assert page.locator(".verdict .lost").count() == sum(lost)
    policy = page.locator("meta[http-equiv]").get_attribute("content")
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "unsafe" not in policy


def test_every_image_is_inside_and_each_drawing_has_its_own(study, page):
    sizes = page.locator("img[src]").evaluate_all("images => images.map(image => [image.src, image.naturalWidth])")
    assert {(source[:5], width) for source, width in sizes} == {("data:", 64)}
    cells = page.locator("#sheet img").evaluate_all("images => images.map(image => image.src)")
    drawn = [row for row in study.result.scored.rows if row.kind == "cell" and not row.fault]
    assert len(set(cells)) == len(cells) == 4 * len(drawn)  # two prompts, two seeds
    assert page.locator("#beside .tile").count() == 2  # the teacher and DPM-Solver++


def test_a_cell_of_a_map_shows_its_images_and_marks_them_and_the_reverse(study, page):
    tile, cell = of(page, study, "1.0 0.5", "#sheet"), of(page, study, "1.0 0.5")
    for pointed, marked in ((cell, tile), (tile, cell)):
        page.mouse.move(1, 1)
        expect(page.locator("#cell h2")).to_have_text(study.best)
        expect(page.locator(".lit")).to_have_count(0)
        pointed.hover()
        expect(marked).to_have_class(re.compile("lit"))
        expect(page.locator("#cell h2")).to_have_text("style 1, lcm 0.5")
        assert shown(page) == tile.locator("img").evaluate_all("images => images.map(image => image.src)")
    assert page.locator("[aria-label='score'] .lit").count() == 1


def test_each_figure_has_a_map_with_intervals(study, page):
    row = study.result.scored.rows[study.number("0.5 0.5")]
    for name, estimate in {"score": row.score, "style": row.style, **row.figures}.items():
        cell = of(page, study, "0.5 0.5", f".map[aria-label='{name}']")
        written = cell.get_attribute("aria-label")
        found = [float(text.replace("−", "-")) for text in re.findall(r"[−\d][\d.e-]*", written.split(name)[-1])[:3]]
        assert found == pytest.approx(estimate.as_list(), rel=0.006)
        box, bar = cell.bounding_box(), cell.locator(".whisker").bounding_box()
        assert box["x"] < bar["x"] < bar["x"] + bar["width"] < box["x"] + box["width"]


def test_a_failed_cell_says_why_and_is_not_compared(study, page):
    failed = page.locator("[aria-label='score'] [data-at='3,1']")
    expect(failed).to_have_text("–×")
    failed.click()
    expect(page.locator("#cell")).to_contain_text(study.result.scored.rows[int(failed.get_attribute("data-row"))].fault)
    expect(page.locator(".picked")).to_have_count(0)


def test_two_cells_are_compared_by_mouse(study, page):
    of(page, study, "0.5 0.5").click()
    assert page.locator("[aria-label='score'] .picked").count() == 1
    of(page, study, "1.0 1.0", "#sheet").click()
    expect(page.locator("dialog")).to_be_visible()
    expect(page.locator("dialog h3")).to_have_text(["style 0.5, lcm 0.5", "style 1, lcm 1"])
    stage = page.locator(".stage").bounding_box()
    middle = stage["y"] + stage["height"] / 2
    page.mouse.move(stage["x"] + stage["width"] / 2, middle)
    page.mouse.down()
    page.mouse.move(stage["x"] + stage["width"] / 4, middle)
    page.mouse.up()
    clip = page.locator(".stage img.left").evaluate("image => getComputedStyle(image).clipPath")
    assert float(re.findall(r"([\d.]+)%", clip)[0]) == pytest.approx(75, abs=1)
    for number in (0, 3):
        page.locator("#pairs button").nth(number).click()
        for side, name in (("left", "0.5 0.5"), ("right", "1.0 1.0")):
            ours = of(page, study, name, "#sheet").locator("img").nth(number).get_attribute("src")
            expect(page.locator(f".stage img.{side}")).to_have_attribute("src", ours)
    page.get_by_role("button", name="Close").click()
    expect(page.locator("dialog")).to_be_hidden()
    expect(page.locator(".picked")).to_have_count(0)


def test_two_cells_are_compared_by_keyboard(study, page):
    start = page.locator("[aria-label='score'] [tabindex='0']")
    expect(start).to_have_count(1)  # one stop of the Tab key
    start.focus()
    for key in ("ArrowUp", "ArrowLeft", "ArrowLeft", "ArrowLeft", "ArrowRight"):
        page.keyboard.press(key)
    focused = page.locator("[aria-label='score'] :focus")
    expect(focused).to_have_attribute("data-at", "1,0")
    expect(page.locator("#cell h2")).to_have_text("style 0.5, lcm 0.5")
    page.keyboard.press("Enter")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    expect(page.locator("dialog")).to_be_visible()
    slider = page.get_by_role("slider")
    expect(slider).to_be_focused()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert "48%" in page.locator(".stage img.left").evaluate("image => getComputedStyle(image).clipPath")
    page.keyboard.press("Escape")
    expect(page.locator("dialog")).to_be_hidden()
    expect(focused).to_have_attribute("data-at", "2,0")
    page.keyboard.press("Enter")
    expect(page.locator("[aria-label='score'] .picked")).to_have_count(1)
    page.keyboard.press("Escape")
    expect(page.locator(".picked")).to_have_count(0)


def test_the_front_is_drawn_and_its_points_are_the_cells(study, page):
    points = page.locator("[aria-label='Pareto front'] g")
    scored = [row for row in study.result.scored.rows if row.score and row.style]
    assert points.count() == len(scored)
    assert page.locator("[aria-label='Pareto front'] g.front").count() == len(study.result.scored.front)
    point = of(page, study, "1.0 1.0", "[aria-label='Pareto front']")
    point.focus()
    expect(of(page, study, "1.0 1.0", "#sheet")).to_have_class(re.compile("lit"))
    page.keyboard.press("Enter")
    expect(point).to_have_class(re.compile("picked"))


def test_the_table_sorts_both_ways_and_leaves_what_is_missing_last(study, page):
    heading = page.get_by_role("button", name="energy distance", exact=True)
    order = []
    for direction in ("ascending", "descending"):
        heading.click()
        expect(page.locator(f"[aria-sort='{direction}']")).to_have_text("energy distance")
        values = numbers(page, 5)
        kept = [value for value in values if value is not None]
        assert values[len(kept) :] == [None] * (len(values) - len(kept)) != []
        order.append(kept)
    assert len(values) == len(study.result.scored.rows)
    assert order[0] == sorted(order[0]) == order[1][::-1]


def test_the_command_is_copied(study, visit):
    page = visit(study.path, permissions=["clipboard-read", "clipboard-write"])
    expect(page.locator("#cell code")).to_have_text(study.result.command)
    page.get_by_role("button", name="Copy").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == study.result.command


def test_a_hostile_prompt_is_text(study, page):
    assert b"onerror" in study.path.read_bytes()
    expect(page.locator("#prompts button").nth(1)).to_have_text(f"{HOSTILE}, seed 0")
    of(page, study, "0.5 0.5").click()
    of(page, study, "1.0 1.0").click()
    expect(page.locator("#pairs button").first).to_have_text(f"{HOSTILE}, seed 0")
    assert page.evaluate("window.hacked") is None
    assert page.locator("img:not([src^='data:'])").count() == 0


def test_even_markup_that_got_in_would_not_run(study, browser, tmp_path):
    page, copy = browser.new_page(), tmp_path / "report.html"
    markup = '<script>window.hacked = 1</script><img src="x" onerror="window.hacked = 1"><p id="end">end</p>'
    copy.write_text(study.path.read_text("utf-8").replace("<footer>", f"{markup}<footer>"), "utf-8")
    page.goto(copy.as_uri())
    expect(page.locator("#end")).to_be_visible()
    expect(page.locator("#cell h2")).to_be_visible()  # the page's own script did
    assert page.evaluate("window.hacked") is None
    page.close()


def test_one_prompt_alone_fills_the_sheet(study, page):
    page.locator("#prompts button").nth(3).click()
    expect(of(page, study, "0.5 0.5", "#sheet").locator("img:visible")).to_have_count(1)
    expect(page.locator("#prompts [aria-pressed='true']")).to_have_text("a hat, seed 1")
    assert of(page, study, "0.5 0.5", "#sheet").locator("img:visible").get_attribute("alt").endswith("a hat")


def test_it_fits_a_phone(study, visit):
    page = visit(study.path, **PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") == 375
    of(page, study, "0.5 0.5").tap()
    expect(page.locator("#cell h2")).to_have_text("style 0.5, lcm 0.5")
    expect(page.locator("#cell img").first).to_be_in_viewport()
    of(page, study, "0.5 1.0").tap()
    expect(page.locator("dialog")).to_be_visible()
    inside = page.locator(".stage").bounding_box()
    assert inside["x"] >= 0
    assert inside["x"] + inside["width"] <= 375
    assert page.evaluate("document.documentElement.scrollWidth") == 375


def test_it_is_light_and_dark_as_the_reader_asks(study, visit):
    for scheme, ground in (("light", "rgb(246, 245, 242)"), ("dark", "rgb(16, 17, 21)")):
        page = visit(study.path, color_scheme=scheme)
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == ground


def test_cells_that_are_no_grid_are_plotted_over_each_lambda(study, visit, tmp_path):
    asked = study.result.prepared.request
    shutil.copytree(asked.work / "latents", tmp_path / "work" / "latents")
    axes = {"style": (0.5, 1.0), "lcm": (0.5, 1.0)}
    result = search(replace(asked, work=tmp_path / "work", axes=axes, optimize=3))
    page = visit(tmp_path / "work" / "report.html")
    assert page.locator(".map").count() == 0
    cells = sum(row.kind == "cell" for row in result.scored.rows)
    for title in ("cells", "score by style", "score by lcm", "paired error by lcm"):
        assert page.locator(f"[aria-label='{title}'] g[data-row]").count() == cells == 9
    plot = page.locator("[aria-label='score by lcm']")
    plot.locator("g[tabindex='0']").first.focus()
    page.keyboard.press("ArrowRight")
    name = page.locator("#cell h2").inner_text()
    expect(page.locator("#sheet .lit .caption")).to_have_text(name)


def test_screenshots_are_kept(study, visit, tmp_path):
    folder = Path(ARTEFACTS) if ARTEFACTS else tmp_path
    folder.mkdir(parents=True, exist_ok=True)
    for name, options in {"light": {}, "dark": {"color_scheme": "dark"}, "phone": PHONE}.items():
        page = visit(study.path, **options)
        of(page, study, "0.5 0.5").hover()
        found = Image.open(BytesIO(page.screenshot(path=folder / f"report-{name}.png")))
        assert len(found.convert("RGB").getcolors(1 << 24)) > 100
    of(page, study, "0.5 0.5").click()
    of(page, study, "1.0 1.0").click()
    page.screenshot(path=folder / "report-compare.png")


def test_finished_cells_and_their_figures_are_seen_in_the_terminal(study):
    """Those that stand there when the terminal is drawn anew, a few times a second: which, depends on the machine."""
    table = study.said
    assert "paired error" in table
    seen = set(re.findall(r"style ([\d.]+), lcm ([\d.]+)", table))
    figures = {row.cell.lambdas: row.figures.get("paired error") for row in study.result.scored.rows}
    found = [figures[float(style), float(lcm)] for style, lcm in seen]
    assert found and all(f"{figure.value:.3g}" in table for figure in found)
    assert re.search(r"search .* steps .* left", table)
