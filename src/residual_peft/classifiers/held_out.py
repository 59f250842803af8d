"""Scores of images that a classifier's fit did not see, and what they are the scores of."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import updating
from .adapters import Adapters

if TYPE_CHECKING:
    from .headed import HeadedClassifier


@dataclass(frozen=True)
class HeldOut:
    """What sets of classes are calibrated by."""

    scores: Tensor  # −log p of the right class of images that no fit saw, sorted (n,)
    digest: str  # `answers_digest` of the classifier that said so


def answers_digest(classifier: "HeadedClassifier") -> str:
    """The sha256 of what a classifier's answers hang on: classes, head, active adapters and bases.

    The base model's own weights are taken for granted: nothing here changes them.
    """
    scale = torch.tensor([classifier.logit_scale, classifier.logit_bias])
    state = {"class_embeddings": classifier.class_embeddings, "scale": scale}
    if classifier.head is not None:
        state |= classifier.head.tensors()
    active = set(Adapters.of(classifier.model).active)
    model = classifier.model
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if active.intersection(name.split(".")):
            state[name] = tensor
    return updating.head_digest(state)
