"""Methods on the rows of one pass, and the choice among them."""

from copy import copy
from dataclasses import replace

import pytest
import torch
from peft import get_peft_model

from residual_peft.classifiers.class_means import class_means_of
from residual_peft.classifiers.heads import LeftOut, balanced_weights, choose_ridge, fit_ridge
from residual_peft.classifiers.heads.calibrating import calibrate
from residual_peft.classifiers.heads.conformal import scores_of
from residual_peft.classifiers.trained_head import thresholds_of
from residual_peft.classifiers.zero_shot import ZeroShotClassifier
from residual_peft.errors import ResiDualError
from residual_peft.solvers.choice import _best, check_methods, choose, method_names
from residual_peft.solvers.coordinates import Coordinates, collect_with_basis
from residual_peft.solvers.methods import METHODS, Outcome, Rows
from residual_peft.solvers.methods.method import tempered
from residual_peft.solvers.objectives import Objective
from residual_peft.solvers.quasi_newton import solve_gains
from residual_peft.tuner import ResiDualConfig, gains_of
from tests.models import clip_model, pixels

CLASSES = 3


@pytest.fixture(scope="module")
def material():
    """A classifier, and coordinates whose classes only the coordinates tell apart."""
    model = get_peft_model(clip_model(), ResiDualConfig()).eval()
    images, labels = pixels(120, seed=5), torch.arange(120) % CLASSES
    parts = [
        {"pixel_values": part, "labels": own}
        for part, own in zip(images.split(40), labels.split(40), strict=True)
    ]
    seen = collect_with_basis(model, parts)
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(CLASSES, seen.coordinates.shape[1], generator=generator)
    scale = seen.coordinates.std(0)
    seen = Coordinates(
        seen.readout,
        labels,
        seen.coordinates + 0.35 * scale * direction[labels],
        seen.state,
    )
    classifier = ZeroShotClassifier(
        model, ["a", "b", "c"], torch.randn(CLASSES, 16, generator=generator), logit_scale=7.0
    )
    return classifier, seen


def test_every_method_says_of_other_images_what_the_classifier_then_says(material):
    classifier, seen = copy(material[0]), material[1]
    train, other = seen.rows(torch.arange(90)), seen.rows(torch.arange(90, 120))
    texts = classifier.class_embeddings
    for name in METHODS:
        outcome = METHODS[name].run(Rows.of(classifier, train))
        said = outcome.logits(classifier, other)
        assert classifier.head is None, name
        assert gains_of(classifier.model).eq(1).all(), name
        outcome.put_into(classifier)
        gains = gains_of(classifier.model).detach()
        expected = classifier.answer(other.adapted(gains), other.readout, other.coordinates)
        torch.testing.assert_close(said, expected.detach(), msg=name)
        assert outcome.left_out.logits.shape == (90, CLASSES)
        assert outcome.left_out.known.all()
        classifier.head, classifier.class_embeddings = None, texts
        with torch.no_grad():
            gains_of(classifier.model).fill_(1)


def test_left_out_predictions_have_not_seen_the_image(material):
    """Where one fold's labels are changed, they say the old ones of it all the same."""
    classifier, seen = material
    rows = Rows.of(classifier, seen)
    changed = seen.labels.clone()
    outside = rows.fold == 0
    changed[outside] = (changed[outside] + 1) % CLASSES
    other = Rows(
        classifier,
        Coordinates(seen.readout, changed, seen.coordinates, seen.state),
        rows.zero_shot,
        fold=rows.fold,
    )
    for name in ("ridge", "ridge-heads", "logistic"):
        said = METHODS[name].fit(other).left_out.logits[outside].argmax(1)
        assert (said == seen.labels[outside]).double().mean() > 0.6, name
        assert (said == changed[outside]).double().mean() < 0.3, name


def test_what_does_best_on_left_out_images_is_chosen(material):
    classifier, seen = material
    choice = choose(Rows.of(classifier, seen))
    assert [one.method for one in choice.outcomes] == [n for n in METHODS if METHODS[n].tried]
    assert choice.chosen.method in {"ridge", "ridge-heads"}
    by_name = {one.method: one.left_out for one in choice.outcomes}
    assert by_name["ridge"].accuracy > by_name["ridge-embedding"].accuracy + 0.2
    assert choice.images == 120
    assert choice.chosen.head.left_out_scores is not None


def test_where_every_class_counts_alike_the_recall_of_left_out_images_chooses(material):
    """By hand: what always says the most frequent class is accurate here, and is not taken."""
    classifier, seen = material
    labels = torch.tensor([0] * 80 + [1] * 20 + [2] * 20)
    rows = Rows.of(classifier, Coordinates(seen.readout, labels, seen.coordinates, seen.state))

    def said(name: str, right: tuple[int, int, int], count: int) -> Outcome:
        told = torch.cat(
            [(torch.arange(n) < r).long() for n, r in zip((80, 20, 20), right, strict=True)]
        )
        logits = torch.nn.functional.one_hot((labels + 1 - told) % 3, 3).double()
        return Outcome(name, LeftOut(logits, labels, "fold", torch.ones(120).bool()), count)

    accurate, fair = said("accurate", (80, 5, 5), 10), said("fair", (50, 18, 18), 20)
    assert _best([accurate, fair], rows) is accurate
    alike = replace(rows, class_weights=balanced_weights(labels, 3))
    assert _best([accurate, fair], alike) is fair
    weights = balanced_weights(labels, 3)[labels].double()
    plain, weighted = (tempered(one, fair.left_out.logits)[0] for one in (rows, alike))
    expected = calibrate(fair.left_out.logits, labels, weights).temperature
    assert weighted == pytest.approx(expected, rel=1e-6) != pytest.approx(plain, rel=0.01)


def test_many_images_are_compared_on_some_and_fitted_on_all(material):
    classifier, seen = material
    choice = choose(Rows.of(classifier, seen), ["zero-shot", "ridge"], at_most=60)
    assert choice.images == 60
    assert len(choice.chosen.left_out.labels) == 120
    assert len(choice.outcomes[1].left_out.labels) == 60


def test_where_nothing_can_be_left_out_the_ridge_is_taken(material):
    classifier, seen = material
    rows = Rows.of(classifier, seen.rows(torch.tensor([0, 1, 2])))
    assert rows.fold is None
    choice = choose(rows)
    assert choice.chosen.method == "ridge"
    assert choice.chosen.head.left_out_scores is None
    # nor of copies, which have folds and nobody who is known without the own one
    thrice = Rows.of(classifier, seen.rows(torch.tensor([0, 1, 2] * 3)))
    assert thrice.fold is not None
    assert choose(thrice).chosen.method == "ridge"


def test_class_means_leave_the_images_own_fold_out(material):
    classifier, seen = material
    rows, plain = Rows.of(classifier, seen, means=True), Rows.of(classifier, seen)
    unit = torch.nn.functional.normalize(seen.readout, dim=1)
    inside = rows.fold != 1
    means = torch.stack([unit[inside & (seen.labels == k)].mean(0) for k in range(CLASSES)])
    expected = 7 * unit @ torch.nn.functional.normalize(means, dim=1).T
    torch.testing.assert_close(rows.zero_shot[~inside], expected[~inside], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(rows.zero_shot, plain.zero_shot)


def test_no_method_sees_an_image_in_the_mean_of_its_class(material):
    """Labels that are drawn cannot be told, whatever the classes are."""
    classifier, seen = material
    generator = torch.Generator().manual_seed(1)
    labels, names = torch.randperm(120, generator=generator) % 30, [f"c{n}" for n in range(30)]
    means = class_means_of(seen.readout, labels, names)
    own = ZeroShotClassifier(classifier.model, names, means, logit_scale=50.0)
    drawn = Coordinates(seen.readout, labels, seen.coordinates, seen.state)
    rows = Rows.of(own, drawn, means=True)
    for one in choose(rows).outcomes:
        assert one.left_out.accuracy < 0.1, one.method
    with pytest.raises(ResiDualError, match="wanted classes that are texts for a linear map"):
        choose(rows, ["map-embedding"])
    with pytest.raises(ResiDualError, match="wanted classes that are texts for a linear map"):
        METHODS["map-embedding"].run(rows)


def test_several_labels(material):
    classifier, seen = material
    several = ZeroShotClassifier(
        classifier.model, ["a", "b", "c"], classifier.class_embeddings, multi_label=True
    )
    labels = torch.nn.functional.one_hot(seen.labels, CLASSES)
    labels[::4, 0] = 1
    rows = Rows.of(several, Coordinates(seen.readout, labels, seen.coordinates, seen.state))
    choice = choose(rows)
    tried = {name for name in method_names(True) if METHODS[name].tried}
    assert {one.method for one in choice.outcomes} == tried
    for one in choice.outcomes:
        if one.head is not None:
            left = one.left_out
            if ridge := METHODS[one.method].ridge:  # by exact leave-one-out, which is not by folds
                options = {"zero_shot": rows.zero_shot, "groups": rows.groups, "power": one.power}
                values = rows.features(*ridge)
                left = fit_ridge(values, labels, CLASSES, **options).left_out
            torch.testing.assert_close(one.head.thresholds, thresholds_of(left))
    choice.chosen.put_into(several)
    assert several.multi_label
    with pytest.raises(ResiDualError, match="is for one label per image"):
        choose(rows, ["discriminant"])


def test_names_that_are_no_methods_are_refused():
    with pytest.raises(ResiDualError, match="wanted a method of zero-shot, gains"):
        check_methods(["lora"])


def test_gains_stand_on_the_classes_that_tell_left_out_images_apart(material):
    """Prompts that say nothing: the means of the images are what the classes are."""
    classifier, seen = material
    rows = Rows.of(classifier, seen)
    outcome = METHODS["gains"].run(rows)
    means = torch.nn.functional.normalize(outcome.embeddings, dim=1)
    unit = torch.nn.functional.normalize(seen.readout.double(), dim=1)
    expected = torch.stack([unit[seen.labels == k].mean(0) for k in range(CLASSES)])
    text = classifier.class_embeddings.double()
    closer = torch.nn.functional.cosine_similarity(means.double(), expected)
    assert (closer > torch.nn.functional.cosine_similarity(text, expected)).all()
    own = METHODS["gains"].run(Rows.of(classifier, seen, means=True))
    assert own.embeddings is None  # they are means already


def test_gains_are_as_sure_as_left_out_images_say(material, monkeypatch):
    """The scale is the temperature that left-out folds like best; the labels stay."""
    classifier, seen = material
    monkeypatch.setattr("residual_peft.solvers.methods.gains.STRENGTHS", (1e-3,))
    rows = Rows.of(classifier, seen, means=True)  # no share of the images' means
    outcome = METHODS["gains"].fit(rows)
    said = torch.empty_like(rows.zero_shot)
    for number in rows.fold.unique().tolist():
        inside, outside = ((rows.fold == number) == out for out in (False, True))
        data = seen.rows(inside.nonzero().flatten())
        own = copy(rows.classifier_without(number))
        objective = Objective(normalized=False, strength=1e-3)
        gains = solve_gains(copy(own), data, objective=objective).gains
        with torch.no_grad():
            gains_of(own.model).fill_(1)
        held_out = seen.rows(outside.nonzero().flatten())
        said[outside] = own.scaled_cosines(held_out.adapted(gains.detach().cpu()))
    ones = torch.ones(len(said)).double()
    found = calibrate(said.double(), seen.labels, ones).temperature * classifier.logit_scale
    assert outcome.logit_scale == pytest.approx(found, rel=0.02)
    assert found != pytest.approx(classifier.logit_scale, rel=0.05)
    cosines = classifier.scaled_cosines(seen.adapted(outcome.gains)) / classifier.logit_scale
    torch.testing.assert_close(outcome.logits(classifier, seen), outcome.logit_scale * cosines)


def test_embeddings_of_texts_and_images_are_blended_as_said(material):
    classifier, seen = material
    biased = copy(classifier)
    biased.logit_bias = -3.0  # a softmax cancels it
    found = biased.with_images(seen.readout, seen.labels, share=0.25)
    assert (found.logit_bias, found.head) == (0, None)
    unit = torch.nn.functional.normalize(seen.readout.double(), dim=1)
    means = torch.stack([unit[seen.labels == k].mean(0) for k in range(CLASSES)])
    means = torch.nn.functional.normalize(means, dim=1)
    mixed = 0.75 * classifier.class_embeddings.double() + 0.25 * means
    expected = torch.nn.functional.normalize(mixed, dim=1).float()
    torch.testing.assert_close(found.class_embeddings, expected, rtol=1e-4, atol=1e-5)
    assert found.model is classifier.model
    assert not torch.equal(classifier.class_embeddings, found.class_embeddings)


def test_gains_of_a_fold_are_fitted_without_it(material, monkeypatch):
    """Other labels of one fold's images change what is said of them by the temperature alone."""
    classifier, seen = material
    monkeypatch.setattr("residual_peft.solvers.methods.gains.STRENGTHS", (1e-3,))
    rows = Rows.of(classifier, seen, means=True)  # the classes' embeddings stay as they are
    outside = rows.fold == 0
    changed = seen.labels.clone()
    changed[outside] = (changed[outside] + 1) % CLASSES
    others = replace(rows, data=replace(seen, labels=changed))
    said = [METHODS["gains"].fit(these).left_out.logits for these in (rows, others)]
    first, second = (part[outside] / part[outside].norm() for part in said)
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)
    elsewhere = [part[~outside] / part[~outside].norm() for part in said]
    assert (elsewhere[0] - elsewhere[1]).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["ridge", "ridge-heads", "ridge-embedding"])
def test_a_ridge_is_compared_by_what_it_says_of_folds_left_out(name, material):
    """The folds' own predictions (twins in `heads/test_ridge.py`), not those of the fit on all."""
    classifier, seen = material
    rows = Rows.of(classifier, seen)
    outcome = METHODS[name].fit(rows)
    features, kinds = METHODS[name].ridge
    values = rows.features(features, kinds)
    choice = choose_ridge(
        {name: values}, rows.labels, CLASSES, zero_shot=rows.zero_shot, folds=rows.fold
    )
    torch.testing.assert_close(outcome.left_out.logits, choice.fit.by_folds.logits)
    inside = choice.fit.head.logits(values.double(), rows.zero_shot)
    assert not torch.allclose(outcome.left_out.logits, inside, atol=1e-4)


def test_copies_of_a_picture_are_left_out_together(material):
    classifier, seen = material
    twice = torch.cat([torch.arange(60), torch.arange(20)])
    rows = Rows.of(classifier, seen.rows(twice))
    assert rows.copies == 20
    assert (rows.fold[:20] == rows.fold[60:]).all()
    outcome = METHODS["ridge"].fit(rows)
    said = outcome.left_out.logits
    torch.testing.assert_close(said[:20], said[60:])  # neither has seen the other
    assert not any("their copies stayed in" in note for note in outcome.notes)
    assert Rows.of(classifier, seen.rows(torch.arange(60))).copies == 0


def test_no_method_has_seen_anything_of_an_image_that_was_left_out_with_its_group(material):
    """Four frames of each scene, whose class is drawn: a new scene cannot be told, a frame can."""
    classifier, seen = material
    generator = torch.Generator().manual_seed(3)
    scene = torch.arange(48) // 4
    labels = torch.randperm(12, generator=generator)[scene] % CLASSES

    def frames(values: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(48, values.shape[1], generator=generator)
        return values[:12][scene] + 0.02 * values.std(0) * noise

    drawn = Coordinates(frames(seen.readout), labels, frames(seen.coordinates), seen.state)
    together, singly = Rows.of(classifier, drawn, groups=scene), Rows.of(classifier, drawn)
    assert not together.copies
    for name, method in METHODS.items():
        assert method.run(together).left_out.accuracy < 0.7, name
        if name != "zero-shot":
            assert method.run(singly).left_out.accuracy > 0.9, name


def test_a_discriminant_makes_sets_of_what_it_said_of_groups_left_out(material):
    classifier, seen = material
    rows = Rows.of(classifier, seen, groups=torch.arange(len(seen.labels)) // 4)
    outcome = METHODS["discriminant"].fit(rows)
    torch.testing.assert_close(outcome.head.left_out_scores, scores_of(outcome.left_out))
    fold = [rows.fold == number for number in rows.fold.unique()]
    for outside in fold:  # as sure, of all images, as what was said of groups left out
        inside = (~outside).nonzero().flatten()
        few = replace(rows, data=seen.rows(inside), zero_shot=rows.zero_shot[inside], fold=None)
        without = METHODS["discriminant"].fit(replace(few, groups=None)).head.head
        values = rows.features("embedding")[outside].double()
        scores = replace(without, text_weight=0.0, temperature=outcome.head.head.temperature)
        torch.testing.assert_close(
            scores.logits(values).double().log_softmax(1),
            outcome.left_out.logits[outside].double().log_softmax(1),
            rtol=1e-3,
            atol=1e-3,
        )
    alone = METHODS["discriminant"].fit(replace(rows, fold=None))
    assert not alone.left_out.known.any()  # nothing is known of images of a new group
    assert alone.head.left_out_scores is None
    singly = METHODS["discriminant"].fit(replace(rows, fold=None, groups=None))
    assert singly.left_out.known.all()
