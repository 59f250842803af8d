"""Rows and what they say over seeds."""

from dataclasses import asdict

import numpy as np
import pytest

from residual_peft.experiments import Row, summarize

ROWS = [
    Row("lora", 0, 0.5, 100, 3.0, 10),
    Row("coarse", 0, 0.7, 48, 1.0, 20),
    Row("lora", 1, 0.9, 103, 6.0, 13),
    Row("lora", 2, 0.6, 103, 9.0, 13),
]


def test_a_row_is_what_the_results_file_holds() -> None:
    assert asdict(ROWS[0]) == {
        "method": "lora",
        "seed": 0,
        "test_accuracy": 0.5,
        "trainable_parameters": 100,
        "fit_seconds": 3.0,
        "adapter_bytes": 10,
    }
    assert Row(**asdict(ROWS[0])) == ROWS[0]


def test_seeds_are_averaged_per_method_in_order_of_appearance() -> None:
    lora, coarse = summarize(ROWS)
    assert (lora.method, coarse.method) == ("lora", "coarse")
    accuracies = [0.5, 0.9, 0.6]
    assert lora.accuracy == pytest.approx(np.mean(accuracies))
    assert lora.spread == pytest.approx(np.std(accuracies, ddof=1))
    assert lora.seconds == pytest.approx(6.0)
    assert (lora.parameters, lora.bytes) == (102, 12)


def test_one_seed_has_no_spread() -> None:
    coarse = summarize(ROWS)[1]
    assert (coarse.accuracy, coarse.spread, coarse.parameters) == (0.7, 0.0, 48)
    assert summarize([]) == []
