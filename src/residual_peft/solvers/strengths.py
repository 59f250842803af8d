"""How strong the ridge should be, by held-out images; subsets of few images per class."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..classifiers.zero_shot import ZeroShotClassifier
from ..data.labels import ONE_LABEL
from ..errors import ResiDualError
from .common import bias_for, target_and_start
from .coordinates import Coordinates
from .objectives import GainProblem, Objective
from .quasi_newton import lbfgs
from .store import CoordinateStore

STRENGTHS = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 1e-5, 1e-6)
ENOUGH = 500
"""Validation images that tell two strengths apart.

The accuracy on fewer is off by two points and more by chance alone (a standard error of
0.5 / √500), and nothing follows from which end of the path wins.
"""


@dataclass(frozen=True)
class StrengthPath:
    """Held-out accuracy and loss along strengths of the ridge.

    Attributes:
        strengths: from strong to weak (S,).
        accuracy: by fold (F, S); for loss="sigmoid" the mean average precision.
        loss: the objective's loss on the held-out images, without the ridge (F, S).
    """

    strengths: tuple[float, ...]
    accuracy: Tensor
    loss: Tensor

    @property
    def best(self) -> float:
        """The strength with the best mean accuracy; of equals the one with the lowest loss."""
        accuracy, loss = self.accuracy.mean(0).tolist(), self.loss.mean(0).tolist()
        return self.strengths[max(range(len(loss)), key=lambda i: (accuracy[i], -loss[i]))]


def strength_note(strength: float | None, images: int) -> str | None:
    """What to say where the chosen strength is the first or last of the path; None where nothing.

    It is chosen on folds of so many images that were fitted on. Fewer than `ENOUGH` tell two
    strengths apart by chance alone, so that nothing follows from which end won.
    """
    if strength not in (max(STRENGTHS), min(STRENGTHS)) or images < ENOUGH:
        return None
    which = "strongest" if strength == max(STRENGTHS) else "weakest"
    return (
        f"of the forces tried that hold the gains near 1, the {which} did best on {images:,} "
        f"left-out images, enough to tell: a {which[:-3] + 'er'} one may do better still (in "
        "Python, strength_path(..., strengths=...) tries others)."
    )


def strength_path(
    classifier: ZeroShotClassifier,
    train: Coordinates | CoordinateStore,
    validation: Coordinates | CoordinateStore | None = None,
    *,
    objective: Objective | None = None,
    strengths: Sequence[float] = STRENGTHS,
    folds: int = 5,
    tolerance: float = 1e-3,
    max_iterations: int = 100,
    adapter_name: str | None = None,
    progress: bool = False,
) -> StrengthPath:
    """Try strengths of the ridge from strong to weak, each from the last one's gains.

    The images are not seen again, and the adapter's gains stay as they are.

    Args:
        classifier: as for `solve_gains`, as all that is not named here.
        train: coordinates to fit, in memory or on disk.
        validation: held-out coordinates, likewise; without, `train` is cross-validated.
        objective: what is minimized, but for its strength; the linear one when None, with the loss
            that the classifier's labels need.
        strengths: to try.
        folds: of the cross-validation, stratified by class, the same in every run.
        tolerance: of each fit; coarser than the last one's will do.

    Raises:
        ResiDualError: as `fit_gains`; no strengths; fewer images of a class than folds.
    """
    if objective is None:
        objective = Objective(normalized=False, loss=classifier.labelling.loss_name)
    if not strengths:
        raise ResiDualError("wanted strengths of the ridge to try, got none.")
    _, own = target_and_start(classifier, (train, validation), None, adapter_name)
    start = torch.full_like(own, train.state.gains.start)
    tried = tuple(sorted(strengths, reverse=True))
    pairs: list[tuple[Any, Any]] = (
        [(train, validation)] if validation is not None else _folds(train, objective, folds)
    )
    results: list[list[tuple[float, float]]] = []
    with tqdm(
        total=len(pairs) * len(tried), desc="Choosing the ridge", disable=not progress
    ) as bar:
        for inside, outside in pairs:
            problem = GainProblem(classifier, inside, objective)
            gains, bias = start, bias_for(classifier, problem, start)
            # its own loss on what it has not seen; classes are weighted as where it was fitted
            bare = replace(objective, strength=0.0, class_weights=None)
            held_out = GainProblem(classifier, outside, bare)
            results.append([])
            for strength in tried:
                this = problem.with_strength(strength)
                gains, bias, _ = lbfgs(this, gains, bias, tolerance, max_iterations, False)
                loss, _, _ = held_out.value_and_gradient(gains, bias)
                score = objective.labelling.score(held_out.logits(gains), outside.labels)
                results[-1].append((score, loss))
                bar.update()
    accuracy, losses = torch.tensor(results).unbind(2)
    return StrengthPath(tried, accuracy, losses)


def _folds(
    rows: Coordinates | CoordinateStore, objective: Objective, folds: int
) -> list[tuple[Any, Any]]:
    """Pairs of what is fitted and what is held out."""
    labels = rows.labels.cpu().numpy()
    if folds < 2:
        raise ResiDualError(
            f"wanted at least two folds, got folds={folds}; give validation images instead."
        )
    splits, device = objective.labelling.folds(labels, folds), rows.labels.device
    return [
        (rows.rows(torch.from_numpy(a).to(device)), rows.rows(torch.from_numpy(b).to(device)))
        for a, b in splits
    ]


def few_shot(rows: Any, shots: int, seed: int = 0) -> Any:
    """So many images of each class, of `Coordinates` or `Readouts`, drawn at random.

    Raises:
        ResiDualError: a class has fewer, or images have several labels.
    """
    ONE_LABEL.check(rows.labels, int(rows.labels.max()) + 1)
    generator, chosen = torch.Generator().manual_seed(seed), []
    for label in rows.labels.unique():
        index = (rows.labels == label).nonzero().flatten().cpu()
        if not 1 <= shots <= len(index):
            raise ResiDualError(
                f"wanted {shots} images per class, class {int(label)} has {len(index)}."
            )
        chosen.append(index[torch.randperm(len(index), generator=generator)[:shots]])
    return rows.rows(torch.cat(chosen).sort().values.to(rows.labels.device))
