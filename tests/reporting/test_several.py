"""The report on images with several labels each: its numbers, and its page."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from residual_peft.errors import ResiDualError
from residual_peft.reporting.html import report_html
from residual_peft.reporting.run_record import RunRecord
from residual_peft.reporting.several import SeveralFindings
from tests.records import FACTS, TRIED

NAMES = ("cat", "dog & <b>cow</b>", "owl", "nobody")


def several(images: int = 40, seed: int = 0) -> RunRecord:
    """Labels of three classes; logits that know them before and better after."""
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.rand(images, 4, generator=generator) < 0.4).long()
    labels[:, 3] = 0
    noise = torch.randn(images, 4, generator=generator)
    before, after = (noise + skill * (2 * labels - 1) for skill in (0.2, 1.0))
    facts = replace(FACTS, methods=TRIED, largest_class=0.4)
    return RunRecord(NAMES, labels, before, after, facts)


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
    found = SeveralFindings.of(record)
    assert [row.name for row in found.labels] != list(NAMES[:3])  # the most improved first
    for row in found.labels:
        number = NAMES.index(row.name)
        own = [bool(value) for value in record.labels[:, number]]
        logits = record.after[:, number].tolist()
        assert row.images == sum(own)
        assert row.now == pytest.approx(average_precision(own, logits))
        before = average_precision(own, record.before[:, number].tolist())
        assert row.difference == pytest.approx(row.now - before)
        told = [has for has, value in zip(own, logits, strict=True) if value >= 0]
        assert row.found == pytest.approx(sum(told) / sum(own))
        assert row.right == pytest.approx(np.mean(told))
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
