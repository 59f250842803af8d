import numpy as np
import pytest
import torch

from residual_peft.classifiers.heads.blend import SHARES, blend
from residual_peft.errors import ResiDualError


def unit(rows):
    return rows / rows.norm(dim=-1, keepdim=True)


def case(count=24, columns=6, classes=4, *, good=True, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    labels, centres = torch.arange(count) % classes, normal(classes, columns)
    features = centres[labels] + 1.5 * normal(count, columns)
    text = centres + 0.3 * normal(classes, columns) if good else normal(classes, columns)
    return unit(text), features, labels


@pytest.mark.parametrize("count", [28, 132])
def test_losses_are_those_of_blends_without_the_image(count):
    text, features, labels = case(count)
    known = torch.ones(count, dtype=torch.bool)
    if count == 28:  # one class has a single image: those left out with it are told by its text
        labels[7::4], known[3] = torch.arange(6) % 3, False
    found = blend(text, features, labels, 4)
    rows = unit(features)
    number = 7
    share, cosines = SHARES[number], torch.zeros(count, 4, dtype=torch.float64)
    place = [int((labels[:row] == labels[row]).sum()) for row in range(count)]
    for row in range(count):
        out = {row} if count == 132 else {r for r in range(count) if place[r] == place[row]}
        kept = torch.tensor([r not in out for r in range(count)])
        sums = torch.stack([rows[kept & (labels == k)].sum(0) for k in range(4)])
        means = torch.nn.functional.normalize(sums, dim=1)
        cosines[row] = unit((1 - share) * text + share * means) @ rows[row]
    losses = [
        float(torch.nn.functional.cross_entropy(t * cosines[known], labels[known]))
        for t in np.geomspace(0.1, 100, 3000)
    ]
    # the temperature has a pinch of uniform labels, which few images feel
    assert float(found.losses[number]) == pytest.approx(min(losses), rel=2e-3)
    assert found.share == SHARES[int(found.losses.argmin())]


def test_good_text_weighs_more_than_bad_text():
    good, bad = blend(*case(16), 4), blend(*case(16, good=False), 4)
    assert good.share < bad.share
    assert float(bad.losses[0]) > min(bad.losses)
    text, features, labels = case(16)
    means = torch.stack([unit(unit(features)[labels == k].mean(0)) for k in range(4)])
    expected = unit((1 - good.share) * text + good.share * means)
    np.testing.assert_allclose(good.embeddings, expected, atol=1e-12)


def test_the_share_is_fixed_with_one_image_each_and_may_be_given():
    text, features, labels = case(4)
    found = blend(text, features, labels, 4)
    assert found.share == 0.5
    assert not len(found.losses)
    given = blend(text, features, labels, 4, share=0.0)
    np.testing.assert_allclose(given.embeddings, text)
    alone = blend(text, features, labels, 4, share=1.0)
    np.testing.assert_allclose(alone.embeddings, unit(features))


def test_what_does_not_fit_is_one_line():
    text, features, labels = case()
    with pytest.raises(ResiDualError, match=r"wanted text embeddings \(4, 6\).* got \(4, 5\)"):
        blend(text[:, :5], features, labels, 4)
    with pytest.raises(ResiDualError, match="wanted a share of the means from 0 to 1, got 2"):
        blend(text, features, labels, 4, share=2.0)
    with pytest.raises(
        ResiDualError,
        match="got several labels per image: there are no",
    ):
        blend(text, features, torch.ones(24, 4), 4)
