"""What left-out images say of a fit: the functions' own numbers, and nothing where nothing is."""

from copy import copy
from dataclasses import replace

import pytest
import torch
from datasets import DatasetDict
from peft import get_peft_model

from residual_peft import ResiDualConfig, ZeroShotClassifier, collect_with_basis, load_data
from residual_peft.app.trusting import COVERAGE, Trusted, contradicting, sets_of, trust_of
from residual_peft.classifiers.backbones import load_backbone
from residual_peft.classifiers.evaluation import Evaluation
from residual_peft.classifiers.heads.trust import calibration_error
from residual_peft.data import batches
from residual_peft.demo.tasks import handwriting
from residual_peft.solvers.methods import METHODS, Rows

SWAPPED = {5: 3, 40: 7, 100: 1, 130: 9}


@pytest.fixture(scope="module")
def fitted():
    """160 digits of which 4 have the label of another one, and 80 test digits."""
    whole, clip = handwriting()["train"], load_backbone()
    data = load_data(
        DatasetDict(
            train=whole.select(range(130)),
            validation=whole.select(range(130, 160)),
            test=whole.select(range(160, 240)),
        )
    )
    model = get_peft_model(clip.model, ResiDualConfig())
    classifier = ZeroShotClassifier.from_text(model, clip.tokenizer, data.class_names)
    seen = collect_with_basis(model, batches(whole.select(range(240)), clip.image_processor))
    labels = seen.labels.clone()
    for row, label in SWAPPED.items():
        labels[row] = label if label != labels[row] else (label + 1) % 10
    some = replace(seen, labels=labels).rows(torch.arange(160))
    return data, classifier, Rows.of(classifier, some), seen.rows(torch.arange(160, 240))


def test_it_says_what_left_out_predictions_say(fitted) -> None:
    data, classifier, rows, test = fitted
    outcome = METHODS["ridge-embedding"].run(rows)
    scores = Evaluation(data.class_names, outcome.logits(classifier, test), test.labels)
    answering = copy(classifier)
    outcome.put_into(answering)
    record, suspicious = trust_of(rows, outcome, data, sets_of(answering, scores, test))
    left = outcome.left_out
    assert (record.images, record.accuracy) == (int(left.known.sum()), left.accuracy)
    assert record.calibration_after == calibration_error(left.logits, left.labels)
    assert record.calibration_before == calibration_error(rows.zero_shot, rows.labels)
    assert (record.sets_by, record.sets_from) == ("jackknife", int(left.known.sum()))
    sets = answering.sets(COVERAGE).sets(scores.logits)
    inside = [bool(sets[i, label]) for i, label in enumerate(test.labels.tolist())]
    assert record.covered == pytest.approx(sum(inside) / len(inside))
    assert record.set_size == pytest.approx(float(sets.sum() / len(sets)))
    answering.without = outcome.without()
    plus = sets_of(answering, scores, test)
    assert (plus["sets_by"], plus["sets_from"]) == ("jackknife+", 160)
    assert abs(plus["covered"] - record.covered) < 0.06
    assert record.more_images == 80
    assert 0 < record.more_points < 0.2
    # what more images would add is told by what the head reads
    heads, whole = METHODS["ridge-heads"].run(rows), METHODS["ridge"].run(rows)
    same = (heads, replace(whole, columns=heads.columns), whole)
    points = [trust_of(rows, each, data, {}).record.more_points for each in same]
    assert points[0] == points[1] != points[2]
    planted = {(split, row) for split, row in (("train", 5), ("train", 40), ("train", 100))}
    planted.add(("validation", 0))
    named = {(item.file.split(" ")[-2], item.row) for item in suspicious}
    assert len(planted & named) >= 3
    assert len(named) <= 5
    assert record.wrong_labels == len(suspicious)
    for item in suspicious:
        place = item.row + (130 if "validation" in item.file else 0)
        assert item.label == int(rows.labels[place])
    assert contradicting(rows, data) == ""
    readout, labels = rows.data.readout.clone(), rows.labels.clone()
    readout[[20, 140]], labels[[5, 20, 140]] = readout[5].clone(), torch.tensor([3, 3, 4])
    copied = replace(rows, data=replace(rows.data, readout=readout, labels=labels))
    wanted = "'row 5 of the train split' and 'row 10 of the validation split'"
    assert contradicting(copied, data) == wanted
    assert contradicting(copied, data, at_most=0) == "..."


def test_it_says_nothing_where_nothing_was_left_out(fitted) -> None:
    data, classifier, rows, test = fitted
    outcome = METHODS["zero-shot"].run(rows)
    scores = Evaluation(data.class_names, outcome.logits(classifier, test), test.labels)
    sets = sets_of(copy(classifier), scores, test)
    assert sets == {}
    found = trust_of(rows, outcome, data, sets).record
    assert (found.coverage, found.more_points) == (None, None)
    none = replace(outcome.left_out, known=torch.zeros(160, dtype=torch.bool))
    assert trust_of(rows, replace(outcome, left_out=none), data, sets) == Trusted()
