"""The Trainer, evaluation and the saved classifier with an adapter in stream mode."""

from pathlib import Path

import pytest
import torch
from transformers import Trainer

from residual_peft.classifiers.evaluation import evaluate
from residual_peft.classifiers.zero_shot import ZeroShotClassifier
from residual_peft.data import batches
from residual_peft.errors import ResiDualError
from residual_peft.solvers.coordinates import collect_coordinates
from residual_peft.solvers.training import trainer_kwargs, training_arguments
from residual_peft.tuner import ResiDualConfig, fit_bases, gains_by_module
from tests.models import clip_model
from tests.tokenizers import VOCABULARY
from tests.training_case import adapted_classifier, task


def test_trained_saved_loaded_and_merged(tmp_path: Path) -> None:
    torch.manual_seed(0)
    data, classifier = task(), adapted_classifier(ResiDualConfig(mode="stream", components=0.99))
    fit_bases(classifier.model, batches(data.train, classifier.image_processor, name="train"))
    arguments = training_arguments(
        tmp_path / "run",
        learning_rate=0.1,
        per_device_train_batch_size=16,
        num_train_epochs=8,
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = Trainer(**trainer_kwargs(classifier, data, arguments))
    before = trainer.evaluate()["eval_accuracy"]
    trainer.train()
    assert trainer.evaluate()["eval_accuracy"] > before + 0.15
    assert all(bool((gains != 1).any()) for gains in gains_by_module(classifier.model).values())
    wanted = evaluate(classifier, data.test).logits
    classifier.save_pretrained(tmp_path / "adapter")
    base = clip_model(vocab_size=VOCABULARY)
    loaded = ZeroShotClassifier.from_pretrained(tmp_path / "adapter", model=base)
    torch.testing.assert_close(evaluate(loaded, data.test).logits, wanted, rtol=1e-5, atol=1e-5)
    loaded.model = loaded.model.merge_and_unload()
    torch.testing.assert_close(evaluate(loaded, data.test).logits, wanted, rtol=1e-4, atol=1e-4)


def test_there_are_no_coordinates_of_changed_weights() -> None:
    data, classifier = task(), adapted_classifier(ResiDualConfig(mode="stream"))
    images = batches(data.train, classifier.image_processor, name="train")
    with pytest.raises(ResiDualError, match=r"in stream mode, .*train it with the Trainer"):
        collect_coordinates(classifier.model, images)
