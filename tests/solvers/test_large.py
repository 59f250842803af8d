"""What is larger than memory is fitted as what is not."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from peft import get_peft_model
from PIL import Image as Pictures

from residual_peft.classifiers.heads import HeadStatistics, fit_ridge
from residual_peft.classifiers.zero_shot import ZeroShotClassifier
from residual_peft.data import ProcessedImages
from residual_peft.errors import ResiDualError
from residual_peft.solvers import large
from residual_peft.solvers.methods import METHODS, with_gains
from residual_peft.solvers.objectives import Objective
from residual_peft.solvers.store import Stores, write_coordinates
from residual_peft.tuner import ResiDualConfig, gains_of
from tests.launch import launch
from tests.models import clip_model
from tests.pictures import image_processor

CLASSES = 3


def dataset(count, seed):
    """Images whose class a corner tells."""
    generator = np.random.default_rng(seed)
    pictures, labels = [], []
    for number in range(count):
        pixels = generator.integers(0, 256, (16, 16, 3), np.uint8)
        pixels[:7, :7] = 60 + 60 * (number % CLASSES)
        pictures.append(Pictures.fromarray(pixels))
        labels.append(number % CLASSES)
    features = Features({"image": Image(), "label": ClassLabel(names=["a", "b", "c"])})
    rows = Dataset.from_dict({"image": pictures, "label": labels}, features=features)
    return ProcessedImages(rows, image_processor(), "some")


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """A classifier, and two stores of several shards."""
    root = tmp_path_factory.mktemp("stores")
    model = get_peft_model(clip_model(), ResiDualConfig()).eval()
    options = {"shard_size": 32, "batch_size": 16, "num_workers": 0}
    one = write_coordinates(model, dataset(120, 0), root / "train", fit_basis=True, **options)
    other = write_coordinates(model, dataset(30, 1), root / "validation", **options)
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(CLASSES, 16, generator=generator)
    classifier = ZeroShotClassifier(model, ["a", "b", "c"], embeddings, logit_scale=7.0)
    return classifier, Stores((one, other))


def test_several_stores_are_as_one(stores):
    _, seen = stores
    parts = [part for store in seen.stores for part in store.parts]
    names = ("readout", "labels", "coordinates")
    joined = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
    whole = replace(parts[0], **joined)
    assert len(seen) == len(whole) == 150
    assert len(seen.parts) == 5
    torch.testing.assert_close(seen.labels, whole.labels)
    torch.testing.assert_close(seen.readout, whole.readout)
    assert seen.mean_length == pytest.approx(whole.mean_length)
    assert seen.coordinate_bytes == whole.coordinates.numel() * 4
    torch.testing.assert_close(seen.load().coordinates, whole.coordinates)
    for index in (torch.tensor([140, 3, 121, 77]), torch.tensor([1, 5]), torch.tensor([149])):
        some = seen.rows(index)
        torch.testing.assert_close(some.coordinates, whole.coordinates[index])
        torch.testing.assert_close(some.labels, whole.labels[index])
    with pytest.raises(ResiDualError, match="wanted stores of one adapter's coordinates"):
        Stores(())


@pytest.mark.parametrize("weighted", [False, True])
def test_sums_of_a_store_are_those_of_the_rows(stores, weighted, monkeypatch):
    _, seen = stores
    monkeypatch.setattr(large, "CHUNK", 7)
    whole = seen.load()
    weights = torch.tensor([1.0, 2.0, 0.5]) if weighted else None
    columns = torch.arange(0, whole.coordinates.shape[1], 3)
    expected = HeadStatistics(len(columns), CLASSES)
    each = None if weights is None else weights[whole.labels]
    expected.add(whole.coordinates[:, columns], whole.labels, each)
    found = large.statistics_of(seen, CLASSES, columns=columns, class_weights=weights)
    # from one origin, as the batches' first ones differ
    found = found.from_origin(expected.origin)
    for name, tensor in expected.state().items():
        torch.testing.assert_close(found.state()[name], tensor, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_two_processes_sum_a_store_as_one_does(stores, tmp_path):
    """Four shards, two for each."""
    _, seen = stores
    (store, _), columns = seen.stores, torch.arange(0, len(seen.state.shift), 3)
    launch("-m", "tests.summing_store", store.directory, tmp_path, processes=2)
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    expected = large.statistics_of(store, CLASSES, columns=columns)
    expected = expected.from_origin(one["origin"]).state()
    for name, tensor in expected.items():
        torch.testing.assert_close(one[name], tensor, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(other[name], one[name], rtol=0, atol=0)


def fit(stores, name, in_memory):
    classifier, seen = stores
    drawn = large.draw_of(classifier, seen, 100)
    assert len(drawn.labels) == 100
    outcome = METHODS[name].run(drawn)
    return large.fit_all(outcome, drawn, seen, in_memory=in_memory), drawn


@pytest.mark.parametrize("name", ["ridge", "ridge-heads", "ridge-embedding"])
def test_a_ridge_from_sums_is_the_one_in_memory(stores, name):
    """Classes have 50 images each, so that both leave out one image at a time."""
    classifier, seen = stores
    found, _ = fit(stores, name, 10**6)
    rows = large.draw_of(classifier, seen, len(seen))
    features, kinds = METHODS[name].ridge
    columns = rows.columns(kinds) if features == "coordinates" else None
    values = rows.features(features, kinds)
    options = {"leave": "one", "residual": False, "power": found.power}
    expected = fit_ridge(values, rows.labels, CLASSES, zero_shot=rows.zero_shot, **options)
    assert found.strength == pytest.approx(float(expected.alpha[0]), rel=1e-6)
    head = found.head.head
    own = head.weights if columns is None else head.weights[columns]
    torch.testing.assert_close(own.double(), expected.head.weights, rtol=1e-3, atol=1e-5)
    assert head.temperature == pytest.approx(expected.head.temperature, rel=1e-4)
    assert head.text_weight == pytest.approx(expected.head.text_weight, abs=1e-4)
    torch.testing.assert_close(
        found.left_out.logits, expected.left_out.logits, rtol=1e-4, atol=1e-4
    )
    assert "on all 150 images from their sums" in found.notes[0]
    assert found.settings.scale.dtype == torch.float64
    if name != "ridge":
        return
    # of an image that is left out its copies stay in: they fit the head, and choose nothing
    (one, other), first = seen.stores, seen.stores[1].parts[0]
    copied = replace(seen)
    copied.__dict__["parts"] = (*one.parts, *other.parts, first, first)
    copied.__dict__["labels"] = torch.cat([seen.labels, first.labels, first.labels])
    found, _ = fit((classifier, copied), name, 10**6)
    count = len(seen) - len(first)
    assert f"on all {len(copied)} images" in found.notes[0]
    assert f"calibration are of {count} of them" in found.notes[0]
    torch.testing.assert_close(found.left_out.labels, seen.labels[:count])
    # for the most part copies: rows, of which those of a picture are left out together
    copied.__dict__["parts"] = (*seen.parts, *seen.parts)
    copied.__dict__["labels"] = torch.cat([seen.labels, seen.labels])
    copied.__dict__.pop("readout")
    found, _ = fit((classifier, copied), name, 10**6)
    assert "was fitted on 300 of 300 images" in found.notes[-1]


def test_gains_from_a_store_are_those_in_memory(stores):
    classifier, seen = stores
    found, drawn = fit(stores, "gains", 1000)
    objective = Objective(normalized=False)
    expected = with_gains(
        classifier, seen.load(), objective, found.strength, found.left_out, found.share
    )
    torch.testing.assert_close(found.gains, expected.gains, rtol=1e-3, atol=1e-4)
    assert gains_of(classifier.model).eq(1).all()
    assert len(found.left_out.labels) == len(drawn.labels)


@pytest.mark.parametrize("name", ["logistic", "ridge", "discriminant", "zero-shot"])
def test_what_needs_rows_is_fitted_on_as_many_as_fit(stores, name, monkeypatch):
    classifier, seen = stores
    monkeypatch.setattr(large, "MOST_COLUMNS", 5)
    each = seen.coordinate_bytes // len(seen)
    found, _ = fit(stores, name, 120 * each)
    if name == "zero-shot":
        assert found.notes == ()
        return
    assert f"{METHODS[name].title} was fitted on 120 of 150 images" in found.notes[-1]
    rows = large.draw_of(classifier, seen, 120)
    expected = METHODS[name].run(rows).head.head
    torch.testing.assert_close(found.head.head.weights, expected.weights)


def test_classes_that_weigh_differently_need_rows(stores):
    classifier, seen = stores
    drawn = large.draw_of(classifier, seen, 100, balanced=True)
    outcome = METHODS["ridge"].run(drawn)
    found = large.fit_all(outcome, drawn, seen, in_memory=10**4)
    assert "of 150 images" in found.notes[-1]


def test_groups_need_rows(stores):
    """Sums would leave images out singly, and all of a group's others would have been seen."""
    classifier, seen = stores
    groups = torch.arange(len(seen)) // 5
    drawn = large.draw_of(classifier, seen, 100, groups=groups)
    outcome = METHODS["ridge"].run(drawn)
    room = 120 * (seen.coordinate_bytes // len(seen))
    found = large.fit_all(outcome, drawn, seen, in_memory=room, groups=groups)
    more = large.draw_of(classifier, seen, 120, groups=groups)
    expected = METHODS["ridge"].run(more)
    torch.testing.assert_close(found.head.head.weights, expected.head.head.weights)
    torch.testing.assert_close(found.left_out.logits, expected.left_out.logits)
    assert "of 150 images" in found.notes[-1]
