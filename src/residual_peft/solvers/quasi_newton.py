"""L-BFGS on all coordinates at once, without a seed, to an optimum that its gradient certifies."""

import time
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor
from tqdm.auto import tqdm

from ..bases.blas import one_thread_in_scipy
from ..classifiers.zero_shot import ZeroShotClassifier
from ..errors import ResiDualError
from .common import Fit, bias_for, set_labels, target_and_start
from .coordinates import Coordinates
from .objectives import GainProblem, Objective
from .store import CoordinateStore, Stores

_HISTORY = 20  # pairs that L-BFGS keeps: 40 vectors of K numbers


def solve_gains(
    classifier: ZeroShotClassifier,
    train: Coordinates | CoordinateStore | Stores,
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
    wherever it starts and whichever machine it runs on. From one adapter and one store of
    coordinates, machines agree to 1e-6; where each encodes the images for itself, its own rounding
    in float32 comes on top. With loss="sigmoid" the classifier becomes one for several labels per
    image and gets the `logit_bias` that suits its normalized logits.

    Args:
        classifier: as all that is not named here, as for `fit_gains`.
        train: coordinates to fit, in memory or on disk.
        validation: coordinates to report the accuracy on.
        objective: what is minimized; the linear one with a ridge of 1e-3 when None, with the loss
            that the classifier's labels need.
        start: gains to start at; those that change nothing when None.
        tolerance: it stops once the gradient's norm is below this.
        max_iterations: at most.
        dtype: of the matrix products; by default float64 for the linear objective, else float32.

    Raises:
        ResiDualError: as `fit_gains`.
    """
    if objective is None:
        objective = Objective(normalized=False, loss=classifier.labelling.loss_name, strength=1e-3)
    target, own = target_and_start(classifier, (train, validation), start, adapter_name)
    start = torch.full_like(own, train.state.gains.start) if start is None else own
    if not tolerance > 0 or max_iterations < 1:
        raise ResiDualError(
            f"wanted a tolerance above 0 and max_iterations of 1 or more, got {tolerance} and "
            f"{max_iterations}."
        )
    started = time.perf_counter()
    dtype = dtype or (torch.float32 if objective.normalized else torch.float64)
    problem = GainProblem(classifier, train, objective, dtype)
    bias = bias_for(classifier, problem, start)
    gains, bias, history = lbfgs(problem, start, bias, tolerance, max_iterations, progress)
    parameters = {"gains": gains.to(target.device, target.dtype)}
    parameters |= {name: torch.tensor(bias) for name in objective.labelling.parameters}
    score = None
    if validation is not None:
        objective.check_labels(validation.labels, classifier)
        with torch.no_grad():
            adapted = validation.adapted(gains.to(validation.readout.device))
            logits = classifier.scaled_cosines(adapted)
        score = objective.labelling.score(logits, validation.labels)
    with torch.no_grad():
        target.copy_(parameters["gains"])
    set_labels(classifier, train, objective, parameters)
    return Fit(
        parameters,
        history,
        int(history[-1]["epoch"]),
        score,
        time.perf_counter() - started,
        history[-1]["gradient_norm"],
    )


def lbfgs(
    problem: GainProblem,
    start: Tensor,
    bias: float,
    tolerance: float,
    max_iterations: int,
    progress: bool,
) -> tuple[Tensor, float, list[dict[str, float]]]:
    """L-BFGS over (λ √h, bias), with h an estimate of the curvature; gains, bias and history."""
    biases, device = len(problem.objective.labelling.parameters), start.device
    root = problem.curvature().sqrt().cpu().numpy()
    last: dict[str, float] = {}
    history: list[dict[str, float]] = []

    def unpack(theta: Any) -> tuple[Tensor, float]:
        gains = torch.from_numpy(theta[: len(root)] / root).to(problem.directions.device)
        return gains, float(theta[len(root) :].sum())

    def evaluate(theta: Any) -> tuple[float, Any]:
        value, gradient, slope = problem.value_and_gradient(*unpack(theta))
        own = gradient.cpu().numpy()
        norm = float(np.sqrt(own @ own + slope**2))  # a softmax has a slope of 0
        last.update(loss=value, gradient_norm=norm)
        norms[theta.tobytes()] = (value, norm)
        return value, np.append(own / root, [slope] * biases)

    norms: dict[bytes, tuple[float, float]] = {}
    theta = np.append(start.detach().double().cpu().numpy() * root, [bias] * biases)
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
        options: dict[str, Any] = {"ftol": 0.0, "gtol": 0.0, "maxcor": _HISTORY}
        options |= {"maxiter": max_iterations, "maxfun": 4 * max_iterations}
        with one_thread_in_scipy():
            result = minimize(
                evaluate, theta, jac=True, method="L-BFGS-B", callback=accept, options=options
            )
    gains, bias = unpack(result.x)
    value, gradient, slope = problem.value_and_gradient(gains, bias)
    norm = float((gradient.square().sum() + slope**2).sqrt())
    history.append({"epoch": float(len(history)), "loss": value, "gradient_norm": norm})
    return gains.to(device), bias, history
