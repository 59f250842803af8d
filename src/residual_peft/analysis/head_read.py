"""The class head that an explanation is of, and what it reads of images."""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from ..classifiers.heads.head import ClassHead
from ..classifiers.zero_shot import ZeroShotClassifier
from ..errors import ResiDualError
from ..solvers.coordinates import Coordinates
from ..solvers.store import CoordinateStore
from ..tuner import gains_of


def explained_head(classifier: ZeroShotClassifier) -> ClassHead:
    """The class head, in float64 on the CPU.

    Raises:
        ResiDualError: there is none, or it reads the embedding, which is no sum over components.
    """
    trained = classifier.head
    if trained is None:
        raise ResiDualError(
            "wanted a classifier with a class head, got one of texts and gains: `explain_adapter` "
            "says what gains did."
        )
    if trained.features != "coordinates":
        raise ResiDualError(
            "the class head reads the embedding as a whole, so what it says does not divide among "
            "heads and MLPs; fit one on the coordinates (method='ridge') to see where it looks."
        )
    return trained.head.to("cpu").to(torch.float64)


def text_of(classifier: ZeroShotClassifier, part: Coordinates, head: ClassHead) -> Tensor:
    """a z, what the texts add to the logits (n, C), float64; zeros where they have no weight."""
    if not head.text_weight:
        return torch.zeros(len(part), head.class_count, dtype=torch.float64)
    exact = replace(
        part,
        readout=part.readout.double(),
        coordinates=part.coordinates.double(),
        state=part.state.map(lambda t: t.double() if t.is_floating_point() else t),
    )
    with torch.no_grad():
        adapted = exact.adapted(gains_of(classifier.model).detach().cpu().double())
        weights = classifier.class_embeddings[: head.class_count].cpu().double()
        z = classifier.logit_scale * functional.normalize(adapted, dim=1) @ weights.mT
    return head.text_weight * z


def check_rows(rows: Coordinates | CoordinateStore, head: ClassHead) -> None:
    """Raise a ResiDualError where coordinates are not what a head reads."""
    columns = sum(rows.state.counts)
    if columns != len(head.mean):
        raise ResiDualError(
            f"the class head reads {len(head.mean)} coordinates, these are {columns} of another "
            "basis or other units; collect them anew with collect_coordinates."
        )
