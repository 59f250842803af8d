"""The accumulator that travels between processes."""

import pickle

import pytest

from residual_peft.bases.accumulator import BasisAccumulator
from residual_peft.errors import ResiDualError
from tests.models import clip_model, pixels

KINDS = ("embed", "head", "mlp", "output")


def test_an_accumulator_travels_without_its_model_and_never_grows() -> None:
    model = clip_model()
    accumulator = BasisAccumulator(model, KINDS)
    accumulator.update(pixels(4))
    small = len(pickle.dumps(accumulator))
    assert small < sum(parameter.nbytes for parameter in model.parameters())
    for seed in range(5):
        accumulator.update(pixels(40, seed=seed))
    assert abs(len(pickle.dumps(accumulator)) - small) < 64
    sent = pickle.loads(pickle.dumps(accumulator))
    with pytest.raises(RuntimeError, match="has no model: it can be merged"):
        sent.update(pixels())
    with pytest.raises(RuntimeError, match="has no model: it can be merged"):
        sent.finish()


def test_moments_of_other_weights_or_units_are_not_merged() -> None:
    accumulator = BasisAccumulator(clip_model(), ["head"])
    with pytest.raises(ResiDualError, match=r"cannot merge moments of CLIPModel \(6 units\) into"):
        accumulator.merge(BasisAccumulator(clip_model(), ["head", "mlp"]))
    with pytest.raises(ResiDualError, match="use the same model and the same units"):
        accumulator.merge(BasisAccumulator(clip_model(seed=1), ["head"]))
