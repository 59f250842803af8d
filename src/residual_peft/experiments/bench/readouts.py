"""Methods that train gains or a map of the readout, from the coordinates of one pass.

The paper's (`method.md`, section 3), our default its way, and bases that suit the classes. Their
adapters have other directions than the one that the coordinates are of: see `others`.
"""

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from schedulefree import AdamWScheduleFree
from torch import Tensor, nn
from torch.nn import functional

from ...bases.basis import SpectralBasis
from ...bases.spectra import spectrum
from ...classifiers.heads.calibrating import calibrate
from ...classifiers.zero_shot import ZeroShotClassifier
from ...solvers.coordinates import Coordinates
from ...solvers.methods import METHODS, Outcome, Rows
from ...towers.units import Unit
from ...tuner import ResiDualConfig, adapter_basis, gains_of
from .descent import Training, train
from .fits import BYTES, Fitted, View, as_they_are, of_outcome, text_logits
from .others import another_adapter

GAIN_RATES = (0.2, 0.8, 3.0)
"""Around the paper's."""
LINEAR_RATES = (1e-3, 1e-2, 3e-2)
"""The paper's is the first, on far more images."""
LINE = tuple(step / 10 for step in range(11))
Basis = Callable[[Rows], SpectralBasis | None]


class Stepwise:
    """Parameters that change coordinates or readouts, trained by schedule-free AdamW."""

    scheduled = False

    def __init__(
        self,
        classifier: ZeroShotClassifier,
        data: Coordinates,
        start: dict[str, Tensor],
        adapted: Callable[[dict[str, Any], Coordinates], Tensor],
    ) -> None:
        self.classifier, self.data = copy(classifier), data
        self.start, self.adapted = start, adapted
        self.parameters: dict[str, nn.Parameter] = {}
        self.optimizer: Any = None

    def begin(self, rate: float, steps: int) -> None:
        """From the start again; without a schedule, there is no need to know the steps."""
        self.parameters = {name: nn.Parameter(value.clone()) for name, value in self.start.items()}
        self.optimizer = AdamWScheduleFree(self.parameters.values(), lr=rate)

    def epoch(self, places: Tensor, size: int) -> None:
        """On the classifier's own loss."""
        self.optimizer.train()
        for part in places.split(size):
            rows = self.data.rows(part)
            self.optimizer.zero_grad()
            self.classifier.loss(self.adapted(self.parameters, rows), rows.labels).backward()
            self.optimizer.step()

    @torch.no_grad()
    def logits(self, places: Tensor) -> Tensor:
        """At the averaged parameters."""
        return self.classifier.logits(self.apply(self.data.rows(places))).cpu()

    @torch.no_grad()
    def apply(self, data: Coordinates) -> Tensor:
        """Changed readouts (n, d)."""
        self.optimizer.eval()
        return self.adapted(self.parameters, data)

    def trained(
        self, training: Training, rates: Sequence[float], view: View = as_they_are
    ) -> Fitted:
        """What it comes to, as every method; `view` gives other images' coordinates as `data`'s."""
        choice = train(self, training, rates)
        count = sum(value.numel() for value in self.start.values())
        return Fitted(
            lambda data: text_logits(self.classifier, self.apply(view(data))),
            count,
            BYTES * count,
            lambda data: self.apply(view(data)),
            notes=(choice.note,),
        )


def stepwise_gains(
    training: Training, config: ResiDualConfig | None = None, basis: Basis = lambda rows: None
) -> Fitted:
    """Gains by schedule-free AdamW on the classifier's own texts; our default's without a config.

    The seed is of the start, where it is drawn, and of the order of the images; the adapter's basis
    is the model's weights' where `basis` gives None of the training images.
    """
    rows = training.rows
    view: View = as_they_are
    start = torch.ones_like(gains_of(rows.classifier.model).detach().cpu())
    if config is not None:
        with another_adapter(rows, replace(config, seed=training.seed), basis(rows)) as view:
            start = gains_of(rows.classifier.model).detach().cpu().clone()
    learner = Stepwise(
        rows.classifier,
        view(training.learned.data),
        {"gains": start},
        lambda found, some: some.adapted(found["gains"]),
    )
    return learner.trained(training, GAIN_RATES, view)


def own_basis(rows: Rows) -> SpectralBasis:
    """What the coordinates are of."""
    return adapter_basis(rows.classifier.model)


def output_basis(rows: Rows) -> SpectralBasis | None:
    """Of the readout: from the weights where the other units' are, else of the training images."""
    basis = own_basis(rows)
    if basis.source == "weights":
        return None
    values = rows.data.readout.double()
    mean = values.mean(0)
    found = spectrum(mean, (values - mean).mT @ (values - mean) / len(values), None, len(values))
    return replace(
        basis,
        units=(Unit("output"),),
        means=found.mean[None],
        components=[found.components],
        eigenvalues=[found.eigenvalues],
        total_variance=found.total_variance[None],
        num_samples=len(values),
    )


def text_basis(rows: Rows) -> SpectralBasis:
    """Each unit's directions turned towards the classes: an SVD of these within its span.

    With Φ (k, d) the unit's and W (C, d) the class embeddings, W Φᵀ = U S Vᵀ, the new directions
    are Vᵀ Φ, at most C of them; what lies across them is no class's and stays as it is.
    """
    basis, classes = own_basis(rows), rows.classifier.class_embeddings.detach().cpu().double()
    components, eigenvalues = [], []
    for directions in basis.components:
        frame = directions.double()
        _, singular, right = torch.linalg.svd(classes @ frame.mT, full_matrices=False)
        keep = singular > singular[0] * max(right.shape) * torch.finfo(singular.dtype).eps
        components.append((right[keep] @ frame).to(directions.dtype))
        eigenvalues.append(singular[keep].square().to(directions.dtype))
    total = torch.stack([values.sum() for values in eigenvalues])
    return replace(
        basis,
        components=components,
        eigenvalues=eigenvalues,
        total_variance=total,
        num_samples=None,  # as many as there are classes: images do not limit them
    )


def text_aligned(training: Training) -> Fitted:
    """Gains as our default fits them, on directions that are the classes' own.

    Raises:
        ResiDualError: classes that are means of the images.
    """
    rows = training.rows
    rows.check_texts("directions that are the classes' own")
    with another_adapter(rows, ResiDualConfig(), text_basis(rows)) as other:
        outcome = METHODS["gains"].run(replace(rows, data=other(rows.data)))
    return of_outcome(rows, outcome, other)


def interpolated(training: Training) -> Fitted:
    """Our default's gains on the line from 1 to where they were fitted, 1 + t (λ − 1).

    As WiSE-FT does with weights (Wortsman et al., 2022); t, and how sure the logits are there, by
    what gains that were fitted without the held-out images say of them. Other points of the curve
    are as sure as the whole fit.
    """
    method, share, notes = METHODS["gains"], 1.0, ("t 1: not chosen, as none was held out.",)
    rows, held = training.rows, training.held_out()
    outcome = method.run(rows)
    scale = outcome.logit_scale
    if held is not None:
        without, data = outcome, training.learned.data.rows(held.outside)
        if len(held.inside) < len(rows.labels):
            without = method.run(replace(rows.some(held.inside), classifier=held.classifier))
        ones = torch.ones(len(data.labels), dtype=torch.float64)
        said = {
            t: calibrate(_at(without, t).logits(held.classifier, data).double(), data.labels, ones)
            for t in LINE
        }
        share = min(LINE, key=lambda t: said[t].loss)
        if without.logit_scale is not None:
            scale = without.logit_scale * said[share].temperature
        notes = (f"t {share:g}: {held.chosen}.",)

    curve = {t: of_outcome(rows, _at(outcome, t)) for t in LINE}
    chosen = of_outcome(rows, replace(_at(outcome, share), logit_scale=scale))
    return replace(chosen, notes=(*outcome.notes, *notes), curve=curve)


def _at(outcome: Outcome, t: float) -> Outcome:
    assert outcome.gains is not None
    return replace(outcome, gains=1 + t * (outcome.gains - 1))


def linear(training: Training) -> Fitted:
    """The paper's "Lin": y' = A y + a from the identity, without a penalty."""
    data = training.learned.data
    width = data.readout.shape[1]
    learner = Stepwise(
        training.rows.classifier,
        data,
        {"weight": torch.eye(width), "bias": torch.zeros(width)},
        lambda found, some: functional.linear(some.readout.float(), found["weight"], found["bias"]),
    )
    return learner.trained(training, LINEAR_RATES)


def _paper(name: str, basis: Basis) -> Callable[[Training], Fitted]:
    return partial(stepwise_gains, config=ResiDualConfig.paper(name), basis=basis)


READOUTS: dict[str, Callable[[Training], Fitted]] = {
    "gains-adamw": stepwise_gains,
    "gains-interpolated": interpolated,
    "gains-text-basis": text_aligned,
    "residual": _paper("residual", own_basis),
    "residual-star": _paper("residual_star", own_basis),
    "coarse": _paper("coarse", lambda rows: None),
    "rd-y": _paper("rd_y", output_basis),
    "lin": linear,
}
"""By name, in the order of a table."""
