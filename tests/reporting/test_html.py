"""The text of a report, without a browser; it is written whole or not at all."""

import html
import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from residual_peft.analysis import explain_adapter
from residual_peft.analysis.describing import Words
from residual_peft.app.fitting import fit_adapter
from residual_peft.app.recording import record_run
from residual_peft.classifiers.evaluation import evaluate
from residual_peft.classifiers.figures import brief
from residual_peft.classifiers.zero_shot import ZeroShotClassifier
from residual_peft.data import batches, load_data
from residual_peft.data.pictures import thumbnail
from residual_peft.errors import ResiDualError
from residual_peft.experiments import METHODS
from residual_peft.reporting import report_html, write_report
from residual_peft.reporting.components import unit_views
from residual_peft.reporting.run_record import (
    Example,
    HeadShares,
    NamedImage,
    RunRecord,
    TrustRecord,
)
from residual_peft.solvers.coordinates import collect_coordinates
from residual_peft.tuner import gains_by_unit, gains_of
from tests.pairs import table
from tests.records import FACTS, TRIED, TRUST, gain_record, head_record, record
from tests.training_case import save_clip
from tests.training_case import task as images


def text(made: RunRecord) -> str:
    """What is read, on one line."""
    body = re.sub(r"<style>.*?</style>", "", report_html(made), flags=re.DOTALL)
    body = body.replace("<wbr>", "")
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


def test_the_headline_says_it_in_plain_words() -> None:
    labels = torch.zeros(200, dtype=torch.int64)
    before, after = torch.zeros(200, 2), torch.zeros(200, 2)
    before[100:, 1] = after[:20, 1] = 1.0
    made = RunRecord(("a", "b"), labels, before, after, record().facts)
    shown = text(made)
    assert "On 200 test images: 50.0 % → 90.0 % recognised, +40.0 points (95 % interval" in shown
    assert "That is more than chance makes" in shown
    assert "80 right before and after" in shown
    assert "100 put right" in shown
    assert "20 gone wrong" in shown
    assert "0 wrong before and after" in shown
    worse = text(replace(made, before=after, after=before))
    assert "−40.0 points" in worse
    assert "The adapter made it worse, by more than chance" in worse
    assert "a : 180 → 100 of 200 images (−40.0 points), more than chance makes" in worse
    same = text(replace(made, after=before))
    assert "0.0 points" in same
    assert "No image changed side." in same


def test_a_small_difference_is_called_one() -> None:
    labels, logits = torch.zeros(30, dtype=torch.int64), torch.ones(30, 2).cumsum(0)
    after = logits.clone()
    logits[0, 1] += 1
    shown = text(RunRecord(("a", "b"), labels, logits, after, record().facts))
    assert "chance alone could make this difference" in shown
    one = text(record(("a", "b"), 1, skill=(9.0, 9.0)))
    assert "On 1 test image:" in one
    assert "What became of the image" in one


def test_sections_without_anything_to_show_are_left_out() -> None:
    shown = text(replace(record(), gains=None))
    assert "Where in the model" not in shown
    assert "Images that changed side" not in shown
    assert "Where in the model" in text(record())
    assert "The components that did most" in text(record())
    legend = "damped as far as 0, turned around below 0, and below −1 amplified as well"
    assert legend in text(record())
    assert "pets, before and after adapting CLIP" in shown
    nameless = replace(record(), facts=replace(record().facts, dataset="the dataset"))
    assert "3 classes, before and after adapting CLIP" in text(nameless)
    assert "in a local directory" not in shown
    local = replace(record().facts, base_model="clip")
    assert "The base model lies in a local directory" in text(replace(record(), facts=local))


def test_words_stand_below_what_they_describe() -> None:
    made = record()
    unit = made.gains.units[0]
    texts = (("a stripe", 0.5), ("a <b>dot</b>", -0.25))
    shown = text(replace(made, words=(Words(unit, 0, texts, 0.42),)))
    assert "writes + a stripe ; − a <b>dot</b> (42 % of its direction)" in shown
    assert "which end is which is arbitrary" in shown
    whole = text(replace(made, words=(Words(unit, None, texts),)))
    assert "its whole unit writes + a stripe" in whole
    assert "which end is which" not in text(made)


def test_before_and_after_stand_in_their_own_places() -> None:
    """One cat right before, two after; a dog for a cat with 60 %, a cat as one with 90 %."""
    labels = torch.zeros(3, dtype=torch.int64)
    before = torch.tensor([[0.4, 0.6], [0.4, 0.6], [0.7, 0.3]]).log()
    after = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.2, 0.8]]).log()
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG")
    made = RunRecord(
        ("cat", "dog"), labels, before, after, FACTS, examples=(Example(0, buffer.getvalue()),)
    )
    shown = text(made)
    assert "reading the images 2.5 s for 90 images, 36 a second fitting 0.50 s" in shown
    assert "Before 33.3 %" in shown
    assert "After 66.7 %" in shown
    assert "1 → 2 of 3" in shown
    assert "class taken for before after cat dog 2 1" in shown
    assert "shows cat ✗ before dog (60 %) ✓ after cat (90 %)" in shown
    assert "accuracy 33.3 % 66.7 %" in shown


def test_what_speaks_against_a_fit_is_said() -> None:
    shown = text(record())
    for words in ("accuracy on those", "always the largest", "What speaks", "left out"):
        assert words not in shown
    facts = replace(
        record().facts,
        train_accuracy=0.987,
        largest_class=0.4,
        skipped=3,
        repeated=1,
        findings=("the adapted model is <not> better.", "so much for that."),
    )
    shown = text(replace(record(), facts=facts))
    assert "images to learn from 80 accuracy on those training images 98.7 %" in shown
    assert "always the largest class 40.0 %" in shown
    assert "Before you trust it The adapted model is <not> better. So much for that." in shown
    assert "3 images left out as unreadable" in shown
    assert "1 test image left out of the score as trained on" in shown


def test_a_fit_hands_what_it_found_to_its_report(tmp_path: Path) -> None:
    save_clip(tmp_path / "model")
    found = fit_adapter(
        str(tmp_path / "model"),
        images(60),
        tmp_path / "out",
        templates=["a {}."],
        words=(),
        method="gains",
    )
    facts = RunRecord.load(tmp_path / "out").facts
    assert facts.train_accuracy == found.train["accuracy"]
    assert facts.largest_class == found.largest_class
    assert (facts.skipped, facts.repeated) == (len(found.skipped), found.repeated)
    assert facts.findings == found.findings


def test_page_and_picture_show_the_same_mean_gains(tmp_path: Path, monkeypatch) -> None:
    """Of wild gains, whose plain mean is far from the one that is weighted by variance."""
    save_clip(tmp_path / "model")
    fit_adapter(
        str(tmp_path / "model"), images(60), tmp_path / "out", templates=["a {}."], method="gains"
    )
    classifier = ZeroShotClassifier.from_pretrained(tmp_path / "out")
    gains = gains_of(classifier.model)
    with torch.no_grad():
        gains.copy_(1 + torch.randn(len(gains)).exp() * 300 * torch.randn(len(gains)))
    drawn: list[str] = []

    def keep(figure: Figure, *_: object, **__: object) -> None:
        drawn.extend(text.get_text() for text in figure.axes[0].texts)

    monkeypatch.setattr(Figure, "savefig", keep)
    classifier.save_pretrained(tmp_path / "again")
    data = load_data(images(60))
    rows = collect_coordinates(
        classifier.model, batches(data.test, classifier.image_processor, name="test")
    )
    scores = evaluate(classifier, data.test)
    facts = record().facts
    made = record_run(classifier, data.test, scores, scores, facts, rows)
    page = report_html(made)
    cells = re.search(r"<caption>Mean gain</caption>.*?</table>", page, re.DOTALL)[0]
    shown = [html.unescape(c) for c in re.findall(r"<td class=\"[^>]*>([^<]*)</td>", cells)]
    assert shown == drawn
    plain = [brief(float(part.mean())) for part in gains_by_unit(classifier.model).values()]
    assert len(drawn) > 5
    assert sum(a != b for a, b in zip(plain, drawn, strict=True)) > 3
    units = {effect.unit: effect for effect in explain_adapter(classifier, rows).by_unit()}
    for view in unit_views(made.gains):
        assert units[view.unit].mean_gain == pytest.approx(view.mean_gain, rel=1e-5)


def test_what_a_class_head_says_is_shown() -> None:
    head = head_record(3)
    unit = head.reasons[0].con[0].unit
    words = (Words(unit, 0, (("a curve", 0.5),)),)
    made = replace(record(), gains=None, head=head, words=words)
    shown = text(made)
    assert "What speaks for and against each class" in shown
    assert "for +0.50 layer 0 · head 0, no. 0 : + a curve +0.40" in shown
    assert "against −0.50 layer 0 · head 0, no. 0 : − a curve −0.40" in shown
    assert "with 10.0 % for the texts, all shares add up" in shown
    embedding = HeadShares("embedding", (), (), torch.zeros(0), torch.zeros(0))
    shown = text(replace(made, head=embedding, words=()))
    assert "told apart by a linear map of the whole image embedding" in shown
    assert "speaks for" not in shown.replace("which ones speak for", "")


def test_what_left_out_images_say_is_told() -> None:
    image = NamedImage("cats/1.png", 0, 1, 0.983, thumbnail(Image.new("RGB", (8, 8))))
    made = replace(record(), trust=TRUST, suspicious=(image,), mistakes=(image,))
    shown = text(made)
    assert "off by 4.0 % on average; those of the model as it came were by 19.0 %" in shown
    assert "90 times of 100, by the jackknife (training images, each by a fit" in shown
    assert "here 92.5 % of the test images, with 1.2 classes in a set" in shown
    assert "200 more images, classes as they are, would add about +2.1 points" in shown
    assert "1 image of the training images looks more like another class than like its own" in shown
    assert "filed under cat looks like dog (label wrong: 98 %) cats/1.png" in shown
    assert "filed under cat taken for dog (98 %) cats/1.png" in shown
    less = TrustRecord(360, 0.95, 0.19, 0.2)
    shown = text(replace(made, trust=less, suspicious=()))
    assert "no less than those of the model as it came (19.0 %)" in shown
    for missing in ("sets of classes", "more images help", "labels look wrong"):
        assert missing not in shown


def test_what_was_tried_is_a_table_with_the_chosen_one_marked() -> None:
    made = record()
    shown = text(replace(made, facts=replace(made.facts, methods=TRIED)))
    assert "texts alone 2.038 34.0 % 30.0 % 20.0 % to 45.0 % 0 – 0.01 s" in shown
    assert "✓ ridge on the coordinates chosen 0.028 97.0 % 97.5 %" in shown
    assert "The method was chosen by hand" in shown
    assert "What was tried" not in text(made)
    assert "15,792 75.9 kB 1.4 s" in shown
    assert "test recall" not in shown
    bare = tuple(replace(row, low=None, high=None, bytes=None) for row in TRIED)
    assert "test numbers time texts" in text(replace(made, facts=replace(made.facts, methods=bare)))
    alike = tuple(replace(row, recall=0.625, test_recall=0.5) for row in TRIED)
    shown = text(replace(made, facts=replace(made.facts, methods=alike)))
    assert "97.5 % 87.0 % to 99.0 % 62.5 % 50.0 % 15,792" in shown


def test_a_long_name_goes_on_at_its_marks_and_stays_text() -> None:
    page = report_html(record(("007.red_ring", "a/<b>"), 20))
    assert "007.<wbr>red_<wbr>ring" in page
    assert "a/&lt;b&gt;" in page


def test_a_thousand_classes_fit_in_a_page() -> None:
    names = tuple(f"class {i}" for i in range(1000))
    page = report_html(record(names, 3000, skill=(2.0, 2.5), gains=gain_record(24, 16, 65)))
    assert len(page) < 1_000_000
    assert "All 1000 classes as a table" in page
    assert 'class="heat dense"' not in page
    assert 'class="heat dense"' in report_html(record(names[:50], 300))


def test_code_to_load_it_runs_as_it_stands() -> None:
    facts = replace(record().facts, adapter='my "best" adapter')
    page = report_html(replace(record(), facts=facts))
    code = html.unescape(re.search(r"<pre[^>]*><code[^>]*>(.*?)</code>", page, re.DOTALL)[1])
    assert compile(code, "report", "exec")
    assert code.startswith("import residual_peft ")
    assert 'from_pretrained("my \\"best\\" adapter")' in code


def test_it_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "pages" / "report.html"
    write_report(record(), path)
    whole = path.read_text(encoding="utf-8")
    bad = record()
    bad.after[0, 0] = float("nan")
    with pytest.raises(ResiDualError, match="wanted finite scores, got NaN"):
        write_report(bad, path)
    assert path.read_text(encoding="utf-8") == whole == report_html(record())
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]
    odd = replace(record(), class_names=("\udcff", "b", "c"))  # a folder's name that is no text
    write_report(odd, path)
    assert '<bdi class="name" title="?">?</bdi>' in path.read_text(encoding="utf-8")


@table("method", ["coarse", "residual_star", "rd_y", "residual"])
def test_every_method_of_the_paper_has_a_report(method: str, tmp_path: Path) -> None:
    save_clip(tmp_path / "model")
    config = METHODS[method].config(0)
    fit_adapter(str(tmp_path / "model"), images(60), tmp_path / "out", templates=["a {}."],
                config=config, method="gains")  # fmt: skip
    made = RunRecord.load(tmp_path / "out")
    total = float(made.gains.share.sum()) + made.gains.rescaling_share + made.gains.settings_share
    assert total == pytest.approx(1, abs=1e-4)
    shown = text(made)
    assert ("Mean gain" in shown) == (method != "rd_y")
    assert ("Spectra of the units" in shown) == (method != "coarse")
    assert ("The units that did most" in shown) == (method == "coarse")
    assert ("Each attention head and MLP writes" in shown) == (method != "rd_y")
    assert not re.search(r"\bnan\b", shown)
