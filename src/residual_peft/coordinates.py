"""One pass over the images -> coordinates; gains fitted from them in seconds.

y' = base + (c ⊙ (λ − neutral)) Φ is affine in the gains, and neither c nor base depends on them
(`method.md`, section 3). So the images are seen once, and training is a (B, K)·(K, d) product per
step. Loss, optimizer and settings are those of the Trainer path.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from schedulefree import AdamWScheduleFree
from torch import Tensor, nn
from torch.nn import functional
from tqdm.auto import tqdm

from .anatomy import find_tower
from .data import with_progress
from .decomposition import check_pixels, checked_capture, run_tower, unadapted
from .errors import ResiDualError
from .metrics import accuracy
from .spectra import pixels_of
from .taps import Capture, tapped
from .training import BATCH_SIZE, EPOCHS, LEARNING_RATE, PATIENCE
from .tuner import ReadoutState, base_of, compose, coordinates_of, gains_of, readout_state
from .zero_shot import ZeroShotClassifier

LINEAR_LEARNING_RATE = 1e-3  # the paper's, for its linear baseline
Progress = bool | Callable[[int], object]
_Rows = TypeVar("_Rows", bound="Readouts")


@dataclass(frozen=True)
class Readouts:
    """What a pass over N labelled images leaves: the readouts of the unadapted model."""

    readout: Tensor  # y (N, d)
    labels: Tensor  # (N,)

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self: _Rows, index: Tensor) -> _Rows:
        """Those of some of the images."""
        return replace(self, **{name: t[index] for name, t in self._tensors().items()})

    def to(self: _Rows, device: torch.device | str) -> _Rows:
        """The same on another device."""
        return replace(self, **{name: t.to(device) for name, t in self._tensors().items()})

    def _tensors(self) -> dict[str, Tensor]:
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in found.items() if isinstance(value, Tensor)}


@dataclass(frozen=True)
class Coordinates(Readouts):
    """The same for one adapter, with the coordinates that its gains scale."""

    coordinates: Tensor  # c (N, K)
    state: ReadoutState

    def to(self, device: torch.device | str) -> "Coordinates":
        """The same on another device."""
        moved = super().to(device)
        return replace(moved, state=self.state.map(lambda tensor: tensor.to(device)))

    @property
    def base(self) -> Tensor:
        """The part of y' that does not depend on the gains, (N, d)."""
        return base_of(self.state, self.readout)

    def adapted(self, gains: Tensor) -> Tensor:
        """y' (N, d) at the given gains, (K,) or (U,)."""
        return compose(self.state, self.base, self.coordinates, gains)


@dataclass(frozen=True)
class Fit:
    """What training left.

    Attributes:
        parameters: the fitted tensors: `gains`, or `weight` (d, d) and `bias` (d,).
        history: per epoch `epoch`, `loss` (mean over its steps) and, with validation data,
            `accuracy`.
        best_epoch: whose parameters these are, counted from 1; 0 where the start was never
            bettered on the validation data.
        accuracy: on the validation data at that epoch; None without.
        seconds: how long it took.
    """

    parameters: dict[str, Tensor]
    history: list[dict[str, float]]
    best_epoch: int
    accuracy: float | None
    seconds: float

    @property
    def gains(self) -> Tensor:
        """The fitted gains."""
        return self.parameters["gains"]


def collect_readouts(
    model: nn.Module, batches: Iterable[Any], *, progress: Progress = False
) -> Readouts:
    """Readouts of the unadapted model, on the CPU, in one pass.

    Args:
        model: adapted or not.
        batches: mappings with `pixel_values` (B, C, H, W) and `labels` (B,), as `data.batches`.
        progress: True for a bar, or what to call after each batch with its number of images.

    Raises:
        ResiDualError: no images, no labels, or pixels that are not finite.
    """
    anatomy, readouts, labels = find_tower(model), [], []
    for batch in with_progress(batches, "Reading images", progress):
        pixels = _pixels(batch)
        with torch.no_grad(), unadapted(model):
            readout = run_tower(model, pixels.to(anatomy.layers[0].output_projection.weight.device))
        readouts.append(readout.cpu())
        labels.append(_labels(batch))
    return Readouts(_joined(readouts), torch.cat(labels))


def collect_coordinates(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    adapter_name: str | None = None,
    progress: Progress = False,
) -> Coordinates:
    """Coordinates for a ResiDual adapter, on the CPU, in one pass of the unadapted model.

    The units of the first batch are checked to add up to the model's own readout.

    Args:
        model: a model with a ResiDual adapter.
        batches: as for `collect_readouts`.
        adapter_name: None for the active adapter.
        progress: as for `collect_readouts`.

    Raises:
        ResiDualError: as `collect_readouts`; no such adapter, or units that do not add up.
    """
    anatomy, state = find_tower(model), readout_state(model, adapter_name)
    device = anatomy.layers[0].output_projection.weight.device
    readouts: list[Tensor] = []
    found: list[Tensor] = []
    labels: list[Tensor] = []
    for batch in with_progress(batches, "Reading images", progress):
        pixels = _pixels(batch).to(device)
        capture: Capture
        if not readouts:
            capture, readout = checked_capture(model, anatomy, pixels)
        else:
            with torch.no_grad(), unadapted(model), tapped(anatomy) as tap:
                readout = run_tower(model, pixels)
                capture = tap.take()
        found.append(coordinates_of(state, capture).cpu())
        readouts.append(readout.to(state.directions.dtype).cpu())
        labels.append(_labels(batch))
    readout = _joined(readouts)
    return Coordinates(readout, torch.cat(labels), torch.cat(found), state.map(Tensor.cpu))


def fit_gains(
    classifier: ZeroShotClassifier,
    train: Coordinates,
    validation: Coordinates | None = None,
    *,
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

    Schedule-free AdamW on the classifier's cross-entropy (`method.md`, section 4). With validation
    data, the gains of the epoch with the best accuracy are taken, the first of equals; the start
    counts as one of them.

    Args:
        classifier: its model has the adapter that the coordinates are of.
        train: coordinates to fit.
        validation: coordinates to choose the epoch by; without, the last epoch's gains are taken.
        start: gains to start at; the adapter's own when None.
        adapter_name: None for the active adapter.
        learning_rate: of schedule-free AdamW.
        batch_size: images per step.
        epochs: at most.
        patience: epochs without a better accuracy before it stops; None never.
        seed: of the order of the images.
        progress: whether to show a bar.

    Raises:
        ResiDualError: coordinates of another adapter, or labels outside the classes.
    """
    target = gains_of(classifier.model, adapter_name)
    for part in (train, *([validation] if validation is not None else [])):
        if part.state.num_gains != target.numel():
            raise ResiDualError(
                f"the coordinates are of an adapter with {part.state.num_gains} gains, this one "
                f"has {target.numel()}; collect them anew with collect_coordinates."
            )
    start = target.detach() if start is None else start
    if start.shape != target.shape:
        raise ResiDualError(
            f"wanted {tuple(target.shape)} gains to start at, got {tuple(start.shape)}."
        )
    gains = nn.Parameter(start.detach().to(train.readout.device, target.dtype).clone())
    fit = _fit(
        classifier,
        {"gains": gains},
        lambda rows: rows.adapted(gains),
        train,
        validation,
        _Settings(learning_rate, batch_size, epochs, patience, seed, progress),
    )
    with torch.no_grad():
        target.copy_(fit.gains)
    return fit


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
    )


def linear_readout(fit: Fit, readout: Tensor) -> Tensor:
    """A y + a of a linear baseline: (N, d)."""
    weight, bias = fit.parameters["weight"], fit.parameters["bias"]
    return functional.linear(readout.to(weight.device, weight.dtype), weight, bias)


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
    train: Readouts,
    validation: Readouts | None,
    settings: _Settings,
) -> Fit:
    """Fit parameters by schedule-free AdamW; `adapted` gives y' of some rows."""
    for part in (train, *([validation] if validation is not None else [])):
        classifier.check_labels(part.labels)
    started = time.perf_counter()
    optimizer = AdamWScheduleFree(parameters.values(), lr=settings.learning_rate)
    generator = torch.Generator().manual_seed(settings.seed)
    history: list[dict[str, float]] = []
    best, best_epoch, best_accuracy = _copied(parameters), 0, float("-inf")
    if validation is not None:  # what does not help the held-out images is not kept
        best_accuracy = _accuracy(classifier, adapted, validation)
    epochs = range(1, settings.epochs + 1)
    for epoch in tqdm(epochs, "Fitting", unit="epoch", disable=not settings.progress):
        loss = _epoch(classifier, adapted, train, optimizer, settings.batch_size, generator)
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
    return accuracy(classifier.logits(adapted(rows)), rows.labels)


def _epoch(
    classifier: ZeroShotClassifier,
    adapted: Callable[[Any], Tensor],
    train: Readouts,
    optimizer: AdamWScheduleFree,
    batch_size: int,
    generator: torch.Generator,
) -> float:
    """One pass over the rows in random order; the mean loss of its steps."""
    optimizer.train()
    total, steps = 0.0, 0
    for index in torch.randperm(len(train), generator=generator).split(batch_size):
        rows = train.rows(index.to(train.labels.device))
        loss = classifier.loss(adapted(rows), rows.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total, steps = total + loss.item(), steps + 1
    return total / steps


def _pixels(batch: Any) -> Tensor:
    pixels = pixels_of(batch)
    check_pixels(pixels)
    return pixels


def _labels(batch: Any) -> Tensor:
    if not isinstance(batch, dict) or "labels" not in batch:
        raise ResiDualError("wanted batches with 'pixel_values' and 'labels', got no labels.")
    return torch.as_tensor(batch["labels"]).cpu()


def _joined(readouts: list[Tensor]) -> Tensor:
    if not readouts:
        raise ResiDualError("wanted at least one batch of images, got none.")
    return torch.cat(readouts)
