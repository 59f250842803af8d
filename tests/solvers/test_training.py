import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Value
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from torch.autograd.graph import saved_tensors_hooks
from transformers import EvalPrediction, Trainer, TrainerCallback

from residual_peft.classifiers.backbones import load_backbone
from residual_peft.classifiers.evaluation import evaluate
from residual_peft.classifiers.zero_shot import ZeroShotClassifier
from residual_peft.data import ImageData, ProcessedImages, batches, collate, load_data
from residual_peft.data.metrics import classification_metrics
from residual_peft.demo.tasks import handwriting
from residual_peft.errors import ResiDualError
from residual_peft.solvers import fit_gains
from residual_peft.solvers.coordinates import collect_coordinates
from residual_peft.solvers.training import (
    AveragedGains,
    LogitsForMetrics,
    compute_metrics,
    trainer_kwargs,
    training_arguments,
)
from residual_peft.tuner import ResiDualConfig, fit_bases, gains_of
from tests.models import (
    Size,
    clip_model,
    clip_vision_model,
    clip_vision_model_with_projection,
    pixels,
)
from tests.tokenizers import VOCABULARY
from tests.training_case import adapted_classifier, task

QUICK = {
    "learning_rate": 0.1,
    "per_device_train_batch_size": 16,
    "num_train_epochs": 4,
    "disable_tqdm": True,
    "use_cpu": True,
}


NEVER = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}


def trainer(out, classifier=None, callbacks=(), **options):
    classifier = classifier or adapted_classifier()
    arguments = training_arguments(out, **(QUICK | options))
    made = trainer_kwargs(classifier, task(), arguments)
    made["callbacks"] += callbacks
    return Trainer(**made)


def gains_in(trainer):
    return gains_of(trainer.model).detach().clone()


def saved_gains(directory):
    tensors = load_file(directory / "adapter_model.safetensors")
    (name,) = (name for name in tensors if "gains" in name)
    return tensors[name]


class Watch(TrainerCallback):
    """Keeps the gains that are evaluated, and those that the steps leave."""

    def __init__(self):
        self.evaluated, self.stepped, self.metrics = {}, {}, {}

    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.stepped[state.global_step + 1] = gains_of(model).detach().clone()

    def on_evaluate(self, args, state, control, model=None, metrics=None, **kwargs):
        self.evaluated[state.global_step] = gains_of(model).detach().clone()
        self.metrics[state.global_step] = metrics


def averaged(trainer):
    """x of schedule-free AdamW from its state: y = (1 - beta) z + beta x."""
    optimizer, gains = trainer.optimizer.optimizer, gains_of(trainer.model)
    group, state = optimizer.param_groups[0], optimizer.state[gains]
    y = gains.detach()
    if not group["train_mode"]:
        return y.clone()
    return (y - (1 - group["betas"][0]) * state["z"]) / group["betas"][0]


def test_the_trainer_learns_and_reports_the_papers_metrics(tmp_path):
    made = trainer(tmp_path, num_train_epochs=8)
    before = made.evaluate()
    made.train()
    after = made.evaluate()
    assert after["eval_accuracy"] > before["eval_accuracy"] + 0.15
    assert {"eval_top5_accuracy", "eval_mean_per_class_recall", "eval_loss"} <= after.keys()
    result = made.predict(made.eval_dataset)
    expected = classification_metrics(result.predictions, result.label_ids)
    assert result.predictions.shape == (12, 3)
    assert after["eval_accuracy"] == expected["accuracy"] == result.metrics["test_accuracy"]


def test_gradients_reach_the_gains_and_nothing_of_the_backbone_is_kept():
    classifier = adapted_classifier()
    size, batch = Size(), 5
    tokens = (size.image // size.patch) ** 2 + 1
    assert [name for name, p in classifier.model.named_parameters() if p.requires_grad] == [
        name for name, _ in classifier.model.named_parameters() if "residual_peft_gains" in name
    ]
    kept = []
    with saved_tensors_hooks(lambda t: kept.append(tuple(t.shape)) or t, lambda t: t):
        outputs = classifier.model(pixel_values=pixels(batch))
        classifier.loss(outputs, torch.arange(batch) % 3).backward()
    assert kept
    assert not [shape for shape in kept if tokens in shape[1:-1] or len(shape) > 2]
    for parameter in classifier.model.parameters():
        assert (parameter.grad is not None) == parameter.requires_grad
    assert gains_of(classifier.model).grad.abs().max() > 0


def test_the_backbone_and_the_basis_stay_as_they_were(tmp_path):
    made = trainer(tmp_path, num_train_epochs=1)
    before = {name: t.clone() for name, t in made.model.state_dict().items()}
    made.train()
    changed = [n for n, t in made.model.state_dict().items() if not torch.equal(t, before[n])]
    assert len(changed) == 1
    assert "gains" in changed[0]


def test_the_trainer_fits_the_gains_that_the_coordinates_give(tmp_path):
    """In full batches, since the two shuffle differently."""
    classifier = adapted_classifier()
    data = load_data(task().train, test=0)
    loader = batches(data.train, classifier.image_processor)
    coordinates = collect_coordinates(classifier.model, loader)
    start = gains_of(classifier.model).detach().clone()
    fit = fit_gains(classifier, coordinates, learning_rate=0.1, epochs=4, batch_size=64)
    with torch.no_grad():
        gains_of(classifier.model).copy_(start)
    options = QUICK | {
        "eval_strategy": "no",
        "load_best_model_at_end": False,
        "save_strategy": "no",
        "per_device_train_batch_size": 64,
    }
    made = Trainer(**trainer_kwargs(classifier, data, training_arguments(tmp_path, **options)))
    made.train()
    assert (fit.gains - start).abs().max() > 0.1
    torch.testing.assert_close(gains_in(made), fit.gains, atol=1e-3, rtol=1e-3)


def test_gradient_accumulation_gives_the_whole_batches_gains(tmp_path):
    options = {
        "eval_strategy": "no",
        "save_strategy": "no",
        "load_best_model_at_end": False,
        "num_train_epochs": 2,
    }
    made = [
        trainer(
            tmp_path / str(steps),
            per_device_train_batch_size=12 // steps,
            gradient_accumulation_steps=steps,
            **options,
        )
        for steps in (1, 3)
    ]
    for run in made:
        run.train()
    torch.testing.assert_close(gains_in(made[0]), gains_in(made[1]), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("metric", ["loss", "accuracy"])
def test_what_is_evaluated_saved_and_loaded_are_the_averaged_gains(tmp_path, metric):
    watch = Watch()
    named = {"save_total_limit": None, "metric_for_best_model": metric}
    made = trainer(tmp_path, callbacks=[watch], **named)
    made.train()
    steps = sorted(watch.evaluated)
    assert len(steps) == 4
    for step in steps:
        saved = saved_gains(tmp_path / f"checkpoint-{step}")
        torch.testing.assert_close(saved, watch.evaluated[step], atol=0, rtol=0)
        assert (saved - watch.stepped[step]).abs().max() > 1e-3
    sign = -1 if metric == "loss" else 1
    best = max(steps, key=lambda s: (sign * watch.metrics[s][f"eval_{metric}"], -s))
    torch.testing.assert_close(gains_in(made), watch.evaluated[best], atol=0, rtol=0)
    again = made.evaluate()
    assert again["eval_accuracy"] == watch.metrics[best]["eval_accuracy"]
    assert again["eval_loss"] == pytest.approx(watch.metrics[best]["eval_loss"], rel=1e-6)
    torch.testing.assert_close(gains_in(made), watch.evaluated[best], atol=0, rtol=0)


def test_checkpoints_between_evaluations_are_averaged_too(tmp_path):
    watch = Watch()
    options = {
        "eval_strategy": "no",
        "save_strategy": "steps",
        "save_steps": 2,
        "load_best_model_at_end": False,
        "max_steps": 5,
        "save_total_limit": None,
    }
    made = trainer(tmp_path, callbacks=[watch], **options)
    made.train()
    for step in (2, 4):
        directory = tmp_path / f"checkpoint-{step}"
        state = torch.load(directory / "optimizer.pt", weights_only=True)
        group, z = state["param_groups"][0], state["state"][0]["z"]
        assert group["train_mode"] is False
        beta = group["betas"][0]
        x = (watch.stepped[step] - (1 - beta) * z) / beta
        torch.testing.assert_close(saved_gains(directory), x, atol=1e-4, rtol=1e-4)
        assert (x - watch.stepped[step]).abs().max() > 1e-3
    assert made.optimizer.optimizer.param_groups[0]["train_mode"] is False
    assert (gains_in(made) - watch.stepped[5]).abs().max() > 1e-3


def test_without_the_callback_such_checkpoints_would_not_be(tmp_path):
    watch = Watch()
    arguments = training_arguments(
        tmp_path,
        **(
            QUICK
            | {
                "eval_strategy": "no",
                "save_strategy": "steps",
                "save_steps": 2,
                "load_best_model_at_end": False,
                "max_steps": 2,
            }
        ),
    )
    made = trainer_kwargs(adapted_classifier(), task(), arguments)
    Trainer(**(made | {"callbacks": [watch]})).train()
    saved = saved_gains(tmp_path / "checkpoint-2")
    torch.testing.assert_close(saved, watch.stepped[2], atol=0, rtol=0)


class Crash(TrainerCallback):
    def __init__(self, epoch):
        self.epoch = epoch

    def on_epoch_begin(self, args, state, control, **kwargs):
        if state.epoch is not None and state.epoch >= self.epoch:
            raise KeyboardInterrupt


@pytest.mark.parametrize("gain_init", ["ones", "normal"])
def test_an_interrupted_and_resumed_run_equals_an_uninterrupted_one(tmp_path, gain_init):
    config = {"gain_init": gain_init}
    whole = trainer(tmp_path / "whole", adapted_classifier(ResiDualConfig(**config)))
    whole.train()
    cut = trainer(tmp_path / "cut", adapted_classifier(ResiDualConfig(**config)), [Crash(2)])
    with pytest.raises(KeyboardInterrupt):
        cut.train()
    assert not torch.equal(gains_in(cut), gains_in(whole))
    resumed = trainer(tmp_path / "cut", adapted_classifier(ResiDualConfig(**config)))
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == whole.state.global_step
    torch.testing.assert_close(gains_in(resumed), gains_in(whole), atol=1e-6, rtol=1e-6)
    last = f"checkpoint-{whole.state.global_step}"
    torch.testing.assert_close(
        saved_gains(tmp_path / "cut" / last),
        saved_gains(tmp_path / "whole" / last),
        atol=1e-6,
        rtol=1e-6,
    )
    logs = [
        [e["eval_loss"] for e in run.state.log_history if "eval_loss" in e]
        for run in (whole, resumed)
    ]
    assert logs[0] == pytest.approx(logs[1], rel=1e-6)


def test_early_stopping_stops_and_remembers_its_count_over_a_restart(tmp_path):
    classifier = adapted_classifier()
    still = {"learning_rate": 1e-6, "num_train_epochs": 12}
    trainer(tmp_path, classifier, [Crash(3)], **still)
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path, classifier, [Crash(3)], **still).train()
    resumed = trainer(tmp_path, adapted_classifier(), **still)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.epoch == 6  # the first is the best, and five without a better one


def small_and_badly_named():
    """75 digits of three classes under names that say nothing, 6 of them to validate on."""
    whole = handwriting()["train"].cast_column("label", Value("int64"))
    digits = (3, 5, 8)
    few = [r for d in digits for r in np.flatnonzero(np.array(whole["label"]) == d)[:25]]
    few = whole.select(few).map(lambda row: {"label": digits.index(row["label"])})
    data = load_data(few.cast_column("label", ClassLabel(names=["dax", "wug", "fep"])))
    clip = load_backbone()
    classifier = ZeroShotClassifier.from_text(
        get_peft_model(clip.model, ResiDualConfig()),
        clip.tokenizer,
        data.class_names,
        ["a photo of a {}."],
        image_processor=clip.image_processor,
    )
    fit_bases(classifier.model, batches(data.train, clip.image_processor))
    return classifier, data


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.* images span at most")
def test_a_small_folder_trains_as_long_as_its_validation_loss_falls(tmp_path):
    """Its accuracy on six images stands still while the model learns: chosen by that it is 0.69."""
    classifier, data = small_and_badly_named()
    assert {name: len(rows) for name, rows in data.splits.items()} == {
        "train": 63,
        "validation": 6,
        "test": 6,
    }
    quiet = {"disable_tqdm": True, "use_cpu": True}
    made = Trainer(**trainer_kwargs(classifier, data, training_arguments(tmp_path, **quiet)))
    made.train()
    history = [entry for entry in made.state.log_history if "eval_loss" in entry]
    losses = [entry["eval_loss"] for entry in history]
    assert made.state.best_metric == min(losses)
    if len(losses) < 30:  # it stopped by itself: for five epochs nothing fell
        assert min(losses[-5:]) > min(losses[:-5]) - 1e-3
    assert evaluate(classifier, data.whole()[0]).metrics["accuracy"] > 0.9


def test_a_checkpoint_is_an_adapter(tmp_path):
    made = trainer(tmp_path, num_train_epochs=1)
    made.train()
    directory = next(tmp_path.glob("checkpoint-*"))
    config = json.loads((directory / "adapter_config.json").read_text())
    assert config["peft_type"] == "RESIDUAL_PEFT"
    loaded = PeftModel.from_pretrained(clip_model(vocab_size=VOCABULARY), directory)
    with torch.no_grad():
        embeds = [m(pixel_values=pixels()).image_embeds for m in (loaded, made.model.eval())]
    torch.testing.assert_close(*embeds, atol=1e-5, rtol=1e-5)
    assert torch.equal(gains_of(loaded), gains_of(made.model))


@pytest.mark.parametrize(
    "model", [clip_vision_model_with_projection, lambda: clip_vision_model(Size(width=16))]
)
def test_vision_towers_alone_are_trained_too(tmp_path, model):
    made = trainer(tmp_path, adapted_classifier(model=model()), num_train_epochs=1)
    before = gains_in(made)
    made.train()
    assert not torch.equal(gains_in(made), before)
    assert made.evaluate()["eval_accuracy"] >= 0


def test_logits_for_metrics_finds_the_readouts_among_all_outputs():
    classifier, readout = adapted_classifier(), torch.randn(4, 16)
    pick, hidden = LogitsForMetrics(classifier), torch.randn(4, 5, 24)
    expected = classifier.logits(readout)
    for outputs in (
        readout,
        (hidden, readout),
        [readout, hidden],
        {"image_embeds": readout},
        SimpleNamespace(pooler_output=readout),
    ):
        torch.testing.assert_close(pick(outputs, None), expected)
    scores = expected.numpy()
    assert compute_metrics(EvalPrediction(scores, np.array([0, 1, 2, 0]))) == (
        classification_metrics(scores, np.array([0, 1, 2, 0]))
    )


def test_users_may_pass_the_pieces_themselves(tmp_path):
    classifier, data = adapted_classifier(), task()
    made = Trainer(
        model=classifier.model,
        args=training_arguments(tmp_path, **(QUICK | {"num_train_epochs": 1})),
        train_dataset=ProcessedImages(data.train, classifier.image_processor),
        eval_dataset=ProcessedImages(data.validation, classifier.image_processor),
        data_collator=collate,
        compute_loss_func=classifier.loss,
        compute_metrics=compute_metrics,
        preprocess_logits_for_metrics=LogitsForMetrics(classifier),
        callbacks=[AveragedGains()],
    )
    made.train()
    assert (
        "eval_accuracy" in made.state.log_history[-2] | made.state.log_history[-1] | made.evaluate()
    )


def test_bad_combinations_are_refused(tmp_path):
    classifier, arguments = adapted_classifier(), training_arguments(tmp_path, **QUICK)
    data = load_data(task().train, validation=0, test=0)
    with pytest.raises(ResiDualError, match="has no validation split to evaluate on"):
        trainer_kwargs(classifier, data, arguments)
    two = task().train.filter(lambda row: row["label"] < 2)
    two = load_data(two.cast_column("label", two.features["label"].__class__(names=["a", "b"])))
    with pytest.raises(ResiDualError, match="the data have 2 classes, the classifier 3"):
        trainer_kwargs(classifier, two, arguments)
    turned = ImageData(task().splits, classifier.class_names[::-1], "turned")
    with pytest.raises(ResiDualError, match="labels are numbers, so make it"):
        trainer_kwargs(classifier, turned, arguments)
    classifier.image_processor = None
    with pytest.raises(ResiDualError, match="with an image processor"):
        trainer_kwargs(classifier, task(), arguments)


def test_what_trains_is_written_down(tmp_path):
    classifier, data = adapted_classifier(), task()
    trainer_kwargs(classifier, data, training_arguments(tmp_path, **QUICK))
    assert classifier.split == data.split
    assert set(classifier.fitted_on) == {*data.digests["train"], *data.digests["validation"]}
    assert not set(classifier.fitted_on) & set(data.digests["test"])
    more = task(seed=1)
    trainer_kwargs(classifier, more, training_arguments(tmp_path, **(QUICK | NEVER)))
    assert classifier.split == more.split
    first = {*data.digests["train"], *data.digests["validation"]}
    assert set(classifier.fitted_on) == first | {*more.digests["train"]}


def with_bad_images(made, rows):
    """Break the bytes of some training images where they lie."""
    images = made["train_dataset"]
    images.dataset = [
        {**row, "image": {"bytes": b"broken", "path": f"{n}.jpg"}} if n in rows else row
        for n, row in enumerate(images.dataset)
    ]
    return made


@pytest.mark.parametrize(("batch_size", "bad"), [(16, (1, 20)), (2, (0, 1, 2, 3, 4, 5))])
def test_images_that_cannot_be_read_drop_out_of_their_batches(tmp_path, caplog, batch_size, bad):
    classifier = adapted_classifier()
    settings = QUICK | {"per_device_train_batch_size": batch_size, "num_train_epochs": 1}
    arguments = training_arguments(tmp_path, **settings)
    made = with_bad_images(trainer_kwargs(classifier, task(), arguments), bad)
    trainer = Trainer(**made)
    sizes = [len(batch["labels"]) for batch in trainer.get_train_dataloader()]
    if batch_size > 2:  # in batches of two some hold nothing else, and borrow an image
        assert sum(sizes) == len(made["train_dataset"]) - len(bad)
    assert min(sizes) >= 1
    trainer.train()
    assert trainer.state.global_step == len(sizes)
    assert not gains_of(classifier.model).eq(1).all()
    told = {record.getMessage() for record in caplog.records if "skipped" in record.getMessage()}
    assert told == {f"skipped '{n}.jpg' (not an image that PIL knows)" for n in bad}


def test_images_of_which_none_can_be_read_end_training_in_one_line(tmp_path):
    classifier = adapted_classifier()
    made = trainer_kwargs(classifier, task(), training_arguments(tmp_path, **QUICK))
    with_bad_images(made, range(len(made["train_dataset"])))
    with pytest.raises(ResiDualError, match=r"none of the 36 of the split 'train' can be read"):
        Trainer(**made).train()


def test_the_papers_settings_can_be_overridden(tmp_path):
    usual = training_arguments(tmp_path)
    assert usual.optim == "schedule_free_adamw"
    assert (usual.learning_rate, usual.num_train_epochs) == (0.8, 30)
    assert usual.per_device_train_batch_size == 64
    assert (usual.max_grad_norm, usual.weight_decay, usual.warmup_steps) == (0, 0, 0)
    assert usual.lr_scheduler_type == "constant"
    assert training_arguments(tmp_path, learning_rate=0.1).learning_rate == 0.1
