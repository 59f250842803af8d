"""The way of a fit by the HF Trainer, in readout and in stream mode."""

import torch
from peft import PeftModel
from transformers import Trainer

from ...classifiers.evaluation import Evaluation, evaluate
from ...classifiers.zero_shot import ZeroShotClassifier
from ...data import batches
from ...hub.files import read_tensors, write_tensors
from ...solvers.coordinates import Readouts, collect_readouts
from ...solvers.training import trainer_kwargs, training_arguments
from ...towers.running import unadapted
from ...tuner import fit_bases, gains_of
from .reading import TITLES, Pass, readouts_of
from .scoring import scored, training_metrics
from .task import Done, Task, clock

METHOD = "the Hugging Face Trainer, forward and backward for every batch"


def by_trainer(task: Task, read: Pass) -> Done:
    """Bases by a pass that also finds what cannot be read, then the Trainer."""
    model = task.adapted()
    fit = _in_readout_mode if task.config.mode == "readout" else _in_stream_mode
    return fit(task, read, model)


def _in_readout_mode(task: Task, read: Pass, model: PeftModel) -> Done:
    read.begin(model, task.settings)
    started = clock()
    train = read.read(model, "train", fit_basis=task.config.basis is None)
    encoded = clock()
    read.read(model, "validation")  # the Trainer knows no way around what it cannot read
    test = read.read(model, "test")
    classifier, bias = task.with_classes(model, read.images, readouts_of(train), train.labels)
    before = scored(classifier, test, None, bias)
    seconds = _train(task, read, classifier)
    gains = gains_of(model).detach().cpu()
    after = scored(classifier, test, gains, classifier.logit_bias)
    inside = training_metrics(classifier, train, gains)
    times = (encoded - started, seconds)
    return Done(classifier, before, after, inside, train.labels, test, *times, METHOD, len(train))


def _in_stream_mode(task: Task, read: Pass, model: PeftModel) -> Done:
    seen = {split: _readouts(model, read, split) for split in TITLES}
    train, test = seen["train"], seen["test"]
    classifier, bias = task.with_classes(model, read.images, train.readout, train.labels)
    with unadapted(model), torch.no_grad():
        logits = classifier.scaled_cosines(test.readout.to(classifier.device)).cpu() + bias
    before = Evaluation(classifier.class_names, logits, test.labels)
    started = clock()
    options = read.recipe.reading
    if task.config.basis is None:
        fit_bases(model, batches(read.processed("train"), **options), progress=True)
    encoded = clock()
    seconds = _train(task, read, classifier)
    after, inside = (
        evaluate(classifier, read.processed(split), name=TITLES[split], progress=True, **options)
        for split in ("test", "train")
    )
    scores = (before, after, inside.metrics)
    times = (encoded - started, seconds)
    return Done(classifier, *scores, train.labels, None, *times, METHOD, len(train))


def _readouts(model: PeftModel, read: Pass, split: str) -> Readouts:
    loader = batches(read.processed(split), skip=True, **read.recipe.reading)
    seen = collect_readouts(model, loader, progress=True)
    read.drop(split, loader.skipped)
    return seen


def _train(task: Task, read: Pass, classifier: ZeroShotClassifier) -> float:
    """Run the Trainer, on from its last checkpoint where there is one; its seconds."""
    started = clock()
    folder, trained = read.kept.checkpoints, read.kept.trained
    settings = training_arguments(folder, seed=task.recipe.seed, disable_tqdm=False)
    trainer = Trainer(**trainer_kwargs(classifier, read.images, settings))
    gains = {n: p for n, p in classifier.model.named_parameters() if p.requires_grad}
    if trained.is_file():  # all that was left was to save: early stopping would train on
        found, _ = read_tensors(trained)
        with torch.no_grad():
            for name, parameter in gains.items():
                parameter.copy_(found[name])
        return clock() - started
    last = read.kept.last_checkpoint
    trainer.train(resume_from_checkpoint=None if last is None else str(last))
    write_tensors(trained, {name: parameter.detach() for name, parameter in gains.items()})
    return clock() - started
