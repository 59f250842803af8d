"""Who reads which images, in which mode, from which seed, and what is timed: mutations die here."""

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from datasets import Dataset, DatasetDict, Image, concatenate_datasets

from residual_peft.app import explaining, studies
from residual_peft.app.fitting import beside, evaluate_adapter, fit_adapter, ways
from residual_peft.app.fitting import fit as whole_fit
from residual_peft.classifiers.backbones import load_backbone
from residual_peft.classifiers.class_means import class_means_of
from residual_peft.classifiers.evaluation import Evaluation, evaluate
from residual_peft.classifiers.none_of_these import known_images
from residual_peft.classifiers.trained_head import embedding_features
from residual_peft.classifiers.zero_shot import ZeroShotClassifier
from residual_peft.data import batches, load_data
from residual_peft.reporting.run_record import RunRecord
from residual_peft.solvers.coordinates import collect_coordinates, collect_readouts
from residual_peft.solvers.methods import METHODS
from residual_peft.towers.running import run_tower
from residual_peft.tuner import ResiDualConfig, gains_of
from tests.app.fitting.photos import photos
from tests.dual_encoders import saved
from tests.pairs import table
from tests.training_case import save_clip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("orchestrated")
    save_clip(folder / "model")
    photos(folder / "photos", count=16)
    return folder


def fit(root: Path, out: Path, data=None, **options):
    data = str(root / "photos") if data is None else data
    options = {"method": "gains"} | options
    return fit_adapter(str(root / "model"), data, out, templates=["a {}."], **options)


class Steps:
    """Notes the steps of a fit, each of which takes so many seconds of a false clock."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, seconds: dict[str, float], module=ways
    ) -> None:
        self.now, self.said = 0.0, []
        monkeypatch.setattr(module, "clock", lambda: self.now)
        for name, took in seconds.items():
            monkeypatch.setattr(module, name, self._wrapped(name, getattr(module, name), took))
        real = module.Pass.read

        def read(images, model, split, fit_basis=False):
            self.said.append(f"{split}{' with basis' if fit_basis else ''}")
            self.now += {"train": 100, "validation": 10, "test": 1000}[split]
            return real(images, model, split, fit_basis)

        monkeypatch.setattr(module.Pass, "read", read)

    def _wrapped(self, name, real, took):
        def instead(*args, **kwargs):
            self.said.append(name)
            self.now += took
            return real(*args, **kwargs)

        return instead


def test_what_is_timed_and_in_which_order(root: Path, tmp_path: Path, monkeypatch) -> None:
    steps = Steps(monkeypatch, {"choose": 7, "scored_by": 7000})
    report = fit(root, tmp_path / "a", method="auto")
    assert steps.said[:4] == ["train with basis", "validation", "choose", "test"]
    assert (report.encoding_seconds, report.fitting_seconds) == (110, 7)
    facts = RunRecord.load(tmp_path / "a").facts
    assert (facts.encoding_seconds, facts.fitting_seconds) == (110, 7)
    assert facts.images_read == report.splits["train"] + report.splits["validation"]


def test_what_is_timed_of_the_trainers_way(root: Path, tmp_path: Path, monkeypatch) -> None:
    seconds = {"trainer_kwargs": 3, "training_arguments": 1, "fit_bases": 20}
    steps = Steps(monkeypatch, seconds, ways)
    monkeypatch.setattr("residual_peft.solvers.training.EPOCHS", 1)
    report = fit(root, tmp_path / "a", trainer=True)
    assert (report.encoding_seconds, report.fitting_seconds) == (100, 4)
    assert steps.said[0] == "train with basis"
    config = ResiDualConfig(mode="stream")
    report = fit(root, tmp_path / "b", trainer=True, config=config)
    assert (report.encoding_seconds, report.fitting_seconds) == (20, 4)


def test_methods_see_training_and_validation_images_and_no_others(
    root: Path, tmp_path: Path, monkeypatch
) -> None:
    given = {}
    real = ways.choose

    def choose(rows, *args, **options):
        given["labels"], given["readouts"] = rows.labels.tolist(), rows.data.readout
        return real(rows, *args, **options)

    monkeypatch.setattr(ways, "choose", choose)
    report = fit(root, tmp_path / "a", method="auto")
    data = load_data(str(root / "photos"))
    assert given["labels"] == [*data.train["label"], *data.validation["label"]]
    clip = load_backbone(str(root / "model"))
    parts = [
        collect_readouts(clip.model, batches(data[split], clip.image_processor)).readout
        for split in ("train", "validation")
    ]
    torch.testing.assert_close(given["readouts"], torch.cat(parts), atol=1e-4, rtol=1e-4)
    assert [row.name for row in report.methods] == [n for n in METHODS if METHODS[n].tried]
    (chosen,) = (row for row in report.methods if row.chosen)
    assert chosen.score == report.adapted["accuracy"]
    assert RunRecord.load(tmp_path / "a").facts.methods == report.methods


def test_a_class_head_knows_the_images_that_it_was_fitted_on(
    root: Path, tmp_path: Path, monkeypatch
) -> None:
    """Training and validation images, unadapted: what tells those that are none of the classes."""
    given = {}

    def noted(embedding, labels, classes, **options):
        given.update(embedding=embedding, labels=labels, coordinates=options["coordinates"])
        return known_images(embedding, labels, classes, **options)

    monkeypatch.setattr(beside, "known_images", noted)
    report = fit(root, tmp_path / "a", method="ridge", balanced=True)
    (chosen,) = (row for row in report.methods if row.chosen)
    assert chosen.test_recall == report.adapted["mean_per_class_recall"] != chosen.recall
    classifier = ZeroShotClassifier.from_pretrained(tmp_path / "a")
    known, images = classifier.head.known, load_data(str(root / "photos"))
    learned = concatenate_datasets([images.train, images.validation])
    seen = collect_coordinates(classifier.model, batches(learned, classifier.image_processor))
    assert torch.equal(given["labels"], seen.labels)
    # batches of another size round otherwise, and a distance makes that hundreds of times more:
    # so what it is made of and what is made of it are compared each by itself
    data = given["embedding"], given["coordinates"]
    torch.testing.assert_close(data[0], embedding_features(seen.readout), rtol=0, atol=2e-6)
    torch.testing.assert_close(data[1], seen.coordinates, rtol=1e-5, atol=1e-5)
    expected = known_images(data[0], seen.labels, 3, coordinates=data[1])
    assert known.exponent == expected.exponent < 1
    for name, tensor in expected.tensors().items():
        torch.testing.assert_close(known.tensors()[name], tensor, rtol=1e-5, atol=1e-5)
    distances = known.distances(*data), expected.distances(*data)
    torch.testing.assert_close(*distances, rtol=1e-4, atol=1e-4)
    alike = [one.alike for one in classifier.predict(list(learned["image"]))]
    assert alike == pytest.approx(expected.p_values(*data).tolist(), abs=1e-3)


def turned(data: Dataset) -> Dataset:
    return data.map(lambda row: {"label": (row["label"] + 1) % 3})


@pytest.mark.parametrize("method", ["auto", "ridge", "gains"])
def test_test_images_change_scores_and_nothing_else(
    method: str, root: Path, tmp_path: Path
) -> None:
    splits = DatasetDict(load_data(str(root / "photos"), validation=0.3).splits)
    first = fit(root, tmp_path / "a", splits, method=method)
    other = DatasetDict({**splits, "test": turned(splits["test"])})
    second = fit(root, tmp_path / "b", other, method=method)
    assert [(r.name, r.log_loss, r.chosen) for r in first.methods] == [
        (r.name, r.log_loss, r.chosen) for r in second.methods
    ]
    assert RunRecord.load(tmp_path / "a").facts.seed is None  # nothing was drawn
    one, two = (ZeroShotClassifier.from_pretrained(tmp_path / name) for name in "ab")
    assert torch.equal(gains_of(one.model), gains_of(two.model))
    assert (one.head is None) == (two.head is None)
    if one.head is not None:
        assert torch.equal(one.head.head.weights, two.head.head.weights)
    for classifier in (one, two):
        assert classifier.model.peft_config["default"].num_samples == len(splits["train"])


@pytest.mark.parametrize("way", ["coordinates", "trainer", "stream"])
def test_the_scores_before_and_after_are_those_of_the_models(
    way: str, root: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr("residual_peft.solvers.training.EPOCHS", 2)
    config = ResiDualConfig(mode="stream") if way == "stream" else None
    report = fit(root, tmp_path / "a", seed=3, trainer=way != "coordinates", config=config)
    data = load_data(str(root / "photos"), seed=3)
    clip = load_backbone(str(root / "model"))
    plain = ZeroShotClassifier.from_text(
        clip.model,
        clip.tokenizer,
        data.class_names,
        ["a {}."],
        image_processor=clip.image_processor,
    )
    adapted = ZeroShotClassifier.from_pretrained(tmp_path / "a")
    assert report.zero_shot == evaluate(plain, data.test).metrics
    assert report.adapted == evaluate(adapted, data.test).metrics
    # the bases are of training images alone
    assert adapted.model.peft_config["default"].num_samples == len(data.train) != len(data.test)
    own = data.train
    if way == "coordinates":  # which makes no difference between the two
        own = concatenate_datasets([data.train, data.validation])
    inside = evaluate(adapted, own).metrics
    assert report.train["accuracy"] == pytest.approx(inside["accuracy"])
    record = RunRecord.load(tmp_path / "a")
    for logits, classifier in ((record.before, plain), (record.after, adapted)):
        found = evaluate(classifier, data.test)
        torch.testing.assert_close(logits, found.logits, atol=1e-3, rtol=1e-4)
        assert record.labels.tolist() == found.labels.tolist()


def lists(root: Path) -> Dataset:
    paths = [str(path) for path in sorted((root / "photos").rglob("*.png"))]
    labels = [["big"], ["big", "round"], [], ["wild"]] * (len(paths) // 4)
    return Dataset.from_dict({"image": paths, "label": labels}).cast_column("image", Image())


@pytest.mark.parametrize("trainer", [False, True])
def test_zero_shot_scores_of_several_labels_have_the_bias_of_before(
    trainer: bool, root: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr("residual_peft.solvers.training.EPOCHS", 2)
    real, biases = ways.scored, {}

    def scored(classifier, store, gains):
        biases["before" if gains is None else "after"] = classifier.logit_bias
        return real(classifier, store, gains)

    monkeypatch.setattr(ways, "scored", scored)
    report = fit(root, tmp_path / "a", lists(root), trainer=trainer)
    data = load_data(lists(root))
    clip = load_backbone(str(root / "model"))
    plain = ZeroShotClassifier.from_text(
        clip.model, clip.tokenizer, data.class_names, ["a {}."],
        image_processor=clip.image_processor, multi_label=True,
    )  # fmt: skip
    train, more, test = (
        collect_readouts(clip.model, batches(data[split], clip.image_processor))
        for split in ("train", "validation", "test")
    )
    own = [train] if trainer else [train, more]
    plain.fit_bias(torch.cat([p.readout for p in own]), torch.cat([p.labels for p in own]))
    with torch.no_grad():
        before = Evaluation(data.class_names, plain.logits(test.readout), test.labels)
    assert report.zero_shot == pytest.approx(before.metrics)
    adapted = ZeroShotClassifier.from_pretrained(tmp_path / "a")
    assert report.adapted == pytest.approx(evaluate(adapted, data.test).metrics)
    own = evaluate_adapter(tmp_path / "a", lists(root))
    assert own["micro_f1"] == pytest.approx(report.adapted["micro_f1"])
    # scores with biases that are close may be equal
    if trainer:
        assert biases == pytest.approx({"before": plain.logit_bias, "after": adapted.logit_bias})
    assert trainer or abs(adapted.logit_bias - plain.logit_bias) > 1e-3


def test_explain_reads_the_images_that_eval_scores(root: Path, tmp_path: Path) -> None:
    fit(root, tmp_path / "a", load_data(str(root / "photos"), seed=4))
    assert RunRecord.load(tmp_path / "a").facts.seed == 4  # which the images were cut with
    study = explaining.study_adapter(tmp_path / "a", str(root / "photos"), words=[])
    classifier = ZeroShotClassifier.from_pretrained(tmp_path / "a")
    data = load_data(str(root / "photos"), seed=4)
    seen = collect_coordinates(classifier.model, batches(data.test, classifier.image_processor))
    truth = explaining.explain_adapter(classifier, seen)
    torch.testing.assert_close(study.explanation.share, truth.share)
    assert study.explanation.images == len(data.test)


def test_a_coarse_optimum_is_fitted_on_train_and_chosen_on_validation(
    root: Path, monkeypatch
) -> None:
    photos(root / "uneven" / "train", count=9, seed=1)
    photos(root / "uneven" / "val", count=5, seed=2)
    photos(root / "uneven" / "test", count=7, seed=3)
    seen = {}

    def coarse(train, validation, embeddings, *, logit_scale):
        seen["optimum"] = (train, validation, embeddings, logit_scale)
        return real_coarse(train, validation, embeddings, logit_scale=logit_scale)

    def compare(first, second, embeddings, **options):
        seen["selection"] = (first, second)
        return real_compare(first, second, embeddings, **options)

    def dimension(contributions, **options):
        seen["dimension"] = contributions
        return real_dimension(contributions, **options)

    def ablation(first, embeddings, *, reference, **options):
        seen.setdefault("ablations", []).append((len(first), len(reference)))
        return real_ablation(first, embeddings, reference=reference, **options)

    real_coarse, real_compare = studies.coarse_optimum, studies.compare_selections
    real_dimension, real_ablation = studies.dimension_profile, studies.layer_ablation
    for name, wrapped in (
        ("coarse_optimum", coarse), ("compare_selections", compare),
        ("dimension_profile", dimension), ("layer_ablation", ablation),
    ):  # fmt: skip
        monkeypatch.setattr(studies, name, wrapped)
    monkeypatch.setattr(studies, "OPTIMUM_IMAGES", 20)
    study = studies.study_model(
        str(root / "model"), str(root / "uneven"), templates=["a {}."], words=[], seed=5
    )
    train, validation, _, scale = seen["optimum"]
    assert (len(train), len(validation)) == (20, 15)  # some of train, all of validation
    clip, data = load_backbone(str(root / "model")), load_data(str(root / "uneven"))
    truth = {
        split: collect_readouts(clip.model, batches(data[split], clip.image_processor))
        for split in data.splits
    }
    torch.testing.assert_close(validation.readout, truth["validation"].readout)
    drawn = torch.randperm(27, generator=torch.Generator().manual_seed(5))[:20].sort().values
    torch.testing.assert_close(train.readout, truth["train"].readout[drawn])
    assert scale == pytest.approx(float(clip.model.logit_scale.exp()))
    first, second = seen["selection"]
    torch.testing.assert_close(first.readout, truth["train"].readout)
    torch.testing.assert_close(second.readout, truth["test"].readout)
    assert len(seen["dimension"]) == 27
    assert seen["ablations"] == [(21, 27)] * 2
    assert study.images == {"train": 27, "validation": 15, "test": 21}


def test_gains_of_a_fit_are_the_saved_ones(root: Path, tmp_path: Path) -> None:
    fit(root, tmp_path / "a")
    loaded = ZeroShotClassifier.from_pretrained(tmp_path / "a")
    record = RunRecord.load(tmp_path / "a")
    assert torch.equal(record.gains.gains, gains_of(loaded.model).detach())
    assert not loaded.model.training


@table("trainer", [False, True], ids=["gains", "stream mode"])
def test_fits_of_one_backbone_do_not_know_of_each_other(
    root: Path, monkeypatch: pytest.MonkeyPatch, trainer: bool
) -> None:
    monkeypatch.setattr("residual_peft.solvers.training.EPOCHS", 1)
    clip, data = load_backbone(root / "model"), load_data(root / "photos")
    pixels = clip.image_processor(data.test[:]["image"], return_tensors="pt")["pixel_values"]
    options = {"method": "gains", "templates": ["a {}."], "words": [], "model": clip}
    if trainer:
        options |= {"trainer": True, "config": {"mode": "stream"}, "method": "auto"}
    first = whole_fit(data, **options).classifier
    with torch.no_grad():
        answers = first.logits(run_tower(first.model, pixels))
        other = whole_fit(load_data(root / "photos", seed=4), **options).classifier
        assert torch.equal(first.logits(run_tower(first.model, pixels)), answers)
        assert not torch.equal(other.logits(run_tower(other.model, pixels)), answers)
        bare = load_backbone(root / "model").model
        assert torch.equal(run_tower(clip.model, pixels), run_tower(bare, pixels))
    held = {id(own) for own in clip.model.parameters()}
    assert held <= {id(own) for own in first.model.parameters()}


@table("setting", [torch.no_grad, torch.inference_mode, "float64", "meta"])
def test_what_a_notebook_has_set_changes_no_fit(root: Path, setting) -> None:
    options = {"templates": ["a {}."], "words": [], "model": load_backbone(root / "model")}
    data, compared = load_data(root / "photos"), fit_of("ridge-heads", options)
    usual = compared(data)
    try:
        if setting == "float64":
            torch.set_default_dtype(torch.float64)
        elif setting == "meta":
            torch.set_default_device("meta")
        with setting() if callable(setting) else nullcontext():
            assert compared(data) == usual
            assert setting != "float64" or torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)


def fit_of(method: str, options):
    """What a fit gives: its numbers, as lists."""

    def fitted(data):
        found = whole_fit(data, method=method, **options)
        return found.summary.adapted, found.classifier.head.head.weights.tolist()

    return fitted


def test_the_trainer_gets_the_seed(root: Path, tmp_path: Path, monkeypatch) -> None:
    given = {}
    real = ways.training_arguments

    def arguments(folder, **options):
        given.update(options, folder=Path(folder))
        return real(folder, num_train_epochs=1, **options)

    monkeypatch.setattr(ways, "training_arguments", arguments)
    fit(root, tmp_path / "a", seed=11, trainer=True)
    assert given["seed"] == 11
    assert given["folder"] == tmp_path / ".a.reading" / "trainer"
    assert ZeroShotClassifier.from_pretrained(tmp_path / "a").split.seed == 11


def test_class_means_are_those_of_train_and_validation(root: Path, tmp_path: Path) -> None:
    model = saved("Dinov2Model", tmp_path / "model")
    report = fit_adapter(str(model), str(root / "photos"), tmp_path / "a", seed=2, method="gains")
    classifier = ZeroShotClassifier.from_pretrained(tmp_path / "a")
    backbone, data = load_backbone(str(model)), load_data(str(root / "photos"), seed=2)
    own = concatenate_datasets([data.train, data.validation])
    train = collect_readouts(backbone.model, batches(own, backbone.image_processor))
    means = class_means_of(train.readout, train.labels, data.class_names)
    torch.testing.assert_close(classifier.class_embeddings, means, atol=1e-5, rtol=1e-5)
    plain = ZeroShotClassifier(
        backbone.model, data.class_names, means, image_processor=backbone.image_processor
    )
    assert report.start == "class means"
    assert report.zero_shot == evaluate(plain, data.test).metrics
