"""Many tasks from one forward pass, against the model run for each of them under set_adapter."""

import contextlib
import threading

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from residual_peft.classifiers.many_tasks import BLOCK, TaskSet
from residual_peft.classifiers.zero_shot import Prediction, ZeroShotClassifier
from residual_peft.errors import ResiDualError
from residual_peft.towers.running import run_tower
from residual_peft.tuner import ResiDualConfig, ResiDualReadout, fit_bases, gains_of, readout_state
from tests.models import BUILDERS, clip_model, pixels
from tests.pairs import in_turn
from tests.pictures import agree, image_processor, photographs
from tests.pooled import POOLED
from tests.tuner.twin import IMAGES, randomize_gains, relative
from tests.tuner.zoo import KINDS, zoo

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


def classes(model, name, seed):
    """A classifier with as many random classes as the seed says, and a scale of its own."""
    count = 2 + seed % 4
    generator = torch.Generator().manual_seed(100 + seed)
    width = run_tower(model, pixels(1).to(next(model.parameters()).dtype)).shape[1]
    return ZeroShotClassifier(
        model,
        [f"{name} {index}" for index in range(count)],
        torch.randn(count, width, generator=generator),
        logit_scale=5.0 + seed,
        image_processor=image_processor(),
    )


def one_basis(count, dtype=torch.float32, model=None, readout=None):
    """Adapters a0, a1, ... over one basis, with random gains."""
    model = clip_model().to(dtype) if model is None else model
    for index in range(count):
        if index == 0:
            model = get_peft_model(model, ResiDualConfig(readout=readout), adapter_name="a0")
        else:
            model.add_adapter(f"a{index}", ResiDualConfig(readout=readout))
        fit_bases(model, [pixels(IMAGES, seed=5).to(dtype)], f"a{index}")
        randomize_gains(model, f"a{index}", seed=index)
    return model.eval()


def task_set(model, names=None):
    names = list(model.peft_config) if names is None else names
    tasks = TaskSet(model)
    for name in names:
        index = list(model.peft_config).index(name)
        tasks.add(name, classes(model, name, index), adapter_name=name)
    return tasks


@torch.no_grad()
def slow(tasks, name, images):
    """The whole model, run again for one task alone."""
    task = tasks._tasks[name]
    before = tasks.model.active_adapter
    if task.adapter is None:
        with tasks.model.disable_adapter():
            return task.classifier.logits(run_tower(tasks.model, images))
    tasks.model.set_adapter(task.adapter)
    try:
        return task.classifier.logits(run_tower(tasks.model, images))
    finally:
        tasks.model.set_adapter(before)


@in_turn(
    dtype=TOLERANCE,
    builder=BUILDERS,
)
def test_each_task_is_what_the_model_says_under_its_adapter(builder, dtype):
    tasks = task_set(zoo(builder, dtype))
    tasks.add("zero-shot", classes(tasks.model.get_base_model(), "plain", 3))
    images = pixels().to(dtype)
    found = tasks.logits(images)
    assert list(found) == [*KINDS, "zero-shot"]
    for name, logits in found.items():
        expected = slow(tasks, name, images)
        assert logits.shape == (5, len(tasks.class_names(name)))
        assert relative(logits, expected) < TOLERANCE[dtype], name
    assert list(tasks.logits(images, ["few", "all", "few"])) == ["few", "all"]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_more_tasks_than_one_product_takes(dtype):
    tasks = task_set(one_basis(2 * BLOCK + 3, dtype))
    images = pixels().to(dtype)
    assert len({id(readout_state(tasks.model, name)) for name in tasks}) == 1
    for name, logits in tasks.logits(images).items():
        assert relative(logits, slow(tasks, name, images)) < TOLERANCE[dtype], name
    # cuts its readout out of the norm's output, or calls that norm on a token once more
    for readout in ("own", "patches"):
        blip = POOLED["BlipForImageTextRetrieval"].build().to(dtype)
        tasks = task_set(one_basis(2, dtype, blip, readout))
        for name, logits in tasks.logits(images).items():
            assert relative(logits, slow(tasks, name, images)) < TOLERANCE[dtype], name


def test_half_precision_and_meta_data_of_the_backbone_do_not_matter():
    model = one_basis(2).to(torch.bfloat16)
    tasks = task_set(model)
    images = pixels().to(torch.bfloat16)
    for name, logits in tasks.logits(images).items():
        assert logits.dtype == torch.float32
        # the model rounds its readout to bfloat16, the set does not
        assert relative(logits, slow(tasks, name, images)) < 2e-2


def test_no_task_changes_another_but_by_rounding():
    model, images = one_basis(BLOCK + 3), pixels()
    fingerprint = {name: value.clone() for name, value in model.get_base_model().named_parameters()}
    tasks = task_set(model, ["a0", "a1"])
    before = tasks.logits(images)
    for index in range(2, BLOCK + 3):
        tasks.add(f"a{index}", classes(model, "x", index), adapter_name=f"a{index}")
    everything = tasks.logits(images)
    for name in ("a0", "a2", "a5"):
        tasks.remove(name)
    after = tasks.logits(images)
    alone = tasks.logits(images, ["a1"])
    for name in ("a0", "a1"):
        assert torch.allclose(everything[name], before[name], atol=1e-5)
    for found in (after, alone):
        assert torch.allclose(found["a1"], before["a1"], atol=1e-5)
    assert torch.allclose(after["a9"], everything["a9"], atol=1e-5)
    tasks.add("again", classes(model, "x", 2), adapter_name="a2")  # into a place that is free
    with torch.no_grad():
        gains_of(model, "a2").fill_(float("nan"))
    assert torch.allclose(tasks.logits(images)["a1"], before["a1"], atol=1e-5)
    assert tasks.logits(images)["again"].isnan().all()
    for name, value in model.get_base_model().named_parameters():
        assert "a2" in name or torch.equal(value, fingerprint[name])


def test_gains_trained_on_are_seen():
    tasks, images = task_set(one_basis(2)), pixels()
    before = tasks.logits(images)
    with torch.no_grad():
        gains_of(tasks.model, "a1").mul_(1.5)
    after = tasks.logits(images)
    assert torch.allclose(after["a0"], before["a0"], atol=1e-5)
    assert relative(after["a1"], slow(tasks, "a1", images)) < 1e-5
    assert relative(after["a1"], before["a1"]) > 1e-3


def test_predictions_are_those_of_each_classifier():
    model, images = one_basis(3), photographs()
    tasks = task_set(model)
    found = tasks.predict(images, batch_size=2)
    one = tasks.predict(images[0], ["a2"])
    assert isinstance(one["a2"], Prediction)
    logits = tasks.predict_logits(images, ["a1"])
    assert list(logits) == ["a1"]
    for index, name in enumerate(tasks):
        model.set_adapter(name)
        classifier = classes(model, name, index)
        assert agree(found[name], classifier.predict(images))
    np.testing.assert_allclose(
        logits["a1"].softmax(-1), [p.probabilities for p in found["a1"]], atol=1e-6
    )
    assert agree(one["a2"], found["a2"][0])


def test_a_batch_in_which_each_image_has_its_own_task():
    tasks, images = task_set(zoo(dtype=torch.float32)), photographs(9)
    tasks.add("zero-shot", classes(tasks.model.get_base_model(), "plain", 3))
    names = [*tasks, "all"]
    found = tasks.predict_mixed(images, names, batch_size=4)
    every = tasks.predict(images)
    for row, (name, prediction) in enumerate(zip(names, found, strict=True)):
        assert agree(prediction, every[name][row]), name
        assert prediction.label in tasks.class_names(name)
    assert agree(tasks.predict_mixed(images[:2], ["zero-shot"] * 2), every["zero-shot"][:2])
    with pytest.raises(ResiDualError, match="for each of 9 images, got 1"):
        tasks.predict_mixed(images, ["all"])


@pytest.mark.parametrize("active", ["a1", ["a0", "a1"], None])
def test_the_model_is_left_as_it_was(active):
    model = one_basis(2)
    tasks = task_set(model)
    expected = tasks.logits(pixels())
    if active is not None:
        model.base_model.set_adapter(active)
    model.train()
    model.get_base_model().vision_model.eval()
    modes = [module.training for module in model.modules()]
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    grads = [p.requires_grad for p in model.parameters()]
    with contextlib.nullcontext() if active is not None else model.disable_adapter():
        before = run_tower(model, pixels())
        found = tasks.logits(pixels())
        assert torch.equal(run_tower(model, pixels()), before)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert grads == [p.requires_grad for p in model.parameters()]
    assert hooks == [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    assert modes == [module.training for module in model.modules()]
    with pytest.raises(ResiDualError):
        tasks.logits(torch.zeros(1, 3, 5, 5))
    assert hooks == [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]


@pytest.mark.parametrize("builder", BUILDERS)
def test_threads_do_not_meet(builder):
    tasks = task_set(one_basis(3, model=BUILDERS[builder]()))
    batches = [pixels(3, seed=seed) for seed in range(4)]
    alone = [tasks.logits(batch) for batch in batches]
    failures, start = [], threading.Barrier(5)

    def work(index):
        start.wait()
        for _ in range(20):
            found = tasks.logits(batches[index])
            failures.extend(n for n in found if not torch.equal(found[n], alone[index][n]))

    def adapted():
        start.wait()
        for _ in range(40):
            if not torch.equal(run_tower(tasks.model, batches[0]), expected):
                failures.append("the model itself")

    expected = run_tower(tasks.model, batches[0])
    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    threads.append(threading.Thread(target=adapted))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def save(folder, names=("digits", "colours"), config=None, seed=0, processor=None):
    """Classifiers over one base model, each in its directory, and their own logits."""
    base = clip_model(seed=seed)
    base.save_pretrained(folder / "base")
    expected = {}
    for index, name in enumerate(names):
        base = type(base).from_pretrained(folder / "base")
        model = get_peft_model(base, config or ResiDualConfig())
        fit_bases(model, [pixels(IMAGES, seed=5)])
        if model.peft_config["default"].mode == "readout":
            randomize_gains(model, seed=index)
        made = classes(model.eval(), name, index)
        made.image_processor = processor or made.image_processor
        made.save_pretrained(folder / name)
        expected[name] = made.predict(photographs())
    return expected


def test_saved_tasks_share_backbone_and_basis(tmp_path):
    expected = save(tmp_path, ("digits", "colours", "v1.0"))
    tasks = TaskSet.from_pretrained([tmp_path / name for name in expected])
    assert list(tasks) == list(expected)
    assert len(tasks) == 3
    assert "digits" in tasks
    found = tasks.predict(photographs())
    assert all(agree(found[name], expected[name]) for name in expected)
    states = {id(readout_state(tasks.model, name)) for name in tasks.model.peft_config}
    assert len(states) == 1
    assert sum(isinstance(m, ResiDualReadout) for m in tasks.model.modules()) == 1
    assert not tasks.model.training
    kept = tasks.predict_logits(photographs(), ["colours"])["colours"]
    for name in ("digits", "v1.0"):
        tasks.remove(name)
    assert torch.equal(tasks.predict_logits(photographs())["colours"], kept)
    assert list(tasks.model.peft_config) == ["colours"]
    renamed = TaskSet.from_pretrained({"one": tmp_path / "digits", "two": tmp_path / "digits"})
    assert agree(renamed.predict(photographs())["two"], expected["digits"])


def test_the_last_task_can_go_and_others_come(tmp_path):
    expected = save(tmp_path)
    tasks = TaskSet.from_pretrained(str(tmp_path / "digits"))
    tasks.remove("digits")
    assert len(tasks) == 0
    assert not isinstance(tasks.model, PeftModel)
    assert not any(isinstance(module, ResiDualReadout) for module in tasks.model.modules())
    with pytest.raises(ResiDualError, match="wanted at least one task, got none"):
        tasks.predict(photographs())
    tasks.add("colours", tmp_path / "colours")
    assert agree(tasks.predict(photographs())["colours"], expected["colours"])


def test_loading_leaves_the_models_own_adapters_and_modes(tmp_path):
    save(tmp_path)
    base = clip_model()
    model = get_peft_model(base, ResiDualConfig(), adapter_name="digits")
    randomize_gains(model, "digits")
    model.train()
    expected = run_tower(model, pixels())
    tasks = TaskSet(model)
    tasks.add("digits", tmp_path / "digits")
    assert tasks._tasks["digits"].adapter == "task 0"  # the model has a "digits" of its own
    assert model.active_adapter == "digits"
    assert all(module.training for module in model.modules())
    assert torch.equal(run_tower(model, pixels()), expected)
    tasks.add("eval", tmp_path / "digits")  # a name that torch takes for no tensor
    assert tasks._tasks["eval"].adapter == "task 1"
    tasks.remove("eval")
    tasks.remove("digits")
    assert list(model.peft_config) == ["digits"]
    assert torch.equal(run_tower(model, pixels()), expected)


def test_zero_shot_classifiers_are_tasks_too(tmp_path):
    base = clip_model()
    base.save_pretrained(tmp_path / "base")
    base = type(base).from_pretrained(tmp_path / "base")
    made = classes(base, "plain", 1)
    made.save_pretrained(tmp_path / "plain")
    tasks = TaskSet.from_pretrained([tmp_path / "plain"])
    tasks.add("same", ZeroShotClassifier(tasks.model, made.class_names, made.class_embeddings))
    expected = made.predict(photographs())
    assert agree(tasks.predict(photographs())["plain"], expected)
    assert agree(tasks.predict_mixed(photographs(), ["plain"] * 5), expected)
    adapted = type(base).from_pretrained(tmp_path / "base")
    text = get_peft_model(adapted, ResiDualConfig(side="text"))
    tasks = TaskSet(text.eval())  # an adapter of the texts changes no image
    own = ZeroShotClassifier(text, made.class_names, made.class_embeddings)
    tasks.add("text", own)
    assert relative(tasks.logits(pixels())["text"], own.logits(run_tower(base, pixels()))) < 1e-6
    save(tmp_path / "more")
    with pytest.raises(ResiDualError, match="has no adapter and belongs to"):
        TaskSet.from_pretrained([tmp_path / "more" / "digits", tmp_path / "plain"])


def test_an_empty_set_and_bad_names_are_refused(tmp_path):
    tasks = task_set(one_basis(2))
    for call in (
        lambda: tasks.predict(photographs(), ["a0", "b"]),
        lambda: tasks.predict_mixed(photographs(1), ["b"]),
        lambda: tasks.remove("b"),
        lambda: tasks.class_names("b"),
    ):
        with pytest.raises(ResiDualError, match="no tasks 'b'; the set has a0, a1"):
            call()
    with pytest.raises(ResiDualError, match="a list of tasks' names, got 'a0'"):
        tasks.predict(photographs(), "a0")
    with pytest.raises(ResiDualError, match="there is a task 'a0' already"):
        tasks.add("a0", classes(tasks.model, "x", 0))
    with pytest.raises(ResiDualError, match="wanted a task's name, got ''"):
        tasks.add("", classes(tasks.model, "x", 0))
    with pytest.raises(ResiDualError, match="at least one image to classify"):
        tasks.predict([])
    with pytest.raises(ResiDualError, match="at least one saved classifier"):
        TaskSet.from_pretrained([])
    with pytest.raises(ResiDualError, match="would be called 'x'; name them"):
        TaskSet.from_pretrained([tmp_path / "a" / "x", tmp_path / "b" / "x"])
    with pytest.raises(ResiDualError, match="could not find the adapter"):
        TaskSet.from_pretrained(["nobody/nothing"])


def test_other_backbones_are_refused(tmp_path):
    tasks = task_set(one_basis(2))
    with pytest.raises(ResiDualError, match="'other' has another model than this set"):
        tasks.add("other", classes(one_basis(1), "x", 0))
    with pytest.raises(ResiDualError, match="no adapter 'a7'"):
        tasks.add("other", classes(tasks.model, "x", 0), adapter_name="a7")
    save(tmp_path, seed=4)
    with pytest.raises(ResiDualError, match="belongs to the weights of"):
        tasks.add("other", tmp_path / "digits")
    assert list(tasks) == list(tasks.model.peft_config) == ["a0", "a1"]
    assert tasks.logits(pixels())


def test_adapters_that_change_the_stream_are_refused(tmp_path):
    stream = ResiDualConfig(mode="stream")
    save(tmp_path, ("deep",), config=stream)
    tasks = TaskSet(clip_model())
    with pytest.raises(ResiDualError, match=r"'deep' is mode='stream'.*forward pass of its own"):
        tasks.add("deep", tmp_path / "deep")
    with pytest.raises(ResiDualError, match="with 'default', mode='stream', which changes"):
        TaskSet(get_peft_model(clip_model(), stream))
    config = LoraConfig(r=2, target_modules=["q_proj"])
    with pytest.raises(ResiDualError, match="with 'default', of type LORA"):
        TaskSet(get_peft_model(clip_model(), config))
    made = classes(get_peft_model(clip_model(), config), "x", 0)
    made.save_pretrained(tmp_path / "lora")
    with pytest.raises(ResiDualError, match="holds an adapter of type 'LORA'"):
        tasks.add("lora", tmp_path / "lora")
    assert len(tasks) == 0


def test_other_image_processing_is_refused(tmp_path):
    save(tmp_path, ("digits",))
    other = image_processor()
    other.image_mean = [0.1, 0.2, 0.3]
    save(tmp_path / "b", ("colours",), processor=other)
    tasks = TaskSet.from_pretrained([tmp_path / "digits"])
    with pytest.raises(ResiDualError, match="'colours' gives other pixels than this set's"):
        tasks.add("colours", tmp_path / "b" / "colours")
    assert list(tasks) == ["digits"]
