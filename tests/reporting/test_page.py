"""The report in a real browser: quiet, alone, within its width, and names stay text."""

import re
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from residual_peft.analysis.describing import Words
from residual_peft.app.recording import changed_rows
from residual_peft.data.pictures import thumbnail
from residual_peft.reporting import write_report
from residual_peft.reporting.run_record import Example, NamedImage, RunRecord
from tests.browser import browser  # noqa: F401  a fixture
from tests.pairs import table
from tests.records import TRIED, TRUST, gain_record, head_record, record

ATTACK = "<script>document.title='run'</script><img src=x onerror=\"document.title='run'\">"
STRANGE = (ATTACK, "כלב קטן", "🐈‍⬛ café", "a very long name " * 30, "x" * 400, "\u202eno image")


def with_examples(made: RunRecord) -> RunRecord:
    generator = np.random.default_rng(0)
    examples = []
    for index, row in enumerate(changed_rows(made.before, made.after, made.labels) or ()):
        size = (8 + 40 * (index % 5), 60 + index, 3)
        picture = Image.fromarray(generator.integers(0, 256, size, np.uint8))
        examples.append(Example(row, thumbnail(picture)))
    return replace(made, examples=tuple(examples))


def strange() -> RunRecord:
    made = record(STRANGE[:5], 53, skill=(2.0, 1.0))
    none = torch.full((53, 1), -9.0)
    facts = replace(
        made.facts,
        dataset=ATTACK,
        title=ATTACK,
        templates=(ATTACK,),
        base_model=ATTACK,
        adapter=ATTACK,
        machine=ATTACK,
        settings={ATTACK: ATTACK},
    )
    unit = made.gains.units[0]
    words = tuple(Words(unit, i, ((ATTACK, 0.5), (STRANGE[4], -0.1)), 0.3) for i in range(3))
    whole = RunRecord(
        STRANGE,
        made.labels,
        torch.cat([made.before, none], 1),
        torch.cat([made.after, none], 1),
        facts,
        made.gains,
        words,
    )
    return with_examples(whole)


def many(classes: int, images: int) -> RunRecord:
    names = tuple(f"{i:04} a class of things" for i in range(classes))
    made = record(names, images, skill=(2.0, 2.5), gains=gain_record(12, 12, 65))
    return with_examples(made)


def with_head(classes: int, images: int = 60) -> RunRecord:
    """A fit of a class head, whose mistakes and suspicious labels have strange names."""
    names = tuple(f"{i:03} a class of things" for i in range(classes))
    gains = gain_record(6, 8, 16)
    made = with_examples(record(names, images, skill=(2.0, 2.5), gains=gains))
    picture = thumbnail(Image.fromarray(np.zeros((80, 70, 3), np.uint8)))
    files = (ATTACK, "cats/" + "a_very_long_name_" * 9 + ".png", "כלב/1.png", "row 3 of the split")
    named = tuple(NamedImage(file, 0, 1, 0.999, picture) for file in files)
    words = tuple(Words(unit, 0, ((ATTACK, 0.5), ("כלב", -0.1)), 0.3) for unit in gains.units[:20])
    return replace(
        made,
        gains=None,
        head=head_record(classes, gains),
        words=words,
        trust=TRUST,
        mistakes=named,
        suspicious=named,
        facts=replace(made.facts, methods=TRIED * 4),
    )


RECORDS = {
    "head of two classes": lambda: with_head(2),
    "head of ten classes": lambda: with_head(10),
    "head of 300 classes": lambda: with_head(300, 900),
    "usual": lambda: with_examples(record(images=60, gains=gain_record(6, 8, 16))),
    "strange": strange,
    "two classes": lambda: with_examples(record(("a", "b"), 20)),
    "many classes": lambda: many(100, 700),
    "a thousand classes": lambda: many(1000, 3000),
    "fifty classes": lambda: many(50, 500),
    "one image": lambda: record(("a", "b"), 1, skill=(9.0, 9.0)),
    "perfect already": lambda: record(images=30, skill=(99.0, 99.0)),
    "no gains by unit": lambda: replace(record(), gains=None),
}


@pytest.fixture(scope="module", params=RECORDS, ids=str)
def page_file(request, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_report(RECORDS[request.param](), path)
    return path


class Visit:
    """A page and all that it said and asked for."""

    def __init__(self, browser: Any, path: Path, **options: Any) -> None:  # noqa: F811
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())

    def __enter__(self) -> "Visit":
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()


def test_it_is_small_opens_quietly_and_alone_and_keeps_its_width(browser, page_file) -> None:  # noqa: F811
    assert page_file.stat().st_size < 2_000_000
    with Visit(browser, page_file) as visit:
        for scheme in ("light", "dark"):
            visit.page.emulate_media(media="screen", color_scheme=scheme)
            for width in (360, 768, 1280):
                visit.page.set_viewport_size({"width": width, "height": 800})
                assert visit.page.evaluate("document.documentElement.scrollWidth") == width
            back = visit.page.evaluate("getComputedStyle(document.body).backgroundColor")
            dark = sum(map(int, re.findall(r"\d+", back)[:3])) < 384
            assert dark == (scheme == "dark")
            # paper is light, whatever the screen
            visit.page.emulate_media(media="print", color_scheme=scheme)
            colors = "(s => [s.backgroundColor, s.color])(getComputedStyle(document.body))"
            assert visit.page.evaluate(colors) == ["rgb(255, 255, 255)", "rgb(24, 27, 31)"]
        assert visit.page.pdf(format="A4").startswith(b"%PDF")
        outside = [url for url in visit.asked if not url.startswith("data:image/")]
        assert outside == [page_file.as_uri()]
        assert visit.said == []
        assert visit.page.title() != "run"
        assert visit.page.locator("script").count() == 1  # the copy button's
        broken = "[...document.images].filter(image => !image.naturalWidth).length"
        assert visit.page.evaluate(broken) == 0


@table("count", [14, 50])
def test_confusions_of_many_classes_keep_within_a_sheet_of_paper(browser, tmp_path, count) -> None:  # noqa: F811
    names = tuple(f"one of the classes, {number}" for number in range(count))
    write_report(record(names, 2 * count), tmp_path / "many.html")
    viewport = {"width": 680, "height": 900}
    with Visit(browser, tmp_path / "many.html", viewport=viewport) as visit:
        visit.page.emulate_media(media="print")  # A4 less its margins, where tables do not scroll
        assert visit.page.locator("table.heat.dense").count() == 2
        assert visit.page.evaluate("document.documentElement.scrollWidth") == 680


def test_code_is_copied_where_a_browser_allows_it_and_where_not(browser, tmp_path) -> None:  # noqa: F811
    write_report(record(), tmp_path / "report.html")
    permissions = {"permissions": ["clipboard-read", "clipboard-write"]}
    with Visit(browser, tmp_path / "report.html", **permissions) as visit:
        page = visit.page
        page.click("button.copy")
        page.wait_for_function("document.querySelector('button.copy').textContent == 'Copied'")
        assert page.evaluate("navigator.clipboard.readText()") == page.text_content("#code")
        page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
        page.evaluate("document.querySelector('button.copy').textContent = ''")
        page.click("button.copy")
        page.wait_for_function("document.querySelector('button.copy').textContent != ''")
    with Visit(browser, tmp_path / "report.html", java_script_enabled=False) as visit:
        assert not visit.page.locator("button.copy").is_visible()


def wild(layers: int, heads: int, components: int) -> RunRecord:
    """Gains of every size, as a fit leaves them where a component writes next to nothing."""
    gains = gain_record(layers, heads, components)
    generator = torch.Generator().manual_seed(3)
    size = torch.rand(len(gains.gains), generator=generator).mul(9).exp()
    values = 1 + size * torch.randn(len(size), generator=generator)
    return record(images=60, gains=replace(gains, gains=values))


@pytest.mark.parametrize(
    "made",
    [
        pytest.param(lambda: record(images=60, gains=gain_record(6, 8, 16)), id="usual"),
        pytest.param(lambda: wild(3, 8, 16), id="wild"),
        pytest.param(lambda: wild(2, 16, 4), id="many heads"),
        pytest.param(lambda: with_head(10), id="class head"),
    ],
)
def test_no_cell_cuts_its_number(browser, made, tmp_path) -> None:  # noqa: F811
    write_report(made(), tmp_path / "report.html")
    cut = (
        "[...document.querySelectorAll('table.heat.units td')]"
        ".filter(cell => cell.scrollWidth > cell.clientWidth).map(cell => cell.textContent)"
    )
    with Visit(browser, tmp_path / "report.html") as visit:
        for width in (360, 768, 1280):
            visit.page.set_viewport_size({"width": width, "height": 800})
            assert visit.page.locator("table.heat.units td").count() > 20
            assert visit.page.evaluate(cut) == []
            assert visit.page.evaluate("document.documentElement.scrollWidth") == width


def test_what_was_tried_is_seen_without_pulling_it_aside(browser, tmp_path) -> None:  # noqa: F811
    made = record()
    chosen = replace(TRIED[-1], title="logistic regression on the embedding (a linear probe)")
    made = replace(made, facts=replace(made.facts, methods=(*TRIED, chosen)))
    write_report(made, tmp_path / "report.html")
    with Visit(browser, tmp_path / "report.html") as visit:
        table = visit.page.locator("table.methods")
        for width in (360, 390, 768, 1280):
            visit.page.set_viewport_size({"width": width, "height": 800})
            wide, room = table.evaluate("t => [t.scrollWidth, t.parentElement.clientWidth]")
            assert wide <= room
            for text in ("20.0\u00a0% to 45.0\u00a0%", "0.01\u00a0s"):
                assert table.get_by_text(text).first.is_visible()


def test_what_is_named_in_markup_stays_text(browser, tmp_path: Path) -> None:  # noqa: F811
    write_report(strange(), tmp_path / "report.html")
    with Visit(browser, tmp_path / "report.html") as visit:
        shown = visit.page.inner_text("main")
        assert shown.count("<script>") > 5
        assert visit.page.locator("img").count() == len(strange().examples)
        assert "onerror" in visit.page.inner_text("h1")
    write_report(with_head(10), tmp_path / "report.html")
    with Visit(browser, tmp_path / "report.html") as visit:
        assert visit.page.title() != "run"
        assert visit.page.inner_text("#mistakes").count("<script>") == 1
        assert visit.page.inner_text("#inside").count("<script>") > 5
        assert visit.said == []


def test_nothing_leaves_the_file_even_for_code_that_got_in(browser, tmp_path: Path) -> None:  # noqa: F811
    write_report(record(), tmp_path / "report.html")
    fetch = (
        "url => new Promise(done => { const image = new Image(); image.onload = () => done('got');"
        "image.onerror = () => done('refused'); image.src = url; })"
    )
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/image.png"
        with Visit(browser, tmp_path / "report.html") as visit:
            assert visit.page.evaluate(fetch, url) == "refused"
            assert any("Content Security Policy" in text for text in visit.said)
        server.settimeout(0.2)
        with pytest.raises(TimeoutError):
            server.accept()


CONTRAST = """
() => {
  const light = text => {
    const [r, g, b] = text.match(/[\\d.]+/g).slice(0, 3).map(v => {
      v /= 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = node => {
    for (; node; node = node.parentElement) {
      const color = getComputedStyle(node).backgroundColor;
      if (color !== 'rgba(0, 0, 0, 0)') return color;
    }
  };
  const found = {};
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || node.tagName === 'title') continue;
    const style = getComputedStyle(node);
    const [a, b] = [light(node.closest('svg') ? style.fill : style.color), light(behind(node))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) found[node.tagName + '.' + node.getAttribute('class')] = ratio;
  }
  return found;
}
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_stands_out_from_what_is_behind_it(browser, tmp_path, scheme) -> None:  # noqa: F811
    made = with_examples(record(images=60, gains=gain_record(6, 8, 16)))
    gains = made.gains
    # every colour of either scale
    spread = torch.linspace(-0.2, 2.2, len(gains.gains))
    made = replace(
        made, gains=replace(gains, gains=spread, share=torch.linspace(-0.1, 1, len(spread)))
    )
    write_report(made, tmp_path / "report.html")
    with Visit(browser, tmp_path / "report.html", color_scheme=scheme) as visit:
        page = visit.page
        used = set(page.evaluate("[...document.querySelectorAll('td')].map(e => e.className)"))
        assert {f"d{i}" for i in range(9)} | {f"s{i}" for i in range(7)} <= used
        assert page.evaluate(CONTRAST) == {}
    write_report(with_head(10), tmp_path / "report.html")
    with Visit(browser, tmp_path / "report.html", color_scheme=scheme) as visit:
        assert visit.page.evaluate(CONTRAST) == {}
