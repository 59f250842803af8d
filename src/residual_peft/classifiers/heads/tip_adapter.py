"""Tip-Adapter and Tip-Adapter-F (R. Zhang et al., ECCV 2022): a cache of the training images."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from .finishing import best_across_folds, folds_of, mean_loss, part_of
from .images import Images
from .left_out import leaving_of
from .preparing import UnitRows
from .rival import Rival, Shots, on_unit_rows, rival

SHARPNESSES = (0.5, 1.0, 2.0, 5.5, 11.0, 22.0, 45.0, 90.0)  # β
WEIGHTS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)  # α
DEFAULT_SHARPNESS, DEFAULT_WEIGHT = 5.5, 1.0
"""The paper's; kept where one image per class leaves nothing to choose by."""
EPOCHS, RATE, BATCH = 20, 1e-3, 256
"""The paper's training of the keys: AdamW with a cosine from this rate to 0."""
STOPS = (1, 2, 5, 10, EPOCHS)  # epochs after which the training may stop
_EPSILON = 1e-4  # of AdamW, as in the paper


@dataclass(frozen=True)
class Cache:
    """z + α exp(−β (1 − f Fᵀ)) Y."""

    rows: UnitRows  # how features are prepared
    keys: Tensor  # F (N, K), of unit length as they start
    targets: Tensor  # Y (N, C)
    sharpness: float  # β
    weight: float  # α

    @property
    def parameter_count(self) -> int:
        """N K keys, trained or kept."""
        return self.keys.numel()

    def logits(self, features: Tensor, zero_shot: Tensor | None = None) -> Tensor:
        """(M, K) and z (M, C) -> (M, C); without z the cache alone."""
        text = None if zero_shot is None else zero_shot.double()
        pair = (self.sharpness, self.weight)
        return _scores(self.rows(features), self.keys, self.targets, text, *pair)


def _untrained(shots: Shots) -> Rival:
    """Tip-Adapter, without training; α and β have the least log-loss on left-out images.

    The paper searches them on a validation set. A cache without an image is that with its value
    set to 0, so that leaving out costs nothing.
    """
    data, keys = shots.data, shots.unit
    leaving = leaving_of(data.labels, data.targets.shape[1], shots.groups)
    cosines = keys @ keys.mT
    inside = torch.zeros(len(keys), len(keys), dtype=torch.bool)
    if leaving.parts:
        inside = leaving.numbers[:, None] == leaving.numbers
    text = 0.0 if data.zero_shot is None else data.zero_shot
    scores: dict[tuple[float, float], Tensor] = {}
    for sharpness in SHARPNESSES:
        votes = (sharpness * (cosines - 1)).exp().masked_fill(inside, 0.0) @ data.targets
        scores |= {(sharpness, weight): weight * votes + text for weight in WEIGHTS}
    best = (DEFAULT_SHARPNESS, DEFAULT_WEIGHT)
    if leaving.known.any():
        losses = {pair: mean_loss(found, data, leaving.known) for pair, found in scores.items()}
        best = min(losses, key=lambda pair: losses[pair])
    cache = Cache(shots.rows, keys, data.targets, *best)
    chosen = {"sharpness": best[0], "weight": best[1]}
    return rival(
        cache, scores[best], data, leaving.how, leaving.known, with_text=False, chosen=chosen
    )


fit_tip_adapter = on_unit_rows(_untrained)


@on_unit_rows
def fit_tip_adapter_f(shots: Shots, *, rate: float = RATE) -> Rival:
    """Tip-Adapter-F: the keys are trained, then α and β are searched again.

    Cross-entropy of all training images, their own keys among the cache's, by AdamW with the
    paper's settings from Tip-Adapter's α and β, at a rate that falls as a cosine over the epochs.
    The epoch, α and β have the least log-loss on left-out folds.
    """
    data, start = shots.data, _untrained(shots)
    assert isinstance(start.scorer, Cache)
    cache = start.scorer
    pair = (cache.sharpness, cache.weight)
    fold, known, how = folds_of(data, shots.groups)

    def trained(kept: Tensor, stops: Sequence[int]) -> list[Tensor]:
        keys, images = cache.keys[kept], part_of(data, kept)
        return train_keys(keys, images, *pair, stops=stops, rate=rate)

    everything = torch.ones(len(data.labels), dtype=torch.bool)
    if fold is None:
        (keys,) = trained(everything, [EPOCHS])
        left = _scores(cache.keys, keys, data.targets, data.zero_shot, *pair)
        scorer = Cache(cache.rows, keys, data.targets, *pair)
        return rival(scorer, left, data, how, known, with_text=False, chosen={"epoch": EPOCHS})
    tried = [pair, *product(SHARPNESSES, WEIGHTS)]

    def outside(kept: Tensor) -> Tensor:
        rows, text = cache.keys[~kept], None if data.zero_shot is None else data.zero_shot[~kept]
        keys, targets = trained(kept, STOPS), data.targets[kept]
        pairs = [(some, two) for some in keys for two in tried]
        found = [_scores(rows, some, targets, text, *two) for some, two in pairs]
        return torch.stack(found, dim=1)

    best, left = best_across_folds(outside, fold, data, known)
    epoch, two = STOPS[best // len(tried)], tried[best % len(tried)]
    (keys,) = trained(everything, [epoch])
    scorer = Cache(cache.rows, keys, data.targets, *two)
    chosen = {"epoch": epoch, "sharpness": two[0], "weight": two[1]}
    return rival(scorer, left, data, how, known, with_text=False, chosen=chosen)


def _scores(
    rows: Tensor,
    keys: Tensor,
    targets: Tensor,
    text: Tensor | None,
    sharpness: float,
    weight: float,
) -> Tensor:
    found = weight * (sharpness * (rows @ keys.mT - 1)).exp() @ targets
    return found if text is None else found + text


def train_keys(
    keys: Tensor,
    images: Images,
    sharpness: float,
    weight: float,
    *,
    stops: Sequence[int],
    epochs: int = EPOCHS,
    rate: float = RATE,
) -> list[Tensor]:
    """The keys (N, K), unit-norm rows at the start, after each number of epochs in `stops`.

    Images come in an order of a fixed seed. The rate falls as a cosine to 0 over the steps of all
    epochs; AdamW has torch's default weight decay.
    """
    rows, trained = keys, keys.clone().requires_grad_(True)
    optimizer = torch.optim.AdamW([trained], lr=rate, eps=_EPSILON)
    steps = epochs * -(-len(rows) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(0)
    found = []
    with torch.enable_grad():
        for epoch in range(1, max(stops) + 1):
            for some in torch.randperm(len(rows), generator=generator).split(BATCH):
                text = None if images.zero_shot is None else images.zero_shot[some]
                logits = _scores(rows[some], trained, images.targets, text, sharpness, weight)
                weights = images.weights[some] / images.weights[some].sum()
                loss = -(weights @ (images.targets[some] * logits.log_softmax(1)).sum(1))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
            if epoch in stops:
                found.append(trained.detach().clone())
    return found
