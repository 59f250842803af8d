"""Every method of a bench behind one call: training rows in, answers for other images out.

`solvers.methods` as they are, and the field's methods on frozen features, each on the embedding
and on coordinates. All choose what they choose on left-out training images: on the same folds, or,
where leaving out has a closed form, each image by itself. Copies of one picture are left out
together, but for the discriminants, which leave out single images alone.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...classifiers.heads.discriminant import fit_discriminant
from ...classifiers.heads.gaussian import fit_gaussian
from ...classifiers.heads.lp_plus import fit_lp_plus
from ...classifiers.heads.nearest import fit_means, fit_neighbours
from ...classifiers.heads.projection import Projection, fit_projection
from ...classifiers.heads.proker import fit_proker
from ...classifiers.heads.tip_adapter import fit_tip_adapter, fit_tip_adapter_f
from ...classifiers.trained_head import embedding_features
from ...classifiers.zero_shot import ZeroShotClassifier
from ...errors import ResiDualError
from ...solvers.coordinates import Coordinates
from ...solvers.methods import METHODS, Outcome, Rows
from ...towers.registry import base_model
from .pixels import Images

BYTES = 4
"""Of a number as adapters are saved, in float32."""
STRENGTHS = (10.0, 1.0, 0.1, 1e-2, 1e-3, 1e-4)
"""Of ProLIP's penalty and the linear map's, chosen on left-out folds."""
POWER = 0.5
"""Coordinates are divided by this power of their deviations, as the ridge's."""


@dataclass(frozen=True)
class Fitted:
    """What a fit came to."""

    logits: Callable[[Coordinates], Tensor]  # other images -> (M, C) for the classes of the fit
    trained: int  # numbers trained, or kept by methods that keep images
    bytes: int  # what predicting needs beside the model and the texts, in float32
    # other images -> embeddings (M, d), where the method changes those; any text can then be
    # compared with them
    adapted: Callable[[Coordinates], Tensor] | None = None
    # pictures -> readouts (M, d), where the method changed the tower itself: `logits` and `adapted`
    # then want these in place of the tower's own
    encode: Callable[[Images], Tensor] | None = None
    # t -> what the method comes to so far on its way from zero-shot to its fit
    curve: "Mapping[float, Fitted]" = field(default_factory=dict)
    notes: tuple[str, ...] = ()  # what to know of the fit

    def encoded(self, data: Coordinates, images: Images) -> Coordinates:
        """Other images as `logits` and `adapted` want them, from their pictures where need be."""
        return data if self.encode is None else replace(data, readout=self.encode(images))


Fit = Callable[[Rows], Fitted]
View = Callable[[Coordinates], Coordinates]


def as_they_are(data: Coordinates) -> Coordinates:
    """The coordinates of the one adapter that all methods share."""
    return data


def of_outcome(rows: Rows, outcome: Outcome, view: View = as_they_are) -> Fitted:
    """What a method of `solvers.methods` came to; `view` gives the coordinates that it is of."""
    gains, kept = outcome.gains, (outcome.head, outcome.gains, outcome.embeddings)
    return Fitted(
        lambda data: outcome.logits(rows.classifier, view(data)),
        outcome.parameter_count,
        sum(map(bytes_of, kept)),
        None if gains is None else lambda data: view(data).adapted(gains),
        notes=outcome.notes,
    )


def _of_method(name: str) -> Fit:
    return lambda rows: of_outcome(rows, METHODS[name].run(rows))


def _on_features(
    fit: Callable[..., Any], coordinates: bool, grouped: bool = True, **options: Any
) -> Fit:
    """A method of `classifiers.heads` on one kind of features; whether it leaves out groups."""

    def values(data: Coordinates) -> Tensor:
        return data.coordinates if coordinates else embedding_features(data.readout)

    def fitted(rows: Rows) -> Fitted:
        given = options | {"zero_shot": rows.zero_shot}
        given |= {"groups": rows.groups} if grouped else {}
        found = fit(values(rows.data), rows.labels, rows.class_count, **given)
        scorer = getattr(found, "head", found)

        def logits(data: Coordinates) -> Tensor:
            return scorer.logits(values(data), rows.classifier.logits(data.readout).cpu())

        inner = getattr(scorer, "scorer", scorer)
        return Fitted(logits, scorer.parameter_count, bytes_of(inner))

    return fitted


def _linear_map(rows: Rows) -> Fitted:
    """A map of the embedding, held to the identity; `map-embedding` is it without cosines."""
    return _moved(rows, lambda data: embedding_features(data.readout).double(), None)


def _prolip(rows: Rows) -> Fitted:
    """The visual projection fitted again, on the features before it.

    Raises:
        ResiDualError: the model's readout does not tell those features.
    """
    projection = getattr(base_model(rows.classifier.model), "visual_projection", None)
    weight = getattr(projection, "weight", torch.empty(0, 1)).detach().cpu().double()
    if weight.shape[0] < weight.shape[1] or getattr(projection, "bias", None) is not None:
        raise ResiDualError(
            "wanted a visual projection that can be undone, since one pass keeps what is behind "
            f"it, got {tuple(weight.shape) if weight.numel() else 'none'}: leave 'prolip' out; "
            "'linear-map' is the same on the embedding."
        )
    back = torch.linalg.pinv(weight).mT
    return _moved(rows, lambda data: data.readout.double() @ back, weight)


def _moved(rows: Rows, before: Callable[[Coordinates], Tensor], start: Tensor | None) -> Fitted:
    rows.check_texts("a map that is held to where it starts")
    found = fit_projection(
        before(rows.data),
        rows.labels,
        rows.classifier.class_embeddings,
        start=start,
        logit_scale=rows.classifier.logit_scale,
        strengths=STRENGTHS,
        groups=rows.groups,
    )
    scorer = found.scorer
    assert isinstance(scorer, Projection)
    return Fitted(
        lambda data: found.logits(before(data)),
        scorer.parameter_count,
        BYTES * scorer.matrix.numel(),
        lambda data: (before(data) @ scorer.matrix.mT).float(),
    )


_RIVALS: dict[str, Callable[..., Any]] = {
    "means": fit_means,
    "knn": fit_neighbours,
    "lp++": fit_lp_plus,
    "tip-adapter": fit_tip_adapter,
    "tip-adapter-f": fit_tip_adapter_f,
    "gda": fit_gaussian,
    "proker": fit_proker,
}
FITS: dict[str, Fit] = {
    **{name: _of_method(name) for name in METHODS},
    "discriminant-coordinates": _on_features(fit_discriminant, True, grouped=False),
    **{f"{name}-embedding": _on_features(fit, False) for name, fit in _RIVALS.items()},
    **{name: _on_features(fit, True, power=POWER) for name, fit in _RIVALS.items()},
    "linear-map": _linear_map,
    "prolip": _prolip,
}
"""By name, in the order of a table. As with `METHODS`, a name without "-embedding" is on
coordinates, but for `discriminant`, `linear-map` and `prolip`."""


def text_logits(classifier: ZeroShotClassifier, readout: Tensor) -> Tensor:
    """Cosines with a classifier's texts, scaled (M, C)."""
    return classifier.logits(readout).detach().cpu()


def bytes_of(value: Any) -> int:
    """What the tensors in a value take in float32, however deep they lie."""
    if isinstance(value, Tensor):
        return BYTES * value.numel()
    if is_dataclass(value):
        return sum(bytes_of(getattr(value, each.name)) for each in fields(value))
    return 0
