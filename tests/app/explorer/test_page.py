"""The explorer in a real browser, from a dropped image to a table; and names stay text."""

import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import get_peft_model

from residual_peft import ResiDualConfig, ZeroShotClassifier, fit_bases, gains_of
from residual_peft.app.explorer import appearance, explorer, html, page
from residual_peft.app.explorer.looking import Knob, Look, Looking, Scores
from residual_peft.app.prediction import Answer
from residual_peft.classifiers.backbones import load_backbone
from residual_peft.classifiers.predictions import Prediction
from residual_peft.data.processors import pixel_values
from residual_peft.demo.tasks import world_task
from residual_peft.towers.units import Unit
from tests.browser import browser  # noqa: F401  a fixture

NASTY = "<img src=x onerror=alert(1)> *heart* [x](http://x) \x1b[2J"
NAMES = ("circle", "square", "<i>heart</i>")


@pytest.fixture(scope="module")
def classifier() -> ZeroShotClassifier:
    """Of the bundled model, with gains that change its mind about some pictures."""
    backbone = load_backbone()
    model = get_peft_model(backbone.model, ResiDualConfig(components=12))
    images = world_task("shape", 40, seed=1)["image"]
    fit_bases(model, [pixel_values(backbone.image_processor, images)])
    draw = torch.Generator().manual_seed(2)
    gains = gains_of(model)
    gains.data = 1 + 1.5 * torch.randn(gains.shape, generator=draw)
    return ZeroShotClassifier.from_text(
        model, backbone.tokenizer, NAMES, image_processor=backbone.image_processor
    )


def test_names_stay_text(monkeypatch) -> None:
    """Whatever a class, a file or a word is called."""
    monkeypatch.setattr(Looking, "__init__", lambda self, given: setattr(self, "silence", NASTY))
    said = [page._about(SimpleNamespace(class_names=(NASTY, *NAMES), head=None))]
    said.append(html.invitation(Looking(None)))
    say = Scores({NASTY: 0.9, "b": 0.1}, {NASTY: 1.0, "b": -1.0})
    monkeypatch.setattr(Look, "classes", property(lambda _: (NASTY, "b")))
    said.append(html.margin(Look(say, say), Scores({}, {NASTY: 2.0, "b": 0.0})))
    said.append(html.bars("unit", [("layer0.head1 3", -0.5, f"+ {NASTY}")]))
    for text in said:
        assert "onerror" in text
        assert not re.search(r"<img|\x1b", text), text
    assert not re.search(r"\*heart|\]\(http|<i>", said[0])  # it is Markdown, the others HTML
    assert "before +2.00, as fitted <b>+2.00</b>, with the sliders <b>+2.00</b>" in said[2]
    assert 'class="against" style="width:100%"' in said[3]
    found = Prediction("b", 1, 0.7, (0.3, 0.7), ("b", NASTY), (NASTY, "b"), several=True)
    cells = page._row(Answer("/tmp/somewhere/x\x1b.png", found))
    assert cells[:3] == ["x\\x1b.png", "b", "0.700"]
    assert cells[4:] == ["0.300", f"b, {cells[3]}"]
    assert "\x1b" not in "".join(cells)
    unread = page._row(Answer("a.png", None, "no such file"))
    assert unread == ["a.png", "not read: no such file"]


def test_sliders_are_as_many_as_there_are_knobs() -> None:
    knob = Knob(Unit("head", 1, 2), 3, 5.0, -0.25, "+ a curve")
    first, *others = page._knobs(Look(Scores({}, {}), Scores({}, {}), knobs=(knob,)))
    assert (first["label"], first["info"]) == ("layer1.head2 3  (effect -0.25)", "+ a curve")
    assert (first["minimum"], first["value"], first["maximum"]) == (-2.0, 5.0, 10.0)
    assert [other["visible"] for other in others] == [False] * (page.KNOBS - 1)
    assert len(page._knobs(None)) == page.KNOBS


@pytest.fixture(scope="module")
def address(classifier) -> Iterator[str]:
    shown = explorer(classifier, title="What shapes see")
    _, found, _ = shown.launch(
        server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, **appearance()
    )
    yield found
    shown.close()


class Visit:
    """One look at the page, and all that it asked of others."""

    def __init__(self, browser: Any, address: str) -> None:  # noqa: F811
        self.view = browser.new_page(viewport={"width": 1280, "height": 900})
        self.errors: list[str] = []
        self.elsewhere: list[str] = []
        self.view.on("pageerror", lambda error: self.errors.append(str(error)))
        self.view.on("dialog", lambda dialog: self.errors.append(dialog.message))
        self.view.on("request", self._asked)
        self.view.set_default_timeout(60_000)
        self.view.goto(address)

    def _asked(self, request: Any) -> None:
        if not re.match(r"(http://(127\.0\.0\.1|localhost):|data:|blob:)", request.url):
            self.elsewhere.append(request.url)

    def wait(self, selector: str, text: str) -> None:
        """Until a part of the page says something."""
        said = self.view.locator(selector).get_by_text(text)
        said.locator("visible=true").first.wait_for()


def say(value: float) -> str:
    return f"{value:+.2f}"


@pytest.mark.slow
def test_from_a_dropped_image_to_a_table(browser, address, classifier, shapes, tmp_path) -> None:  # noqa: F811
    looking = Looking(classifier)
    looks = {file: looking.look(file) for file in shapes}
    # one whose class the gains changed
    file, found = next((f, x) for f, x in looks.items() if x.why.margin_before < 0)
    this, other = found.classes
    visit = Visit(browser, address)
    view = visit.view
    view.set_input_files("#image input[type=file]", file)
    visit.wait("#margin", say(found.after.margin(this, other)))
    assert f"before {say(found.before.margin(this, other))}" in view.inner_text("#margin")
    before, after = view.inner_text("#before"), view.inner_text("#after")
    for text, said in ((before, found.before), (after, found.after)):
        for name, probability in said.probabilities.items():
            assert name in text
            assert f"{100 * probability:.0f}%" in text
    rows = view.locator("#why tr").all_inner_texts()
    for name, effect, words in looking.effects(found.why):
        assert any(
            name in row and say(effect) in row and words.split(",")[0] in row for row in rows
        )
    for unit, effect in found.by_unit()[: html.UNITS]:
        assert any(str(unit) in row and say(effect) in row for row in rows)

    number = view.locator("#knob-0 input[type=number]")
    assert float(number.input_value()) == pytest.approx(found.knobs[0].fitted, abs=2e-3)
    number.fill("-1.5")
    number.press("Enter")
    turned = looking.turned(found.rows, [(found.knobs[0], -1.5)])
    assert say(turned.margin(this, other)) != say(found.after.margin(this, other))
    visit.wait("#margin", say(turned.margin(this, other)))
    view.locator("#knob-1 input[type=range]").focus()
    view.keyboard.press("Home")  # as far to the left as it goes
    both = [(found.knobs[0], -1.5), (found.knobs[1], round(found.knobs[1].range[0], 3))]
    visit.wait("#margin", say(looking.turned(found.rows, both).margin(this, other)))
    view.click("#again")
    view.locator("#margin").get_by_text("with the sliders").wait_for(state="detached")
    assert float(number.input_value()) == pytest.approx(found.knobs[0].fitted, abs=2e-3)

    view.get_by_role("tab", name="A folder").click()
    (tmp_path / "bad.png").write_text("no image")
    view.set_input_files("#files input[type=file]", [*shapes, str(tmp_path / "bad.png")])
    visit.wait("#table", "not an image that PIL knows")
    cells = " ".join(view.inner_text("#table").split())
    for name, look in looks.items():
        label, best = max(look.after.probabilities.items(), key=lambda item: item[1])
        assert f"{Path(name).name} {label} {best:.3f}" in cells
    assert (visit.errors, visit.elsewhere) == ([], [])


@pytest.mark.slow
def test_a_bad_image_is_said_and_the_next_one_is_shown(browser, address, shapes, tmp_path) -> None:  # noqa: F811
    (tmp_path / "bad.png").write_text("no image")
    visit = Visit(browser, address)
    visit.view.set_input_files("#image input[type=file]", str(tmp_path / "bad.png"))
    visit.view.get_by_text(re.compile("could not read .*not an image that PIL knows")).wait_for()
    visit.view.reload()
    visit.view.set_input_files("#image input[type=file]", shapes[0])
    visit.view.locator("#why table").first.wait_for()
    assert (visit.errors, visit.elsewhere) == ([], [])
