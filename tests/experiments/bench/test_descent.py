"""Rate and epochs by a held-out fold: against a learner whose every answer is known."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from residual_peft.classifiers.heads.calibrating import calibrate
from residual_peft.classifiers.heads.left_out import stratified_folds
from residual_peft.experiments.bench.descent import (
    HELD_OUT,
    PATIENCE,
    Training,
    passes,
    train,
)

LABELS = torch.arange(40) % 4
FOLD = stratified_folds(LABELS)
RATES = (0.1, 1.0, 10.0)


@dataclass(frozen=True)
class Given:
    """Training images, whose class means would be others without a fold."""

    labels: Tensor
    fold: Tensor | None

    @property
    def classifier(self) -> Any:
        return SimpleNamespace(class_embeddings="of these")

    def classifier_without(self, number: int) -> Any:
        return SimpleNamespace(class_embeddings=f"without {number}")


def given(seed: int, fold: Tensor | None = FOLD, count: int = 40) -> Training:
    """Some images to train on, the rest to choose by."""
    rows: Any = Given(LABELS[:count], None if fold is None else fold[:count])
    learned: Any = SimpleNamespace(data=SimpleNamespace(labels=LABELS))
    return Training(rows, learned, seed)


class Known:
    """Says the truth with a strength that rate and epoch give, and notes what it is asked."""

    scheduled = False

    def __init__(self, strengths: dict[float, list[float]]) -> None:
        self.strengths = strengths
        self.classifier: Any = SimpleNamespace(class_embeddings="of all")
        self.classes: list[str] = []
        self.began: list[tuple[float, int]] = []
        self.epochs: list[list[int]] = []
        self.asked: list[list[int]] = []
        self.sizes: set[int] = set()

    def begin(self, rate: float, steps: int) -> None:
        self.began.append((rate, steps))
        self.classes.append(self.classifier.class_embeddings)
        self.epochs.append([])
        self.rate, self.done = rate, 0

    def epoch(self, places: Tensor, size: int) -> None:
        self.done += 1
        self.epochs[-1] += places.tolist()
        self.sizes.add(size)
        assert len(places.unique()) == len(places)

    def logits(self, places: Tensor) -> Tensor:
        self.asked.append(places.tolist())
        curve = self.strengths[self.rate]
        wrong = torch.nn.functional.one_hot((LABELS[places] + 1) % 4, 4)
        truth = torch.nn.functional.one_hot(LABELS[places], 4)
        right = (torch.arange(len(places)) < curve[min(self.done, len(curve) - 1)])[:, None]
        return torch.where(right, truth, wrong).float()


def test_the_best_epoch_of_the_best_rate_and_then_all_images() -> None:
    """Right on so many of the eight held-out images after each epoch; epoch 0 is the start."""
    learner = Known({0.1: [2, 3, 4], 1.0: [2, 1, 7, 5, 6, 3, 2, 1], 10.0: [2, 5]})
    choice = train(learner, given(3), RATES)
    assert (choice.rate, choice.epochs) == (1.0, 2)
    assert choice.note == "rate 1, 2 epochs: chosen by 8 held-out training images."
    said = torch.nn.functional.one_hot(LABELS[FOLD == HELD_OUT], 4).double()
    said[7] = said[7].roll(1)
    loss = calibrate(said, LABELS[FOLD == HELD_OUT], torch.ones(8).double()).loss
    assert choice.log_loss == pytest.approx(loss)
    # five epochs without a better one end a rate
    best = (2, 2, 1)
    inside = (FOLD != HELD_OUT).nonzero().flatten().tolist()
    for epochs, last in zip(learner.epochs, best, strict=False):
        assert len(epochs) == (last + PATIENCE) * len(inside)
        assert set(epochs) == set(inside)
    assert all(set(asked).isdisjoint(inside) for asked in learner.asked)
    assert learner.classes == [f"without {HELD_OUT}"] * 3 + ["of all"]
    # the last run is on all of them, in an order of the seed
    assert [rate for rate, _ in learner.began] == [*RATES, 1.0]
    assert len(learner.epochs[3]) == 2 * len(LABELS)
    generator = torch.Generator().manual_seed(3)
    assert learner.epochs[3][:40] == torch.randperm(40, generator=generator).tolist()
    assert learner.sizes == {8}
    assert [steps for _, steps in learner.began] == [30 * 4, 30 * 4, 30 * 4, 30 * 5]


def test_what_does_not_help_is_not_kept_and_what_cannot_be_chosen_is_said() -> None:
    learner = Known({rate: [5, 4, 3] for rate in RATES})
    choice = train(learner, given(0), RATES)
    assert (choice.rate, choice.epochs, learner.epochs[-1]) == (0.1, 0, [])
    learner = Known({rate: [5] for rate in RATES})
    choice = train(learner, given(0, fold=None), RATES, epochs=4)
    assert (choice.rate, choice.epochs, len(learner.epochs[0])) == (1.0, 4, 160)
    assert not learner.asked
    assert "not chosen, as no image could be held out" in choice.note

    learner = Known({rate: [5, 4, 3] for rate in RATES})
    learner.scheduled = True
    assert train(learner, given(0), RATES).epochs == 0
    # a schedule comes to its end
    learner = Known({0.1: [2, 3], 1.0: [2, 3, 7, 5], 10.0: [2, 5]})
    learner.scheduled = True
    choice = train(learner, given(0), RATES, epochs=9)
    assert (choice.rate, choice.epochs, len(learner.epochs[-1])) == (1.0, 9, 9 * 40)

    # a rate that breaks the model is not taken
    class Breaking(Known):
        def logits(self, places: Tensor) -> Tensor:
            found = super().logits(places)
            return found * float("nan") if self.rate == 10.0 and self.done else found

    learner = Breaking({0.1: [2, 3], 1.0: [2, 4], 10.0: [2, 8]})
    assert train(learner, given(0), RATES).rate == 1.0


def test_images_to_choose_by_are_not_trained_on() -> None:
    """The last eight of forty; the folds of the others are not looked at."""
    learner = Known({0.1: [2, 3], 1.0: [2, 3, 7, 5], 10.0: [2, 5]})
    choice = train(learner, given(5, count=32), RATES)
    assert choice.note == "rate 1, 2 epochs: chosen by 8 validation images."
    assert {tuple(asked) for asked in learner.asked} == {tuple(range(32, 40))}
    assert all(set(epochs) == set(range(32)) for epochs in learner.epochs)
    assert learner.classes == ["of these"] * 3 + ["of all"]  # means that they are not in
    assert learner.epochs[3] == learner.epochs[1][:64]
    better = [number * 8 // 30 for number in range(31)]
    learner = Known(dict.fromkeys(RATES, better))
    train(learner, given(0, count=32), RATES)
    assert sum(map(len, learner.epochs)) == passes(32, 8)


def test_the_plan_knows_what_a_run_costs_at_most() -> None:
    better = [number * 8 // 30 for number in range(31)]  # the last epoch is the best
    learner = Known(dict.fromkeys(RATES, better))
    train(learner, given(0), RATES)
    assert sum(map(len, learner.epochs)) == passes(40)
