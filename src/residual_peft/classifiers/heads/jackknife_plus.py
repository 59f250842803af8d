"""A ridge without each part of its images, for new ones: jackknife+ sets in closed form."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ...data.labels import ONE_LABEL, check_same, labelling_in
from ...errors import ResiDualError
from .conformal import Covering, PredictionSets
from .images import checked
from .left_out import leaving_of, parts_of
from .ridge import RidgeFit
from .strengths import beside_text


@dataclass(frozen=True)
class RidgeWithout:
    """Logits of new images by every fit without a part of the training images, in closed form.

    The ridge on all images says f(x) = Σ_i h(x, i) y_i, with h(x, i) = w_i (c̃_xᵀ (C̃ᵀ W C̃ +
    α I)⁻¹ c̃_i + 1 / Σ w). It fits what it would have said without a part B, moved by the part's
    left-out errors: f(x) = f₋B(x) + h(x, B) (y_B − f₋B(x_B)). So one product gives f₋B(x) for every
    part. Basis, scales, α, a and τ are those of the fit on all images.
    """

    features: Tensor  # of the training images, as the ridge reads them (N, K)
    columns: Tensor  # which of the features that new images come with these are (K,)
    mean: Tensor  # of these (K,)
    scale: Tensor  # what they are divided by (K,)
    weights: Tensor  # of the images (N,)
    targets: Tensor  # y, what V is fitted to (N, C)
    errors: Tensor  # y_i − f₋B(x_i), without a and τ (N, C)
    scores: Tensor  # −log p of each image's own class without it (N,)
    part: Tensor  # a number per image (N,); those of one number are left out together
    numbers: Tensor  # α, a and τ

    @classmethod
    def of(
        cls,
        fit: RidgeFit,
        features: Tensor,
        labels: Tensor,
        class_count: int,
        *,
        zero_shot: Tensor | None = None,
        groups: Tensor | Sequence[object] | None = None,
        class_weights: Tensor | Sequence[float] | None = None,
        columns: Tensor | None = None,
    ) -> "RidgeWithout":
        """From a fitted ridge and what it was fitted on, as for `fit_ridge`, one label each."""
        check_same(ONE_LABEL, labelling_in(labels), "prediction sets are made of one")
        left, head = fit.left_out, fit.head
        if left.how == "none":
            raise ResiDualError(
                "wanted a fit that left images out, for jackknife+, got one of single images: give "
                "two or more images of each class."
            )
        if (left.how == "group") != (groups is not None):
            raise ResiDualError(
                f"wanted the groups that the fit left out together, for jackknife+, got "
                f"{'none' if groups is None else 'some'}: give what `fit_ridge` was given."
            )
        images = checked(
            features, labels, class_count, zero_shot=zero_shot, class_weights=class_weights
        )
        leaving = leaving_of(images.labels, class_count, groups, left.how)
        said = left.logits.double()
        if head.text_weight and images.zero_shot is not None:
            said = said - head.text_weight * images.zero_shot
        targets = beside_text(images, fit.prior)
        return cls(
            features.detach().cpu(),
            torch.arange(features.shape[1]) if columns is None else columns,
            head.mean.double(),
            head.scale.double(),
            images.weights,
            targets,
            targets - said / head.temperature,
            left.losses,
            leaving.numbers,
            torch.tensor([fit.alpha[0], head.text_weight, head.temperature], dtype=torch.float64),
        )

    @cached_property
    def _factor(self) -> tuple[Tensor, Tensor]:
        """√W C̃ (N, K), and the root of its smaller Gram matrix + α."""
        rows = self._centred(self.features) * self.weights.sqrt()[:, None]
        gram = rows.mT @ rows if rows.shape[1] <= rows.shape[0] else rows @ rows.mT
        gram.diagonal().add_(self.numbers[0])
        root, wrong = torch.linalg.cholesky_ex(gram)
        if wrong or not _finite(root):  # of a file that was changed
            raise ResiDualError(
                "wanted images' features that a ridge can be fitted to for jackknife+, got numbers "
                "out of all bounds: fit anew, or take the jackknife."
            )
        return rows, root

    def _centred(self, features: Tensor) -> Tensor:
        return (features.detach().cpu().double() - self.mean) / self.scale

    def logits(
        self, features: Tensor, zero_shot: Tensor | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Each part's rows, and the logits (M, C) of new images by the fit without it."""
        _, text_weight, temperature = self.numbers.tolist()
        new = self._centred(features[:, self.columns.to(features.device)])
        rows, root = self._factor
        if len(root) == rows.shape[1]:
            pull = torch.cholesky_solve(new.mT, root).mT @ rows.mT
        else:
            pull = torch.cholesky_solve(rows @ new.mT, root).mT
        pull = pull * self.weights.sqrt() + self.weights / self.weights.sum()  # h(x, i) (M, N)
        whole = temperature * (pull @ self.targets)
        if text_weight and zero_shot is not None:
            whole = whole + text_weight * zero_shot.detach().cpu().double()
        for part in parts_of(self.part):
            yield part, whole - temperature * pull[:, part] @ self.errors[part]

    def state(self) -> dict[str, Tensor]:
        """What is saved."""
        return {field.name: getattr(self, field.name).contiguous() for field in fields(self)}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> "RidgeWithout":
        """What `state` was taken of, or what is wrong with it."""
        names = [field.name for field in fields(cls)]
        if set(state) != set(names):
            raise ResiDualError(f"wanted the tensors {', '.join(names)}, got {', '.join(state)}.")
        (count, columns), classes = _sides(state["features"]), _sides(state["targets"])[1]
        shapes = [(count, columns), (columns,), (columns,), (columns,), (count,)]
        shapes += [(count, classes), (count, classes), (count,), (count,), (3,)]
        parts: dict[str, Any] = {}
        for name, shape in zip(names, shapes, strict=True):
            value, whole = state[name], name in ("columns", "part")
            if value.shape != shape or value.is_floating_point() == whole or not _finite(value):
                raise ResiDualError(
                    f"wanted finite {name} of shape {shape}, got {value.dtype} "
                    f"{tuple(value.shape)}."
                )
            parts[name] = value.long() if whole else value
            if not whole and name != "features":  # as they were read, half the bytes
                parts[name] = value.double()
        counts = [parts["columns"] + 1, parts["columns"].diff(), parts["part"] + 1]
        counts += [count - parts["part"]]
        above = [*counts, parts["scale"], parts["weights"], parts["numbers"][[0, 2]]]
        if not count or not columns or not all(bool((value > 0).all()) for value in above):
            raise ResiDualError(
                "wanted images with scales, weights, a strength and a temperature above 0, "
                "increasing columns and the number of a part for each image, got others."
            )
        return cls(**parts)


def _finite(values: Tensor) -> bool:
    return bool(values.isfinite().all())


def _sides(values: Tensor) -> tuple[int, int]:
    return (values.shape[0], values.shape[1]) if values.ndim == 2 else (0, 0)


@dataclass(frozen=True)
class PlusSets(Covering):
    """Jackknife+ sets, CV+ where parts hold several images (R. Barber et al., 2021).

    Where images come in groups, each part is a whole one.
    """

    without: RidgeWithout  # the ridge's fits without each part

    @classmethod
    def of(cls, without: RidgeWithout, coverage: float) -> "PlusSets":
        """At a coverage 1 − α."""
        return cls(without.scores, coverage, "jackknife+", without)

    def sets(self, features: Tensor, zero_shot: Tensor | None = None) -> Tensor:
        """Which classes are in each new image's set, bool (M, C).

        A class is in the set unless its score, by the fit without an image, is above the image's
        own for (1 − α) (N + 1) images or more (Y. Romano et al., 2020).
        """
        without = self.without
        above = torch.zeros(len(features), without.targets.shape[1], dtype=torch.float64)
        for rows, logits in without.logits(features, zero_shot):
            ordered = without.scores[rows].sort().values
            above += torch.searchsorted(ordered, -logits.log_softmax(1).contiguous()).double()
        return above < self.coverage * (self.images + 1) - 1e-9


Sets = PredictionSets | PlusSets
