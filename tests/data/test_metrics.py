import evaluate
import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
import torch

from residual_peft.data import metrics
from residual_peft.errors import ResiDualError
from tests.pairs import table


def random_scores(seed=0, images=200, classes=8):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, images)
    scores = generator.normal(size=(images, classes))
    scores[np.arange(images), labels] += generator.normal(1.0, 1.0, images)
    return scores, labels


def test_accuracy_and_recall_are_counted():
    scores, labels = random_scores()
    predictions = scores.argmax(1)
    assert metrics.accuracy(scores, labels) == (predictions == labels).mean()
    matrix = [[((labels == i) & (predictions == j)).sum() for j in range(8)] for i in range(8)]
    np.testing.assert_array_equal(metrics.confusion_matrix(scores, labels), matrix)
    recalls = [matrix[i][i] / sum(matrix[i]) for i in range(8)]
    np.testing.assert_allclose(metrics.per_class_recall(scores, labels), recalls, atol=1e-12)
    expected = pytest.approx(np.mean(recalls), abs=1e-12)
    assert metrics.mean_per_class_recall(scores, labels) == expected


@table("k", [1, 2, 5, 8, 100])
def test_top_k_is_that_of_scikit_learn_and_of_a_loop(k):
    scores, labels = random_scores(k)
    slow = np.mean([y in np.argsort(-row)[:k] for row, y in zip(scores, labels, strict=True)])
    assert metrics.top_k_accuracy(scores, labels, k) == pytest.approx(slow, abs=1e-12)
    if k < 8:
        expected = sklearn.metrics.top_k_accuracy_score(labels, scores, k=k, labels=range(8))
        assert metrics.top_k_accuracy(scores, labels, k) == pytest.approx(expected, abs=1e-12)


def test_equal_scores_go_to_the_first_class_as_argmax_has_it():
    scores = np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    labels = np.array([0, 1, 2])
    assert metrics.accuracy(scores, labels) == pytest.approx(1 / 3)
    assert metrics.top_k_accuracy(scores, labels, 2) == pytest.approx(2 / 3)


def test_classes_without_images_do_not_count_in_the_mean_recall():
    scores = np.eye(4)[[0, 1, 1]]
    labels = np.array([0, 1, 0])
    assert np.isnan(metrics.per_class_recall(scores, labels)[2:]).all()
    assert metrics.mean_per_class_recall(scores, labels) == pytest.approx(0.75)


def test_tensors_of_any_dtype_are_taken():
    scores, labels = random_scores()
    tensor = torch.tensor(scores).to(torch.bfloat16)
    expected = metrics.accuracy(tensor.float().numpy(), labels)
    assert metrics.accuracy(tensor, torch.tensor(labels)) == expected
    assert metrics.accuracy(scores.tolist(), labels.tolist()) == metrics.accuracy(scores, labels)


@table(
    ("scores", "labels", "message"),
    [
        (np.zeros((0, 3)), np.zeros(0, int), "at least one image"),
        (np.zeros((2, 3)), np.zeros(3, int), r"got shapes \(2, 3\) and \(3,\)"),
        (np.array([[0.0, 1], [np.nan, 0]]), np.zeros(2, int), "infinity for image 1"),
        (np.zeros((2, 3)), np.array([0, 3]), "from 0 to 2, got 3 for image 1"),
        (np.zeros((2, 3)), np.array([-1, 0]), "got -1 for image 0; unlabelled"),
        (np.zeros((2, 3)), np.array([0.0, 1.0]), "whole numbers as labels"),
    ],
)
def test_bad_scores_and_labels_are_refused(scores, labels, message):
    with pytest.raises(ResiDualError, match=message):
        metrics.classification_metrics(scores, labels)


def test_evaluate_loads_the_module_from_the_package_offline(monkeypatch, tmp_path):
    monkeypatch.setattr("evaluate.config.HF_EVALUATE_OFFLINE", True)
    module = evaluate.load(metrics.evaluate_module_path(), cache_dir=str(tmp_path))
    scores, labels = random_scores(5)
    result = module.compute(predictions=scores, references=labels)
    assert result == metrics.classification_metrics(scores, labels)
    for batch in (slice(0, 50), slice(50, 200)):
        module.add_batch(predictions=scores[batch], references=labels[batch])
    assert module.compute() == result


@table("level", [0.5, 0.9, 0.95, 0.999])
@table(("correct", "total"), [(0, 1), (1, 1), (0, 30), (30, 30), (7, 9), (361, 500)])
def test_the_interval_of_an_accuracy_is_wilsons(correct, total, level):
    """All shares p whose own normal interval, |p̂ - p| <= z √(p (1 - p) / n), holds p̂."""
    z = scipy.stats.norm.ppf((1 + level) / 2)
    share, weight = correct / total, z * z / total
    exact = sorted(np.roots([1 + weight, -(2 * share + weight), share**2]).real)
    assert metrics.accuracy_interval(correct, total, level) == pytest.approx(exact, abs=1e-12)


def test_the_interval_of_a_difference_covers_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(0)
    cells, rounds, images = [0.6, 0.16, 0.06, 0.18], 2000, 120  # both, first, second, neither
    covered = 0
    for drawn in generator.choice(4, (rounds, images), p=cells):
        low, high = metrics.difference_interval(drawn < 2, (drawn == 0) | (drawn == 2), 0.9)
        covered += low <= 0.1 <= high
    assert 0.88 < covered / rounds < 0.93


def test_the_interval_of_a_difference_is_the_bootstraps_for_many_images():
    scores, labels = random_scores(1, images=1500)
    right = scores.argmax(1) == labels
    other = right ^ (np.random.default_rng(2).random(1500) < 0.1)
    generator = np.random.default_rng(3)
    rows = generator.integers(0, 1500, (2000, 1500))
    differences = right[rows].mean(1) - other[rows].mean(1)
    expected = np.quantile(differences, [0.025, 0.975])
    measured = metrics.difference_interval(torch.tensor(right), other)
    assert measured == pytest.approx(expected, abs=2e-3)
    assert metrics.difference_interval(other, right) == pytest.approx([-x for x in measured[::-1]])
    # the same images: far shorter than the interval of either
    low, high = metrics.accuracy_interval(int(right.sum()), 1500)
    assert measured[1] - measured[0] < 0.75 * (high - low)


def test_intervals_of_nothing_are_refused():
    with pytest.raises(ResiDualError, match="at least one image, got 0 of 0"):
        metrics.accuracy_interval(0, 0)
    with pytest.raises(ResiDualError, match="got 5 of 4"):
        metrics.accuracy_interval(5, 4)
    with pytest.raises(ResiDualError, match="between 0 and 1, got 95"):
        metrics.accuracy_interval(3, 4, 95)
    with pytest.raises(ResiDualError, match=r"got shapes \(3,\) and \(2,\)"):
        metrics.difference_interval([True] * 3, [True] * 2)


def random_lists(seed=0, images=120, classes=6):
    generator = np.random.default_rng(seed)
    labels = (generator.random((images, classes)) < 0.3).astype(np.uint8)
    return generator.normal(size=labels.shape) + 0.7 * labels, labels


def slow_average_precision(scores, labels):
    """Of one class, without equal scores: the mean over its images of the precision down to it."""
    order = np.argsort(-scores)
    found = labels[order].astype(bool)
    return np.mean([found[: i + 1].mean() for i in np.flatnonzero(found)])


def test_the_mean_average_precision_is_that_of_a_loop_and_takes_any_tensor():
    scores, labels = random_lists()
    classes = range(labels.shape[1])
    expected = np.mean([slow_average_precision(scores[:, c], labels[:, c]) for c in classes])
    assert metrics.mean_average_precision(scores, labels) == pytest.approx(expected, abs=1e-12)
    # as a model in half precision gives them, or one that is being trained
    half = torch.tensor(scores).bfloat16()
    wanted = metrics.mean_average_precision(half.double(), labels)
    assert metrics.mean_average_precision(half, torch.tensor(labels)) == wanted
    trained = torch.tensor(scores, requires_grad=True)
    assert metrics.mean_average_precision(trained, torch.tensor(labels)) == pytest.approx(expected)
    found = metrics.multi_label_metrics(trained, torch.tensor(labels).bool())
    assert found == metrics.multi_label_metrics(scores, labels.astype(float))


def test_of_equal_scores_none_comes_first():
    labels = np.array([[1], [0], [0], [1]])
    # all four are named at once, with a precision of one half
    assert metrics.mean_average_precision(np.zeros((4, 1)), labels) == 0.5


def test_f1_and_exact_matches_are_those_of_scikit_learn():
    logits, labels = random_lists(7)
    labels[:, 4] = 0  # a class that no image has
    found, named = metrics.multi_label_metrics(logits, labels), logits >= 0
    there = [0, 1, 2, 3, 5]
    micro = sklearn.metrics.f1_score(labels, named, average="micro")
    macro = sklearn.metrics.f1_score(labels[:, there], named[:, there], average="macro")
    assert found["micro_f1"] == pytest.approx(micro)
    assert found["macro_f1"] == pytest.approx(macro)
    assert found["exact_match"] == pytest.approx((labels == named).all(1).mean())
    alone = metrics.multi_label_metrics(logits[:, :1], labels[:, :1])  # one class, which may be no
    f1 = pytest.approx(sklearn.metrics.f1_score(labels[:, 0], named[:, 0]))
    assert (alone["micro_f1"], alone["macro_f1"]) == (f1, f1)
    precision = sklearn.metrics.average_precision_score(
        labels[:, there], logits[:, there], average="macro"
    )
    assert found["mean_average_precision"] == pytest.approx(precision)


@pytest.mark.parametrize("measure", ["mean_average_precision", "multi_label_metrics"])
def test_several_labels_are_checked(measure):
    measure = getattr(metrics, measure)
    scores, labels = random_lists()
    with pytest.raises(ResiDualError, match=r"got shapes \(120, 6\) and \(120,\)"):
        measure(scores, labels[:, 0])
    with pytest.raises(ResiDualError, match=r"got shapes \(120, 6\) and \(7, 6\)"):
        measure(scores, labels[:7])
    with pytest.raises(ResiDualError, match="with labels to measure a precision on, got none"):
        measure(scores, np.zeros_like(labels))
    wrong = labels.copy()
    wrong[3, 4] = 2
    with pytest.raises(ResiDualError, match="zeros and ones, got 2 for class 4 of image 3"):
        measure(scores, wrong)
    scores[5, 2] = np.nan
    with pytest.raises(ResiDualError, match="NaN or infinity for image 5"):
        measure(scores, labels)


def test_a_class_that_no_image_has_is_in_no_mean():
    scores = np.array([[1.0, -1.0, -1.0], [1.0, 1.0, -1.0], [-1.0, 1.0, -1.0]])
    labels = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0]])
    found = metrics.multi_label_metrics(scores, labels)
    assert found["macro_f1"] == pytest.approx((1.0 + 2 / 3) / 2)
    assert found["mean_average_precision"] == pytest.approx((1.0 + 0.5) / 2)
    assert found["exact_match"] == pytest.approx(2 / 3)
