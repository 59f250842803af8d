"""What the Hugging Face Trainer needs: arguments, data, loss, metrics, early stopping.

    Trainer(**trainer_kwargs(classifier, data, training_arguments("out"))).train()

Everything in it can also be passed piece by piece, as users write it.
"""

import os
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor
from transformers import (
    EarlyStoppingCallback,
    EvalPrediction,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from ..classifiers.evaluation import in_order
from ..classifiers.outputs import readout_of
from ..classifiers.zero_shot import ZeroShotClassifier
from ..data import ImageData, ProcessedImages, collate
from ..data.labels import check_same, labelling_in
from ..errors import ResiDualError, some
from ..towers.registry import find_tower
from ..towers.running import read_tokens
from .trainer_settings import by_loss, evaluates, settled

LEARNING_RATE, BATCH_SIZE, EPOCHS, PATIENCE = 0.8, 64, 30, 5
"""The paper's settings for gains (`paper-facts.md`)."""

STILL = 1e-4  # a validation loss that falls by less from one evaluation to the next stands still


def training_arguments(output_dir: str | os.PathLike[str], **options: Any) -> TrainingArguments:
    """The paper's settings as `TrainingArguments`; any of them can be overridden by name.

    Schedule-free AdamW at 0.8 without a schedule or clipping, batches of 64, at most 30 epochs, one
    evaluation and one checkpoint per epoch, the best by validation loss loaded at the end.

    One thing is not the paper's, which chooses by accuracy: on few validation images accuracy takes
    few values and stays at one of them while the model still learns, so that training stopped after
    a handful of steps and kept the first of equals. The loss sees what accuracy does not yet. On
    six tasks of the demo with 8 to 25 images per class it makes 0.81 of 0.71 on other images
    (`benchmarks/choosing.py`).
    `metric_for_best_model="accuracy"`, or another that `compute_metrics` gives, chooses by that;
    with several labels per image "mean_average_precision".

    Three settings are not a matter of taste: the images must not be removed as an unused column,
    labels must be named since CLIP's forward has none, and early stopping must remember its count
    when a run is resumed. Whether more of a metric is better follows from its name, unless
    `greater_is_better` says it.
    """
    settings: dict[str, Any] = {
        "output_dir": str(output_dir),
        "optim": "schedule_free_adamw",
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "per_device_train_batch_size": BATCH_SIZE,
        "per_device_eval_batch_size": BATCH_SIZE,
        "num_train_epochs": EPOCHS,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "logging_strategy": "epoch",
        "load_best_model_at_end": True,
        "metric_for_best_model": "loss",
        "save_total_limit": 2,
        "remove_unused_columns": False,
        "label_names": ["labels"],
        "restore_callback_states_from_checkpoint": True,
        "dataloader_pin_memory": torch.cuda.is_available() and not options.get("use_cpu"),
        "report_to": "none",
    }
    return TrainingArguments(**(settings | options))


def trainer_kwargs(
    classifier: ZeroShotClassifier,
    data: ImageData,
    args: TrainingArguments,
    *,
    patience: int | None = PATIENCE,
) -> dict[str, Any]:
    """All that the Trainer takes to train a classifier's adapter on a data set.

    A classifier for several labels per image is trained with the `logit_bias` that it has: give it
    one that suits it with `fit_bias` before. The classifier is told how its images were shared out
    and which of them it sees (`split`, `fitted_on`), which `save_pretrained` writes down.

    Args:
        classifier: its model is trained, its image processor prepares the images.
        data: its training split, and its validation split where there is one.
        args: from `training_arguments`, or your own. The Trainer gets a copy, with what was left
            open filled in (`trainer_settings.settled`).
        patience: evaluations without a better score before it stops; None never. A loss that falls
            by less than `STILL` is no better.

    Raises:
        ResiDualError: no image processor, other classes, an evaluation without validation data, or
            a setting that could only be ignored.
    """
    _check(classifier, data)
    args = settled(args, classifier, data, patience)
    used = ["train", "validation"] if evaluates(args) else ["train"]
    callbacks: list[TrainerCallback] = [AveragedGains()]
    if evaluates(args) and patience is not None:
        callbacks.append(EarlyStoppingCallback(patience, STILL if by_loss(args) else 0.0))
    if args.load_best_model_at_end and isinstance(classifier.model, PeftModel):
        callbacks.append(BestOfNamedAdapters())
    sets = [
        ProcessedImages(data[s], classifier.image_processor, f"the split '{s}'", skip=True)
        for s in used
    ]
    classifier.split = data.split if data.split.digest else None
    seen = (digest for split in used for digest in data.digests.get(split, ()))
    classifier.fitted_on = tuple(dict.fromkeys([*classifier.fitted_on, *seen]))
    return {
        "model": classifier.model,
        "args": args,
        "train_dataset": sets[0],
        "eval_dataset": sets[1] if len(sets) > 1 else None,
        "data_collator": collate,
        "compute_loss_func": LossOfImages(classifier, args),
        "compute_metrics": compute_metrics,
        "preprocess_logits_for_metrics": LogitsForMetrics(classifier),
        "callbacks": callbacks,
    }


def _check(classifier: ZeroShotClassifier, data: ImageData) -> None:
    """Refuse what a classifier cannot be trained on."""
    if not isinstance(data, ImageData):
        raise ResiDualError(
            f"wanted images from load_data(...), got {type(data).__name__}: load_data takes a "
            "folder, a Hub id or a datasets.Dataset. A stream goes to the Trainer by itself, as "
            "train_dataset, with items of pixel_values and labels."
        )
    if classifier.image_processor is None:
        raise ResiDualError("wanted a classifier with an image processor to train on images.")
    if len(data.class_names) != len(classifier.class_names):
        raise ResiDualError(
            f"the data have {len(data.class_names)} classes, the classifier "
            f"{len(classifier.class_names)}; make it from data.class_names."
        )
    if not in_order(data.class_names, classifier.class_names):
        raise ResiDualError(
            f"the data's classes are {some(data.class_names)}, the classifier's "
            f"{some(classifier.class_names)}: labels are numbers, so make it from data.class_names."
        )
    check_same(classifier.labelling, data.labelling, "make it with multi_label=data.multi_label")


class LossOfImages:
    """For `compute_loss_func`: the classifier's loss, with what the Trainer's settings ask of it.

    The Trainer smooths labels in its own loss alone, which a `compute_loss_func` takes the place
    of. Where one process drives several devices, it gives the number of labels once for each, and
    multiplies the loss by their number: right for a loss that each replica computes of its share,
    not for this one, which is of all outputs.
    """

    def __init__(self, classifier: ZeroShotClassifier, args: TrainingArguments) -> None:
        self.classifier = classifier
        self.args = args

    def __call__(
        self, outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """The loss of a batch; arguments as for `ZeroShotClassifier.loss`."""
        devices = max(1, self.args.n_gpu)
        if isinstance(num_items_in_batch, Tensor):
            num_items_in_batch = num_items_in_batch.flatten()[0]
        loss = self.classifier.loss(
            outputs, labels, num_items_in_batch, label_smoothing=self.args.label_smoothing_factor
        )
        return loss if num_items_in_batch is None else loss / devices


class AveragedGains(TrainerCallback):
    """Puts a schedule-free optimizer into eval mode wherever weights are saved or training ends.

    Schedule-free optimizers evaluate the average x of the iterates and train at another point, y.
    The Trainer switches to x when it evaluates, and not when it saves: without this, a checkpoint
    between evaluations, and the last weights of a run that ends between two, would be y. The next
    training step switches back by itself.
    """

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Before a checkpoint that is due."""
        if control.should_save:
            _average(kwargs.get("optimizer"))

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Before what follows an epoch, which may be the end of training.

        After `load_best_model_at_end` it would be too late: switching then would move the weights
        that were just loaded.
        """
        _average(kwargs.get("optimizer"))


class BestOfNamedAdapters(TrainerCallback):
    """Loads the best checkpoint of adapters that are not called "default", as the Trainer does not.

    PEFT saves those in folders of their own inside a checkpoint, where it does not look: it would
    go on with the last gains, after a warning about another matter.
    """

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """After the Trainer has loaded what it finds.

        Raises:
            ResiDualError: the checkpoint does not hold an adapter that was trained.
        """
        model, best = kwargs["model"], state.best_model_checkpoint
        if best is None:
            return
        for name in [name for name in model.active_adapters if name != "default"]:
            folder = os.path.join(best, name)
            if not os.path.isdir(folder):
                raise ResiDualError(f"the best checkpoint, '{best}', has no adapter {name!r}.")
            model.load_adapter(folder, name)


class LogitsForMetrics:
    """For `preprocess_logits_for_metrics`: the model's outputs -> logits (B, C).

    The Trainer hands over all tensors of a model's output; keeping the last hidden states of a
    whole evaluation set would fill the memory.
    """

    def __init__(self, classifier: ZeroShotClassifier) -> None:
        self.classifier = classifier

    def __call__(self, outputs: Any, labels: Tensor | None = None) -> Tensor:
        """Find the readouts among the outputs and compare them with the classes."""
        width = self.classifier.class_embeddings.shape[1]
        anatomy = find_tower(self.classifier.model)
        parts = outputs if isinstance(outputs, tuple | list) else (outputs,)
        found = [part for part in parts if isinstance(part, Tensor) and part.shape[-1] == width]
        # a tower whose readout is made of tokens also gives what its pooler makes of them
        tokens = [part for part in found if part.ndim == 3 and anatomy.reads_tokens]
        if tokens:
            return self.classifier.logits(read_tokens(anatomy, tokens[0], {}))
        for part in found:
            if part.ndim == 2:
                return self.classifier.logits(part)
        return self.classifier.logits(readout_of(outputs, self.classifier.model))


def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Metrics of logits (N, C) for the Trainer.

    Of labels (N,) accuracy, top-5 accuracy and mean per-class recall; of (N, C) zeros and ones
    those of `multi_label_metrics`. Lists of batches, as `eval_do_concat_batches=False` has them,
    are put together.
    """
    logits, labels = _together(prediction.predictions), _together(prediction.label_ids)
    return labelling_in(labels).metrics(logits, labels)


def _together(batches: Any) -> np.ndarray:
    return np.concatenate(batches) if isinstance(batches, list) else np.asarray(batches)


def _average(optimizer: Any) -> None:
    # what the Trainer itself asks before it evaluates; other optimizers have no eval mode
    if callable(evaluate := getattr(optimizer, "eval", None)):
        evaluate()
