"""Images that heads are fitted on: what is odd about them is said, what is wrong refused."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import cdist
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor

from residual_peft.classifiers.heads import balanced_weights, duplicate_groups, fit_ridge, images
from residual_peft.errors import ResiDualError
from tests.pairs import table


def test_copies_are_noticed_and_contradictions(drawn: Any) -> None:
    data = drawn((8, 8), 5)
    features = torch.cat([data.features, data.features[:3] * (1 + 1e-7)])
    labels = torch.cat([data.labels, data.labels[:3]])
    (note,) = fit_ridge(features, labels, 2).notes
    assert note.startswith("3 of 19 images are copies of others")
    labels[-1] = 1 - labels[-1]
    notes = fit_ridge(features, labels, 2).notes
    assert notes[1].startswith("1 picture with labels that contradict each other")
    groups = torch.cat([torch.arange(16), torch.arange(3)])
    assert fit_ridge(features, labels, 2, groups=groups).notes == notes[1:]
    assert fit_ridge(data.features, data.labels, 2).notes == ()


def test_copies_share_a_number_and_near_pictures_do_not(drawn: Any) -> None:
    features = drawn((8, 8), 5).features
    near = features[2:3] + 1e-3 * features[2:3].norm()
    groups = duplicate_groups(torch.cat([features, features[[1, 4]], near]))
    assert int(groups[16]) == int(groups[1])
    assert int(groups[17]) == int(groups[4])
    assert len(groups.unique()) == 17
    strangers_between_copies()
    thousands_of_one_picture()


def strangers_between_copies() -> None:
    """As all pairs have it: parts of the graph of those that are near, most with others between."""
    generator = torch.Generator().manual_seed(0)

    def noise(rows: Tensor, size: float) -> Tensor:
        drawn = torch.randn(rows.shape, generator=generator)
        return rows + size * rows.norm(dim=1, keepdim=True) * drawn / rows.shape[1] ** 0.5

    for width, spread, least in ((64, 0.05, 1e-7), (64, 0.8, 1e-6), (6, 0.1, 3e-6)):
        whole = 1 + spread * torch.randn(1500, width, generator=generator)
        whole[:4] = 0
        again = noise(whole[:500], least)
        link = 0.9e-5 * whole[500:520].norm(dim=1, keepdim=True) * torch.eye(width)[0]
        chain = torch.cat([whole[500:520] + link, whole[500:520] + 2 * link])
        features = torch.cat([whole, again, noise(whole[:50], least), chain])
        features = features[torch.randperm(len(features), generator=generator)]
        apart = cdist(features.double(), features.double())
        near = apart <= 1e-5 * features.double().norm(dim=1).numpy()
        wanted = connected_components(near)[1]
        assert first_of_each(duplicate_groups(features)) == first_of_each(wanted)


def first_of_each(groups: Any) -> list[int]:
    """The first row of the group of each."""
    _, first, number = np.unique(groups, return_index=True, return_inverse=True)
    return list(first[number])


def thousands_of_one_picture() -> None:
    """Are not compared each with each."""
    generator = torch.Generator().manual_seed(1)
    strangers = torch.randn(500, 32, generator=generator)
    noise = 4e-6 * torch.randn(5000, 32, generator=generator) / 32**0.5
    one = strangers[:1] + strangers[:1].norm() * noise
    compared, distances = 0, images._distances

    def counted(rows: Tensor, one: Tensor, other: Tensor) -> Tensor:
        nonlocal compared
        compared += len(one)
        return distances(rows, one, other)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "_distances", counted)
        groups = duplicate_groups(torch.cat([strangers, one]))
    assert groups.tolist() == [*range(500), *[0] * 5000]
    assert compared <= 6000


def test_balanced_weights_are_scikit_learns() -> None:
    labels = torch.tensor([0, 0, 0, 1, 2, 2])
    theirs = compute_class_weight("balanced", classes=np.arange(3), y=labels.numpy())
    assert balanced_weights(labels, 3).tolist() == pytest.approx(theirs.tolist())


def test_labels_of_any_integer_dtype(drawn: Any) -> None:
    data = drawn((5, 6), 7)
    fits = [fit_ridge(data.features, data.labels.to(t), 2) for t in (torch.int32, torch.int64)]
    assert torch.equal(fits[0].left_out.logits, fits[1].left_out.logits)


NAN = torch.ones(6, 4)
NAN[4, 1] = torch.nan


@table(
    ("features", "labels", "options", "message"),
    [
        (
            torch.ones(2, 4),
            torch.arange(2),
            {"class_count": 5},
            "5 classes, got none of class 2, 3",
        ),
        (torch.ones(6, 0), torch.arange(6) % 2, {}, r"K at least 1, got \(6, 0\)"),
        (
            NAN,
            torch.arange(6) % 2,
            {},
            "nan or infinity for 1 of 6 images, the first of them row 4",
        ),
        (torch.ones(6, 4), torch.zeros(6).long(), {}, "got none of class 1 among 6 images"),
        (torch.ones(1, 4), torch.zeros(1).long(), {}, "got none of class 1 among 1 images"),
        (torch.ones(0, 4), torch.zeros(0).long(), {}, "at least one image"),
        (torch.ones(6, 4), torch.zeros(5).long(), {}, r"a label for each of 6 images.*\(5,\)"),
        (torch.ones(6, 4), torch.arange(6), {}, "wanted labels from 0 to 1 .*, got 2"),
        (torch.ones(6, 4), torch.ones(6), {}, "wanted class numbers as labels, got torch.float32"),
        (torch.ones(6, 4), 2 * torch.ones(6, 2), {}, "zeros and ones, a column per class, got 2"),
        (torch.ones(6, 4), torch.arange(6) % 2, {"alphas": [0.0]}, "wanted strengths above 0"),
        (
            torch.ones(6, 4),
            torch.arange(6) % 2,
            {"scale": torch.zeros(4)},
            "wanted a scale above 0",
        ),
        (
            torch.ones(6, 4),
            torch.arange(6) % 2,
            {"zero_shot": torch.ones(6, 3)},
            r"wanted zero-shot logits \(6, 2\), one row per image, got \(6, 3\)",
        ),
        (
            torch.ones(6, 4),
            torch.arange(6) % 2,
            {"class_weights": [1.0, 0.0]},
            "wanted a weight above 0 for each of 2 classes",
        ),
        (
            torch.ones(6, 4),
            torch.ones(6, 2),
            {"class_weights": [1.0, 1.0]},
            "leave the class weights out",
        ),
    ],
)
def test_what_cannot_be_fitted(
    features: Tensor, labels: Tensor, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ResiDualError, match=message):
        fit_ridge(features, labels, **({"class_count": 2} | options))


def test_one_class_is_no_choice() -> None:
    with pytest.raises(ResiDualError, match="at least two classes to tell apart, got 1"):
        fit_ridge(torch.ones(3, 2), torch.zeros(3).long(), 1)
