"""What a report says of the test images and of the gains, counted by hand."""

import math
import resource
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from residual_peft.analysis.describing import Words
from residual_peft.classifiers.heads.trust import calibration_error
from residual_peft.data.metrics import (
    accuracy_interval,
    difference_interval,
    mean_per_class_recall,
)
from residual_peft.errors import ResiDualError
from residual_peft.reporting.components import (
    gain_map,
    share_map,
    strongest,
    unit_views,
    widest_spectra,
)
from residual_peft.reporting.findings import Findings, several_findings
from residual_peft.reporting.html import environment, report_html
from residual_peft.reporting.run_record import Example, GainRecord, RunRecord
from residual_peft.towers.units import Unit
from tests.records import FACTS, TRIED, record

NAMES = ("cat", "dog", "bird", "cow")


def told(labels, before, after) -> RunRecord:
    """Images that are taken for the given classes, with a score of 10 to 0."""
    logits = [10.0 * torch.nn.functional.one_hot(torch.tensor(x), 4) for x in (before, after)]
    return RunRecord(NAMES, torch.tensor(labels), *logits, FACTS)


@pytest.fixture
def found() -> Findings:
    #      cat cat cat cat dog dog dog bird bird
    return Findings(
        told(
            [0, 0, 0, 0, 1, 1, 1, 2, 2],
            [1, 1, 1, 0, 1, 1, 2, 2, 3],
            [0, 0, 1, 0, 1, 2, 2, 3, 3],
        )
    )


def test_images_are_counted_by_side(found: Findings) -> None:
    change = found.change
    sides = (change.right, change.fixed, change.broken, change.wrong)
    assert sides == (2, 2, 2, 3)
    assert (change.was.correct, change.now.correct, change.images) == (4, 4, 9)
    assert change.difference == 0
    assert change.was.interval == accuracy_interval(4, 9)
    right = [np.array(x, bool) for x in ([0, 0, 0, 1, 1, 1, 0, 1, 0], [1, 1, 0, 1, 1, 0, 0, 0, 0])]
    assert change.interval == difference_interval(right[1], right[0])
    assert change.noise


def test_classes_are_sorted_by_their_change(found: Findings) -> None:
    assert [change.name for change in found.classes] == ["cat", "dog", "bird"]
    differences = [change.difference for change in found.classes]
    assert differences == pytest.approx([0.5, -1 / 3, -0.5])
    assert [change.name for change in found.worse] == ["bird", "dog"]
    assert all(change.noise for change in found.classes)  # with so few images
    assert found.without_images == ["cow"]


def test_a_change_beyond_noise_is_told_from_one_within() -> None:
    labels = [0] * 40 + [1] * 40
    wrong, right = [2] * 40, [0] * 40
    found = Findings(told(labels, wrong + [1] * 40, right + [2] + [1] * 39))
    clear, slight = found.classes
    assert (clear.name, clear.noise, slight.name, slight.noise) == ("cat", False, "dog", True)
    worse = Findings(told(labels, right + [1] * 40, wrong + [1] * 40))
    assert (worse.worse[0].name, worse.worse[0].noise) == ("cat", False)


def test_confusions_are_those_of_now_and_those_that_are_gone(found: Findings) -> None:
    now = [(c.label, c.taken_for, c.before, c.after) for c in found.confusions()]
    assert now == [("dog", "bird", 1, 2), ("bird", "cow", 1, 2), ("cat", "dog", 3, 1)]
    assert [(c.label, c.taken_for) for c in found.resolved()] == [("cat", "dog")]
    assert len(found.confusions(1)) == 1
    perfect = Findings(told([0, 1], [0, 1], [0, 1]))
    assert perfect.confusions() == perfect.resolved() == perfect.worse == []


def test_examples_say_what_they_were_taken_for(found: Findings) -> None:
    record = replace(found.record, examples=(Example(0, b"\x89PNG"), Example(5, b"\xff\xd8")))
    fixed, broken = Findings(record).shown
    assert (fixed.label, fixed.before, fixed.after, fixed.fixed) == ("cat", "dog", "cat", True)
    assert (broken.label, broken.before, broken.after, broken.fixed) == (
        "dog",
        "dog",
        "bird",
        False,
    )
    certain = math.exp(10) / (math.exp(10) + 3)
    assert (fixed.before_score, fixed.after_score) == pytest.approx((certain, certain))
    is_tiny = environment().filters["tiny"]
    assert (is_tiny(fixed.image), is_tiny(broken.image)) == (True, False)


def test_measures_say_which_way_is_better(found: Findings) -> None:
    names = {name: (before, after, more) for name, before, after, more in found.measures}
    assert names["mean over the classes of their recall"] == pytest.approx(
        ((1 / 4 + 2 / 3 + 1 / 2) / 3, (3 / 4 + 1 / 3) / 3, True)
    )
    assert not names["calibration error of the scores"][2]
    assert not any("five" in name for name in names)  # of four classes
    many = Findings(record(tuple("abcdefg"), 20))
    assert any("five" in name for name, *_ in many.measures)


def test_each_measure_is_of_its_own_side() -> None:
    made = record(images=30, skill=(0.5, 3.0))
    sides = [calibration_error(x, made.labels) for x in (made.before, made.after)]
    recalls = [mean_per_class_recall(x, made.labels) for x in (made.before, made.after)]
    rows = {name: pair for name, *pair, _ in Findings(made).measures}
    assert sides[0] != sides[1]
    assert rows["calibration error of the scores"] == sides
    assert rows["mean over the classes of their recall"] == recalls


def test_of_equal_confusions_the_more_common_before_comes_first() -> None:
    #            two of each pair now; before, one cat as bird and three dogs as cow
    made = told(
        [0, 0, 1, 1, 1],
        [2, 0, 3, 3, 3],
        [2, 2, 3, 3, 1],
    )
    order = [(c.label, c.before, c.after) for c in Findings(made).confusions()]
    assert order == [("dog", 3, 2), ("cat", 1, 2)]


def gains(**changes) -> GainRecord:
    """Layer 1 with two heads of two components and an MLP of one, and the embedding."""
    units = (Unit("head", 1, 0), Unit("head", 1, 1), Unit("mlp", 1), Unit("embed"))
    known = {
        "units": units,
        "counts": (2, 2, 1, 1),
        "gains": torch.tensor([2.0, 0.0, 1.0, 1.0, -1.0, 3.0]),
        "share": torch.tensor([0.3, -0.1, 0.05, 0.05, 0.4, 0.2]),
        "toward_label": torch.arange(6.0),
        "eigenvalues": torch.tensor([3.0, 1.0, 1.0, 0.5, 2.0, 1.0]),
        "rescaling_share": 0.1,
    }
    return GainRecord(**known | changes)


def test_a_map_has_a_place_for_every_head_and_mlp() -> None:
    views = unit_views(gains())
    drawn = gain_map(views)
    assert drawn.columns == ["0", "1", "MLP"]
    # weighted by variance: (3 * 2 + 1 * 0) / 4
    assert drawn.layers == [(1, [pytest.approx(1.5), 1.0, -1.0])]
    assert drawn.reach == 2
    shares = share_map(views)
    assert shares.layers == [(1, pytest.approx([0.2, 0.1, 0.4]))]
    whole = GainRecord((Unit("output"),), (2,), torch.ones(2), torch.ones(2), torch.ones(2))
    assert gain_map(unit_views(whole)) is None
    same = unit_views(gains(gains=torch.ones(6)))
    assert gain_map(same).reach > 0  # nothing is divided by nothing


def test_the_strongest_come_first_whatever_their_sign() -> None:
    words = (
        Words(Unit("head", 1, 0), 1, (("a stripe", 0.5),), 0.4),
        Words(Unit("mlp", 1), None, (("anything", 0.1),)),
    )
    shares = torch.tensor([0.3, -0.9, 0.05, 0.05, 0.4, 0.2])
    made = replace(record(gains=gains(share=shares)), words=words)
    first, second, third = strongest(made, 3)
    assert (str(first.unit), first.component, first.gain) == ("layer1.head0", 1, 0.0)
    assert first.words.texts[0][0] == "a stripe"
    assert (str(second.unit), second.component) == ("layer1.mlp", 0)
    assert second.words.component is None
    assert (str(third.unit), third.component, third.words) == ("layer1.head0", 0, None)
    assert third.share == pytest.approx(0.3)


def test_a_unit_with_one_gain_has_no_number_of_a_component() -> None:
    two = torch.ones(2)
    coarse = GainRecord((Unit("head", 0, 0), Unit("head", 0, 1)), (1, 1), two, two, two)
    assert [item.component for item in strongest(record(gains=coarse))] == [None, None]
    assert widest_spectra(unit_views(coarse)) == []


def test_spectra_are_those_of_the_units_that_did_most() -> None:
    views = widest_spectra(unit_views(gains()), 2)
    assert [str(view.unit) for view in views] == ["layer1.head0", "layer1.head1"]  # no unit of one


def test_confusions_of_many_classes_take_no_memory_by_their_square() -> None:
    names = tuple(f"class {index}" for index in range(40_000))  # (C, C) would take 12.8 GB
    found = Findings(record(names, images=4))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert len(found.confusions()) <= 4
    assert len(found.resolved()) <= 4
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # kB


LABELS = ("cat", "dog & <b>cow</b>", "owl", "nobody")


def several(images: int = 40, seed: int = 0) -> RunRecord:
    """Labels of three classes; logits that know them before and better after."""
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.rand(images, 4, generator=generator) < 0.4).long()
    labels[:, 3] = 0
    noise = torch.randn(images, 4, generator=generator)
    before, after = (noise + skill * (2 * labels - 1) for skill in (0.2, 1.0))
    facts = replace(FACTS, methods=TRIED, largest_class=0.4)
    return RunRecord(LABELS, labels, before, after, facts)


def average_precision(own: list[bool], scores: list[float]) -> float:
    """Of each image with the label: how many of those from it up have it, on average."""
    shares = []
    for score, has in zip(scores, own, strict=True):
        if has:
            above = [other for other, value in zip(own, scores, strict=True) if value >= score]
            shares.append(sum(above) / len(above))
    return sum(shares) / len(shares)


def test_each_label_is_told_as_the_slow_twin_has_it() -> None:
    record = several()
    found = several_findings(record)
    assert [row.name for row in found.labels] != list(LABELS[:3])  # the most improved first
    for row in found.labels:
        number = LABELS.index(row.name)
        own = [bool(value) for value in record.labels[:, number]]
        logits = record.after[:, number].tolist()
        assert row.images == sum(own)
        assert row.now == pytest.approx(average_precision(own, logits))
        before = average_precision(own, record.before[:, number].tolist())
        assert row.difference == pytest.approx(row.now - before)
        told = [has for has, value in zip(own, logits, strict=True) if value >= 0]
        assert row.recall == pytest.approx(sum(told) / sum(own))
        assert row.precision == pytest.approx(np.mean(told))
    assert found.now == pytest.approx(np.mean([row.now for row in found.labels]))
    assert found.without_labels == int((record.labels.sum(1) == 0).sum())


def test_it_is_kept_and_becomes_a_page(tmp_path: Path) -> None:
    record = several()
    record.save(tmp_path)
    loaded = RunRecord.load(tmp_path)
    assert loaded.labels.equal(record.labels)
    page = report_html(loaded)
    assert page == report_html(record)
    assert "Label by label" in page
    assert "dog &amp; &lt;b&gt;cow&lt;/b&gt;" in page
    assert "by chance" in page
    assert "recognised" not in page  # no image is
    assert ">nobody<" not in page
    assert "F1 over all labels (micro)" in page
    for labels in (record.labels + 1, record.labels[:, :3], torch.full((40,), 4)):
        with pytest.raises(ResiDualError, match="wanted labels"):
            replace(record, labels=labels)
