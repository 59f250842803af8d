"""Settings of the Trainer: each is obeyed, or refused in a line."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import PeftModel, get_peft_model
from torch.nn import functional
from transformers import EvalPrediction, Trainer, TrainerCallback, TrainingArguments

from residual_peft.classifiers.zero_shot import ZeroShotClassifier
from residual_peft.data import load_data
from residual_peft.errors import ResiDualError
from residual_peft.solvers.training import (
    LossOfImages,
    compute_metrics,
    trainer_kwargs,
    training_arguments,
)
from residual_peft.tuner import ResiDualConfig, gains_of
from tests.labelled_pictures import images
from tests.models import clip_model
from tests.pairs import table
from tests.tokenizers import VOCABULARY
from tests.training_case import adapted_classifier, task

QUICK = {
    "learning_rate": 0.1,
    "per_device_train_batch_size": 16,
    "num_train_epochs": 2,
    "logging_strategy": "no",
    "disable_tqdm": True,
    "use_cpu": True,
}


def trained(out, classifier=None, callbacks=(), patience=5, **options):
    torch.manual_seed(0)
    classifier = classifier or adapted_classifier()
    made = trainer_kwargs(
        classifier, task(), training_arguments(out, **(QUICK | options)), patience=patience
    )
    made["callbacks"] += callbacks
    run = Trainer(**made)
    run.train()
    return run


def gains(run):
    return gains_of(run.model).detach().clone()


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return gains(trained(tmp_path_factory.mktemp("plain")))


def named_classifier(name):
    classifier = adapted_classifier()
    base = clip_model(vocab_size=VOCABULARY)
    classifier.model = get_peft_model(base, ResiDualConfig(), adapter_name=name)
    return classifier


class Evaluated(TrainerCallback):
    def __init__(self):
        self.gains, self.losses, self.accuracies = [], [], []

    def on_evaluate(self, args, state, control, model=None, metrics=None, **kwargs):
        self.gains.append(gains_of(model).detach().clone())
        self.losses.append(metrics["eval_loss"])
        self.accuracies.append(metrics["eval_accuracy"])


class Spoil(TrainerCallback):
    """From the third epoch on the gains that are evaluated are bad."""

    def on_epoch_end(self, args, state, control, model=None, **kwargs):
        if state.epoch > 2:
            with torch.no_grad():
                gains_of(model).mul_(-1)


def test_labels_are_smoothed(tmp_path):
    classifier = adapted_classifier()
    arguments = training_arguments(tmp_path, label_smoothing_factor=0.9, **QUICK)
    run = Trainer(**trainer_kwargs(classifier, task(), arguments))
    loss = run.evaluate()["eval_loss"]
    result = run.predict(run.eval_dataset)
    logits, labels = torch.tensor(result.predictions), torch.tensor(result.label_ids)
    wanted = functional.cross_entropy(logits, labels, label_smoothing=0.9)
    assert loss == pytest.approx(wanted.item(), rel=1e-5)
    assert abs(loss - functional.cross_entropy(logits, labels).item()) > 0.01
    plain, smoothed = (
        trained(tmp_path / str(s), num_train_epochs=1, label_smoothing_factor=s) for s in (0.0, 0.9)
    )
    assert (gains(plain) - gains(smoothed)).abs().max() > 1e-3


@pytest.mark.parametrize(
    "given", [{}, {"metric_for_best_model": None}, {"metric_for_best_model": "loss"}]
)
def test_the_best_by_loss_has_the_smallest(tmp_path, given):
    """Also where it is our default; and the direction of one metric must not go for another."""
    watch = Evaluated()
    run = trained(tmp_path, callbacks=[Spoil(), watch], num_train_epochs=3, **given)
    best = int(np.argmin(watch.losses))
    assert best != int(np.argmax(watch.losses))
    assert torch.equal(gains(run), watch.gains[best])
    assert run.args.greater_is_better is False


def test_the_direction_of_a_metric_follows_its_name(tmp_path):
    assert training_arguments(tmp_path).greater_is_better is False
    assert training_arguments(tmp_path, metric_for_best_model="accuracy").greater_is_better is True
    assert (
        training_arguments(tmp_path, metric_for_best_model="eval_loss").greater_is_better is False
    )
    chosen = training_arguments(tmp_path, metric_for_best_model="mean_per_class_recall")
    assert chosen.greater_is_better is True


@pytest.mark.parametrize("name", ["default", "mine"])
def test_the_best_checkpoint_is_loaded_whatever_the_adapter_is_called(tmp_path, name):
    watch = Evaluated()
    run = trained(
        tmp_path,
        named_classifier(name),
        [Spoil(), watch],
        num_train_epochs=3,
        metric_for_best_model="loss",
        save_total_limit=1,
    )
    best = int(np.argmin(watch.losses))
    assert best == 1
    assert torch.equal(gains(run), watch.gains[best])
    assert not torch.equal(watch.gains[best], watch.gains[-1])


def test_two_adapters_where_the_wrong_one_would_be_loaded(tmp_path):
    classifier = adapted_classifier()
    classifier.model.add_adapter("mine", ResiDualConfig())
    classifier.model.set_adapter("mine")
    arguments = training_arguments(tmp_path, **QUICK)
    with pytest.raises(ResiDualError, match=r"the checkpoint of the adapter 'default' into 'mine'"):
        trainer_kwargs(classifier, task(), arguments)
    trainer_kwargs(
        classifier, task(), training_arguments(tmp_path, load_best_model_at_end=False, **QUICK)
    )
    classifier.model.delete_adapter("default")
    trainer_kwargs(classifier, task(), arguments)


def test_an_adapter_of_transformers_own_has_no_best_checkpoint(tmp_path):
    classifier = adapted_classifier()
    model = clip_model(vocab_size=VOCABULARY)
    model.add_adapter(ResiDualConfig())
    classifier.model = model
    with pytest.raises(ResiDualError, match=r"no checkpoint of an adapter that transformers' own"):
        trainer_kwargs(classifier, task(), training_arguments(tmp_path, **QUICK))


def test_what_was_left_open_is_filled_in_a_copy(tmp_path):
    """A caller's own TrainingArguments name no labels, and CLIP's forward has none either."""
    own = TrainingArguments(str(tmp_path), eval_strategy="epoch", use_cpu=True, report_to="none")
    made = trainer_kwargs(adapted_classifier(), task(), own, patience=None)
    run = Trainer(**made)
    scores = run.evaluate()
    assert {"eval_loss", "eval_accuracy"} <= scores.keys()
    assert own.label_names is None
    assert own.remove_unused_columns is True


def test_batches_that_are_not_put_together(tmp_path):
    run = trained(tmp_path, eval_do_concat_batches=False, per_device_eval_batch_size=5)
    whole = trained(tmp_path, per_device_eval_batch_size=5)
    names = ("eval_accuracy", "eval_mean_per_class_recall", "eval_loss")
    a, b = run.evaluate(), whole.evaluate()
    assert [a[name] for name in names] == [b[name] for name in names]
    scores = [np.eye(3)[:2], np.eye(3)[2:]]
    assert compute_metrics(EvalPrediction(scores, [np.array([0, 1]), np.array([0])])) == (
        compute_metrics(EvalPrediction(np.eye(3), np.array([0, 1, 0])))
    )


@pytest.mark.parametrize(
    "options",
    [
        {"dataloader_num_workers": 2, "remove_unused_columns": True},
        {"gradient_checkpointing": True, "average_tokens_across_devices": False},
        pytest.param(
            {"torch_compile": True, "torch_compile_backend": "eager"}, marks=pytest.mark.slow
        ),
    ],
    ids=lambda options: next(iter(options)),
)
def test_settings_that_change_no_result(tmp_path, options, plain):
    other = trained(tmp_path, **options)
    assert (plain - 1).abs().max() > 0.1
    torch.testing.assert_close(gains(other), plain, atol=1e-5, rtol=1e-5)


def test_half_precision_leaves_the_gains_in_float32(tmp_path):
    run = trained(tmp_path, bf16=True)
    assert gains(run).dtype == torch.float32
    assert (gains(run).bfloat16().float() != gains(run)).any()


@pytest.mark.parametrize("averaged", [True, False])
def test_several_devices_in_one_process_measure_the_same_loss(tmp_path, averaged):
    """nn.DataParallel, which on a CPU runs its module as it is; the Trainer's sums are its own."""
    losses = []
    for devices in (1, 3):
        arguments = training_arguments(
            tmp_path, average_tokens_across_devices=averaged, gradient_accumulation_steps=2, **QUICK
        )
        arguments._n_gpu = devices
        made = trainer_kwargs(adapted_classifier(), task(), arguments)
        made["args"].per_device_train_batch_size = 12 // devices
        run = Trainer(**made)
        logs = run.train().training_loss
        losses.append((run.evaluate()["eval_loss"], logs))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


REFUSED = [
    ({"train_sampling_strategy": "group_by_length"}, "='group_by_length' is for models of text"),
    ({"neftune_noise_alpha": 5.0}, "neftune_noise_alpha=5.0 is for models of text"),
    ({"include_num_input_tokens_seen": "all"}, "include_num_input_tokens_seen='all' is for"),
    ({"use_liger_kernel": True}, "use_liger_kernel=True is for models of text"),
    ({"label_names": ["label"]}, r"label_names=\['labels'\], the labels' name here, got \['label'"),
    ({"fp16": True}, "fp16=True has no effect on a CPU: use bf16=True"),
    ({"bf16_full_eval": True}, "bf16_full_eval=True would round the gains themselves"),
    ({"label_smoothing_factor": 1.5}, "wanted label_smoothing_factor from 0 to below 1, got 1.5"),
    ({"batch_eval_metrics": True}, "batch_eval_metrics=True: recall and precision are of all"),
    ({"include_for_metrics": ["inputs"]}, r"include_for_metrics=\['inputs'\] would keep the pixel"),
    (
        {"prediction_loss_only": True, "metric_for_best_model": "accuracy"},
        "prediction_loss_only=True measures no accuracy",
    ),
    (
        {"metric_for_best_model": "loss", "greater_is_better": True},
        "would keep the worst model",
    ),
    (
        {"metric_for_best_model": None, "load_best_model_at_end": False},
        "metric_for_best_model=None leaves early stopping nothing to go by",
    ),
    (
        {"dataloader_drop_last": True, "per_device_eval_batch_size": 5},
        "would leave 2 of 12 validation images out of the score",
    ),
    (
        {"dataloader_drop_last": True, "per_device_train_batch_size": 64},
        "leaves nothing to train on: 36 images are less than one batch of 64",
    ),
]


@table(("options", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_would_be_ignored_is_refused(tmp_path, options, message):
    arguments = training_arguments(tmp_path, **(QUICK | options))
    classifier = adapted_classifier()
    with pytest.raises(ResiDualError, match=message) as raised:
        trainer_kwargs(classifier, task(), arguments)
    assert "\n" not in str(raised.value)
    assert classifier.fitted_on == ()


def test_every_setting_that_is_for_texts_is_one_of_the_trainers(tmp_path):
    from residual_peft.solvers.trainer_settings import FOR_TEXTS

    known = {field.name for field in dataclasses.fields(TrainingArguments)}
    assert set(FOR_TEXTS) - known <= {"group_by_length"}  # of older releases


def test_no_metric_and_no_early_stopping(tmp_path):
    none = {"metric_for_best_model": None, "load_best_model_at_end": False}
    run = trained(tmp_path, patience=None, **none)
    assert (gains(run) - 1).abs().max() > 0.1


def test_several_labels_have_neither_accuracy_nor_smoothing(tmp_path):
    data = load_data(images(60), validation=0.2, test=0.2)
    made = adapted_classifier()
    classifier = ZeroShotClassifier(
        made.model,
        data.class_names,
        torch.eye(len(data.class_names), 16),
        image_processor=made.image_processor,
        multi_label=True,
    )
    arguments = training_arguments(tmp_path, label_smoothing_factor=0.1, **QUICK)
    with pytest.raises(ResiDualError, match="label_smoothing_factor is for one label per image"):
        trainer_kwargs(classifier, data, arguments)
    for name in ("accuracy", "top5_accuracy"):
        arguments = training_arguments(tmp_path, metric_for_best_model=name, **QUICK)
        with pytest.raises(ResiDualError, match=f"'{name}' is for one label per image"):
            trainer_kwargs(classifier, data, arguments)
    chosen = trainer_kwargs(classifier, data, training_arguments(tmp_path, **QUICK))["args"]
    assert (chosen.metric_for_best_model, chosen.greater_is_better) == ("loss", False)


@table("data", ["photos", task().train, task().train.to_iterable_dataset()])
def test_data_of_another_kind_are_refused_by_their_kind(tmp_path, data):
    arguments = training_arguments(tmp_path, **QUICK)
    kind = type(data).__name__
    with pytest.raises(ResiDualError, match=rf"wanted images from load_data\(...\), got {kind}"):
        trainer_kwargs(adapted_classifier(), data, arguments)


def test_a_stream_trains_beside_the_pieces_of_trainer_kwargs(tmp_path):
    """Items of `pixel_values` and `labels`, as the message about streams says."""
    classifier, data = adapted_classifier(), task()
    prepare = classifier.image_processor

    def row_of(row):
        pixels = prepare(row["image"], return_tensors="pt")["pixel_values"][0]
        return {"pixel_values": pixels, "labels": row["label"]}

    stream = data.train.to_iterable_dataset(num_shards=2).map(row_of).with_format("torch")
    stream = stream.remove_columns(["image", "label"])
    options = {"max_steps": 6, "eval_strategy": "steps", "eval_steps": 3, "save_steps": 3}
    arguments = training_arguments(tmp_path, **(QUICK | options | {"save_strategy": "steps"}))
    made = trainer_kwargs(classifier, data, arguments) | {"train_dataset": stream}
    run = Trainer(**made)
    run.train()
    assert run.state.global_step == 6
    assert (gains(run) - 1).abs().max() > 0.1
    assert "eval_accuracy" in run.evaluate()


def test_the_loss_takes_what_the_trainer_counts_for_each_device():
    classifier = adapted_classifier()
    readouts, labels = torch.randn(6, 16), torch.tensor([0, 1, 2, 0, 1, 2])
    wanted = classifier.loss(readouts, labels)
    for devices, counted in ((1, torch.tensor(6)), (2, torch.tensor([[6], [6]]))):
        arguments = SimpleNamespace(n_gpu=devices, label_smoothing_factor=0.0)
        found = LossOfImages(classifier, arguments)(readouts, labels, counted)
        torch.testing.assert_close(found * devices, wanted)
    assert isinstance(classifier.model, PeftModel)
