"""What every way of fitting shares: its result, its start, and the bias of a sigmoid."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from ..classifiers.zero_shot import ZeroShotClassifier
from ..errors import ResiDualError
from ..tuner import gains_of
from .coordinates import Coordinates
from .objectives import GainProblem, Objective
from .store import CoordinateStore, Stores


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


def target_and_start(
    classifier: ZeroShotClassifier,
    parts: Sequence[Coordinates | CoordinateStore | Stores | None],
    start: Tensor | None,
    adapter_name: str | None,
) -> tuple[nn.Parameter, Tensor]:
    """The adapter's gains, and where to start; both checked against the coordinates."""
    target = gains_of(classifier.model, adapter_name)
    for part in parts:
        if part is not None and part.state.gains.number != target.numel():
            raise ResiDualError(
                f"the coordinates are of an adapter with {part.state.gains.number} gains, this one "
                f"has {target.numel()}; collect them anew with collect_coordinates."
            )
    start = target.detach() if start is None else start.detach()
    if start.shape != target.shape:
        raise ResiDualError(
            f"wanted {tuple(target.shape)} gains to start at, got {tuple(start.shape)}."
        )
    return target, start


def bias_for(classifier: ZeroShotClassifier, problem: GainProblem, gains: Tensor) -> float:
    """The bias of the sigmoids' logits that suits some gains; 0 of a softmax."""
    labelling = problem.objective.labelling

    def best() -> float:
        logits = problem.logits(gains.to(problem.directions.device))
        labels, weights = problem.rows.labels, problem.class_weights
        return labelling.best_bias(logits, labels, classifier.largest_bias, weights)

    return labelling.bias(best)


def set_labels(
    classifier: ZeroShotClassifier,
    train: Coordinates | CoordinateStore | Stores,
    objective: Objective,
    parameters: dict[str, Tensor],
) -> None:
    """Make a classifier with a loss of sigmoids one for several labels, with the fitted bias."""
    if "logit_bias" not in parameters:
        return
    bias = float(parameters["logit_bias"])
    if not objective.normalized:  # it suits the linear logits, and predictions are normalized
        normalized = replace(objective, normalized=True)
        problem = GainProblem(classifier, train, normalized)
        bias = bias_for(classifier, problem, parameters["gains"])
    classifier.multi_label, classifier.logit_bias = True, bias
