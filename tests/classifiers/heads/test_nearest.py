import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from residual_peft.classifiers.heads.nearest import (
    NEIGHBOUR_TEMPERATURE,
    fit_means,
    fit_neighbours,
    log_votes,
)
from residual_peft.errors import ResiDualError


def unit(rows):
    return rows / rows.norm(dim=-1, keepdim=True)


def means_without(rows, labels, classes, out):
    """Unit means of the rows that are not in `out`, one class after the other."""
    kept = [row for row in range(len(rows)) if row not in out]
    found = []
    for k in range(classes):
        own = [unit(rows[row]) for row in kept if labels[row] == k]
        found.append(unit(sum(own)) if own else torch.zeros_like(rows[0]))
    return torch.stack(found)


@pytest.mark.parametrize("count", [12, 128])
def test_means_and_left_out_means_equal_a_loop(task, count):
    features, labels, _ = task(count)
    fit = fit_means(features, labels, 4)
    expected = unit(features) @ means_without(features, labels, 4, set()).T
    np.testing.assert_allclose(fit.logits(features), fit.temperature * expected, atol=1e-10)
    assert fit.left_out.how == ("block" if count == 12 else "one")
    for row in range(count):
        block = {r for r in range(count) if r // 4 == row // 4} if count == 12 else {row}
        cosines = means_without(features, labels, 4, block) @ unit(features[row])
        got = fit.left_out.logits[row] / fit.temperature
        np.testing.assert_allclose(got, cosines, atol=1e-10)


def test_means_of_centred_and_scaled_features(task):
    features, labels, _ = task()
    fit = fit_means(features, labels, 4, power=1.0)
    prepared = (features - features.mean(0)) / features.std(0, correction=0)
    expected = unit(prepared) @ means_without(prepared, labels, 4, set()).T
    np.testing.assert_allclose(fit.logits(features), fit.temperature * expected, atol=1e-10)


def test_text_is_weighed_and_wanted_then(task):
    features, labels, zero_shot = task(spread=0.3)
    fit = fit_means(features, labels, 4, zero_shot=zero_shot)
    assert fit.text_weight > 0
    expected = fit.temperature * fit.scorer.logits(features) + fit.text_weight * zero_shot
    np.testing.assert_allclose(fit.logits(features, zero_shot), expected, atol=1e-12)
    with pytest.raises(ResiDualError, match=r"wanted zero-shot logits \(40, 4\).* got none"):
        fit.logits(features)


def test_neighbours_vote_as_scikit_learns_do(task):
    features, labels, _ = task(60)
    fit = fit_neighbours(features[:40], labels[:40], 4, count=5)

    def votes(distances):
        cosines = 1 - distances
        nearest = cosines.max(1, keepdims=True)
        return np.exp((cosines - nearest) / NEIGHBOUR_TEMPERATURE)

    theirs = KNeighborsClassifier(5, weights=votes, metric="cosine", algorithm="brute")
    theirs.fit(features[:40], labels[:40])
    shares = fit.scorer.logits(features[40:]).exp()
    # one vote of the nearest's weight is spread over the classes
    distances, _ = theirs.kneighbors(features[40:])
    total = votes(distances).sum(1, keepdims=True)
    expected = (theirs.predict_proba(features[40:]) * total + 1 / 4) / (total + 1)
    np.testing.assert_allclose(shares, expected, atol=1e-9)
    assert fit.parameter_count == 40 * 10 + 2


def test_left_out_votes_are_those_of_the_others(task):
    features, labels, _ = task(128)
    fit = fit_neighbours(features, labels, 4, count=3)
    rows = unit(features)
    for row in (0, 7, 33):
        others = torch.arange(128) != row
        targets = torch.nn.functional.one_hot(labels[others], 4).double()
        expected = log_votes((rows[others] @ rows[row])[None], targets, 3)[0]
        got = fit.left_out.logits[row] / fit.temperature
        np.testing.assert_allclose(got, expected, atol=1e-9)


def test_the_number_of_neighbours_is_chosen_by_left_out_images(task):
    features, labels, _ = task(120, spread=0.7)
    fit = fit_neighbours(features, labels, 4)
    losses = {
        k: fit_neighbours(features, labels, 4, count=k).left_out.log_loss for k in (1, 2, 5, 20)
    }
    assert fit.left_out.log_loss <= min(losses.values()) + 1e-9
    assert fit.chosen["k"] > 1


def test_one_image_per_class(task):
    features, labels, _ = task(4)
    for fit in (fit_means(features, labels, 4), fit_neighbours(features, labels, 4)):
        assert fit.left_out.how == "none"
        assert (fit.logits(features).argmax(1) == labels).all()


def test_several_labels_and_other_features_are_one_line(task):
    features, labels, _ = task()
    with pytest.raises(ResiDualError, match="got several labels per image: the ridge"):
        fit_means(features, torch.ones(40, 4), 4)
    with pytest.raises(ResiDualError, match=r"wanted features \(M, 10\) like those"):
        fit_means(features, labels, 4).logits(features[:, :3])
