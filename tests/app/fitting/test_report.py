"""A fit says what it must of itself: counts, intervals, and what speaks against it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from residual_peft.app.fitting.report import FitReport, findings_of, method_lines
from residual_peft.classifiers.evaluation import Evaluation
from residual_peft.data.labels import MANY_LABELS, ONE_LABEL
from residual_peft.data.metrics import accuracy_interval
from residual_peft.hub.facts import MethodRow
from residual_peft.reporting.run_record import RunRecord
from residual_peft.solvers import STRENGTHS
from residual_peft.solvers.strengths import ENOUGH

NAMES = ("a", "b", "c")


def evaluation(right: int, count: int = 100) -> Evaluation:
    """The first `right` of the images are right; of the labels 60 % are a."""
    labels = torch.tensor([0, 0, 0, 1, 2] * (count // 5))
    logits = torch.nn.functional.one_hot(labels, 3).float()
    logits[right:] = logits[right:].roll(1, 1)
    return Evaluation(NAMES, logits, labels)


def several(skill: float) -> Evaluation:
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(200, 3, generator=generator) < 0.3).to(torch.uint8)
    logits = torch.randn(200, 3, generator=generator) + skill * labels
    return Evaluation(NAMES, logits, labels)


def said(before: int, after: int, train: float = 0.9, largest: float = 0.6) -> str:
    found = findings_of(
        evaluation(before), evaluation(after), {"accuracy": train}, largest, "zero-shot"
    )
    return " ".join(found)


def told(strength: float | None, learned: int) -> list[str]:
    scores = {"accuracy": 0.5}
    splits = {"train": learned, "validation": 60, "test": 200}  # which was held out from the fit
    took = {"encoding_seconds": 2.0, "fitting_seconds": 0.3, "strength": strength}
    took["learned"] = learned
    return FitReport(scores, scores, splits=splits, train=scores, **took).lines()


def test_a_good_fit_says_nothing_against_itself() -> None:
    assert said(50, 90) == ""


def test_not_better_than_before() -> None:
    for after in (70, 65):
        text = said(70, after, train=0.7)
        assert "not better than zero-shot on the test images (accuracy 0." in text
        assert "chance" not in text
    assert "not better" not in said(70, 71, train=0.7)
    text = said(70, 72, train=0.7)
    assert "on 100 test images the gain over zero-shot could be chance (95 % interval" in text
    assert "chance" not in said(50, 80, train=0.8)
    row = MethodRow("zero-shot", "", 0.7, None, None, 0.6, None, 0, 0.1)
    for left_out, words in (
        (0.8, "0.650 against 0.700 of 100 images; on images to learn "),
        (0.6, ""),
    ):
        tried = (row, replace(row, name="ridge", left_out=left_out, chosen=True))
        args = evaluation(70), evaluation(65), {"accuracy": 0.7}, 0.6, "zero-shot", tried
        text = " ".join(findings_of(*args))
        assert words in text
        assert text.count("left out by turns, it is: 0.800 against 0.600)") == bool(words)


def test_not_better_than_one_class() -> None:
    assert "always answering with the largest class (0.600, 0.600)" in said(30, 60, train=0.6)
    assert "largest class" not in said(30, 61, train=0.6)
    row = MethodRow("a", "a", 0.6, None, None, None, None, 0, 0.1)
    for scores, nothing in (
        ((0.3, 0.6, 0.5), True),
        ((0.3, 0.61, 0.5), False),
        ((0.3, 0.6), False),
    ):
        tried = [replace(row, score=score) for score in scores]
        args = evaluation(30), evaluation(60), {"accuracy": 0.6}, 0.6, "zero-shot", tried
        text = " ".join(findings_of(*args))
        assert ("of 3 methods none beats it" in text) is nothing


def test_methods_are_told_with_their_sizes_and_by_what_they_were_chosen() -> None:
    rows = [
        MethodRow("zero-shot", "", 0.3, 0.2, 0.45, 0.34, 2.04, 0, 0.01, bytes=0),
        MethodRow("gains", "", 0.5, 0.4, 0.6, 0.54, 0.92, 1578, 4.1, bytes=6_312),
        MethodRow("ridge", "", 0.975, 0.87, 0.99, 0.97, 0.028, 15792, 1.4, True, 75_900),
    ]
    heads, *lines = method_lines(rows)
    assert heads.split()[-3:] == ["numbers", "bytes", "seconds"]
    assert all(
        size in line for size, line in zip(("  –  ", "6.3 kB", "75.9 kB"), lines[:3], strict=True)
    )
    assert "chosen by the loss on left-out training images" in lines[-1]
    heads, *lines = method_lines([replace(row, recall=0.75, test_recall=0.25) for row in rows])
    assert "recall  test recall" in heads
    assert all("0.750        0.250" in line for line in lines[:3])
    assert "chosen by the mean per-class recall of left-out training images" in lines[-1]


def test_training_images_by_heart() -> None:
    assert "far above that on test images (1.000, 0.800)" in said(30, 80, train=1.0)
    assert "far above" not in said(30, 80, train=0.85)  # within the interval
    few = Evaluation(NAMES, evaluation(4, 5).logits, evaluation(4, 5).labels)
    found = findings_of(few, few, {"accuracy": 0.95}, 0.0, "zero-shot")
    assert "far above" not in " ".join(found)  # five images do not tell


def test_the_end_of_the_path_is_told_where_images_can_tell() -> None:
    """As a note: it does not speak against the fit, and of few images it says nothing."""
    for strength, words in ((max(STRENGTHS), "stronger"), (min(STRENGTHS), "weaker")):
        last = told(strength, ENOUGH)[-1]
        assert last.startswith("Note: of the forces tried that hold the gains near 1, the ")
        assert f"did best on 500 left-out images, enough to tell: a {words} one may do" in last
        assert told(strength, ENOUGH - 1)[-1].endswith("s to fit")
    assert told(sorted(STRENGTHS)[1], ENOUGH)[-1].endswith("s to fit")
    assert told(None, ENOUGH)[-1].endswith("s to fit")


def test_several_labels() -> None:
    good, bad = several(3), several(0)
    metrics = {"mean_average_precision": 0.99}
    found = " ".join(findings_of(good, bad, metrics, 0.9, "zero-shot"))
    assert "not better than zero-shot on the test images (mean average precision" in found
    assert "not better than chance" in found
    assert "mean average precision on training images is far above" in found
    metrics = {"mean_average_precision": good.metrics["mean_average_precision"]}
    assert findings_of(bad, good, metrics, 0.3, "zero-shot") == ()
    assert good.interval is None


def test_the_largest_class_is_that_of_the_training_images() -> None:
    train, test = torch.tensor([1, 1, 1, 0, 2]), torch.tensor([0, 0, 0, 1])
    assert ONE_LABEL.chance(train, test) == 0.25
    hot = torch.tensor([[1, 0, 0], [1, 1, 0]], dtype=torch.uint8)
    assert MANY_LABELS.chance(hot, hot) == 0.75  # the mean share of those that occur


def test_the_interval_is_wilsons() -> None:
    assert evaluation(90).interval == accuracy_interval(90, 100)


def test_lines_say_all_of_it() -> None:
    report = FitReport(
        zero_shot={"accuracy": 0.5}, adapted={"accuracy": 0.75}, encoding_seconds=2.04,
        fitting_seconds=0.26, strength=1e-3, splits={"train": 1600, "validation": 200, "test": 200},
        classes=3, interval=(0.68, 0.81), train={"accuracy": 0.9}, largest_class=0.4,
        repeated=1, findings=("one.", "two."),
    )  # fmt: skip
    assert report.lines() == [
        "zero-shot 0.500 -> adapted 0.750 (accuracy, test images)",
        "2,000 images of 3 classes: 1,600 train, 200 validation, 200 test",
        "test 0.750 of 200 images (95 % interval 0.680 to 0.810); train 0.900; the largest class "
        "alone 0.400",
        "1 test image left out of the score: trained on as well",
        "2.0 s to read the images, 0.3 s to fit",
        "Note: one.",
        "Note: two.",
    ]


def test_the_record_has_the_same_numbers(tmp_path: Path) -> None:
    from residual_peft.app.fitting import fit_adapter
    from tests.app.fitting.photos import photos
    from tests.training_case import save_clip

    save_clip(tmp_path / "model")
    photos(tmp_path / "photos", count=20)
    report = fit_adapter(
        str(tmp_path / "model"),
        str(tmp_path / "photos"),
        tmp_path / "a",
        templates=["a {}."],
        method="gains",
    )
    facts = RunRecord.load(tmp_path / "a").facts
    assert facts.findings == report.findings
    assert (facts.train_accuracy, facts.largest_class) == (
        report.train["accuracy"],
        report.largest_class,
    )
    assert report.largest_class == pytest.approx(1 / 3)
    assert (facts.skipped, facts.repeated, facts.splits) == (0, 0, report.splits)
    assert report.splits == {"train": 48, "validation": 6, "test": 6}
    assert report.classes == 3
    assert report.interval == accuracy_interval(round(report.adapted["accuracy"] * 6), 6)
