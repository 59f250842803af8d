"""Several labels per image under the Trainer, in repeated fits, in folds, in files and in sets."""

import logging

import numpy as np
import pytest
import torch
from peft import get_peft_model
from sklearn.metrics import average_precision_score
from transformers import Trainer

from residual_peft import (
    Objective,
    ResiDualConfig,
    ResiDualError,
    TaskSet,
    ZeroShotClassifier,
    collect_with_basis,
    evaluate,
    load_data,
    solve_gains,
    strength_path,
    trainer_kwargs,
    training_arguments,
)
from residual_peft.data import batches, iterative_folds, iterative_split
from residual_peft.data.metrics import multi_label_metrics
from residual_peft.solvers import fit_gains
from residual_peft.solvers.coordinates import collect_readouts
from residual_peft.solvers.store import coordinate_bytes
from residual_peft.tuner import fit_bases, gains_of
from tests.labelled_pictures import COUNT, NAMES, hot, images, lists
from tests.models import clip_model
from tests.pictures import image_processor

QUICK = {"per_device_train_batch_size": 16, "disable_tqdm": True, "use_cpu": True}
STILL = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}


def adapted(multi_label=True):
    generator = torch.Generator().manual_seed(2)
    return ZeroShotClassifier(
        get_peft_model(clip_model(), ResiDualConfig()),
        NAMES,
        torch.randn(len(NAMES), 16, generator=generator),
        logit_scale=10.0,
        image_processor=image_processor(),
        multi_label=multi_label,
    )


@pytest.fixture(scope="module")
def data():
    return load_data(images(200), validation=0.2, test=0.2, seed=1)


def ready(data):
    """Bases and a bias from the training images."""
    classifier = adapted()
    train = batches(data.train, classifier.image_processor)
    fit_bases(classifier.model, train)
    seen = collect_readouts(classifier.model, train)
    classifier.fit_bias(seen.readout, seen.labels)
    return classifier


def passed(data, classifier=None):
    classifier = adapted() if classifier is None else classifier
    loader = batches(data.train, classifier.image_processor)
    return classifier, collect_with_basis(classifier.model, loader)


NAMED = {"loss": min, "mean_average_precision": max}


@pytest.mark.parametrize("metric", NAMED)
def test_the_trainer_learns_and_chooses_by_the_loss_or_the_precision(data, tmp_path, metric):
    classifier = ready(data)
    chosen = {} if metric == "loss" else {"metric_for_best_model": metric}
    settings = QUICK | chosen | {"learning_rate": 0.3, "num_train_epochs": 8}
    made = Trainer(**trainer_kwargs(classifier, data, training_arguments(tmp_path, **settings)))
    before = made.evaluate()
    made.train()
    after = made.evaluate()
    name = "eval_mean_average_precision"
    assert after[name] > before[name] + 0.05
    assert after["eval_loss"] < before["eval_loss"]
    key = f"eval_{metric}"
    tried = [entry[key] for entry in made.state.log_history if key in entry]
    assert made.state.best_metric == NAMED[metric](tried[1:-1])
    assert after[key] == pytest.approx(made.state.best_metric, rel=1e-6)
    result = made.predict(made.eval_dataset)
    assert result.predictions.shape == result.label_ids.shape == (len(data.validation), 4)
    expected = multi_label_metrics(result.predictions, result.label_ids)
    assert {k: after[f"eval_{k}"] for k in expected} == expected
    with torch.no_grad():
        again = evaluate(classifier, data.validation)
    assert again.metrics == pytest.approx(expected)
    assert torch.equal(again.predictions, again.logits >= 0)
    own = training_arguments(tmp_path, metric_for_best_model="micro_f1", **QUICK)
    assert trainer_kwargs(classifier, data, own)["args"].metric_for_best_model == "micro_f1"


def test_gradient_accumulation_gives_the_whole_batches_gains_and_a_plain_loops(data, tmp_path):
    found, size = [], len(data.train)
    for steps in (1, 3):
        options = QUICK | STILL | {"optim": "sgd", "lr_scheduler_type": "constant"}
        options |= {
            "learning_rate": 2.0,
            "max_steps": 1,
            # the last part of an accumulation is smaller than the others
            "per_device_train_batch_size": size if steps == 1 else size // 3 + 1,
            "gradient_accumulation_steps": steps,
        }
        classifier = ready(data)
        start = gains_of(classifier.model).detach().clone()
        args = training_arguments(tmp_path / str(steps), **options)
        Trainer(**trainer_kwargs(classifier, data, args)).train()
        found.append(gains_of(classifier.model).detach() - start)
    classifier = ready(data)
    (batch,) = batches(data.train, classifier.image_processor, batch_size=size)
    outputs = classifier.model(pixel_values=batch["pixel_values"])
    logits = classifier.scaled_cosines(outputs).double() + classifier.logit_bias
    signs = 2 * batch["labels"].double() - 1
    torch.log1p(torch.exp(-signs * logits)).mean().backward()
    slow = -2.0 * gains_of(classifier.model).grad
    assert slow.norm() > 0.01
    for change in found:
        torch.testing.assert_close(change, slow, atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize("normalized", [False, True])
def test_a_second_fit_knows_nothing_of_the_first_ones_bias(data, normalized):
    classifier, rows = passed(data)
    objective = Objective(normalized=normalized, loss="sigmoid", strength=0.01)
    options = {"objective": objective, "learning_rate": 0.05, "epochs": 5}
    ones = torch.ones_like(gains_of(classifier.model))
    solved = solve_gains(classifier, rows, rows, objective=objective)
    fitted = fit_gains(classifier, rows, rows, start=ones, **options)
    classifier.logit_bias = 30.0
    again = fit_gains(classifier, rows, rows, start=ones, **options)
    assert torch.equal(again.gains, fitted.gains)
    assert again.accuracy == fitted.accuracy
    assert torch.equal(again.parameters["logit_bias"], fitted.parameters["logit_bias"])
    classifier.logit_bias = 30.0
    assert torch.equal(solve_gains(classifier, rows, rows, objective=objective).gains, solved.gains)
    assert -20 < classifier.logit_bias < 20


def test_fits_of_such_a_classifier_take_the_sigmoid_by_themselves(data):
    classifier, rows = passed(data)
    solve_gains(classifier, rows)
    default = gains_of(classifier.model).detach().clone()
    objective = Objective(normalized=False, loss="sigmoid", strength=1e-3)
    assert torch.equal(solve_gains(classifier, rows, objective=objective).gains, default)
    fit = fit_gains(classifier, rows, learning_rate=0.05, epochs=2)
    assert "logit_bias" in fit.parameters
    with pytest.raises(ResiDualError, match=r"for several labels per image .* loss='softmax' for"):
        solve_gains(classifier, rows, objective=Objective())
    for labels in (rows.labels, rows.labels.long()):
        with pytest.raises(ResiDualError, match="several labels per image need a classifier with"):
            adapted(multi_label=False).check_labels(labels)


def test_a_ridge_by_cross_validation_and_what_it_is_scored_by(data):
    classifier, rows = passed(data)
    bias = classifier.logit_bias
    path = strength_path(classifier, rows, strengths=(1e2, 1e-2), folds=3)
    assert path.accuracy.shape == (3, 2)
    assert torch.equal(
        path.loss, strength_path(classifier, rows, strengths=(1e2, 1e-2), folds=3).loss
    )
    assert path.best == 1e-2
    assert classifier.logit_bias == bias
    # the first fold by hand
    fold_of = torch.from_numpy(iterative_folds(rows.labels.numpy(), 3))
    inside, outside = rows.rows(fold_of != 0), rows.rows(fold_of == 0)
    objective = Objective(normalized=False, loss="sigmoid", strength=1e-2)
    solve_gains(classifier, inside, objective=objective, tolerance=1e-5)
    linear = outside.adapted(gains_of(classifier.model).detach()).double()
    scores = linear @ classifier.class_embeddings.double().T
    expected = average_precision_score(outside.labels.numpy(), scores.numpy(), average="macro")
    assert float(path.accuracy[0, 1]) == pytest.approx(expected, abs=0.02)


def test_rare_labels_are_in_every_fold():
    generator = np.random.default_rng(1)
    labels = (generator.random((301, 5)) < [0.5, 0.3, 0.1, 0.02, 0.5]).astype(np.uint8)
    labels[:, 3] = 0
    labels[generator.permutation(301)[:5], 3] = 1
    fold_of = iterative_folds(labels, 5)
    counts = np.stack([labels[fold_of == fold].sum(0) for fold in range(5)])
    assert (counts[:, 3] == 1).all()
    # Sechidis et al. promise the counts of single labels, not those of pairs
    assert np.abs(counts - labels.sum(0) / 5).max() <= 3
    assert np.ptp(np.bincount(fold_of)) <= 3
    assert (fold_of == iterative_folds(labels, 5)).all()
    at_random = generator.permutation(fold_of)
    spread = [
        np.ptp([labels[f == k].sum(0) for k in range(5)], axis=0) for f in (fold_of, at_random)
    ]
    assert spread[0].sum() < spread[1].sum()


def test_too_few_images_of_a_label_are_told_and_given_to_train_first(caplog):
    labels = np.zeros((40, 3), np.uint8)
    labels[:20, 0], labels[15:, 1], labels[[7, 30], 2] = 1, 1, 1
    with caplog.at_level(logging.WARNING, "residual_peft.data"):
        parts = iterative_split(labels, {"validation": 0.1, "test": 0.1}, 0, ("a", "b", "rare"))
    assert [int(labels[rows, 2].sum()) for rows in parts.values()] == [1, 1, 0]
    assert caplog.messages == ["the part 'test' has no image with the label rare"]
    with pytest.raises(ResiDualError, match="2 different images are too few to give one each to"):
        iterative_split(labels[:2], {"validation": 0.1, "test": 0.1}, 0)
    with pytest.raises(ResiDualError, match="wanted shares between 0 and 1"):
        iterative_split(labels, {"validation": 0.6, "test": 0.6}, 0)


def test_images_without_any_label_are_shared_out():
    labels = np.zeros((100, 2), np.uint8)
    labels[:10, 0], labels[10:30, 1] = 1, 1
    parts = iterative_split(labels, {"validation": 0.2, "test": 0.1}, 0)
    assert [len(rows) for rows in parts.values()] == [70, 20, 10]
    assert [labels[rows].sum(0).tolist() for rows in parts.values()] == [[7, 14], [2, 4], [1, 2]]


def test_the_bytes_of_labels_are_counted():
    one = coordinate_bytes(10, 100, 16)
    assert one == 10 * (100 * 4 + 16 * 4 + 8 + 8)
    assert coordinate_bytes(10, 100, 16, classes=80) == one + 10 * (80 - 8)


def test_files_cards_and_sets_know_of_it(data, tmp_path):
    classifier, rows = passed(data)
    solve_gains(classifier, rows)
    classifier.save_pretrained(tmp_path / "tags")
    card = (tmp_path / "tags" / "README.md").read_text()
    assert "labels: any number per image; a class counts from a probability of 0.5" in card
    assert f"with the bias {classifier.logit_bias:.4g})" in card
    single = adapted(multi_label=False)
    single.save_pretrained(tmp_path / "one")
    assert "any number per image" not in (tmp_path / "one" / "README.md").read_text()
    assert "logit_bias" not in (tmp_path / "one" / "residual_classifier.json").read_text()
    tasks = TaskSet.from_pretrained(
        {"tags": tmp_path / "tags", "one": tmp_path / "one"}, model=clip_model()
    )
    shown = data.test["image"][:12]
    expected = classifier.predict(shown)
    mixed = tasks.predict_mixed([*shown, shown[0]], ["tags"] * 12 + ["one"])
    every = tasks.predict(shown)
    for found in (every["tags"], mixed[:12]):
        for one, other in zip(found, expected, strict=True):
            assert (one.label, one.labels) == (other.label, other.labels)
            assert one.probabilities == pytest.approx(other.probabilities, abs=1e-4)
    assert len({len(p.labels) for p in expected}) > 1
    assert [p.labels for p in every["one"]] == [(p.label,) for p in every["one"]]
    assert mixed[12].labels == (mixed[12].label,)


def test_an_image_may_have_no_label_and_each_label_counts_once():
    rows = lists()
    assert [] in rows
    twice = [row + row for row in rows]
    doubled = images().remove_columns("label").add_column("label", twice)
    one, other = (load_data(source, validation=0, test=0) for source in (images(), doubled))
    assert one.train["label"][:] == other.train["label"][:]
    (batch,) = batches(one.train, image_processor(), batch_size=COUNT)
    assert torch.equal(batch["labels"], hot(rows))
    assert batch["labels"].sum(1).min() == 0
