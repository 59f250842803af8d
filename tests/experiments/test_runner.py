"""Methods by name, and on a tiny task: complete rows, test images that choose nothing.

Their names are in the table's order, with the paper's configs and the given seed; the backbone is
untouched, and rows say the same over seeds as by hand.
"""

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from residual_peft.classifiers.zero_shot import ZeroShotClassifier
from residual_peft.errors import ResiDualError
from residual_peft.experiments import (
    METHODS,
    LoraSettings,
    Method,
    Row,
    Task,
    run_method,
    runner,
    summarize,
)
from residual_peft.solvers.training import LEARNING_RATE
from residual_peft.towers.running import run_tower
from residual_peft.tuner import ResiDualConfig, gains_of
from tests.experiments.case import count, labels_of, tiny_task, with_another_test_split
from tests.models import Size, clip_model
from tests.pairs import table
from tests.tokenizers import VOCABULARY

FITTED = [name for name in METHODS if name != "zero_shot"]
LORA = LoraSettings(rank=2, learning_rate=0.02, batch_size=12, epochs=2)
SIZE = Size()
HEADS, D, d = SIZE.heads * SIZE.layers, SIZE.width, SIZE.readout
ROWS = [
    Row("lora", 0, 0.5, 100, 3.0, 10),
    Row("coarse", 0, 0.7, 48, 1.0, 20),
    Row("lora", 1, 0.9, 103, 6.0, 13),
    Row("lora", 2, 0.6, 103, 9.0, 13),
]


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> Task:
    return tiny_task(tmp_path_factory.mktemp("backbone"))


@pytest.fixture
def said(monkeypatch) -> list[Tensor]:
    """The logits that each row's accuracy was counted on."""
    seen, accuracy = [], runner.accuracy
    monkeypatch.setattr(
        runner, "accuracy", lambda logits, labels: seen.append(logits) or accuracy(logits, labels)
    )
    return seen


def rows_of(task: Task, name: str, seeds=(0, 1), **options) -> list[Row]:
    return run_method(task, METHODS[name], seeds, lora=LORA, **options)


@pytest.mark.parametrize("name", METHODS)
def test_rows_are_complete_and_the_backbone_is_as_it_was(task, said, name) -> None:
    before = {key: value.clone() for key, value in task.backbone.model.state_dict().items()}
    rows = rows_of(task, name)
    assert [row.seed for row in rows] == ([0] if name == "zero_shot" else [0, 1])
    for row, logits in zip(rows, said, strict=True):
        assert row.method == name
        right = logits.argmax(1) == labels_of(task.test)
        assert row.test_accuracy == pytest.approx(right.float().mean().item())
        if name == "zero_shot":
            assert (row.trainable_parameters, row.fit_seconds, row.adapter_bytes) == (0, 0, 0)
        else:
            assert row.fit_seconds > 0
            # no smaller than its numbers in float32
            assert row.adapter_bytes > 4 * row.trainable_parameters
    after = task.backbone.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


def test_parameters_are_counted(task) -> None:
    counts = {name: rows_of(task, name, (0,))[0].trainable_parameters for name in FITTED}
    assert counts["coarse"] == HEADS
    assert counts["linear"] == d * d + d
    assert counts["lora"] == SIZE.layers * 2 * LORA.rank * 2 * D
    assert counts["rd_y"] == d
    # a head of width 12 has 13 directions, an MLP as many as the readout has
    assert counts["residual"] == counts["default"] == HEADS * 13 + SIZE.layers * d
    assert HEADS <= counts["residual_star"] < HEADS * 13


@pytest.mark.parametrize("name", METHODS)
def test_the_test_images_choose_nothing(task, said, name) -> None:
    rows_of(task, name, (0,))
    rows_of(with_another_test_split(task), name, (0,))
    mine, other = said
    assert len(other) > len(mine) == count(task.test)
    torch.testing.assert_close(other[: len(mine)], mine, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", FITTED)
def test_the_training_images_are_fitted(task, said, name) -> None:
    """The counterpart: other training labels do lead to other answers."""
    wrong = [{**batch, "labels": (batch["labels"] + 1) % 3} for batch in task.train]
    rows_of(task, name, (0,))
    relabelled = [{**batch, "labels": (batch["labels"] + 1) % 3} for batch in task.validation]
    rows_of(replace(task, train=wrong, validation=relabelled), name, (0,))
    assert (said[0] - said[1]).abs().max() > 0.05


@pytest.mark.parametrize("name", FITTED)
def test_a_seed_gives_the_same_row_whatever_ran_before(task, said, name) -> None:
    rows_of(task, name, (0, 1))
    rows_of(task, name, (1,))
    torch.testing.assert_close(said[2], said[1], rtol=0, atol=1e-4)
    assert not torch.equal(said[0], said[1])


def test_zero_shot_is_the_bare_model(task, said) -> None:
    run_method(task, METHODS["zero_shot"])
    classifier = task.classifier()
    with torch.no_grad():
        expected = torch.cat(
            [
                classifier.logits(run_tower(task.backbone.model, batch["pixel_values"]))
                for batch in task.test
            ]
        )
    torch.testing.assert_close(said[0], expected)


def test_the_first_seeds_adapter_is_kept_with_its_classes(task, said, tmp_path: Path) -> None:
    rows_of(task, "residual", (3, 4), keep=tmp_path)
    loaded = ZeroShotClassifier.from_pretrained(tmp_path, model=clip_model(vocab_size=VOCABULARY))
    assert loaded.class_names == task.class_names
    config = loaded.model.peft_config["default"]
    assert (config.seed, config.num_samples) == (3, count(task.basis))
    pixels = torch.cat([batch["pixel_values"] for batch in task.test])
    with torch.no_grad():
        logits = loaded.logits(run_tower(loaded.model, pixels))
    torch.testing.assert_close(logits, said[0], rtol=0, atol=1e-4)
    assert not gains_of(loaded.model).eq(1).all()


def test_progress_is_reported_in_words(task) -> None:
    said: list[str] = []
    rows_of(task, "default", (0, 1), report=said.append)
    assert said == [
        "fitting the bases",
        "reading the images",
        "fitting the gains, seed 0",
        "fitting the gains, seed 1",
    ]


def test_a_fit_that_fails_takes_its_adapter_out_again(task) -> None:
    before = {name for name, _ in task.backbone.model.named_modules()}
    bad = [{**batch, "labels": batch["labels"] + 1} for batch in task.train]
    with pytest.raises(ResiDualError, match=r"wanted labels from 0 to 2 \(3 classes\), got 3"):
        rows_of(replace(task, train=bad), "default")
    assert {name for name, _ in task.backbone.model.named_modules()} == before


def test_an_unknown_kind_is_refused(task) -> None:
    with pytest.raises(ResiDualError, match="of kind none, gains, linear or lora; got 'magic'"):
        run_method(task, Method("new", "new", "magic"))


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


def test_names_are_those_of_the_results_in_the_order_of_the_table() -> None:
    assert list(METHODS) == [
        "zero_shot",
        "coarse",
        "residual_star",
        "residual",
        "default",
        "rd_y",
        "linear",
        "lora",
    ]
    assert all(name == method.name for name, method in METHODS.items())
    assert len({method.label for method in METHODS.values()}) == len(METHODS)


@table("name", ["coarse", "residual_star", "residual", "rd_y"])
def test_the_papers_methods_are_its_presets_with_the_seed(name: str) -> None:
    assert METHODS[name].kind == "gains"
    assert METHODS[name].config(5) == ResiDualConfig.paper(name, seed=5)


def test_the_default_is_what_a_user_gets() -> None:
    assert METHODS["default"].config(5) == ResiDualConfig(seed=5)


def test_the_others_have_no_gains() -> None:
    kinds = {name: method.kind for name, method in METHODS.items() if method.config is None}
    assert kinds == {"zero_shot": "none", "linear": "linear", "lora": "lora"}


def test_gains_over_heads_are_trained_at_the_papers_rate() -> None:
    for name in ("coarse", "residual_star", "residual", "default"):
        assert METHODS[name].learning_rate == LEARNING_RATE == 0.8


def test_loras_label_says_what_it_is() -> None:
    letters = ", ".join(name.removesuffix("_proj") for name in LoraSettings().target_modules)
    assert METHODS["lora"].label == f"LoRA r={LoraSettings().rank} on {letters}"
