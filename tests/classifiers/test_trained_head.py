"""A classifier with a class head, against plain float64 arithmetic on what the units contribute."""

import json
from dataclasses import replace

import pytest
import safetensors.torch
import torch
from peft import get_peft_model

from residual_peft.bases.decomposition import decompose
from residual_peft.classifiers.evaluation import Evaluation
from residual_peft.classifiers.heads import ClassHead
from residual_peft.classifiers.heads.strangers import InCoordinates
from residual_peft.classifiers.many_tasks import TaskSet
from residual_peft.classifiers.none_of_these import KnownImages
from residual_peft.classifiers.trained_head import TrainedHead
from residual_peft.classifiers.zero_shot import ZeroShotClassifier
from residual_peft.errors import ResiDualError
from residual_peft.hub.directories import ADAPTER_CONFIG
from residual_peft.tuner import ResiDualConfig, adapter_basis, fit_bases, gains_of
from tests.models import BUILDERS, clip_model, pixels
from tests.pairs import table
from tests.pictures import image_processor, photographs
from tests.tuner.twin import randomize_gains

CLASSES = 4


def random_head(columns, classes=CLASSES, features="coordinates", text_weight=0.7, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    head = ClassHead(
        mean=draw(columns),
        scale=draw(columns).abs() + 0.1,
        weights=draw(columns, classes),
        offset=draw(classes),
        text_weight=text_weight,
        temperature=0.3,
    )
    return TrainedHead(head, features, "by hand")


def with_adapter(model=None, seed=0, **config):
    model = get_peft_model(clip_model() if model is None else model, ResiDualConfig(**config))
    fit_bases(model, [pixels(60, seed=5)])
    randomize_gains(model, seed=seed)
    return model.eval()


def classifier(model, names=CLASSES, seed=1, **options):
    generator = torch.Generator().manual_seed(seed)
    width = decompose(model, pixels(1)).readout.shape[1]
    return ZeroShotClassifier(
        model,
        [f"class {number}" for number in range(names)],
        torch.randn(names, width, generator=generator),
        logit_scale=7.0,
        image_processor=image_processor(),
        **options,
    )


def slow_coordinates(model, images):
    """c (B, K) in float64: what each unit adds to the readout, in its own basis."""
    basis, parts = adapter_basis(model), decompose(model, images)
    rows = {unit: number for number, unit in enumerate(parts.units)}
    found = []
    for unit, mean, components in zip(basis.units, basis.means, basis.components, strict=True):
        own = parts.contributions[:, rows[unit]].double() - mean.double()
        found.append(own @ components.double().T)
    return torch.cat(found, dim=1)


def slow(made, images):
    """Logits in float64, from the definition."""
    model, trained = made.model, made.head
    readout = decompose(model, images).readout.double()
    coordinates = slow_coordinates(model, images)
    directions = torch.cat([part.double() for part in adapter_basis(model).components])
    adapted = readout + coordinates * (gains_of(model).detach().double() - 1) @ directions
    rows = made.class_embeddings.double()
    z = made.logit_scale * torch.nn.functional.normalize(adapted, dim=1) @ rows.T
    features = coordinates
    if trained.features == "embedding":
        z = made.logit_scale * torch.nn.functional.normalize(readout, dim=1) @ rows.T
        features = torch.nn.functional.normalize(readout, dim=1)
    head = trained.head
    count = head.class_count
    scores = ((features - head.mean.double()) / head.scale.double()) @ head.weights.double()
    own = head.text_weight * z[:, :count] + head.temperature * (scores + head.offset.double())
    if z.shape[1] == count:
        return own
    if made.multi_label:
        return torch.cat([own, z[:, count:]], 1)
    share = z.softmax(1)[:, :count].sum(1, keepdim=True)
    new = z.softmax(1)[:, count:]
    return torch.cat([own.softmax(1) * share, new], 1).log()


def logits_of(made, images):
    return torch.cat([part for _, part in made.classified([{"pixel_values": images}])])


@table("builder", BUILDERS)
def test_logits_are_those_of_the_definition(builder):
    model = with_adapter(BUILDERS[builder](), units=("head", "mlp"))
    made = classifier(model)
    made.head = random_head(gains_of(model).numel())
    images = pixels(7, seed=3)
    torch.testing.assert_close(logits_of(made, images).double(), slow(made, images), **CLOSE)


CLOSE = {"rtol": 1e-4, "atol": 1e-4}


@table("several", [False, True])
def test_classes_that_it_was_not_fitted_on_are_told_by_their_text(several):
    model = with_adapter()
    made = classifier(model, CLASSES + 2, multi_label=several)
    made.head = random_head(gains_of(model).numel(), text_weight=0.0)
    images = pixels(7, seed=3)
    found, expected = logits_of(made, images).double(), slow(made, images)
    if several:
        torch.testing.assert_close(found, expected, **CLOSE)
    else:
        torch.testing.assert_close(found.softmax(1), expected.exp(), **CLOSE)
        torch.testing.assert_close(expected.exp().sum(1), torch.ones(7).double())


def test_a_head_on_the_embedding_reads_the_unadapted_one():
    model = with_adapter()
    made = classifier(model)
    made.head = random_head(made.class_embeddings.shape[1], features="embedding")
    images = pixels(7, seed=3)
    torch.testing.assert_close(logits_of(made, images).double(), slow(made, images), **CLOSE)


@table("features", ["coordinates", "embedding"])
def test_it_is_saved_and_loaded_with_its_classifier(features, tmp_path):
    model = with_adapter()
    made = classifier(model)
    columns = gains_of(model).numel() if features == "coordinates" else 16
    made.head = random_head(columns, features=features)
    images = photographs(6)
    expected = made.predict_logits(images)
    made.save_pretrained(tmp_path / "a")
    loaded = ZeroShotClassifier.from_pretrained(tmp_path / "a", model=clip_model())
    assert loaded.head.method == "by hand"
    torch.testing.assert_close(loaded.predict_logits(images), expected)
    tasks = TaskSet(clip_model())
    tasks.add("one", tmp_path / "a")
    tasks.add("same", tmp_path / "a")
    for logits in tasks.predict_logits(images).values():
        torch.testing.assert_close(logits, expected)
    mixed = tasks.predict_mixed(images, ["one", "same"] * 3)
    torch.testing.assert_close(
        torch.tensor([one.probabilities for one in mixed]), expected.softmax(1), **CLOSE
    )


def test_tasks_with_heads_and_with_gains_share_one_pass(tmp_path):
    tasks, alone = TaskSet(clip_model()), {}
    images = photographs(5)
    for number in range(4):
        made = classifier(with_adapter(seed=number), seed=number)
        if number % 2:
            made.head = random_head(gains_of(made.model).numel(), seed=number)
        made.save_pretrained(tmp_path / f"t{number}")
        alone[f"t{number}"] = made.predict_logits(images)
        tasks.add(f"t{number}", tmp_path / f"t{number}")
    for name, logits in tasks.predict_logits(images).items():
        torch.testing.assert_close(logits, alone[name], **CLOSE)
    own = ["t3", "t0", "t1", "t2", "t3"]
    for row, prediction in enumerate(tasks.predict_mixed(images, own)):
        expected = alone[own[row]][row].softmax(0)
        torch.testing.assert_close(torch.tensor(prediction.probabilities), expected, **CLOSE)


def test_what_trains_gains_does_not_see_it():
    model = with_adapter()
    made, plain = classifier(model), classifier(model)
    made.head = random_head(gains_of(model).numel())
    readout, labels = torch.randn(5, 16), torch.tensor([0, 1, 2, 3, 0])
    torch.testing.assert_close(made.logits(readout), plain.logits(readout))
    torch.testing.assert_close(made.loss(readout, labels), plain.loss(readout, labels))


def test_heads_that_do_not_suit_are_refused():
    model = with_adapter()
    made = classifier(model)
    with pytest.raises(ResiDualError, match="reads 3 coordinates, the model gives"):
        made.head = random_head(3)
    with pytest.raises(ResiDualError, match="of 9 classes, the classifier of 4"):
        made.head = random_head(gains_of(model).numel(), classes=9)
    with pytest.raises(ResiDualError, match="wanted a TrainedHead, got ClassHead"):
        made.head = random_head(3).head
    beside = InCoordinates(torch.ones(3), torch.zeros(CLASSES, 3))
    parts = torch.eye(16), torch.zeros(CLASSES, 16), torch.arange(20.0)
    for features, own, said in (
        ("embedding", beside, "class head holds known images in coordinates, and reads the embed"),
        ("coordinates", beside, r"scale \(\d+,\) in the class head, got \(3,\)"),
        ("coordinates", None, r"whitening \(16, 16\) in the class head, got \(9, 9\)"),
    ):
        columns = 16 if features == "embedding" else gains_of(model).numel()
        known = KnownImages(*parts, own) if own else KnownImages(torch.eye(9), *parts[1:])
        with pytest.raises(ResiDualError, match=said):
            made.head = replace(random_head(columns, features=features), known=known)
    with pytest.raises(ResiDualError):  # no adapter, no coordinates
        classifier(clip_model()).head = random_head(3)
    assert made.head is None


def saved(tmp_path):
    model = with_adapter()
    made = classifier(model)
    made.head = random_head(gains_of(model).numel())
    return made.save_pretrained(tmp_path / "a")


def test_a_head_of_another_basis_is_refused_and_the_model_left_alone(tmp_path):
    folder = saved(tmp_path)
    other = get_peft_model(clip_model(), ResiDualConfig())
    fit_bases(other, [pixels(60, seed=77)])
    other.save_pretrained(tmp_path / "b")
    for name in ("adapter_model.safetensors", ADAPTER_CONFIG):
        (folder / name).write_bytes((tmp_path / "b" / name).read_bytes())
    model = clip_model()
    with pytest.raises(ResiDualError, match="coordinates in another basis than its adapter has"):
        ZeroShotClassifier.from_pretrained(folder, model=model)
    tasks = TaskSet(model)
    with pytest.raises(ResiDualError, match="in another basis"):
        tasks.add("a", folder)
    assert len(tasks) == 0
    assert not any("residual" in name for name, _ in model.named_parameters())


@table(
    ("change", "said"),
    [
        (lambda t: t.pop("head.mean"), "wanted a class head's tensors"),
        (lambda t: t.update({"head.mean": t["head.mean"][:5]}), "parts are of different heads"),
        (lambda t: t["head.weights"].fill_(float("nan")), "finite numbers in a class head"),
        (lambda t: t["head.scale"].fill_(0), "scales above 0"),
        (lambda t: t["head.text_weight"].fill_(3e38), "whose logits stay below 1e.30, got"),
        (lambda t: t["head.offset"].fill_(-3e38), "whose logits stay below 1e.30, got"),
        (lambda t: t["head.weights"].fill_(3e38), "whose logits stay below 1e.30, got"),
        (
            lambda t: t.update({k: t[k][:5] for k in ("head.mean", "head.scale", "head.weights")}),
            "do not belong together",
        ),
    ],
)
def test_a_file_that_is_no_head_is_refused(change, said, tmp_path):
    path = saved(tmp_path) / "residual_classifier.safetensors"
    tensors = safetensors.torch.load_file(path)
    change(tensors)
    safetensors.torch.save_file({k: v.contiguous() for k, v in tensors.items()}, path)
    with pytest.raises(ResiDualError, match=said):
        ZeroShotClassifier.from_pretrained(path.parent, model=clip_model())


def test_a_record_of_another_head_is_refused(tmp_path):
    path = saved(tmp_path) / "residual_classifier.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"head": record["head"] | {"classes": 3}}))
    with pytest.raises(ResiDualError, match="do not belong together"):
        ZeroShotClassifier.from_pretrained(path.parent, model=clip_model())
    path.write_text(json.dumps(record | {"head": record["head"] | {"features": "pixels"}}))
    with pytest.raises(ResiDualError, match="features"):
        ZeroShotClassifier.from_pretrained(path.parent, model=clip_model())


def with_scores(model, scores):
    head = random_head(gains_of(model).numel())
    return TrainedHead(head.head, head.features, head.method, torch.tensor(scores))


def test_sets_hold_the_classes_that_left_out_images_would_have_had(tmp_path):
    model = with_adapter()
    made = classifier(model)
    scores = torch.linspace(0.05, 2.0, 40).tolist()
    made.head = with_scores(model, scores)
    images = photographs(6)
    logits = made.predict_logits(images).double()
    wanted = -logits.log_softmax(1) <= scores[36]  # ⌈41 · 0.9⌉ = 37th of 40
    predictions = made.predict(images, coverage=0.9)
    for row, prediction in enumerate(predictions):
        names = tuple(made.class_names[k] for k in range(CLASSES) if wanted[row, k])
        assert prediction.plausible == names
        assert prediction.as_dict()["plausible"] == list(names)
    made.save_pretrained(tmp_path / "a")
    loaded = ZeroShotClassifier.from_pretrained(tmp_path / "a", model=clip_model())
    torch.testing.assert_close(loaded.head.left_out_scores, torch.tensor(scores))
    assert made.predict(images)[0].plausible is None


def test_sets_without_what_they_are_made_of_are_refused():
    model = with_adapter()
    made = classifier(model)
    images = photographs(2)
    with pytest.raises(ResiDualError, match="this classifier has none: fit one"):
        made.predict(images, coverage=0.9)
    made.head = random_head(gains_of(model).numel())
    with pytest.raises(ResiDualError, match="knows of no images that were left out"):
        made.predict(images, coverage=0.9)
    made.head = with_scores(model, [0.1] * 20)
    with pytest.raises(ResiDualError, match="a coverage between 0 and 1"):
        made.predict(images, coverage=1.5)
    wider = classifier(model, CLASSES + 1)
    wider.head = with_scores(model, [0.1] * 20)
    with pytest.raises(ResiDualError, match="knows 4 of 5 classes"):
        wider.predict(images, coverage=0.9)


@table(
    ("budget", "said"),
    [(2300, "half precision"), (1600, "8 bits"), (1250, "8 bits, rank 1 for 4 classes")],
)
def test_a_head_is_saved_in_so_many_bytes(budget, said, tmp_path, caplog):
    """And is then in memory what it is on disk."""
    made = classifier(with_adapter())
    columns = gains_of(made.model).numel()
    budget = budget * columns // 128
    numbers = {"left_out_scores": torch.linspace(0.1, 2, 30), "thresholds": torch.ones(CLASSES)}
    whole = replace(random_head(columns), **numbers)
    assert whole.within(whole.bytes) is whole
    features = torch.randn(50, columns)
    small = whole.within(budget, features)
    assert small.bytes <= budget < whole.bytes
    assert small.described == said
    for name in numbers:  # those of low rank are of another head
        assert (getattr(small, name) is None) == ("rank" in said)
    made.head = small
    images = photographs(6)
    expected = made.predict_logits(images)
    made.save_pretrained(tmp_path / "a", head_bytes=budget)
    assert "is saved in" not in caplog.text
    loaded = ZeroShotClassifier.from_pretrained(tmp_path / "a", model=clip_model())
    torch.testing.assert_close(loaded.predict_logits(images), expected)
    loaded.save_pretrained(tmp_path / "b", head_bytes=budget)
    name = "residual_classifier.safetensors"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    # what is compressed at saving is another head by that much: a warning says so
    made.head = whole
    made.save_pretrained(tmp_path / "c", head_bytes=budget)
    assert f"({said}): measure what is saved" in caplog.text
    again = ZeroShotClassifier.from_pretrained(tmp_path / "c", model=clip_model())
    assert again.head.bytes <= budget
    assert again.head.described == said
    if "rank" in said:
        assert "calibrate what is saved" in caplog.text
        with pytest.raises(ResiDualError, match=r"kept in 8 bits, rank 1 .*: calibrate it with"):
            again.predict(images, coverage=0.9)
    else:
        assert again.sets(0.9).by == "jackknife"
        torch.testing.assert_close(again.head.thresholds, whole.thresholds)


def test_a_large_head_of_few_numbers_is_refused(tmp_path, monkeypatch):
    made = classifier(with_adapter())
    made.head = random_head(gains_of(made.model).numel())
    made.head = made.head.within(gains_of(made.model).numel() * 12)
    made.save_pretrained(tmp_path / "a")
    monkeypatch.setattr("residual_peft.classifiers.trained_head.LARGEST", 10)
    with pytest.raises(ResiDualError, match="at most 10 numbers, got one of"):
        ZeroShotClassifier.from_pretrained(tmp_path / "a", model=clip_model())


def test_weights_of_another_kind_are_refused(tmp_path):
    made = classifier(with_adapter())
    made.head = random_head(gains_of(made.model).numel())
    made.save_pretrained(tmp_path)
    path = tmp_path / "residual_classifier.safetensors"
    tensors = safetensors.torch.load_file(path)
    safetensors.torch.save_file(tensors | {"head.weights": tensors["head.weights"].double()}, path)
    with pytest.raises(ResiDualError, match=r"weights as torch.float64, wanted torch.float32, "):
        ZeroShotClassifier.from_pretrained(tmp_path, model=clip_model())


def test_each_of_several_labels_is_given_from_its_own_threshold_on(tmp_path):
    made = classifier(with_adapter(), CLASSES + 1, multi_label=True, logit_bias=-0.4)
    values = torch.tensor([-1.5, 0.0, 0.7, 2.5])
    made.head = replace(random_head(gains_of(made.model).numel()), thresholds=values)
    images = photographs(6)
    logits = made.predict_logits(images)
    wanted = logits >= torch.cat([values, torch.zeros(1)])  # a new class has none
    assert not torch.equal(wanted, logits >= 0)
    made.save_pretrained(tmp_path / "saved")
    card = (tmp_path / "saved" / "README.md").read_text()
    assert "counts from a threshold of its own, chosen on left-out images, and" in card
    count = gains_of(made.model).numel()
    assert f"a linear map from {count:,} coordinates, each along one principal component of" in card
    loaded = ZeroShotClassifier.from_pretrained(tmp_path / "saved", model=clip_model())
    tasks = TaskSet(clip_model())
    tasks.add("one", tmp_path / "saved")
    for found in (made.predict(images), loaded.predict(images), tasks.predict(images)["one"]):
        for row, prediction in enumerate(found):
            names = [n for n, given in zip(made.class_names, wanted[row], strict=True) if given]
            assert list(prediction.labels) == names
            given = torch.tensor(prediction.probabilities)
            torch.testing.assert_close(given, logits[row].sigmoid(), atol=1e-4, rtol=0)
    measured = Evaluation(made.class_names, logits, wanted.long(), thresholds=made.thresholds)
    assert torch.equal(measured.predictions, wanted)
    assert measured.metrics["exact_match"] == 1
