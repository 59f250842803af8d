"""Schedule-free AdamW in random batches, the epoch chosen on held-out images: the paper's way."""

import time
from collections.abc import Callable
from typing import Any

import torch
from schedulefree import AdamWScheduleFree
from torch import Tensor, nn
from torch.nn import functional
from tqdm.auto import tqdm

from ..classifiers.zero_shot import ZeroShotClassifier
from ..data.labels import labelling_in
from ..errors import ResiDualError
from .common import Fit, bias_for, set_labels, target_and_start
from .coordinates import Coordinates, Readouts
from .objectives import GainProblem, Objective
from .store import CoordinateStore
from .training import BATCH_SIZE, EPOCHS, LEARNING_RATE, PATIENCE

LINEAR_LEARNING_RATE = 1e-3  # the paper's, for its linear baseline


@torch.inference_mode(False)  # turns gradients on, too
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
    objective = Objective(loss=classifier.labelling.loss_name) if objective is None else objective
    target, start = target_and_start(classifier, (train, validation), start, adapter_name)
    for part in (train, validation):
        if part is not None:
            objective.check_labels(part.labels, classifier)
    device = train.labels.device
    parameters = {"gains": nn.Parameter(start.to(device, target.dtype).clone())}
    for name in objective.labelling.parameters:
        bias = bias_for(classifier, GainProblem(classifier, train, objective), start)
        parameters[name] = nn.Parameter(torch.tensor(bias, device=device))
    fit = _fit(
        classifier,
        parameters,
        lambda rows: rows.adapted(parameters["gains"]),
        train,
        validation,
        _loss_of(classifier, train, objective, parameters),
        learning_rate,
        batch_size=batch_size,
        epochs=epochs,
        patience=patience,
        seed=seed,
        progress=progress,
    )
    with torch.no_grad():
        target.copy_(fit.gains)
    set_labels(classifier, train, objective, fit.parameters)
    return fit


@torch.inference_mode(False)  # turns gradients on, too
def fit_linear(
    classifier: ZeroShotClassifier,
    train: Readouts,
    validation: Readouts | None = None,
    *,
    learning_rate: float = LINEAR_LEARNING_RATE,
    **options: Any,
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
        classifier.loss,
        learning_rate,
        **options,
    )


def linear_readout(fit: Fit, readout: Tensor) -> Tensor:
    """A y + a of a linear baseline: (N, d)."""
    weight, bias = fit.parameters["weight"], fit.parameters["bias"]
    return functional.linear(readout.to(weight.device, weight.dtype), weight, bias)


def _loss_of(
    classifier: ZeroShotClassifier,
    train: Coordinates | CoordinateStore,
    objective: Objective,
    parameters: dict[str, nn.Parameter],
) -> Callable[[Tensor, Tensor], Tensor]:
    """The objective on a batch of adapted readouts, ridge included."""
    classes, length = len(classifier.class_names), train.mean_length
    weights, ridge = objective.weights_of(train.labels, classes), None
    if objective.strength:
        ridge = GainProblem(classifier, train, objective).ridge_weights.float()

    def loss_of(readout: Tensor, labels: Tensor) -> Tensor:
        if objective.normalized:
            logits = classifier.scaled_cosines(readout)
        else:
            embeddings = classifier.class_embeddings.to(readout.device, readout.dtype)
            logits = classifier.logit_scale / length * readout @ embeddings.T
        bias = parameters.get("logit_bias", 0.0)
        loss = objective.loss_of(logits, labels, weights, bias)
        loss = loss / objective.labelling.normalizer(labels, weights, classes)
        if ridge is None:
            return loss
        pull = (ridge * (parameters["gains"] - 1).square()).sum()
        return loss + 0.5 * objective.strength * pull

    return loss_of


def _fit(
    classifier: ZeroShotClassifier,
    parameters: dict[str, nn.Parameter],
    adapted: Callable[[Any], Tensor],
    train: Readouts | CoordinateStore,
    validation: Readouts | None,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    learning_rate: float,
    *,
    batch_size: int = BATCH_SIZE,
    epochs: int = EPOCHS,
    patience: int | None = PATIENCE,
    seed: int = 0,
    progress: bool = False,
) -> Fit:
    """Fit parameters by schedule-free AdamW; `adapted` gives y' of some rows."""
    above = {"learning_rate": learning_rate, "batch_size": batch_size, "epochs": epochs}
    for name, value in above.items():
        if not value > 0:
            raise ResiDualError(f"wanted {name} above 0, got {value}.")
    if patience is not None and patience < 1:
        raise ResiDualError(f"wanted patience of 1 or more, or None, got {patience}.")
    started = time.perf_counter()
    optimizer = AdamWScheduleFree(parameters.values(), lr=learning_rate)
    generator = torch.Generator().manual_seed(seed)
    history: list[dict[str, float]] = []
    best, best_epoch, best_accuracy = _copied(parameters), 0, float("-inf")
    if validation is not None:  # what does not help the held-out images is not kept
        best_accuracy = _accuracy(classifier, adapted, validation)
    for epoch in tqdm(range(1, epochs + 1), "Fitting", unit="epoch", disable=not progress):
        optimizer.train()
        order = torch.randperm(len(train), generator=generator).split(batch_size)
        total = 0.0
        for index in order:
            rows = train.rows(index.to(train.labels.device))
            loss = loss_of(adapted(rows), rows.labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        record = {"epoch": float(epoch), "loss": total / len(order)}
        history.append(record)
        optimizer.eval()  # the averaged parameters are what is measured and kept
        if validation is not None:
            record["accuracy"] = _accuracy(classifier, adapted, validation)
        if validation is None or record["accuracy"] > best_accuracy:
            best = _copied(parameters)
            best_epoch, best_accuracy = epoch, record.get("accuracy", best_accuracy)
        elif patience is not None and epoch - best_epoch >= patience:
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
    return labelling_in(rows.labels).score(classifier.scaled_cosines(adapted(rows)), rows.labels)
