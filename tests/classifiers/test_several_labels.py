"""Several labels per image, from a column of lists to predictions, against slow twins."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Sequence, Value
from datasets import Image as ImageFeature
from peft import get_peft_model
from PIL import Image
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn import functional

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
    trainer_kwargs,
    training_arguments,
    write_coordinates,
)
from residual_peft.app.fitting import evaluate_adapter, fit_adapter
from residual_peft.classifiers.backbones import load_backbone
from residual_peft.data import ProcessedImages, batches, iterative_split
from residual_peft.solvers import fit_gains
from residual_peft.solvers.coordinates import Coordinates
from residual_peft.tuner import gains_of
from tests.labelled_pictures import NAMES, hot, images, lists, picture
from tests.models import SIZES, clip_model, pixels
from tests.training_case import save_clip
from tests.tuner.twin import randomize_gains


@pytest.fixture(scope="module")
def splits() -> DatasetDict:
    return DatasetDict(train=images(120, 1), validation=images(40, 2), test=images(40, 3))


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    save_clip(folder)
    return str(folder)


def tiny(bias: float = 0.0, multi_label: bool = True) -> ZeroShotClassifier:
    generator = torch.Generator().manual_seed(2)
    return ZeroShotClassifier(
        clip_model(),
        NAMES,
        torch.randn(len(NAMES), 16, generator=generator),
        logit_scale=6.0,
        multi_label=multi_label,
        logit_bias=bias,
    )


def test_lists_of_names_numbers_and_classes_are_the_same_data() -> None:
    named = load_data(images(), validation=0.2, test=0.2)
    assert named.multi_label
    assert named.class_names == NAMES
    numbers = [[NAMES.index(name) for name in row] for row in lists()]
    features = Features({"image": ImageFeature(), "label": Sequence(Value("int64"))})
    whole = {"image": images()["image"], "label": numbers}
    bare = load_data(Dataset.from_dict(whole, features=features), class_names=NAMES)
    typed = Features({"image": ImageFeature(), "label": Sequence(ClassLabel(names=list(NAMES)))})
    classes = load_data(Dataset.from_dict(whole, features=typed))
    for data in (bare, classes):
        assert data.class_names == NAMES
        every = [row for split in data.splits.values() for row in split["label"]]
        assert sorted(every) == sorted(sorted(row) for row in numbers)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ([7], r"row 0 of .*, split train, has the label 7; wanted 0 to 3 \(4 classes\)"),
        (None, "row 0 of .* has no list of labels; give an image without labels an empty list"),
    ],
)
def test_bad_lists_name_their_row(label: list[int] | None, message: str) -> None:
    rows = [label, *[[0, 1, 2, 3]] * 5]
    features = Features({"image": ImageFeature(), "label": Sequence(Value("int64"))})
    data = Dataset.from_dict({"image": [picture([], 0)] * 6, "label": rows}, features=features)
    with pytest.raises(ResiDualError, match=message):
        load_data(data, class_names=NAMES)


def test_zeros_and_ones_are_no_lists_of_labels() -> None:
    rows = hot(lists(20)).tolist()
    features = Features({"image": ImageFeature(), "label": Sequence(Value("int64"))})
    data = Dataset.from_dict({"image": [picture([], 0)] * 20, "label": rows}, features=features)
    with pytest.raises(ResiDualError, match="are a 0 or 1 per class; wanted the numbers of the cl"):
        load_data(data, class_names=NAMES)


def test_rare_labels_are_shared_out() -> None:
    generator = np.random.default_rng(5)
    labels = (generator.random((400, 6)) < [0.5, 0.3, 0.2, 0.1, 0.03, 0.0]).astype(np.uint8)
    labels[:10, 5] = 1  # ten images, one of a few labels in every part of a tenth
    shares = {"validation": 0.1, "test": 0.1}
    parts = iterative_split(labels, shares, seed=3)
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(400))
    for name, share in shares.items():
        found = labels[parts[name]].sum(0)
        assert abs(len(parts[name]) - 40) <= 2
        assert (found >= 1).all()
        np.testing.assert_allclose(found, share * labels.sum(0), atol=1.5)
    again = iterative_split(labels, shares, seed=3)
    assert all((again[name] == rows).all() for name, rows in parts.items())
    other = iterative_split(labels, shares, seed=4)
    assert any(len(other[n]) != len(r) or (other[n] != r).any() for n, r in parts.items())


def test_batches_hold_zeros_and_ones(splits: DatasetDict) -> None:
    data, processor = load_data(splits), load_backbone().image_processor
    found = torch.cat([batch["labels"] for batch in batches(data.test, processor, batch_size=16)])
    assert torch.equal(found, hot(lists(40, 3)))


def test_logits_and_loss_with_a_bias() -> None:
    classifier, readout = tiny(bias=-1.5), torch.randn(12, 16)
    labels = hot(lists(12))
    cosines = functional.normalize(readout, dim=1) @ classifier.class_embeddings.T
    torch.testing.assert_close(classifier.logits(readout), 6 * cosines - 1.5)
    p = (6 * cosines.double() - 1.5).sigmoid()
    truth = -(labels * p.log() + (1 - labels) * (1 - p).log()).mean()
    torch.testing.assert_close(classifier.loss(readout, labels).double(), truth)
    # two steps of a gradient accumulation, as the Trainer counts their labels
    parts = [classifier.loss(readout[s], labels[s], 48) for s in (slice(0, 5), slice(5, 12))]
    torch.testing.assert_close(sum(parts), classifier.loss(readout, labels))
    wanted = r"labels of shape \(N, 4\), a 0 or 1 per class.* make them of a column of lists"
    with pytest.raises(ResiDualError, match=wanted):
        classifier.loss(readout, torch.zeros(12, dtype=torch.int64))
    with pytest.raises(ResiDualError, match="a column per class, got 2 for class 1 of image 0"):
        classifier.check_labels(torch.tensor([[0, 2, 0, 0]]))


def best_bias(cosines: Tensor, labels: Tensor) -> float:
    """By a search without any derivative."""

    def loss(bias: float) -> float:
        target = labels.double()
        return float(functional.binary_cross_entropy_with_logits(cosines.double() + bias, target))

    return float(minimize_scalar(loss, bracket=(-5, 5), tol=1e-10).x)


def test_the_bias_is_the_one_that_suits_best() -> None:
    classifier, readout, labels = tiny(), torch.randn(50, 16), hot(lists(50))
    found = classifier.fit_bias(readout, labels)
    assert found == classifier.logit_bias
    assert found == pytest.approx(best_bias(classifier.scaled_cosines(readout), labels), abs=1e-4)
    with pytest.raises(ResiDualError, match="fit_bias is for a classifier with multi_label=True"):
        tiny(multi_label=False).fit_bias(readout, torch.zeros(50, dtype=torch.int64))


def coordinates(classifier: ZeroShotClassifier) -> Coordinates:
    batch = {"pixel_values": pixels(60, SIZES["usual"], 4), "labels": hot(lists(60))}
    return collect_with_basis(classifier.model, [batch])


@pytest.mark.parametrize("way", ["linear", "normalized", "adamw"])
def test_a_fit_leaves_the_bias_of_what_is_predicted(way: str) -> None:
    classifier = tiny(multi_label=False)
    classifier.model = get_peft_model(classifier.model, ResiDualConfig())
    rows = coordinates(classifier)
    objective = Objective(normalized=way != "linear", loss="sigmoid", strength=1e-3)
    if way == "adamw":
        fit_gains(classifier, rows, objective=objective, epochs=40, learning_rate=0.05)
    else:
        solve_gains(classifier, rows, objective=objective, tolerance=1e-6)
    assert classifier.multi_label
    adapted = rows.adapted(gains_of(classifier.model).detach())
    wanted = best_bias(classifier.scaled_cosines(adapted), rows.labels)
    assert classifier.logit_bias == pytest.approx(wanted, abs=0.15 if way == "adamw" else 1e-2)
    assert abs(wanted) > 0.1  # a forgotten bias would be seen


def test_predictions_name_all_that_is_likely(tmp_path: Path) -> None:
    clip = load_backbone()
    classifier = ZeroShotClassifier.from_text(
        clip.model,
        clip.tokenizer,
        ["red", "blue", "star", "circle"],
        ["something {}"],
        image_processor=clip.image_processor,
        multi_label=True,
        logit_bias=-8.0,
    )
    shown = [Image.new("RGB", (40, 40), color) for color in ("red", "white")]
    logits = classifier.predict_logits(shown)
    for row, found in zip(logits, classifier.predict(shown), strict=True):
        likely = [n for n, p in zip(classifier.class_names, row.sigmoid(), strict=True) if p >= 0.5]
        assert found.labels == tuple(likely)
        torch.testing.assert_close(torch.tensor(found.probabilities), row.sigmoid())
        assert found.label == classifier.class_names[int(row.argmax())]
    classifier.save_pretrained(tmp_path / "a")
    loaded = ZeroShotClassifier.from_pretrained(tmp_path / "a", model=clip.model)
    assert (loaded.multi_label, loaded.logit_bias) == (True, -8.0)
    tasks = TaskSet.from_pretrained({"a": tmp_path / "a"}, model=clip.model)
    mine, theirs = tasks.predict(shown[0])["a"], classifier.predict(shown[0])
    assert (mine.label, mine.labels) == (theirs.label, theirs.labels)
    assert mine.probabilities == pytest.approx(theirs.probabilities, abs=1e-5)
    # a file from before there was such a thing
    path = tmp_path / "a" / "residual_classifier.json"
    record = json.loads(path.read_text())
    del record["multi_label"], record["logit_bias"]
    path.write_text(json.dumps(record))
    old = ZeroShotClassifier.from_pretrained(tmp_path / "a", model=clip.model)
    assert (old.multi_label, old.logit_bias) == (False, 0.0)


def test_a_store_keeps_all_labels(splits: DatasetDict, model_path: str, tmp_path: Path) -> None:
    clip, data = load_backbone(model_path), load_data(splits)
    model = get_peft_model(clip.model, ResiDualConfig())
    split = ProcessedImages(data.train, clip.image_processor)
    store = write_coordinates(model, split, tmp_path / "store", fit_basis=True, shard_size=50)
    assert torch.equal(store.labels, hot(lists(120, 1)))
    memory = collect_with_basis(model, batches(data.train, clip.image_processor))
    torch.testing.assert_close(store.load().coordinates, memory.coordinates, rtol=1e-3, atol=1e-4)
    write_coordinates(model, split, tmp_path / "again", shard_size=50)
    path = tmp_path / "again" / "shard-00001.safetensors"
    whole = path.read_bytes()
    path.unlink()
    write_coordinates(model, split, tmp_path / "again", shard_size=50)
    assert path.read_bytes() == whole


@pytest.mark.parametrize("trainer", [False, True])
def test_a_fit_of_several_labels(
    splits: DatasetDict, model_path: str, tmp_path: Path, trainer: bool
) -> None:
    out = tmp_path / "adapter"
    report = fit_adapter(
        model_path, splits, out, templates=["a {}."], trainer=trainer, method="gains"
    )
    assert set(report.adapted) == {
        "mean_average_precision", "micro_f1", "macro_f1", "exact_match",
    }  # fmt: skip
    gained = report.adapted["mean_average_precision"] - report.zero_shot["mean_average_precision"]
    assert gained > 0.05
    found = evaluate_adapter(out, splits)
    assert {name: found[name] for name in report.adapted} == pytest.approx(report.adapted, abs=1e-3)
    classifier = ZeroShotClassifier.from_pretrained(out)
    assert classifier.multi_label
    randomize_gains(classifier.model)
    assert evaluate(classifier, load_data(splits).test).metrics != report.adapted
    assert (out / "run" / "run.json").exists()
    assert "mean average precision" in (out / "README.md").read_text()


def test_the_trainer_refuses_a_classifier_for_one(splits: DatasetDict, tmp_path: Path) -> None:
    classifier, data = tiny(multi_label=False), load_data(splits)
    classifier.image_processor = load_backbone().image_processor
    with pytest.raises(ResiDualError, match="got several labels per image: make it with multi"):
        trainer_kwargs(classifier, data, training_arguments(tmp_path))
