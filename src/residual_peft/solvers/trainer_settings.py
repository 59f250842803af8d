"""Settings of the Trainer that a classifier's training obeys, and those that it refuses.

The Trainer takes many settings that mean nothing for images, or that its own loss would have obeyed
and ours never sees. What is taken and ignored gives another model than the one that was asked for:
each is obeyed, or refused in one line before anything is trained.
"""

import copy
from collections.abc import Iterable
from typing import Any

from peft import PeftModel
from transformers import TrainingArguments

from ..classifiers.zero_shot import ZeroShotClassifier
from ..data import ImageData
from ..data.labels import other_than
from ..errors import ResiDualError

LABELS = ["labels"]

FOR_TEXTS = {  # setting -> the values that ask for nothing
    "train_sampling_strategy": ("random", "sequential"),
    "group_by_length": (False,),  # of older releases
    "neftune_noise_alpha": (None,),
    "include_num_input_tokens_seen": (False, "no"),
    "use_liger_kernel": (False,),
}


def evaluates(args: TrainingArguments) -> bool:
    """Whether validation images are looked at while training."""
    return _plain(args.eval_strategy) != "no"


def settled(
    args: TrainingArguments, classifier: ZeroShotClassifier, data: ImageData, patience: int | None
) -> TrainingArguments:
    """The arguments to train with: a copy with what the caller left open filled in.

    Columns: the labels are named, where no names were given, and no column is removed, since those
    of `ProcessedImages` are all for the model. A setting that would be ignored, or a model that
    would be lost, is refused in a line that says what to set instead.
    """
    args = copy.copy(args)
    args.remove_unused_columns = False
    if args.label_names is None:
        args.label_names = list(LABELS)
    classifier.labelling.check_smoothing(args.label_smoothing_factor, "label_smoothing_factor")
    refused = [*_unsuited(args, len(data.train))]
    if evaluates(args):
        refused += _unsuited_evaluation(args, data, patience)
    if args.load_best_model_at_end:
        refused += _lost_adapters(classifier.model)
    for line in refused:
        raise ResiDualError(line)
    return args


def _unsuited(args: TrainingArguments, images: int) -> Iterable[str]:
    """What no training of so many images can obey."""
    for name, nothing in FOR_TEXTS.items():
        value = _plain(getattr(args, name, nothing[0]))
        if value not in nothing:
            yield (
                f"{name}={value!r} is for models of text, and images have one length: leave it out."
            )
    if args.label_names != LABELS:
        yield f"wanted label_names=['labels'], the labels' name here, got {args.label_names}."
    if args.fp16 and args.device.type == "cpu":
        yield "fp16=True has no effect on a CPU: use bf16=True, or leave it out."
    for name in ("fp16_full_eval", "bf16_full_eval"):
        if getattr(args, name):
            yield (
                f"{name}=True would round the gains themselves, for good: load the model in half "
                "precision instead (dtype=torch.bfloat16), its gains stay in float32."
            )
    if args.dataloader_drop_last and images < args.train_batch_size:
        yield (
            f"dataloader_drop_last=True leaves nothing to train on: {images} images are less than "
            f"one batch of {args.train_batch_size}. Leave it out."
        )


def _unsuited_evaluation(
    args: TrainingArguments, data: ImageData, patience: int | None
) -> Iterable[str]:
    """What the choice of the best model by validation images cannot obey."""
    if "validation" not in data.splits:
        yield (
            f"'{data.source}' has no validation split to evaluate on; load it with validation=0.1, "
            "or train with eval_strategy='no' and load_best_model_at_end=False."
        )
        return
    metric = _metric(args)
    if metric is None and patience is not None:
        yield (
            "metric_for_best_model=None leaves early stopping nothing to go by: name one, such as "
            "metric_for_best_model='accuracy', or give patience=None."
        )
    other = other_than(data.labelling)
    if metric in other.metric_names:
        yield (
            f"metric_for_best_model={metric!r} is for {other.words} per image, and these have "
            f"{data.labelling.words}: use '{data.labelling.metric_names[0]}'."
        )
    if metric is not None and not by_loss(args) and args.prediction_loss_only:
        yield (
            f"prediction_loss_only=True measures no {metric}, by which the best model is chosen: "
            "leave it out, or use metric_for_best_model='loss'."
        )
    if by_loss(args) and args.greater_is_better:
        yield (
            "metric_for_best_model='loss' with greater_is_better=True would keep the worst model: "
            "leave greater_is_better out."
        )
    if args.batch_eval_metrics:
        yield (
            "batch_eval_metrics=True: recall and precision are of all images at once, and nothing "
            "but their logits is kept. Leave it out."
        )
    if "inputs" in args.include_for_metrics:
        yield (
            "include_for_metrics=['inputs'] would keep the pixels of all images, and the metrics "
            "here need none: leave it out."
        )
    left = len(data.validation) % args.eval_batch_size
    if args.dataloader_drop_last and left:
        yield (
            f"dataloader_drop_last=True would leave {left} of {len(data.validation)} validation "
            "images out of the score: leave it out."
        )


def _lost_adapters(model: Any) -> Iterable[str]:
    """Where the Trainer would load the best checkpoint of another adapter, or of none.

    It looks for it where PEFT saves the adapter "default", and puts what it finds there into the
    first one that is active.
    """
    if not isinstance(model, PeftModel):
        if getattr(model, "_hf_peft_config_loaded", False):
            yield (
                "load_best_model_at_end=True finds no checkpoint of an adapter that transformers' "
                "own add_adapter made: use get_peft_model(model, ResiDualConfig()), or set it to "
                "False."
            )
        return
    active = model.active_adapters
    if active and active[0] != "default" and "default" in model.peft_config:
        yield (
            f"load_best_model_at_end=True would load the checkpoint of the adapter 'default' into "
            f"{active[0]!r}: delete 'default' (model.delete_adapter('default')), or set it to "
            "False."
        )


def by_loss(args: TrainingArguments) -> bool:
    """Whether the best model is that of the lowest loss on validation images."""
    return _metric(args) == "loss"


def _metric(args: TrainingArguments) -> str | None:
    name = args.metric_for_best_model
    return None if name is None else str(name).removeprefix("eval_")


def _plain(value: Any) -> Any:
    return getattr(value, "value", value)
