"""What the explorer says of an image, against the classifier itself with its gains changed."""

import copy
import re

import numpy as np
import pytest
import torch
from peft import get_peft_model

from residual_peft.analysis import TextDictionary
from residual_peft.app.explorer import looking
from residual_peft.app.explorer.looking import KNOBS, Looking
from residual_peft.bases.decomposition import decompose
from residual_peft.classifiers.heads import ClassHead
from residual_peft.classifiers.trained_head import TrainedHead
from residual_peft.classifiers.zero_shot import ZeroShotClassifier
from residual_peft.tuner import (
    ResiDualConfig,
    fit_bases,
    gains_by_module,
    gains_of,
    readout_state,
)
from tests.models import clip_model, pixels
from tests.pairs import table
from tests.pictures import image_processor, photographs

NAMES = ("a", "b", "c", "d")


def made(head: str | None = None, several: bool = False, **config: object) -> ZeroShotClassifier:
    model = get_peft_model(clip_model(), ResiDualConfig(**config))
    fit_bases(model, [pixels(60, seed=5)])
    draw = torch.Generator().manual_seed(4)
    for gains in gains_by_module(model).values():
        gains.data = 1 + 0.5 * torch.randn(gains.shape, generator=draw)
    width = decompose(model.eval(), pixels(1)).readout.shape[1]
    classifier = ZeroShotClassifier(
        model,
        NAMES,
        torch.randn(len(NAMES), width, generator=draw),
        logit_scale=9.0,
        image_processor=image_processor(),
        multi_label=several,
    )
    if head is not None:
        columns = width if head == "embedding" else len(readout_state(model).directions)
        parts = [torch.randn(n, generator=draw) for n in (columns, columns, len(NAMES))]
        weights = torch.randn(columns, len(NAMES), generator=draw) / columns**0.5
        plain = ClassHead(parts[0], parts[1].abs() + 0.3, weights, parts[2], 0.4, 0.7)
        classifier.head = TrainedHead(plain, head)
    return classifier


def close(said: looking.Scores, wanted: torch.Tensor) -> None:
    np.testing.assert_allclose(list(said.logits.values()), wanted.detach(), atol=2e-5, rtol=1e-5)
    np.testing.assert_allclose(
        list(said.probabilities.values()), wanted.detach().double().softmax(0), atol=1e-5
    )


KINDS = [{}, {"granularity": "unit", "restore_mean": False}, {"remainder": "drop", "components": 5}]


@table("config", KINDS)
def test_a_turned_gain_is_what_the_classifier_would_say_with_it(config: dict) -> None:
    classifier = made(**config)
    explorer, picture = Looking(classifier), photographs(1, seed=3)[0]
    found = explorer.look(picture)
    assert list(found.after.logits) == list(NAMES)
    close(found.after, classifier.predict_logits(picture)[0])
    with classifier.model.disable_adapter():
        close(found.before, classifier.predict_logits(picture)[0])
    this, other = found.classes
    assert this == classifier.predict(picture).label
    best = max(found.before.logits, key=found.before.logits.get)
    assert other == best or best == this
    margins = found.before.margin(this, other), found.after.margin(this, other)
    assert margins == pytest.approx((found.why.margin_before, found.why.margin_after), abs=1e-4)
    assert len(found.knobs) == KNOBS
    gains = gains_of(classifier.model).detach().clone()
    for knob, value in zip(found.knobs, (0.0, -1.5, 3.0, 1.0, 0.5, 2.0), strict=True):
        turned = copy.deepcopy(classifier)
        places = [
            number
            for number, gain in enumerate(gains.tolist())
            if gain == pytest.approx(knob.fitted, abs=1e-6)
        ]
        assert len(places) == 1  # the gains are random, each its own
        gains_of(turned.model).data[places[0]] = value
        close(explorer.turned(found.rows, [(knob, value)]), turned.predict_logits(picture)[0])
    assert torch.equal(gains_of(classifier.model).detach(), gains)
    units = found.by_unit()
    assert sum(effect for _, effect in units) == pytest.approx(float(found.why.effects.sum()))
    assert [abs(e) for _, e in units] == sorted((abs(e) for _, e in units), reverse=True)


@table("config", KINDS[:2])
def test_a_turned_component_is_what_the_head_would_read(config: dict) -> None:
    classifier = made("coordinates", **config)
    explorer, picture = Looking(classifier), photographs(1, seed=6)[0]
    found = explorer.look(picture)
    close(found.after, classifier.predict_logits(picture)[0])
    this, other = found.classes
    assert found.after.margin(this, other) == pytest.approx(found.why.margin, abs=1e-4)
    assert {knob.fitted for knob in found.knobs} == {1.0}
    for knob, value in zip(found.knobs, (0.0, -1.5, 3.0, 0.5, 0.25, 2.0), strict=True):
        now = explorer.turned(found.rows, [(knob, value)])
        # what the head says of the component is linear in it, and the texts say the same
        wanted = found.after.margin(this, other) + (value - 1) * knob.effect
        assert now.margin(this, other) == pytest.approx(wanted, abs=1e-4)
    both = [(knob, 0.0) for knob in found.knobs[:2]]
    gone = sum(knob.effect for knob, _ in both)
    now = explorer.turned(found.rows, both)
    assert now.margin(this, other) == pytest.approx(
        found.after.margin(this, other) - gone, abs=1e-4
    )


@table(
    ("options", "said"),
    [
        ({"several": True}, "An image may have several labels here"),
        ({"mode": "stream"}, "Single components are not told: the adapter 'default' is in stream"),
        ({"head": "embedding"}, "Single components are not told: .*embedding"),
    ],
)
def test_where_components_cannot_be_told_the_classes_are(options: dict, said: str) -> None:
    classifier, picture = made(**options), photographs(1)[0]
    looking = Looking(classifier)
    found = looking.look(picture)
    assert (found.why, found.rows, found.knobs, found.by_unit()) == (None, None, (), [])
    assert re.match(said, looking.silence)
    wanted = classifier.predict(picture).probabilities
    np.testing.assert_allclose(list(found.after.probabilities.values()), wanted, atol=1e-5)
    assert found.before.logits != found.after.logits or options == {"mode": "stream"}


def test_words_are_those_of_the_components_and_asked_for_once(monkeypatch) -> None:
    classifier = made()
    draw = torch.Generator().manual_seed(1)
    texts = [f"text {number}" for number in range(20)]
    width = classifier.class_embeddings.shape[1]
    dictionary = TextDictionary(texts, torch.randn(20, width, generator=draw))
    monkeypatch.setattr(looking, "dictionary_of", lambda _: dictionary)
    asked, own = [], looking.words_for
    monkeypatch.setattr(looking, "words_for", lambda *a, **o: asked.append(a[1]) or own(*a, **o))
    explorer = Looking(classifier)
    found = explorer.look(photographs(1)[0])
    for knob in found.knobs:
        parts = knob.words.split(", ")
        assert len(parts) == looking.WORDS
        assert all(part[0] in "+−" and part[2:] in texts for part in parts)
        assert knob.name == f"{knob.unit} {knob.component}"
    count = len(asked)
    explorer.look(photographs(1)[0])
    assert len(asked) == count == len({(w[0].unit, w[0].component) for w in asked})
