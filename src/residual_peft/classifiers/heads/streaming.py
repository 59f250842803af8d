"""Ridge from sums alone; what needs rows, in a second pass that keeps none."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...data.labels import labelling_of
from ...errors import ResiDualError
from .finishing import finish
from .head import ClassHead
from .images import ADVICE, Images, checked_batch
from .left_out import LeftOut
from .ridge import strengths_of
from .smoother import scales_of
from .statistics import HeadStatistics
from .strengths import DEFAULT_TEMPERATURE

Batch = tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor | None]
"""Features (B, K), labels (B,) or (B, C), and zero-shot logits (B, C) where there are any."""


@dataclass(frozen=True)
class StreamedFit:
    """A class head from sums, and what a second pass needs."""

    head: ClassHead  # with text weight 0 and a usual temperature until `calibrated` says better
    alpha: Tensor  # strength of each class (C,)
    alphas: Tensor  # that were tried, from strong to weak (A,)
    # mean squared error of each by generalised cross-validation (A, C), summed over classes what
    # chose among them; empty where α was given
    errors: Tensor
    eigenvalues: Tensor  # of the centred and scaled features' K × K sums (K,)
    vectors: Tensor  # their eigenvectors (K, K)
    projected: Tensor  # the eigenvectors' products with the labels, Uᵀ X̃ᵀ Y (K, C)
    rows: int  # N
    uniform: bool  # whether all images weigh the same, as a second pass needs

    def at(self, alpha: float) -> "StreamedFit":
        """The same at another strength, without another decomposition."""
        chosen = torch.full_like(self.alpha, alpha)
        weights = self.vectors @ (self.projected / (self.eigenvalues.unsqueeze(1) + chosen))
        return replace(self, head=replace(self.head, weights=weights), alpha=chosen)


def fit_statistics(
    statistics: HeadStatistics,
    *,
    power: float = 0.5,
    alpha: float | Sequence[float] | Tensor | None = None,
    alphas: Sequence[float] | Tensor | None = None,
    scale: Tensor | None = None,
    multi_label: bool = False,
) -> StreamedFit:
    """Fit a class head from sums: `fit_ridge` with residual=False at the same α and scales.

    Memory and time are of K, whatever N: three K × K matrices and one eigendecomposition.
    Without rows α is chosen by generalised cross-validation (Golub, Heath & Wahba 1979),
    (RSS / n) / (1 − df / n)², with df the trace of the hat matrix, mean included; `alpha` is one
    in its place, or one per class (C,), such as an earlier fit's, as `scale` (K,) may be. With
    `multi_label` images may have several labels, each class then with its own strength.
    """
    n, rows = statistics.total, statistics.rows
    absent = (statistics.counts <= 0).nonzero().flatten().tolist()
    if absent or rows < 2:
        names = ", ".join(map(str, absent[:5])) + (", …" if len(absent) > 5 else "")
        raise ResiDualError(
            f"wanted images of each of {statistics.class_count} classes, two at least, got "
            f"{rows} and none of class {names or '–'}: {ADVICE}"
        )
    # images' weights are of mean 1 in a fit on rows
    size = rows / n
    centre = statistics.sums / n
    scatter = size * (statistics.squares - n * torch.outer(centre, centre))
    offset = statistics.counts / n
    product = size * (statistics.class_sums - torch.outer(statistics.counts, centre)).mT
    if scale is None:
        scale = scales_of(scatter.diagonal() / rows, power)
    scale = scale.double()
    scatter = scatter / torch.outer(scale, scale)
    eigenvalues, vectors = torch.linalg.eigh((scatter + scatter.mT) / 2)
    eigenvalues = eigenvalues.clamp_min(0)
    projected = vectors.mT @ (product / scale.unsqueeze(1))
    size = float(eigenvalues.sum()) / rows or 1.0
    tried = strengths_of(alphas if alpha is None else alpha, size)
    variance = rows * offset * (1 - offset)  # Σ w (y − ȳ)², as y is 0 or 1
    errors = torch.zeros(0, dtype=torch.float64)
    if alpha is None:
        errors = _generalised(eigenvalues, projected, variance, tried, rows)
        chosen = tried[labelling_of(multi_label).least(errors)]
    else:
        chosen = torch.as_tensor(alpha, dtype=torch.float64).expand(len(offset)).clone()
    weights = vectors @ (projected / (eigenvalues.unsqueeze(1) + chosen))
    mean = statistics.origin + centre
    uniform = abs(n - rows) < 1e-9 * n
    head = ClassHead(mean, scale, weights, offset, 0.0, DEFAULT_TEMPERATURE)
    return StreamedFit(head, chosen, tried, errors, eigenvalues, vectors, projected, rows, uniform)


def left_out_errors(fit: StreamedFit, batches: Iterable[Batch]) -> Tensor:
    """Mean squared left-out error of each strength tried (A, C), exact, in one more pass.

    What `fit_ridge` chooses by with leave-one-out. The images are those of the fit, of weight 1.
    """
    sums = torch.zeros(len(fit.alphas), len(fit.alpha), dtype=torch.float64)
    count = 0
    for x, targets, _ in _rows(fit, batches):
        inner = x @ fit.vectors
        for place, alpha in enumerate(fit.alphas.tolist()):
            scores = _left_out(fit, inner, targets, torch.full_like(fit.alpha, alpha))
            sums[place] += (scores - targets).square().sum(0)
        count += len(x)
    return sums / max(count, 1)


def calibrated(fit: StreamedFit, batches: Iterable[Batch]) -> tuple[ClassHead, LeftOut]:
    """The head with text weight and temperature, and its exact left-out predictions, in one pass.

    Kept of each image are its left-out scores, C numbers; give the batches of some of the images,
    some thousands, where even that is much. All have zero-shot logits or none; for one label per
    image, each of weight 1.
    """
    scores, labels, texts = [], [], []
    for x, targets, text in _rows(fit, batches):
        scores.append(_left_out(fit, x @ fit.vectors, targets, fit.alpha))
        if (targets.sum(1) != 1).any():
            raise ResiDualError("wanted one label per image to calibrate on, got several or none.")
        labels.append(targets.argmax(1))
        if text is not None:
            texts.append(text.detach().cpu().double())
    if not scores or len(texts) not in (0, len(scores)):
        raise ResiDualError(
            f"wanted batches of images, all with zero-shot logits or none, got {len(scores)} "
            f"batches of which {len(texts)} have them."
        )
    joined, found = torch.cat(scores), torch.cat(labels)
    zero_shot = torch.cat(texts) if texts else None
    # what is left to be chosen hangs on the scores alone
    images = Images(joined, found, joined, torch.ones(len(found)).double(), zero_shot)
    # the sums hold n ȳ images of each class: with one, none is left without it
    known = (fit.head.offset * fit.rows)[found] > 1.5
    text_weight, temperature, left_out = finish(
        joined, images, "one", known, temperature=DEFAULT_TEMPERATURE
    )
    head = replace(fit.head, text_weight=text_weight, temperature=temperature)
    return head, left_out


def _left_out(fit: StreamedFit, inner: Tensor, targets: Tensor, alpha: Tensor) -> Tensor:
    """(ŷ_i − h_i y_i) / (1 − h_i), h_i = c̃ᵢᵀ (S + α)⁻¹ c̃ᵢ + 1 / n, for rows in the eigenbasis."""
    shrunk = 1 / (fit.eigenvalues.unsqueeze(1) + alpha)  # (K, C)
    fitted = inner @ (fit.projected * shrunk) + fit.head.offset
    leverage = inner.square() @ shrunk + 1 / fit.rows
    return (fitted - leverage * targets) / (1 - leverage)


def _rows(
    fit: StreamedFit, batches: Iterable[Batch]
) -> Iterable[tuple[Tensor, Tensor, Tensor | None]]:
    """Centred and scaled features, targets and text of each batch."""
    if not fit.uniform:
        raise ResiDualError(
            "wanted images of weight 1 to say what a fit without one of them would, got others: "
            "fit on rows, with class_weights."
        )
    columns, classes = fit.head.weights.shape
    for batch in batches:
        x, targets, _ = checked_batch(batch[0], batch[1], None, columns, classes)
        text = batch[2] if len(batch) == 3 else None
        yield (x - fit.head.mean) / fit.head.scale, targets, text


def _generalised(
    eigenvalues: Tensor, projected: Tensor, variance: Tensor, alphas: Tensor, rows: int
) -> Tensor:
    """Generalised cross-validation of each strength and class (A, C)."""
    shrunk = 1 / (eigenvalues + alphas.unsqueeze(1))  # (A, K)
    squares = projected.square()
    explained = (shrunk * (2 - eigenvalues * shrunk)) @ squares
    freedom = (eigenvalues * shrunk).sum(1, keepdim=True) + 1
    residual = (variance - explained).clamp_min(0) / rows
    return residual / (1 - freedom / rows).clamp_min(1e-12).square()
