"""What a prediction says, on a terminal and as JSON."""

import json

import pytest
import torch

from residual_peft.classifiers.predictions import predictions_of
from residual_peft.errors import ResiDualError
from tests.pairs import table

NAMES = ["cat", "dog", "b\x1bird", "cow"]
GENERATOR = torch.Generator().manual_seed(0)
LOGITS = 3 * torch.randn(40, 4, generator=GENERATOR)


@table("several", [False, True])
def test_the_top_is_that_of_sorted_probabilities(several: bool) -> None:
    found = predictions_of(LOGITS, NAMES, several)
    probabilities = LOGITS.sigmoid() if several else LOGITS.softmax(-1)
    for prediction, row in zip(found, probabilities.tolist(), strict=True):
        slow = sorted(zip(NAMES, row, strict=True), key=lambda pair: -pair[1])
        assert prediction.top(9) == slow
        assert prediction.top(2) == slow[:2]
        assert prediction.top(1) == [(prediction.label, prediction.score)]


def test_the_label_comes_first_where_rounding_made_all_equal() -> None:
    (found,) = predictions_of(torch.tensor([[60.0, 80.0, 70.0, 90.0]]), NAMES, True)
    assert found.top(1) == [("cow", 1.0)]
    assert [name for name, _ in found.top()] == ["cow", "cat", "dog", "b\x1bird"]


def test_a_prediction_prints_and_is_json() -> None:
    given = torch.tensor([[2.0, 0.0, 1.0, -9.0]])
    (found,) = predictions_of(given, NAMES, files=["photos/\x1b[2J.png"])
    assert str(found) == r"photos/\x1b[2J.png: cat 0.665, b\x1bird 0.245, dog 0.090"
    read = json.loads(json.dumps(found.as_dict()))
    assert read["file"] == found.file
    assert (read["label"], read["labels"]) == ("cat", ["cat"])
    assert list(read["probabilities"]) == NAMES
    assert read["probabilities"]["cat"] == read["score"] == found.score
    (several,) = predictions_of(given, NAMES, True)
    assert json.loads(json.dumps(several.as_dict()))["labels"] == ["cat", "dog", "b\x1bird"]
    assert str(several).startswith("cat 0.881, ")


def test_the_top_none_is_refused() -> None:
    with pytest.raises(ResiDualError, match="wanted the top 1 or more classes, got 0"):
        predictions_of(LOGITS, NAMES)[0].top(0)
