"""A classifier's head with other images and classes, against a fit from scratch on their rows."""

import copy
import json
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from PIL import Image

from residual_peft.classifiers.changeable import Read
from residual_peft.classifiers.files import STATISTICS
from residual_peft.classifiers.heads import HeadStatistics, RidgeSums, fit_ridge
from residual_peft.classifiers.heads.head import spread
from residual_peft.classifiers.kept import KeptStatistics
from residual_peft.classifiers.none_of_these import KnownImages
from residual_peft.classifiers.outputs import pixel_batches
from residual_peft.classifiers.trained_head import TrainedHead
from residual_peft.classifiers.zero_shot import ZeroShotClassifier
from residual_peft.data.passes import Batches, ImageFiles
from residual_peft.errors import ResiDualError
from residual_peft.hub.files import read_tensors, write_tensors
from residual_peft.tuner import ResiDualConfig, fit_bases, gains_of
from tests.models import clip_model, pixels
from tests.pairs import table
from tests.pictures import image_processor, photographs

CLASSES = 3
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def rows_of(made, images):
    return Read.of(made, batches_of(made, images)).features


def batches_of(made, images):
    return pixel_batches(images, made.image_processor, 8)


def fitted(features="coordinates", *, some=False, per_class=False, images=None, names=CLASSES):
    """A classifier with a ridge head on some photographs, and those with their labels."""
    model = get_peft_model(clip_model(), ResiDualConfig())
    fit_bases(model, [pixels(60, seed=5)])
    generator = torch.Generator().manual_seed(1)
    made = ZeroShotClassifier(
        model.eval(),
        [f"class {number}" for number in range(names)],
        torch.randn(names, 16, generator=generator),
        logit_scale=7.0,
        image_processor=image_processor(),
    )
    images = photographs(30) if images is None else images
    labels = torch.arange(len(images)) % CLASSES
    width = made.class_embeddings.shape[1] if features == "embedding" else len(gains_of(made.model))
    blank = fit_ridge(torch.randn(6, width), torch.arange(6) % CLASSES, CLASSES).head
    made.head = TrainedHead(blank.to(torch.float32), features)
    rows = rows_of(made, images)
    columns = torch.arange(1, width, 2) if some else torch.arange(width)
    fit = fit_ridge(rows[:, columns], labels, CLASSES)
    head = spread(fit.head, columns, width).to(torch.float32)
    scores = torch.linspace(0.1, 2, 20)
    known = KnownImages(torch.eye(16), torch.zeros(CLASSES, 16), 5 * scores)
    made.head = TrainedHead(head, features, "ridge", scores, known)
    sums = RidgeSums(HeadStatistics(len(columns), CLASSES, per_class=per_class), fit.settings)
    sums.add(rows[:, columns], labels)
    made.statistics = KeptStatistics.of(made, sums, columns)
    return made, images, labels, fit


def scratch(made, fit, images, labels):
    """The twin: the head of a fit on the rows, at the same scales and strength."""
    columns = made.statistics.columns
    rows = rows_of(made, images)[:, columns]
    head = fit_ridge(
        rows,
        labels,
        int(labels.max()) + 1,
        scale=fit.settings.scale,
        alphas=[float(fit.alpha[0])],
    ).head
    return spread(head, columns, made.statistics.width)


def check(made, fit, images, labels):
    expected = scratch(made, fit, images, labels)
    for name in ("mean", "scale", "weights", "offset"):
        found = getattr(made.head.head, name).double()
        torch.testing.assert_close(found, getattr(expected, name), **CLOSE, msg=name)
    assert made.head.head.text_weight == pytest.approx(fit.head.text_weight)
    assert made.head.head.temperature == pytest.approx(fit.head.temperature)


@table(("features", "some"), [("coordinates", False), ("coordinates", True), ("embedding", False)])
def test_images_come_and_go(features, some):
    made, images, labels, fit = fitted(features, some=some)
    new = photographs(6, seed=7)
    own = torch.tensor([0, 2, 1, 1, 0, 2])
    assert made.update(new, [f"class {number}" for number in own.tolist()]) == 6
    check(made, fit, [*images, *new], torch.cat([labels, own]))
    assert made.head.left_out_scores is not None
    assert made.head.known is not None
    assert made.forget([images[4], images[9]], labels[[4, 9]]) == 2
    kept = [row for row in range(30) if row not in (4, 9)]
    check(made, fit, [*[images[r] for r in kept], *new], torch.cat([labels[kept], own]))
    # some were of images that are gone
    assert made.head.left_out_scores is None
    assert made.head.known is None


def test_a_class_comes_and_goes_with_its_images():
    made, images, labels, fit = fitted()
    new = photographs(5, seed=8)
    assert made.add_class("new", new) == CLASSES
    every, own = [*images, *new], torch.cat([labels, torch.full((5,), CLASSES)])
    check(made, fit, every, own)
    assert made.class_names == ("class 0", "class 1", "class 2", "new")
    unit = Read.of(made, batches_of(made, new)).readout.mean(0)
    torch.testing.assert_close(made.class_embeddings[3], unit / unit.norm())
    assert made.predict(new[0]).label in made.class_names
    made.remove_class("class 1", [images[row] for row in range(30) if labels[row] == 1])
    kept = (own != 1).nonzero().flatten().tolist()
    check(made, fit, [every[r] for r in kept], torch.tensor([0, -1, 1, 2])[own[kept]])
    assert made.class_names == ("class 0", "class 2", "new")
    assert made.class_embeddings.shape[0] == 3


def test_a_class_goes_without_its_images_where_sums_are_kept_of_each():
    made, images, labels, fit = fitted(per_class=True)
    made.add_class("new", photographs(5, seed=8))
    made.remove_class("new")
    check(made, fit, images, labels)
    made, images, _, _ = fitted()
    with pytest.raises(ResiDualError, match=r"10 images of class 'class 1'.*got 0.*per"):
        made.remove_class("class 1")
    with pytest.raises(ResiDualError, match=r"10 images of class 'class 1'.*got 2"):
        made.remove_class("class 1", images[:2])


def test_a_class_that_was_told_by_its_text_joins_the_head():
    made, images, labels, fit = fitted(names=CLASSES + 2)
    embedding = made.class_embeddings[4]
    new = photographs(5, seed=8)
    assert made.add_class("class 4", new) == CLASSES
    assert made.class_names[3:] == ("class 4", "class 3")
    torch.testing.assert_close(made.class_embeddings[3], embedding)
    check(made, fit, [*images, *new], torch.cat([labels, torch.full((5,), CLASSES)]))
    made.remove_class("class 3")  # of its text alone
    assert len(made.class_names) == made.head.class_count == 4
    assert made.statistics is not None


def test_beside_texts_a_class_needs_its_text():
    made, *_ = fitted()
    made.templates = ("a photo of {}",)
    with pytest.raises(ResiDualError, match=r"the texts of new embedded like .* not to be had"):
        made.add_class("new", photographs(2))
    with pytest.raises(ResiDualError, match="embedding of 16 finite numbers"):
        made.add_class("new", photographs(2), torch.zeros(16))
    made.add_class("new", photographs(2), 3 * torch.eye(16)[2])
    torch.testing.assert_close(made.class_embeddings[3], torch.eye(16)[2])


def test_they_are_saved_beside_the_adapter_and_stay_at_home(tmp_path, monkeypatch):
    made, images, labels, fit = fitted()
    place = made.save_pretrained(tmp_path / "a")
    assert (place / STATISTICS).is_file()
    loaded = ZeroShotClassifier.from_pretrained(place, model=clip_model())
    new = photographs(6, seed=7)
    loaded.update(new, torch.arange(6) % CLASSES)
    check(loaded, fit, [*images, *new], torch.cat([labels, torch.arange(6) % CLASSES]))
    loaded.save_pretrained(place)
    again = ZeroShotClassifier.from_pretrained(place, model=clip_model())
    again.forget(new, torch.arange(6) % CLASSES)
    check(again, fit, images, labels)
    pushed = []

    def push(folder, *_, **__):
        pushed.extend(str(path.relative_to(folder)) for path in Path(folder).rglob("*"))

    monkeypatch.setattr("residual_peft.classifiers.zero_shot.push_directory", push)
    again.push_to_hub("me/it")
    assert not any("statistics" in name for name in pushed)
    assert again.statistics is not None
    again.head = again.head  # nobody says that it is the one that was summed
    again.save_pretrained(place)
    assert not (place / STATISTICS).exists()


def test_files_are_known_by_their_content(tmp_path):
    made, *_ = fitted()
    paths = []
    for number, image in enumerate(photographs(3, seed=5)):
        image.save(tmp_path / f"{number}.png")
        paths.append(tmp_path / f"{number}.png")
    made.update(paths, [0, 1, 2])
    assert len(made.fitted_on) == 3
    made.forget(paths[:2], [0, 1])
    assert len(made.fitted_on) == 1
    made.add_class("new", paths[:2])
    assert len(made.fitted_on) == 3
    made.update(paths[:2], [0, 1])  # the same files, of other classes
    made.remove_class("new", paths[:2])
    made.forget(paths[:1], [0])
    assert len(made.fitted_on) == 2
    made.calibrate(paths[:1], [0])
    with pytest.raises(ResiDualError, match="2 images of 3 to calibrate with"):
        made.calibrate(paths, [0, 1, 2])
    # files have rows and no labels: neither is taken for the other
    read = Read.of(made, Batches(ImageFiles(list(map(str, paths)), made.image_processor), 2))
    assert (read.index.tolist(), read.labels) == ([0, 1, 2], None)


def test_statistics_of_another_head_model_or_basis_are_refused(tmp_path):
    made, images, *_ = fitted()
    place = made.save_pretrained(tmp_path / "a")
    other = fitted(images=photographs(30, seed=2))[0]
    with pytest.raises(ResiDualError, match="statistics are of a class head on 16 numbers"):
        other.statistics = fitted("embedding")[0].statistics
    strange = copy.copy(made.statistics)
    object.__setattr__(strange, "basis", "0" * 64)
    with pytest.raises(ResiDualError, match="coordinates in another basis"):
        made.statistics = strange
    embedding = fitted("embedding")[0]
    weights = copy.deepcopy(embedding.model)
    with torch.no_grad():
        next(p for n, p in weights.named_parameters() if "patch_embedding" in n).add_(1)
    elsewhere = ZeroShotClassifier(
        weights, embedding.class_names, embedding.class_embeddings, logit_scale=7.0
    )
    elsewhere.head = embedding.head
    with pytest.raises(ResiDualError, match="belongs to the weights of"):
        elsewhere.statistics = embedding.statistics
    other.save_pretrained(tmp_path / "b")
    (tmp_path / "b" / STATISTICS).replace(place / STATISTICS)
    loaded = ZeroShotClassifier.from_pretrained(place, model=clip_model())
    with pytest.raises(ResiDualError, match="another class head than lies beside it"):
        loaded.update(images[:1], [0])
    (place / STATISTICS).write_bytes(b"{}")
    with pytest.raises(ResiDualError, match="whole safetensors file"):
        loaded.update(images[:1], [0])


def test_what_cannot_be_done_is_said_before_any_work(monkeypatch):
    made, images, labels, _ = fitted()
    before = made.head
    with pytest.raises(ResiDualError, match="a label for each of 2 images, got 1"):
        made.update(images[:2], ["class 0"])
    with pytest.raises(ResiDualError, match=r"3 classes, got 'dog': add_class"):
        made.update(images[:1], ["dog"])
    with pytest.raises(ResiDualError, match=r"3 classes, got 3"):
        made.update(images[0], 3)
    for label in (0.9, float("nan"), True, None, torch.tensor(1.7), labels[:2]):
        with pytest.raises(ResiDualError, match=r"by its name or its number, 0 to 2, got "):
            made.update(images[:1], [label])
    for given in (None, 1, torch.tensor(1)):
        with pytest.raises(ResiDualError, match=r"a label for each of 2 images, got (None|1|tens)"):
            made.update(images[:2], given)
    with pytest.raises(ResiDualError, match="has the class 'class 0' already"):
        made.add_class("class 0", images[:1])
    own = [images[row] for row in range(30) if labels[row] == 1]
    with pytest.raises(ResiDualError, match="none of class 'class 1'"):
        made.forget(own, torch.ones(10, dtype=torch.long))
    with pytest.raises(ResiDualError, match="classes to remove, and two to be left, got 'dog'"):
        made.remove_class("dog")
    assert made.head is before
    made.head = made.head
    with pytest.raises(ResiDualError, match=r"head \(ridge\) has no statistics.*keep_statistics"):
        made.update([Image.new("RGB", (9, 9))], [0])
    made.head = None
    with pytest.raises(ResiDualError, match="no class head"):
        made.forget(images[:1], [0])
    several, images, _, _ = fitted()
    several.multi_label = True
    with pytest.raises(ResiDualError, match="fit anew"):
        several.add_class("new", images[:1])


def spoiled_text(text):
    def spoil(tensors, metadata):
        metadata["statistics"] = text(json.loads(metadata["statistics"]))

    return spoil


def spoiled_tensor(name, change):
    def spoil(tensors, metadata):
        tensors[name] = change(tensors[name])

    return spoil


SPOILS = {
    "no list": spoiled_text(lambda _: "[]"),
    "width of text": spoiled_text(lambda said: json.dumps(said | {"width": "9"})),
    "strange features": spoiled_text(lambda said: json.dumps(said | {"features": "pixels"})),
    "no model": spoiled_text(lambda said: json.dumps(said | {"model": {}})),
    "no text": lambda tensors, metadata: metadata.clear(),
    "no columns": lambda tensors, metadata: tensors.pop("columns"),
    "no strength": lambda tensors, metadata: tensors.pop("settings.alpha"),
    "one strength": spoiled_tensor("settings.alpha", lambda t: t[0]),
    "nan": spoiled_tensor("squares", lambda t: t * torch.nan),
    "half the squares": spoiled_tensor("squares", lambda t: t[:5]),
    "a column twice": spoiled_tensor("columns", lambda t: t * 0),
    "a column of no feature": spoiled_tensor("columns", lambda t: t + 10**6),
    "columns in between": spoiled_tensor("columns", lambda t: t.double()),
    "scales of nothing": spoiled_tensor("settings.scale", lambda t: t * 0),
}


def test_spoiled_statistics_end_in_one_error(tmp_path):
    made, images, *_ = fitted()
    place = made.save_pretrained(tmp_path / "a")
    tensors, metadata = read_tensors(place / STATISTICS)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    for name, spoil in SPOILS.items():
        other, text = dict(tensors), dict(metadata)
        spoil(other, text)
        write_tensors(place / STATISTICS, other, text)
        loaded = ZeroShotClassifier.from_pretrained(place, model=clip_model())
        with pytest.raises(ResiDualError):
            pytest.fail(f"{name}: {loaded.update(images[:1], [0])}")
