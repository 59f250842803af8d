"""One label per image or several: one interface, each method against a loop or a library."""

import inspect

import datasets
import numpy as np
import pytest
import torch
from torch.nn import functional

from residual_peft.data.labels import (
    MANY_LABELS,
    ONE_LABEL,
    check_same,
    label_item,
    labelling_in,
    labelling_of,
    labelling_of_column,
    labelling_of_loss,
    numbers_of,
)
from residual_peft.errors import ResiDualError

BOTH = pytest.mark.parametrize("labelling", [ONE_LABEL, MANY_LABELS], ids=["one", "many"])
C = 4


def labels_of(labelling, images=60, seed=0):
    generator = torch.Generator().manual_seed(seed)
    if labelling is ONE_LABEL:
        return torch.arange(images)[torch.randperm(images, generator=generator)] % C
    return (torch.rand(images, C, generator=generator) < 0.4).to(torch.uint8)


def logits_of(images=60, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(images, C, generator=generator, dtype=torch.float64)


def public(labelling):
    return {
        name: list(inspect.signature(value).parameters) if callable(value) else None
        for name, value in inspect.getmembers(labelling)
        if not name.startswith("_")
    }


def test_both_offer_the_same():
    assert public(ONE_LABEL) == public(MANY_LABELS)


@BOTH
def test_each_is_found_by_flag_labels_loss_and_column(labelling):
    assert labelling_of(labelling.multi_label) is labelling
    assert labelling_in(labels_of(labelling)) is labelling
    assert labelling_of_loss(labelling.loss_name) is labelling
    feature = labelling.feature(datasets.ClassLabel(names=list("abcd")))
    assert labelling_of_column(feature) is labelling
    assert label_item(feature).names == list("abcd")


@BOTH
@pytest.mark.parametrize("weighted", [False, True])
def test_the_loss_and_its_normalizer_are_a_loop(labelling, weighted):
    logits, labels, bias = logits_of(), labels_of(labelling), -0.7
    weights = torch.tensor([0.5, 1, 2, 3], dtype=torch.float64) if weighted else None
    w = [1.0] * C if weights is None else weights.tolist()
    total, count = 0.0, 0.0
    for row, own in zip(logits, labels, strict=True):
        if labelling is ONE_LABEL:
            total -= w[own] * float(row[own] - row.exp().sum().log())
            count += w[own]
        else:
            for c in range(C):
                p = 1 / (1 + float((-row[c] - bias).exp()))
                total -= w[c] * np.log(p) if own[c] else np.log(1 - p)
                count += 1
    summed = labelling.loss(logits, labels, weights, bias, reduction="sum")
    assert float(summed) == pytest.approx(total, rel=1e-10)
    assert labelling.normalizer(labels, weights, C) == pytest.approx(count)
    mean = labelling.loss(logits, labels, weights, bias)
    assert float(mean) == pytest.approx(total / count, rel=1e-10)
    alone = [
        labelling.loss(z[None], y[None], reduction="sum")
        for z, y in zip(logits, labels, strict=True)
    ]
    torch.testing.assert_close(labelling.losses(logits, labels), torch.stack(alone))
    for kind in (torch.int32, torch.uint8):  # class numbers in fewer bytes are no mask
        small = labels.to(kind)
        torch.testing.assert_close(labelling.loss(logits, small, weights, bias), mean)
        assert labelling.normalizer(small, weights, C) == pytest.approx(count)


@BOTH
def test_balanced_weights_give_all_classes_the_same_say(labelling):
    labels = labels_of(labelling)[7:]
    counts = labelling.counts(labels, C)
    hot = functional.one_hot(labels, C) if labelling is ONE_LABEL else labels.long()
    assert counts.tolist() == hot.sum(0).tolist()
    assert labelling.targets(labels, C).tolist() == hot.tolist()
    assert labelling.counts(labels.numpy(), C).tolist() == counts.tolist()
    weights = labelling.balanced(counts, len(labels))
    other = len(labels) - counts if labelling is MANY_LABELS else torch.full((C,), len(labels) / C)
    torch.testing.assert_close(weights * counts, other.double())


@BOTH
def test_what_logits_say(labelling):
    logits, labels = logits_of(), labels_of(labelling)
    predicted, probabilities = labelling.predicted(logits), labelling.probabilities(logits)
    for row, said, p in zip(logits, predicted, probabilities, strict=True):
        e = row.exp()
        wanted = e / e.sum() if labelling is ONE_LABEL else e / (1 + e)
        torch.testing.assert_close(p, wanted)
        numbers = labelling.class_numbers(said)
        best = [int(row.argmax())]
        assert numbers == (best if labelling is ONE_LABEL else [c for c in range(C) if p[c] >= 0.5])
    right = labelling.right(logits, labels)
    slow = [
        np.mean(np.atleast_1d(a == b))
        for a, b in zip(predicted.numpy(), labels.numpy(), strict=True)
    ]
    assert right.tolist() == pytest.approx(slow)
    flat = labelling.probabilities(torch.zeros(1, C, dtype=torch.float64))
    assert labelling.curvature(C) == pytest.approx(float((flat * (1 - flat))[0, 0]))
    metrics = labelling.metrics(logits, labels)
    assert tuple(metrics) == labelling.metric_names
    assert labelling.score(logits, labels) == metrics[labelling.metric_names[0]]


@BOTH
def test_folds_hold_every_image_once_and_all_classes(labelling):
    labels = labels_of(labelling).numpy()
    folds = labelling.folds(labels, 3)
    assert sorted(np.concatenate([outside for _, outside in folds])) == list(range(60))
    counts = labelling.counts(labels, C).numpy()
    for inside, outside in folds:
        assert sorted([*inside, *outside]) == list(range(60))
        held = labelling.counts(labels[outside], C).numpy()
        assert np.abs(held - counts / 3).max() <= 1
    with pytest.raises(ResiDualError, match="folds=40 and 15 images of the rarest class"):
        ONE_LABEL.folds(labels_of(ONE_LABEL).numpy(), 40)


@BOTH
def test_columns_become_labels_and_other_numbers(labelling):
    column = [2, 0, 1] if labelling is ONE_LABEL else [[0, 2], [], [1]]
    labels = torch.from_numpy(labelling.array(column, 3))
    labelling.check(labels, 3)
    assert list(labelling.each(column)) == ([2, 0, 1] if labelling is ONE_LABEL else [0, 2, 1])
    assert labelling.array([], 3).shape == (0, *labels.shape[1:])
    numbers = [4, 0, 3]  # a, b and c among five classes
    moved = torch.stack([labelling.renumbered(row, numbers, 5) for row in labels])
    labelling.check(moved, 5)
    wanted = [[numbers[n] for n in labelling.class_numbers(row)] for row in labels]
    assert [labelling.class_numbers(row) for row in moved] == [sorted(row) for row in wanted]
    entries = [labelling.mapped(entry, "abc".__getitem__) for entry in column]
    assert entries == (["c", "a", "b"] if labelling is ONE_LABEL else [["a", "c"], [], ["b"]])


@BOTH
def test_labels_of_the_other_kind_are_refused(labelling):
    other = labelling_of(not labelling.multi_label)
    with pytest.raises(ResiDualError, match=r"^wanted (one label per image|labels of shape)"):
        labelling.check(labels_of(other), C)
    with pytest.raises(ResiDualError, match=f"got {other.words} per image: mend it"):
        check_same(labelling, other, "mend it")
    check_same(labelling, labelling, "mend it")


def test_smoothing_is_for_a_softmax():
    logits, labels = logits_of(), labels_of(ONE_LABEL)
    share = functional.one_hot(labels, C) * 0.8 + 0.2 / C
    wanted = -(share * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(ONE_LABEL.loss(logits, labels, smoothing=0.2), wanted)
    ONE_LABEL.check_smoothing(0.2, "softness")
    MANY_LABELS.check_smoothing(0.0, "softness")
    with pytest.raises(ResiDualError, match="softness from 0 to below 1, got 1"):
        ONE_LABEL.check_smoothing(1.0, "softness")
    with pytest.raises(ResiDualError, match="softness is for one label per image"):
        MANY_LABELS.check_smoothing(0.2, "softness")


@BOTH
def test_what_a_head_asks(labelling):
    """Draws, left-out images, strengths and logits of classes that a head does not know."""
    labels, logits = labels_of(labelling), logits_of()
    order = torch.randperm(60, generator=torch.Generator().manual_seed(2))
    for number, rows in enumerate(labelling.first_rows(labels, order, C, (20, 60))):
        own = [row for row in order.tolist() if number in labelling.class_numbers(labels[row])]
        assert rows.tolist() == own[: len(own) // 3 if labelling is ONE_LABEL else 2]
    counts = labelling.counts(labels, C)
    assert labelling.leaves_blocks(counts, 16) == (labelling is ONE_LABEL)
    assert not labelling.leaves_blocks(counts, 15)
    assert labelling.may_leave_out(counts)
    assert labelling.may_leave_out(torch.ones(C)) == (labelling is MANY_LABELS)
    errors = logits[:7]
    each = [int(errors[:, c].argmin()) for c in range(C)]
    together = [int(errors.sum(1).argmin())] * C
    assert labelling.least(errors).tolist() == (together if labelling is ONE_LABEL else each)
    beside = labelling.beside(logits[:, :2], logits.flip(1))
    if labelling is ONE_LABEL:  # the texts' share of the first two, shared out by the head
        text = logits.flip(1).softmax(1)
        own = text[:, :2].sum(1, keepdim=True) * logits[:, :2].softmax(1)
        torch.testing.assert_close(beside.softmax(1), torch.cat([own, text[:, 2:]], 1))
        p = logits.softmax(1)[range(60), labels]
        torch.testing.assert_close(labelling.surprise(logits, labels), -p.log())
    else:
        assert beside.tolist() == torch.cat([logits[:, :2], logits.flip(1)[:, 2:]], 1).tolist()
        assert labelling.surprise(logits, labels) is None
    weights = torch.tensor([0.5, 1, 2, 3])
    each_image = labelling.image_weights(labels, weights)
    balanced = labelling.class_weights(labels, C)
    if labelling is ONE_LABEL:
        assert each_image.tolist() == [weights[label] for label in labels.tolist()]
        torch.testing.assert_close(balanced * counts, torch.full((C,), 15.0).double())
    else:
        assert each_image is balanced is None
    inside = [True, False, True, False]
    rows = labelling.of_classes(labels, inside).tolist()
    assert rows == [
        labelling is MANY_LABELS or inside[labelling.class_numbers(row)[0]] for row in labels
    ]
    assert labelling.bias(lambda: -3.0) == (0.0 if labelling is ONE_LABEL else -3.0)


@BOTH
def test_labels_as_somebody_gives_them_and_is_told_them(labelling):
    names = ["a", "b", "c", "d"]
    given = ["c", "a"] if labelling is ONE_LABEL else [["c", "a"], []]
    wanted = [2, 0] if labelling is ONE_LABEL else [[1, 0, 1, 0], [0, 0, 0, 0]]
    found = labelling.numbered(given, names.index, C)
    assert found.tolist() == wanted
    assert labelling.numbered(found, int, C).tolist() == wanted
    said = labelling.in_words(["c", "a"], "c 0.9, a 0.8")
    assert said == ("c 0.9, a 0.8" if labelling is ONE_LABEL else "c, a (c 0.9, a 0.8)")
    assert MANY_LABELS.in_words([], "c 0.1") == "no label (c 0.1)"


def test_several_labels_are_named_in_lists():
    names = ("class 0", "class 1", "class 2")
    own = MANY_LABELS, names
    found = numbers_of(*own, [["class 2", 0], []], 2)
    assert found.tolist() == [[1, 0, 1], [0, 0, 0]]
    assert numbers_of(*own, ["class 1"], 1, single=True).tolist() == [[0, 1, 0]]
    zeros = torch.zeros(2, 3)
    assert numbers_of(*own, zeros, 2) is zeros
    rows = [[0, 1, 0], [1, 0, 1]]
    assert numbers_of(*own, np.array(rows), 2).tolist() == rows
    with pytest.raises(ResiDualError, match="wanted a label for each of 2 images, got tensor"):
        numbers_of(*own, np.zeros((2, 3, 1)), 2)
    with pytest.raises(ResiDualError, match="wanted a list of labels for each of 2 images"):
        numbers_of(*own, [0, 1], 2)
    of_letters = MANY_LABELS, ("1", "2", "12")
    for label in ("12", b"12", {"1": 0}):  # which is no list of its letters
        for given, single in (([[], label], False), (label, True)):
            with pytest.raises(ResiDualError, match="wanted a list of names for each image, which"):
                numbers_of(*of_letters, given, 1 if single else 2, single=single)
    for row in (np.array([0, 1, 1]), torch.tensor([0, 1, 1])):  # zeros and ones, not numbers
        with pytest.raises(ResiDualError, match="wanted a label for each of 1 images, got 3"):
            numbers_of(*own, row, 1, single=True)
    with pytest.raises(ResiDualError, match="wanted a label for each of 2 images, got '12'"):
        numbers_of(ONE_LABEL, of_letters[1], "12", 2)
    own = ONE_LABEL, names
    assert numbers_of(*own, torch.tensor([2.0, 0.0]), 2).tolist() == [2, 0]
    assert numbers_of(*own, torch.tensor(2), 1, single=True).tolist() == [2]
