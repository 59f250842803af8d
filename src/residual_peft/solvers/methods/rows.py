"""Training images as methods take them: what they read of them, and the folds that all share."""

from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ...classifiers.class_means import class_means_of
from ...classifiers.heads.images import duplicate_groups
from ...classifiers.heads.left_out import stratified_folds
from ...classifiers.trained_head import Features, embedding_features
from ...classifiers.zero_shot import ZeroShotClassifier
from ...data.groups import linked_groups
from ...errors import ResiDualError
from ...tuner import ReadoutState
from ..coordinates import Coordinates

FOLDS = 5
WITHOUT_TEXTS = (
    "wanted classes that are texts for {}, got means of training images: take another method."
)


@dataclass(frozen=True)
class Rows:
    """Training images as methods take them."""

    # class embeddings and scale; its model has the adapter of the coordinates
    classifier: ZeroShotClassifier
    data: Coordinates  # N images' readouts, labels and coordinates, in memory
    # the texts' logits z (N, C); where classes are means of these images, those of means without
    # the image's fold
    zero_shot: Tensor
    # (N,), images of one number are left out together. Copies of one picture are in any case: what
    # is said of one that was left out would be too good.
    groups: Tensor | None = None
    class_weights: Tensor | None = None  # what an image of each class counts (C,)
    # of each image (N,), the same for all methods; None where there are no two images of any class,
    # so that nothing can be left out
    fold: Tensor | None = None
    copies: int = 0  # how many images are copies of others
    means: bool = False  # whether the classifier's classes are the means of these images
    # whether a ridge is to be fitted to labels alone, so that sums give it; else to what the text
    # leaves of them where that is better
    by_labels: bool = False

    @classmethod
    def of(
        cls,
        classifier: ZeroShotClassifier,
        data: Coordinates,
        *,
        means: bool = False,
        groups: Tensor | None = None,
        class_weights: Tensor | None = None,
        by_labels: bool = False,
    ) -> "Rows":
        """Rows with their folds; the arguments are the fields of their names."""
        classifier.check_labels(data.labels)
        same = duplicate_groups(data.readout)
        copies = len(same) - len(same.unique())
        if groups is not None and copies:  # which are in the groups of all of them
            groups = torch.from_numpy(linked_groups(same.numpy(), groups.numpy()))[same]
        elif copies:
            groups = same
        fold = stratified_folds(data.labels, folds=FOLDS, groups=groups)
        with torch.no_grad():
            zero_shot = classifier.logits(data.readout).cpu()
        if means and fold is not None:
            zero_shot = _without_own_fold(classifier, data, fold)
        return cls(
            classifier, data, zero_shot, groups, class_weights, fold, copies, means, by_labels
        )

    @property
    def class_count(self) -> int:
        """C."""
        return len(self.classifier.class_names)

    @property
    def labels(self) -> Tensor:
        """(N,), or zeros and ones (N, C)."""
        return self.data.labels

    @property
    def options(self) -> dict[str, Any]:
        """What fits of class heads take beside features, labels and how many classes there are."""
        return {
            "zero_shot": self.zero_shot,
            "groups": self.groups,
            "class_weights": self.class_weights,
        }

    def features(self, features: Features, kinds: tuple[str, ...] = ()) -> Tensor:
        """What a head reads of the images: (N, d), or (N, K) of units of some kinds."""
        if features == "embedding":
            return embedding_features(self.data.readout)
        return self.data.coordinates[:, self.columns(kinds)] if kinds else self.data.coordinates

    def columns(self, kinds: tuple[str, ...] = ()) -> Tensor:
        """Which components are of units of some kinds; all when empty."""
        return columns_of(self.data.state, kinds)

    def check_texts(self, what: str) -> None:
        """Raise a ResiDualError where classes are means of the images, and `what` is for texts."""
        if self.means:
            raise ResiDualError(WITHOUT_TEXTS.format(what))

    def some(self, index: Tensor) -> "Rows":
        """Some of the images; folds are cut anew."""
        groups = None if self.groups is None else self.groups[index]
        data = self.data.rows(index)
        fold = stratified_folds(data.labels, folds=FOLDS, groups=groups)
        return replace(self, data=data, zero_shot=self.zero_shot[index], groups=groups, fold=fold)

    def classifier_without(self, number: int) -> ZeroShotClassifier:
        """That of fits which are not to see a fold: class means are those of the other images."""
        if self.fold is None:
            raise ResiDualError("wanted a fold to leave out, but no class has a second image.")
        if not self.means:
            return self.classifier
        found = copy(self.classifier)
        means = _means_without(self.classifier, self.data, self.fold == number)
        found.class_embeddings = means.to(self.classifier.class_embeddings)
        return found


def columns_of(state: ReadoutState, kinds: tuple[str, ...] = ()) -> Tensor:
    """Which components are of units of some kinds; all when empty."""
    inside = [not kinds or unit.kind in kinds for unit in state.settings.units]
    return torch.tensor(inside).repeat_interleave(torch.tensor(state.counts)).nonzero().flatten()


def _without_own_fold(classifier: ZeroShotClassifier, data: Coordinates, fold: Tensor) -> Tensor:
    """z of class means that have not seen the image's fold (N, C)."""
    found = torch.zeros(len(data), len(classifier.class_names))
    unit = functional.normalize(data.readout.float(), dim=1)
    for number in fold.unique().tolist():
        outside = fold == number
        means = _means_without(classifier, data, outside)
        found[outside] = classifier.logit_scale * unit[outside] @ means.T
    return found


def _means_without(classifier: ZeroShotClassifier, data: Coordinates, outside: Tensor) -> Tensor:
    """Class means of the other images (C, d); a class that has none there keeps what it was."""
    inside = ~outside
    present = data.labels[inside].unique()
    names = [classifier.class_names[label] for label in present.tolist()]
    labels = torch.searchsorted(present, data.labels[inside])
    means = classifier.class_embeddings.cpu().float().clone()
    means[present] = class_means_of(data.readout[inside], labels, names).float()
    return means
