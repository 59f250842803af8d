"""A linear map held to the identity, against all d × d numbers of it by autograd."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from residual_peft.classifiers.heads.left_out import stratified_folds
from residual_peft.classifiers.heads.linear_map import fit_linear_map
from residual_peft.errors import ResiDualError
from tests.pairs import table

SCALE = 30.0


def some_images(
    count: int = 45, columns: int = 9, classes: int = 4, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Images (N, d) on one side of the sphere, labels, and texts that fit them badly."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    labels = torch.arange(count) % classes
    centres = drawn(classes, columns)
    features = functional.normalize(
        3 * drawn(1, columns) + centres[labels] + drawn(count, columns), dim=1
    )
    return features, labels, functional.normalize(drawn(classes, columns) + 0.3 * centres, dim=1)


def by_autograd(
    features: Tensor, labels: Tensor, text: Tensor, strength: float, weights: Tensor | None = None
) -> Tensor:
    """W (d, d)."""
    identity = torch.eye(features.shape[1], dtype=torch.float64)
    matrix = identity.clone().requires_grad_()
    each = torch.ones(len(labels), dtype=torch.float64) if weights is None else weights[labels]
    each = each / each.mean()
    options: dict[str, Any] = {"tolerance_grad": 1e-12, "tolerance_change": 0, "max_iter": 4000}
    solver = torch.optim.LBFGS([matrix], line_search_fn="strong_wolfe", **options)

    def closure() -> Tensor:
        solver.zero_grad()
        logits = SCALE * features @ matrix.mT @ text.mT
        losses = functional.cross_entropy(logits, labels, reduction="none")
        loss = each @ losses + 0.5 * strength * (matrix - identity).square().sum()
        loss.backward()
        return loss

    solver.step(closure)
    return matrix.detach()


@table(
    ("columns", "classes", "strength", "weighted"),
    [(9, 4, 3.0, False), (60, 3, 40.0, True), (4, 7, 200.0, False)],
)
def test_it_is_the_map_that_autograd_finds(columns, classes, strength, weighted) -> None:
    features, labels, text = some_images(columns=columns, classes=classes)
    weights = torch.rand(classes, dtype=torch.float64) + 0.5 if weighted else None
    given: dict[str, Any] = {"logit_scale": SCALE, "strength": strength, "tolerance": 1e-10}
    fit = fit_linear_map(features, labels, text, class_weights=weights, **given)
    matrix = by_autograd(features, labels, text, strength, weights)
    identity = torch.eye(columns, dtype=torch.float64)
    assert float((matrix - identity).norm()) > 0.05
    torch.testing.assert_close(identity + fit.change, matrix, atol=2e-6, rtol=0)
    other, _, _ = some_images(columns=columns, classes=classes, seed=1)
    logits = fit.head.temperature * SCALE * other @ matrix.mT @ text.mT
    torch.testing.assert_close(fit.head.logits(other), logits, atol=2e-4, rtol=0)
    assert fit.head.text_weight == 0
    assert fit.parameter_count == columns * (classes - 1) + 1


def test_left_out_predictions_are_those_of_fits_without_the_fold() -> None:
    features, labels, text = some_images()
    groups = torch.arange(45) // 3
    fit = fit_linear_map(features, labels, text, logit_scale=SCALE, groups=groups)
    assert (fit.left_out.how, fit.strength) == ("group", min(fit.path, key=lambda p: p[1])[0])
    fold = stratified_folds(labels, groups=groups)
    assert fold is not None
    for number in fold.unique().tolist():
        inside = fold != number
        matrix = by_autograd(features[inside], labels[inside], text, fit.strength)
        wanted = fit.head.temperature * SCALE * features[~inside] @ matrix.mT @ text.mT
        gap = fit.left_out.logits[~inside].softmax(1) - wanted.softmax(1)
        assert float(gap.abs().max()) < 2e-3


def test_a_strong_penalty_leaves_the_texts_and_a_weak_one_fits_the_images() -> None:
    features, labels, text = some_images(columns=30)
    strong, weak = (
        fit_linear_map(features, labels, text, logit_scale=SCALE, strength=alpha)
        for alpha in (1e9, 1e-3)
    )
    assert float(strong.change.norm()) < 1e-4
    assert torch.equal(weak.head.logits(features).argmax(1), labels)
    one = fit_linear_map(features[:4], labels[:4], text, logit_scale=SCALE)
    assert (one.left_out.how, one.path) == ("none", ())


def test_texts_that_are_one_are_left_as_they_are() -> None:
    features, labels, text = some_images(classes=3)
    same = text[:1].expand(3, -1)
    fit = fit_linear_map(features, labels, same, logit_scale=SCALE)
    assert not fit.change.any()
    assert float(fit.left_out.log_loss) == pytest.approx(float(torch.tensor(3.0).log()), abs=1e-3)


def test_what_does_not_fit_is_refused() -> None:
    features, labels, text = some_images()
    with pytest.raises(ResiDualError, match="as wide as the class embeddings, 8, got 9"):
        fit_linear_map(features, labels, text[:, :8])
    with pytest.raises(ResiDualError, match="wanted strengths of the penalty above 0, got -1"):
        fit_linear_map(features, labels, text, strength=-1.0)
