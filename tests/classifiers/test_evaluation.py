import numpy as np
import pytest
import torch
from datasets import ClassLabel

from residual_peft.bases.basis import SpectralBasis
from residual_peft.bases.decomposition import decompose
from residual_peft.classifiers.class_means import class_means
from residual_peft.classifiers.evaluation import Evaluation, evaluate
from residual_peft.classifiers.zero_shot import ZeroShotClassifier
from residual_peft.data import ProcessedImages, batches, collate
from residual_peft.data.metrics import accuracy_interval, classification_metrics
from residual_peft.errors import ResiDualError
from residual_peft.solvers import fit_gains
from residual_peft.solvers.coordinates import collect_coordinates
from residual_peft.tuner import gains_of
from tests.models import clip_model
from tests.pairs import table
from tests.tokenizers import VOCABULARY
from tests.training_case import NAMES, adapted_classifier, task


def fitted():
    classifier, data = adapted_classifier(), task()
    parts = [
        collect_coordinates(classifier.model, batches(data[s], classifier.image_processor))
        for s in ("train", "validation")
    ]
    fit_gains(classifier, *parts, learning_rate=0.1, batch_size=16, epochs=8)
    return classifier


def test_evaluation_is_that_of_one_image_at_a_time():
    classifier, data = fitted(), task()
    result = evaluate(classifier, data.test, batch_size=5)
    single = [classifier.predict(row["image"]) for row in data.test]
    assert result.predictions.tolist() == [p.index for p in single]
    assert result.labels.tolist() == data.test[:]["label"]
    np.testing.assert_allclose(
        result.logits.softmax(-1), [p.probabilities for p in single], atol=1e-5
    )
    assert result.metrics == classification_metrics(result.logits, result.labels)
    assert result.confusion.sum() == len(data.test)
    assert list(result.per_class) == list(NAMES)
    mean = sum(found["recall"] for found in result.per_class.values()) / 3
    assert mean == pytest.approx(result.metrics["mean_per_class_recall"])


def test_a_split_may_come_as_itself_processed_or_in_batches():
    classifier, data = fitted(), task()
    processor = classifier.image_processor
    expected = evaluate(classifier, data.test, batch_size=5)
    loader = batches(data.test, processor, batch_size=5)
    for given in (ProcessedImages(data.test, processor), loader, batches(loader)):
        found = evaluate(classifier, given, batch_size=5)
        assert torch.equal(found.logits, expected.logits)
        assert found.metrics == expected.metrics
    some = evaluate(classifier, batches(data.test, processor, rows=[4, 2]))
    assert some.index.tolist() == [4, 2]
    images = ProcessedImages(data.test, processor)
    for strange in (data, data.splits, images.dataset.with_format("torch")[:], [1, 2]):
        with pytest.raises(ResiDualError, match="wanted one split of images, a datasets"):
            evaluate(classifier, strange)
    with pytest.raises(ResiDualError, match=r"as the dataset, got ProcessedImages; load_data"):
        ProcessedImages(images, processor)
    with pytest.raises(ResiDualError, match=r"as the dataset, got Batches; load_data"):
        ProcessedImages(loader, processor)


def test_the_active_adapter_counts():
    classifier, data = fitted(), task()
    assert not gains_of(classifier.model).eq(1).all()
    adapted = evaluate(classifier, data.test)
    with classifier.model.disable_adapter():
        bare = evaluate(classifier, data.test)
    zero_shot = ZeroShotClassifier(
        clip_model(vocab_size=VOCABULARY),
        NAMES,
        classifier.class_embeddings,
        logit_scale=classifier.logit_scale,
        image_processor=classifier.image_processor,
    )
    torch.testing.assert_close(bare.logits, evaluate(zero_shot, data.test).logits)
    assert adapted.metrics["accuracy"] > bare.metrics["accuracy"]


def test_a_fitted_adapter_is_loaded_in_one_call_and_says_the_same(tmp_path):
    base, data = clip_model(vocab_size=VOCABULARY), task()
    base.save_pretrained(tmp_path / "base")
    classifier = adapted_classifier(model=type(base).from_pretrained(tmp_path / "base"))
    with torch.no_grad():
        gains_of(classifier.model).mul_(torch.linspace(0, 2, gains_of(classifier.model).numel()))
    classifier.save_pretrained(tmp_path / "adapter")
    loaded = ZeroShotClassifier.from_pretrained(tmp_path / "adapter")
    classifier.model.eval()
    expected = evaluate(classifier, data.test).logits
    torch.testing.assert_close(evaluate(loaded, data.test).logits, expected, atol=1e-4, rtol=0)
    assert torch.equal(loaded.class_embeddings, classifier.class_embeddings)
    assert torch.equal(gains_of(loaded.model), gains_of(classifier.model))
    trainable = ZeroShotClassifier.from_pretrained(tmp_path / "adapter", is_trainable=True)
    assert gains_of(trainable.model).requires_grad
    assert trainable.model.training
    assert not gains_of(loaded.model).requires_grad


def test_progress_and_mode():
    classifier, data, seen = adapted_classifier(), task(), []
    classifier.model.train()
    items = ProcessedImages(data.test, classifier.image_processor)
    evaluate(classifier, items, batch_size=5, progress=seen.append)
    assert seen == [5, 5, 2]
    assert classifier.model.training


def dropping():
    """A classifier in training mode whose attention drops half of what it sees."""
    classifier = adapted_classifier()
    for module in classifier.model.modules():
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.5
    classifier.model.train()
    return classifier


PASSES = {
    "evaluate": lambda c, items: evaluate(c, items, batch_size=5).logits,
    "predict": lambda c, items: c.predict_logits([row["image"] for row in task().test]),
    "coordinates": lambda c, items: collect_coordinates(c.model, batches(items)).coordinates,
    "class means": lambda c, items: class_means(c.model, batches(items), NAMES),
    "basis": lambda c, items: SpectralBasis.fit(c.model, batches(items), ("head",), 4).means,
    "decompose": lambda c, items: decompose(c.model, next(iter(batches(items)))).readout,
}


@table("run", PASSES.values(), ids=PASSES)
@pytest.mark.filterwarnings("ignore:.* images span at most")
def test_nothing_is_dropped_where_nothing_is_trained(run):
    classifier = dropping()
    items = ProcessedImages(task().test, classifier.image_processor)
    one, other = (collate([items[i] for i in range(4)])["pixel_values"] for _ in range(2))
    outputs = [classifier.model(pixel_values=x).image_embeds for x in (one, other)]
    assert not torch.equal(*outputs)  # in training it does drop
    found = run(classifier, items)
    assert all(module.training for module in classifier.model.modules())
    torch.testing.assert_close(run(classifier, items), found, rtol=0, atol=0)
    classifier.model.eval()
    torch.testing.assert_close(run(classifier, items), found, rtol=0, atol=0)


def test_what_is_likely_and_what_has_no_images():
    several = Evaluation(("a", "b"), torch.tensor([[0.2, -0.1]]), torch.tensor([[1, 0]]))
    assert several.predictions.tolist() == [[True, False]]  # from a probability of one half on
    assert several.metrics["exact_match"] == 1.0
    logits = torch.tensor([[2.0, 1.0, 0.0], [2.0, 0.0, 1.0], [0.0, 1.0, 2.0]])
    one = Evaluation(("a", "b", "c"), logits, torch.tensor([0, 2, 2]))
    assert {k: found["recall"] for k, found in one.per_class.items()} == {"a": 1.0, "c": 0.5}
    low, high = accuracy_interval(1, 2)
    told = {"images": 2, "recall": 0.5, "recall_interval": [low, high]}
    assert one.per_class["c"] == told
    assert several.per_class == {"a": one.per_class["a"]}  # one image, and told
    assert one.confusion.tolist() == [[1, 0, 0], [0, 0, 0], [1, 0, 1]]


def test_classes_are_found_by_their_names():
    """Class numbers of other data need not be the classifier's."""
    classifier, data = fitted(), task()
    right = evaluate(classifier, data.test)
    first, second, third = NAMES

    def called(names, keep=3):
        rows = data.test.filter(lambda row: row["label"] < keep)
        labels = [names.index(NAMES[label]) for label in rows[:]["label"]]
        kind = ClassLabel(names=names)
        return rows.remove_columns("label").add_column("label", labels, feature=kind)

    for names in ([third, first, second], [first, "a fourth", third, second]):
        found = evaluate(classifier, called(names), batch_size=5)
        assert torch.equal(found.labels, right.labels)
        assert found.metrics == right.metrics
    two = evaluate(classifier, called([second, first], keep=2))
    assert torch.equal(two.labels, right.labels[right.labels < 2])
    # other words for the classes stand for them by their numbers; others for some, in their places
    for names in (["x", "y", "z"], [first, "y", third]):
        other = data.test.cast_column("label", ClassLabel(names=names))
        assert torch.equal(evaluate(classifier, other).labels, right.labels)
    other = data.test.cast_column("label", ClassLabel(names=[second, "y", first]))
    with pytest.raises(ResiDualError, match="got some of y in the dataset, which it does not"):
        evaluate(classifier, other)


def test_bad_data_are_refused():
    classifier, data = adapted_classifier(), task()
    with pytest.raises(ResiDualError, match="the exam has none"):
        evaluate(classifier, data.test.select([]), name="the exam")
    classifier.image_processor = None
    with pytest.raises(ResiDualError, match="with an image processor"):
        evaluate(classifier, data.test)
    wrong = ProcessedImages(data.test, adapted_classifier().image_processor)
    wrong.dataset = [{**row, "label": 3} for row in wrong.dataset]
    with pytest.raises(ResiDualError, match=r"got 3 for image 0 of the batch"):
        evaluate(classifier, wrong)
