"""LoRA as a baseline: trained by the Trainer, the best epoch by validation accuracy, seeded."""

from dataclasses import replace

import pytest
import torch
from peft import get_peft_model_state_dict
from torch import Tensor

from residual_peft.classifiers.backbones import load_image_tower
from residual_peft.data.metrics import accuracy
from residual_peft.experiments import LoraSettings, Task, lora
from residual_peft.experiments.lora import fit_lora
from residual_peft.towers.running import run_tower
from tests.experiments.case import labels_of, tiny_task

SETTINGS = LoraSettings(rank=2, learning_rate=0.05, batch_size=12, epochs=5)


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> Task:
    return tiny_task(tmp_path_factory.mktemp("backbone"))


def fitted(task: Task, seed: int = 0, settings: LoraSettings = SETTINGS, **options):
    classifier = task.classifier(load_image_tower(task.backbone.name))
    model = fit_lora(classifier, task.train, task.validation, settings, seed, **options)
    return classifier, model


@torch.no_grad()
def score(classifier, split) -> float:
    logits = [classifier.logits(run_tower(classifier.model, b["pixel_values"])) for b in split]
    return accuracy(torch.cat(logits), labels_of(split))


def weights(model) -> dict[str, Tensor]:
    return get_peft_model_state_dict(model, save_embedding_layers=False)


def test_only_queries_and_values_of_the_image_tower_are_adapted(task) -> None:
    base = {
        name: value.clone()
        for name, value in load_image_tower(task.backbone.name).state_dict().items()
    }
    classifier, model = fitted(task)
    assert classifier.model is model
    assert not model.training
    found = weights(model)
    assert len(found) == 2 * 2 * 2  # A and B, queries and values, two layers
    assert all(".q_proj." in name or ".v_proj." in name for name in found)
    assert {min(value.shape) for value in found.values()} == {SETTINGS.rank}
    assert all(value.abs().max() > 0 for value in found.values())  # B starts at zero
    after = {
        name.replace(".base_layer", ""): value
        for name, value in model.get_base_model().state_dict().items()
    }
    assert all(torch.equal(value, after[name]) for name, value in base.items())


def test_it_learns_and_prints_nothing(task, capsys) -> None:
    before = score(task.classifier(), task.train)
    classifier, _ = fitted(task)
    assert score(classifier, task.train) > before + 0.2
    assert capsys.readouterr().out == ""


def test_the_best_epoch_on_the_validation_images_is_taken(task, monkeypatch) -> None:
    trainers, trainer = [], lora.Trainer

    def spy(**options):
        trainers.append(trainer(**options))
        return trainers[-1]

    monkeypatch.setattr(lora, "Trainer", spy)
    wrong = [{**batch, "labels": (batch["labels"] + 1) % 3} for batch in task.validation]
    task = replace(task, validation=wrong)  # the better it learns, the worse it is on these
    classifier, _ = fitted(task)
    logs = trainers[0].state.log_history
    history = [log["eval_accuracy"] for log in logs if "eval_accuracy" in log]
    assert len(history) == SETTINGS.epochs
    assert history[-1] < max(history)
    assert score(classifier, wrong) == pytest.approx(max(history))
    assert trainers[0].args.seed == 0  # of the order of the images; the Trainer's own is 42


def test_it_is_seeded(task) -> None:
    once, again, other = (weights(fitted(task, seed)[1]) for seed in (0, 0, 1))
    assert all(torch.equal(once[name], again[name]) for name in once)
    assert any(not torch.equal(once[name], other[name]) for name in once)


def test_every_epoch_is_reported(task) -> None:
    said: list[str] = []
    fitted(task, settings=LoraSettings(rank=1, epochs=2), report=said.append)
    assert said == ["training, epoch 1 of 2", "training, epoch 2 of 2"]
