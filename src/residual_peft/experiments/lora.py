"""PEFT's LoRA as a baseline, trained by the HF Trainer as anyone would."""

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import PrinterCallback, Trainer, TrainerCallback, set_seed

from ..classifiers.zero_shot import ZeroShotClassifier
from ..data import collate
from ..solvers.training import LogitsForMetrics, compute_metrics, training_arguments


@dataclass(frozen=True)
class LoraSettings:
    """How LoRA is trained."""

    rank: int = 8
    target_modules: tuple[str, ...] = ("q_proj", "v_proj")
    learning_rate: float = 5e-3
    batch_size: int = 32
    epochs: int = 6


class _Say(TrainerCallback):
    """Reports every epoch."""

    def __init__(self, report: Callable[[str], object]) -> None:
        self.report = report

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Say how far it is."""
        self.report(f"training, epoch {state.epoch or 0:.0f} of {args.num_train_epochs:.0f}")


def _items(batches: Iterable[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    return [
        {name: value[row] for name, value in batch.items()}
        for batch in batches
        for row in range(len(batch["labels"]))
    ]


def fit_lora(
    classifier: ZeroShotClassifier,
    train: Iterable[dict[str, Tensor]],
    validation: Iterable[dict[str, Tensor]],
    settings: LoraSettings,
    seed: int,
    report: Callable[[str], object] = lambda text: None,
) -> PeftModel:
    """Train LoRA on the classifier's image tower, and leave the adapted tower in the classifier.

    AdamW with a cosine schedule; the epoch with the best validation accuracy is taken.
    """
    set_seed(seed)
    config = LoraConfig(
        r=settings.rank, lora_alpha=2 * settings.rank, target_modules=list(settings.target_modules)
    )
    model = get_peft_model(classifier.model, config)
    classifier.model = model
    with tempfile.TemporaryDirectory() as folder:
        arguments = training_arguments(
            folder,
            optim="adamw_torch",
            learning_rate=settings.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=10,
            max_grad_norm=1.0,
            metric_for_best_model="accuracy",
            per_device_train_batch_size=settings.batch_size,
            num_train_epochs=settings.epochs,
            seed=seed,
            disable_tqdm=True,
        )
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=_items(train),
            eval_dataset=_items(validation),
            data_collator=collate,
            compute_loss_func=classifier.loss,
            compute_metrics=compute_metrics,
            preprocess_logits_for_metrics=LogitsForMetrics(classifier),
            callbacks=[_Say(report)],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return model.eval()


def adapter_bytes(model: PeftModel) -> int:
    """The size of the adapter's weights as saved, in a file that needs only the base model."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, save_embedding_layers=False)
        return (Path(folder) / "adapter_model.safetensors").stat().st_size
