"""Gains fitted from coordinates, in seconds: schedule-free AdamW, or L-BFGS to a certified optimum.

Both minimize one `Objective`. The first is the paper's and the Trainer's, in random batches with
the epoch chosen on held-out images; the second takes all images at once, needs no seed, and reports
the norm of the gradient that it leaves.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from schedulefree import AdamWScheduleFree
from scipy.optimize import minimize
from sklearn.model_selection import StratifiedKFold
from torch import Tensor, nn
from torch.nn import functional
from tqdm.auto import tqdm

from .blas import one_thread_in_scipy
from .coordinates import Coordinates, Readouts
from .data import iterative_folds
from .errors import ResiDualError
from .metrics import accuracy, mean_average_precision
from .objectives import GainProblem, Objective
from .predictions import best_bias
from .store import CoordinateStore
from .training import BATCH_SIZE, EPOCHS, LEARNING_RATE, PATIENCE
from .tuner import gains_of
from .zero_shot import ZeroShotClassifier

LINEAR_LEARNING_RATE = 1e-3  # the paper's, for its linear baseline
STRENGTHS = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 1e-5, 1e-6)
_HISTORY = 20  # pairs that L-BFGS keeps: 40 vectors of K numbers


@dataclass(frozen=True)
class Fit:
    """What training left.

    Attributes:
        parameters: the fitted tensors: `gains`, or `weight` (d, d) and `bias` (d,); with
            loss="sigmoid" `logit_bias` (), too: that of the objective's own logits.
        history: per epoch (AdamW) `epoch`, `loss` (mean over its steps) and, with validation data,
            `accuracy`; per iteration (L-BFGS) `epoch`, `loss` and `gradient_norm`.
        best_epoch: whose parameters these are, counted from 1; 0 where the start was never
            bettered.
        accuracy: on the validation data at that epoch; None without. With loss="sigmoid" the mean
            over classes of the average precision.
        seconds: how long it took.
        gradient_norm: the certificate: the Euclidean norm of the objective's gradient at the gains;
            None for AdamW.
    """

    parameters: dict[str, Tensor]
    history: list[dict[str, float]]
    best_epoch: int
    accuracy: float | None
    seconds: float
    gradient_norm: float | None = None

    @property
    def gains(self) -> Tensor:
        """The fitted gains."""
        return self.parameters["gains"]


def fit_gains(
    classifier: ZeroShotClassifier,
    train: Coordinates | CoordinateStore,
    validation: Coordinates | None = None,
    *,
    objective: Objective | None = None,
    start: Tensor | None = None,
    adapter_name: str | None = None,
    learning_rate: float = LEARNING_RATE,
    batch_size: int = BATCH_SIZE,
    epochs: int = EPOCHS,
    patience: int | None = PATIENCE,
    seed: int = 0,
    progress: bool = False,
) -> Fit:
    """Fit an adapter's gains as the Trainer would, from coordinates, and write them into it.

    Schedule-free AdamW (`method.md`, section 4), on the classifier's cross-entropy unless told
    otherwise. With validation data, the gains of the epoch with the best accuracy are taken, the
    first of equals; the start counts as one of them. With loss="sigmoid" the classifier becomes one
    for several labels per image and gets its `logit_bias`.

    Args:
        classifier: its model has the adapter that the coordinates are of.
        train: coordinates to fit, in memory or on disk.
        validation: coordinates to choose the epoch by; without, the last epoch's gains are taken.
        objective: what is minimized; cross-entropy without a ridge when None, binary where the
            classifier is for several labels.
        start: gains to start at; the adapter's own when None.
        adapter_name: None for the active adapter.
        learning_rate: of schedule-free AdamW.
        batch_size: images per step.
        epochs: at most.
        patience: epochs without a better accuracy before it stops; None never.
        seed: of the order of the images.
        progress: whether to show a bar.

    Raises:
        ResiDualError: coordinates of another adapter, or labels that do not suit the classes.
    """
    objective = Objective(loss=_loss_for(classifier)) if objective is None else objective
    target, start = _target_and_start(classifier, (train, validation), start, adapter_name)
    for part in (train, validation):
        if part is not None:
            objective.check_labels(part.labels, classifier)
    device = train.labels.device
    parameters = {"gains": nn.Parameter(start.to(device, target.dtype).clone())}
    if objective.multi_label:
        bias = _first_bias(classifier, train, objective, start)
        parameters["logit_bias"] = nn.Parameter(torch.tensor(bias, device=device))
    fit = _fit(
        classifier,
        parameters,
        lambda rows: rows.adapted(parameters["gains"]),
        train,
        validation,
        _Settings(learning_rate, batch_size, epochs, patience, seed, progress),
        _Loss(classifier, train, objective, parameters),
    )
    with torch.no_grad():
        target.copy_(fit.gains)
    if objective.multi_label:
        _set_labels(classifier, train, objective, fit.parameters)
    return fit


def solve_gains(
    classifier: ZeroShotClassifier,
    train: Coordinates | CoordinateStore,
    validation: Coordinates | None = None,
    *,
    objective: Objective | None = None,
    start: Tensor | None = None,
    adapter_name: str | None = None,
    tolerance: float = 1e-5,
    max_iterations: int = 500,
    dtype: torch.dtype | None = None,
    progress: bool = False,
) -> Fit:
    """Fit an adapter's gains by L-BFGS on all images at once, and write them into it.

    Draws nothing at random. With `Objective(normalized=False, strength=...)` there is one optimum,
    wherever it starts and whichever machine it runs on. With loss="sigmoid" the classifier becomes
    one for several labels per image and gets the `logit_bias` that suits its normalized logits.

    Args:
        classifier: its model has the adapter that the coordinates are of.
        train: coordinates to fit, in memory or on disk.
        validation: coordinates to report the accuracy on.
        objective: what is minimized; the linear one with a ridge of 1e-3 when None, with the loss
            that the classifier's labels need.
        start: gains to start at; ones when None.
        adapter_name: None for the active adapter.
        tolerance: it stops once the gradient's norm is below this.
        max_iterations: at most.
        dtype: of the matrix products; by default float64 for the linear objective, else float32.
        progress: whether to show a bar.

    Raises:
        ResiDualError: as `fit_gains`.
    """
    if objective is None:
        objective = Objective(normalized=False, loss=_loss_for(classifier), strength=1e-3)
    target = gains_of(classifier.model, adapter_name)
    start = torch.ones_like(target) if start is None else start
    target, start = _target_and_start(classifier, (train, validation), start, adapter_name)
    if not tolerance > 0 or max_iterations < 1:
        raise ResiDualError(
            f"wanted a tolerance above 0 and max_iterations of 1 or more, got {tolerance} and "
            f"{max_iterations}."
        )
    started = time.perf_counter()
    dtype = dtype or (torch.float32 if objective.normalized else torch.float64)
    problem = GainProblem(classifier, train, objective, dtype)
    bias = _first_bias(classifier, train, objective, start) if objective.multi_label else 0.0
    gains, bias, history = _lbfgs(problem, start, bias, tolerance, max_iterations, progress)
    parameters = {"gains": gains.to(target.device, target.dtype)}
    if objective.multi_label:
        parameters["logit_bias"] = torch.tensor(bias)
    score = None
    if validation is not None:
        objective.check_labels(validation.labels, classifier)
        with torch.no_grad():
            adapted = validation.adapted(gains.to(validation.readout.device))
            logits = classifier.scaled_cosines(adapted)
        score = _score(logits, validation.labels)
    with torch.no_grad():
        target.copy_(parameters["gains"])
    if objective.multi_label:
        _set_labels(classifier, train, objective, parameters)
    return Fit(
        parameters,
        history,
        int(history[-1]["epoch"]),
        score,
        time.perf_counter() - started,
        history[-1]["gradient_norm"],
    )


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
        order = zip(self.accuracy.mean(0).tolist(), (-self.loss.mean(0)).tolist(), strict=True)
        scores = list(order)
        return self.strengths[max(range(len(scores)), key=scores.__getitem__)]


def strength_path(
    classifier: ZeroShotClassifier,
    train: Coordinates | CoordinateStore,
    validation: Coordinates | None = None,
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
        classifier: as for `solve_gains`.
        train: coordinates to fit, in memory or on disk.
        validation: held-out coordinates; without, `train` is cross-validated.
        objective: what is minimized, but for its strength; the linear one when None, with the loss
            that the classifier's labels need.
        strengths: to try.
        folds: of the cross-validation, stratified by class, the same in every run.
        tolerance: of each fit; coarser than the last one's will do.
        max_iterations: of each fit.
        adapter_name: None for the active adapter.
        progress: whether to show a bar.

    Raises:
        ResiDualError: as `fit_gains`; no strengths; fewer images of a class than folds.
    """
    if objective is None:
        objective = Objective(normalized=False, loss=_loss_for(classifier))
    if not strengths:
        raise ResiDualError("wanted strengths of the ridge to try, got none.")
    ones = torch.ones_like(gains_of(classifier.model, adapter_name))
    _, start = _target_and_start(classifier, (train, validation), ones, adapter_name)
    tried = tuple(sorted(strengths, reverse=True))
    pairs: list[tuple[Any, Coordinates]] = (
        [(train, validation)] if validation is not None else _folds(train, objective, folds)
    )
    scores, losses = [], []
    with tqdm(
        total=len(pairs) * len(tried), desc="Choosing the ridge", disable=not progress
    ) as bar:
        for inside, outside in pairs:
            gains, bias = start, 0.0
            if objective.multi_label:
                bias = _first_bias(classifier, inside, objective, start)
            found: list[tuple[float, float]] = []
            for strength in tried:
                this = replace(objective, strength=strength)
                problem = GainProblem(classifier, inside, this)
                gains, bias, _ = _lbfgs(problem, gains, bias, tolerance, max_iterations, False)
                # its own loss on what it has not seen; classes are weighted as where it was fitted
                held_out = GainProblem(
                    classifier, outside, replace(this, strength=0.0, class_weights=None)
                )
                loss, _, _ = held_out.value_and_gradient(gains, bias)
                found.append((_score(held_out.logits(gains), outside.labels), loss))
                bar.update()
            scores.append([score for score, _ in found])
            losses.append([loss for _, loss in found])
    return StrengthPath(tried, torch.tensor(scores), torch.tensor(losses))


def few_shot(rows: Any, shots: int, seed: int = 0) -> Any:
    """So many images of each class, drawn at random, in their old order.

    Args:
        rows: `Coordinates` or `Readouts`.
        shots: images per class.
        seed: of the draw.

    Raises:
        ResiDualError: a class has fewer, or images have several labels.
    """
    if rows.labels.ndim != 1:
        raise ResiDualError("few_shot draws by class: wanted one class number per image.")
    generator, chosen = torch.Generator().manual_seed(seed), []
    for label in rows.labels.unique():
        index = (rows.labels == label).nonzero().flatten().cpu()
        if not 1 <= shots <= len(index):
            raise ResiDualError(
                f"wanted {shots} images per class, class {int(label)} has {len(index)}."
            )
        chosen.append(index[torch.randperm(len(index), generator=generator)[:shots]])
    return rows.rows(torch.cat(chosen).sort().values.to(rows.labels.device))


def fit_linear(
    classifier: ZeroShotClassifier,
    train: Readouts,
    validation: Readouts | None = None,
    *,
    learning_rate: float = LINEAR_LEARNING_RATE,
    batch_size: int = BATCH_SIZE,
    epochs: int = EPOCHS,
    patience: int | None = PATIENCE,
    seed: int = 0,
    progress: bool = False,
) -> Fit:
    """The paper's linear baseline: y' = A y + a, (d, d) and (d,), from the identity.

    Arguments are those of `fit_gains`; use `linear_readout` to apply the result.
    """
    for part in (train, validation):
        if part is not None:
            classifier.check_labels(part.labels)
    width, dtype = train.readout.shape[1], torch.promote_types(train.readout.dtype, torch.float32)
    weight = nn.Parameter(torch.eye(width, dtype=dtype, device=train.readout.device))
    bias = nn.Parameter(weight.new_zeros(width))
    return _fit(
        classifier,
        {"weight": weight, "bias": bias},
        lambda rows: functional.linear(rows.readout.to(dtype), weight, bias),
        train,
        validation,
        _Settings(learning_rate, batch_size, epochs, patience, seed, progress),
        lambda readout, labels: classifier.loss(readout, labels),
    )


def linear_readout(fit: Fit, readout: Tensor) -> Tensor:
    """A y + a of a linear baseline: (N, d)."""
    weight, bias = fit.parameters["weight"], fit.parameters["bias"]
    return functional.linear(readout.to(weight.device, weight.dtype), weight, bias)


def _target_and_start(
    classifier: ZeroShotClassifier,
    parts: Sequence[Coordinates | CoordinateStore | None],
    start: Tensor | None,
    adapter_name: str | None,
) -> tuple[nn.Parameter, Tensor]:
    """The adapter's gains, and where to start; both checked against the coordinates."""
    target = gains_of(classifier.model, adapter_name)
    for part in parts:
        if part is not None and part.state.num_gains != target.numel():
            raise ResiDualError(
                f"the coordinates are of an adapter with {part.state.num_gains} gains, this one "
                f"has {target.numel()}; collect them anew with collect_coordinates."
            )
    start = target.detach() if start is None else start.detach()
    if start.shape != target.shape:
        raise ResiDualError(
            f"wanted {tuple(target.shape)} gains to start at, got {tuple(start.shape)}."
        )
    return target, start


def _lbfgs(
    problem: GainProblem,
    start: Tensor,
    bias: float,
    tolerance: float,
    max_iterations: int,
    progress: bool,
) -> tuple[Tensor, float, list[dict[str, float]]]:
    """L-BFGS over θ = λ √h, with h an estimate of the curvature; gains, bias and history.

    The bias, where the loss has one, is the last of θ.
    """
    multi, device = problem.objective.multi_label, start.device
    root = problem.curvature().sqrt().cpu().numpy()
    last: dict[str, float] = {}
    history: list[dict[str, float]] = []

    def unpack(theta: Any) -> tuple[Tensor, float]:
        gains = torch.from_numpy(theta[: len(root)] / root).to(problem.directions.device)
        return gains, float(theta[-1]) if multi else 0.0

    def evaluate(theta: Any) -> tuple[float, Any]:
        value, gradient, slope = problem.value_and_gradient(*unpack(theta))
        own = gradient.cpu().numpy()
        norm = float(np.sqrt(own @ own + (slope**2 if multi else 0.0)))
        last.update(loss=value, gradient_norm=norm)
        norms[theta.tobytes()] = (value, norm)
        scaled = own / root
        return value, np.append(scaled, slope) if multi else scaled

    norms: dict[bytes, tuple[float, float]] = {}
    theta = start.detach().double().cpu().numpy() * root
    theta = np.append(theta, bias) if multi else theta
    with tqdm(desc="Fitting", unit="iteration", disable=not progress) as bar:

        def accept(theta: Any) -> None:
            value, norm = norms.get(theta.tobytes(), (last["loss"], last["gradient_norm"]))
            norms.clear()
            history.append({"epoch": len(history) + 1.0, "loss": value, "gradient_norm": norm})
            bar.update()
            bar.set_postfix(loss=f"{value:.4f}", gradient=f"{norm:.1e}")
            if norm < tolerance:
                raise StopIteration

        # its own tests are off: the gradient in λ is what is promised
        options = {"maxiter": max_iterations, "maxfun": 4 * max_iterations, "maxcor": _HISTORY}
        with one_thread_in_scipy():
            result = minimize(
                evaluate,
                theta,
                jac=True,
                method="L-BFGS-B",
                callback=accept,
                options={**options, "ftol": 0.0, "gtol": 0.0},
            )
    gains, bias = unpack(result.x)
    value, gradient, slope = problem.value_and_gradient(gains, bias)
    norm = float((gradient.square().sum() + (slope**2 if multi else 0.0)).sqrt())
    history.append({"epoch": float(len(history)), "loss": value, "gradient_norm": norm})
    return gains.to(device), bias, history


def _first_bias(
    classifier: ZeroShotClassifier,
    rows: Coordinates | CoordinateStore,
    objective: Objective,
    gains: Tensor,
) -> float:
    """The bias of the sigmoid's logits that suits the gains to start at, by bisection."""
    problem = GainProblem(classifier, rows, objective)
    logits = problem.logits(gains.to(problem.directions.device))
    return best_bias(logits, rows.labels, classifier.largest_bias, problem.class_weights)


def _set_labels(
    classifier: ZeroShotClassifier,
    train: Coordinates | CoordinateStore,
    objective: Objective,
    parameters: dict[str, Tensor],
) -> None:
    """Make the classifier one for several labels per image, with the bias of a sigmoid's fit."""
    bias = float(parameters["logit_bias"])
    if not objective.normalized:  # it suits the linear logits, and predictions are normalized
        normalized = replace(objective, normalized=True)
        bias = _first_bias(classifier, train, normalized, parameters["gains"])
    classifier.multi_label, classifier.logit_bias = True, bias


def _loss_for(classifier: ZeroShotClassifier) -> Literal["softmax", "sigmoid"]:
    return "sigmoid" if classifier.multi_label else "softmax"


def _folds(
    rows: Coordinates | CoordinateStore, objective: Objective, folds: int
) -> list[tuple[Any, Coordinates]]:
    """Pairs of what is fitted and what is held out."""
    labels = rows.labels.cpu().numpy()
    several = objective.multi_label
    counts = labels.sum(0) if several else np.unique(labels, return_counts=True)[1]
    if folds < 2 or (not several and counts.min() < folds):
        raise ResiDualError(
            f"wanted at least two folds and as many images of each class, got folds={folds} and "
            f"{int(counts.min())} images of the rarest class; give validation images instead."
        )
    if several:
        fold_of = iterative_folds(labels, folds)
        every = range(folds)
        splits = [(np.flatnonzero(fold_of != f), np.flatnonzero(fold_of == f)) for f in every]
    else:
        splits = list(StratifiedKFold(folds).split(np.zeros(len(rows)), labels))
    device = rows.labels.device
    return [
        (rows.rows(torch.from_numpy(a).to(device)), rows.rows(torch.from_numpy(b).to(device)))
        for a, b in splits
    ]


def _score(logits: Tensor, labels: Tensor) -> float:
    """Accuracy, or with several labels per image the mean average precision."""
    if labels.ndim == 2:
        return mean_average_precision(logits, labels)
    return accuracy(logits, labels)


class _Loss:
    """The objective on a batch of adapted readouts, ridge included."""

    def __init__(
        self,
        classifier: ZeroShotClassifier,
        train: Coordinates | CoordinateStore,
        objective: Objective,
        parameters: dict[str, nn.Parameter],
    ) -> None:
        self.classifier, self.objective, self.parameters = classifier, objective, parameters
        self.classes = len(classifier.class_names)
        self.weights = objective.weights_of(train.labels, self.classes)
        self.length = train.mean_length
        self.ridge = None
        if objective.strength:
            self.ridge = GainProblem(classifier, train, objective).ridge_weights.float()

    def __call__(self, readout: Tensor, labels: Tensor) -> Tensor:
        if self.objective.normalized:
            logits = self.classifier.scaled_cosines(readout)
        else:
            embeddings = self.classifier.class_embeddings.to(readout.device, readout.dtype)
            logits = self.classifier.logit_scale / self.length * readout @ embeddings.T
        bias = self.parameters.get("logit_bias", 0.0)
        loss = self.objective.loss_of(logits, labels, self.weights, bias)
        loss = loss / self.objective.normalizer(labels, self.weights, self.classes)
        if self.ridge is None:
            return loss
        pull = (self.ridge * (self.parameters["gains"] - 1).square()).sum()
        return loss + 0.5 * self.objective.strength * pull


@dataclass(frozen=True)
class _Settings:
    learning_rate: float
    batch_size: int
    epochs: int
    patience: int | None
    seed: int
    progress: bool

    def __post_init__(self) -> None:
        for name in ("learning_rate", "batch_size", "epochs"):
            if not getattr(self, name) > 0:
                raise ResiDualError(f"wanted {name} above 0, got {getattr(self, name)}.")
        if self.patience is not None and self.patience < 1:
            raise ResiDualError(f"wanted patience of 1 or more, or None, got {self.patience}.")


def _fit(
    classifier: ZeroShotClassifier,
    parameters: dict[str, nn.Parameter],
    adapted: Callable[[Any], Tensor],
    train: Readouts | CoordinateStore,
    validation: Readouts | None,
    settings: _Settings,
    loss_of: Callable[[Tensor, Tensor], Tensor],
) -> Fit:
    """Fit parameters by schedule-free AdamW; `adapted` gives y' of some rows."""
    started = time.perf_counter()
    optimizer = AdamWScheduleFree(parameters.values(), lr=settings.learning_rate)
    generator = torch.Generator().manual_seed(settings.seed)
    history: list[dict[str, float]] = []
    best, best_epoch, best_accuracy = _copied(parameters), 0, float("-inf")
    if validation is not None:  # what does not help the held-out images is not kept
        best_accuracy = _accuracy(classifier, adapted, validation)
    epochs = range(1, settings.epochs + 1)
    for epoch in tqdm(epochs, "Fitting", unit="epoch", disable=not settings.progress):
        loss = _epoch(loss_of, adapted, train, optimizer, settings.batch_size, generator)
        record = {"epoch": float(epoch), "loss": loss}
        history.append(record)
        optimizer.eval()  # the averaged parameters are what is measured and kept
        if validation is not None:
            record["accuracy"] = _accuracy(classifier, adapted, validation)
        if validation is None or record["accuracy"] > best_accuracy:
            best = _copied(parameters)
            best_epoch, best_accuracy = epoch, record.get("accuracy", best_accuracy)
        elif settings.patience is not None and epoch - best_epoch >= settings.patience:
            break
    return Fit(
        best,
        history,
        best_epoch,
        None if validation is None else best_accuracy,
        time.perf_counter() - started,
    )


def _copied(parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in parameters.items()}


@torch.no_grad()
def _accuracy(
    classifier: ZeroShotClassifier, adapted: Callable[[Any], Tensor], rows: Readouts
) -> float:
    return _score(classifier.scaled_cosines(adapted(rows)), rows.labels)


def _epoch(
    loss_of: Callable[[Tensor, Tensor], Tensor],
    adapted: Callable[[Any], Tensor],
    train: Readouts | CoordinateStore,
    optimizer: AdamWScheduleFree,
    batch_size: int,
    generator: torch.Generator,
) -> float:
    """One pass over the rows in random order; the mean loss of its steps."""
    optimizer.train()
    total, steps = 0.0, 0
    for index in torch.randperm(len(train), generator=generator).split(batch_size):
        rows = train.rows(index.to(train.labels.device))
        loss = loss_of(adapted(rows), rows.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total, steps = total + loss.item(), steps + 1
    return total / steps
