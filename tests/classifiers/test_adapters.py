"""A loaded classifier is the saved one, whatever adapters its model has; or it is not saved."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from residual_peft.classifiers.adapters import Adapters
from residual_peft.classifiers.many_tasks import TaskSet
from residual_peft.classifiers.zero_shot import ZeroShotClassifier
from residual_peft.errors import ResiDualError
from residual_peft.towers.running import run_tower
from residual_peft.tuner import ResiDualConfig, gains_of, load_adapter
from tests.hub_client import hub  # noqa: F401
from tests.models import Size, clip_model, pixels, transformers_admits_peft
from tests.pairs import table
from tests.pictures import image_processor, photographs
from tests.portrait import portrait
from tests.tokenizers import VOCABULARY, clip_tokenizer
from tests.tuner.stream_twin import random_gains

NAMES = ("cat", "dog", "bird")
LORA = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def base():
    return clip_model(vocab_size=VOCABULARY)


def classifier(model):
    return ZeroShotClassifier.from_text(
        model.eval(),
        clip_tokenizer(),
        NAMES,
        "a {}.",
        image_processor=image_processor(),
        text_model=base(),
    )


def moved(model):
    for number, name in enumerate(model.peft_config):
        random_gains(model, name, seed=number + 1)
    return model


def with_adapters(*names, active=None, **options):
    model = get_peft_model(base(), ResiDualConfig(**options), adapter_name=names[0])
    for name in names[1:]:
        model.add_adapter(name, ResiDualConfig(**options))
    moved(model)
    if active is not None:
        model.base_model.set_adapter(list(active))
    return model


def both_sides():
    model = get_peft_model(base(), ResiDualConfig(side="image"), adapter_name="image")
    model.add_adapter("text", ResiDualConfig(side="text"))
    moved(model).base_model.set_adapter(["image", "text"])
    return model


def disabled():
    model = with_adapters("default", "other")
    model.base_model.disable_adapter_layers()
    return model


def merged():
    model = with_adapters("one", "two", mode="stream")
    model.merge_adapter(["two"])
    return model


def transformers_own(*names):
    model = base()
    for name in names:
        model.add_adapter(ResiDualConfig(), name)
    return moved(model)


CASES = {
    "default": lambda: with_adapters("default"),
    "another name": lambda: with_adapters("digits"),
    "a name that is no folder": lambda: with_adapters("a/b c", "/up", "run"),
    "names that differ by case": lambda: with_adapters("A", "a", active=["a"]),
    "the other is active": lambda: with_adapters("default", "other", active=["other"]),
    "both active": lambda: with_adapters("default", "other", active=["other", "default"]),
    "stream, three": lambda: with_adapters("x", "y", "z", active=["z", "x"], mode="stream"),
    "merged": merged,
    "both sides": both_sides,
    "disabled": disabled,
    "LoRA": lambda: get_peft_model(base(), LORA, adapter_name="lora"),
    "unadapted": base,
}


def same_after(made, directory, **options):
    wanted = made.predict_logits(photographs(4))
    before = Adapters.of(made.model)
    made.save_pretrained(directory)
    again = ZeroShotClassifier.from_pretrained(directory, model=base(), **options)
    after = Adapters.of(again.model)
    assert list(after.folders) == list(before.folders)
    assert after.active == before.active
    assert torch.allclose(again.predict_logits(photographs(4)), wanted, atol=1e-4)
    return again


@pytest.mark.parametrize("case", CASES)
def test_the_loaded_classifier_is_the_saved_one(tmp_path: Path, case: str) -> None:
    same_after(classifier(CASES[case]()), tmp_path / "saved")
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]  # wherever names may lead


@transformers_admits_peft
@pytest.mark.parametrize("names", [("default",), ("mine",), ("one", "two")])
def test_adapters_of_transformers_own_are_saved(tmp_path: Path, names: tuple[str, ...]) -> None:
    same_after(classifier(transformers_own(*names)), tmp_path)


def test_new_classes_are_embedded_by_the_saved_text_adapter(tmp_path: Path) -> None:
    made = classifier(both_sides())
    again = same_after(made, tmp_path)
    embedded = [
        ZeroShotClassifier.from_text(model, clip_tokenizer(), ["dog", "cat"], "{}").class_embeddings
        for model in (made.model, again.model, base())
    ]
    assert torch.allclose(embedded[0], embedded[1], atol=1e-6)
    assert not torch.allclose(embedded[0], embedded[2], atol=1e-2)


@table("case", ["both active", "the other is active", "both sides"])
def test_to_be_trained_further(tmp_path: Path, case: str) -> None:
    made = classifier(CASES[case]())
    again = same_after(made, tmp_path, is_trainable=True)
    trained = {p for p in again.model.parameters() if p.requires_grad}
    assert trained == {gains_of(again.model, name) for name in Adapters.of(again.model).active}
    frozen = ZeroShotClassifier.from_pretrained(tmp_path, model=base())
    assert not any(p.requires_grad for p in frozen.model.parameters())


def test_pefts_own_loads_the_main_adapter(tmp_path: Path) -> None:
    classifier(with_adapters("one", "two", active=["two"])).save_pretrained(tmp_path)
    loaded = load_adapter(base(), tmp_path)
    made = with_adapters("one", "two")
    assert torch.equal(gains_of(loaded), gains_of(made, "two"))


def test_layers_that_disagree_are_not_saved(tmp_path: Path) -> None:
    made = classifier(with_adapters("one", "two", mode="stream"))
    layers = [m for m in made.model.modules() if hasattr(m, "adapter_settings")]
    layers[0].set_adapter("two")
    with pytest.raises(ResiDualError, match="same adapters active in all layers, got 'two' here"):
        made.save_pretrained(tmp_path / "x")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("value", [float("nan"), 1e30])
def test_gains_that_none_would_load_are_not_saved(tmp_path: Path, value: float) -> None:
    made = classifier(with_adapters("default"))
    gains_of(made.model).data[3] = value
    with pytest.raises(ResiDualError, match=r"NaN or infinite|diverged in training"):
        made.save_pretrained(tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_smaller_choice_of_adapters_takes_the_place_of_a_larger(tmp_path: Path) -> None:
    classifier(with_adapters("one", "two", "three")).save_pretrained(tmp_path)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("kept")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    (tmp_path / "report.html").write_text("of the old")
    solo = with_adapters("solo")
    random_gains(solo, "solo", seed=33)
    same_after(classifier(solo), tmp_path)
    assert not (tmp_path / "two").exists()
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "report.html").exists()
    assert (tmp_path / "notes" / "mine.txt").read_text() == "kept"


def test_the_record_of_a_fit_stays_while_its_adapter_does(tmp_path: Path) -> None:
    made = classifier(with_adapters("default"))
    made.save_pretrained(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    again = ZeroShotClassifier.from_pretrained(tmp_path, model=base())
    again.save_pretrained(tmp_path)
    assert (tmp_path / "run" / "run.json").exists()
    with torch.no_grad():
        gains_of(again.model).mul_(1.01)
    again.save_pretrained(tmp_path)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_no_classifiers_keeps_all_that_is_in_it(tmp_path: Path) -> None:
    mine = (
        "run/my_experiment.csv",
        "run/run.json",
        "report.html",
        "gains.png",
        "run/examples/1.png",
    )
    for name in mine:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("mine")
    made = classifier(with_adapters("default"))
    made.save_pretrained(tmp_path)
    kept = [name for name in mine if name != "gains.png"]  # the card's own picture
    assert all((tmp_path / name).read_text() == "mine" for name in kept)
    with torch.no_grad():
        gains_of(made.model).mul_(1.01)
    made.save_pretrained(tmp_path)  # now it is, and what has the names of its files goes
    assert (tmp_path / "run" / "my_experiment.csv").read_text() == "mine"
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_home_is_found_on_saving_as_on_loading(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    made = classifier(with_adapters("default"))
    made.save_pretrained("~/adapters/one")
    again = ZeroShotClassifier.from_pretrained("~/adapters/one", model=base())
    wanted = made.predict_logits(photographs(2))
    assert torch.allclose(again.predict_logits(photographs(2)), wanted, atol=1e-5)


def test_a_model_with_adapters_is_not_given_others(tmp_path: Path) -> None:
    classifier(with_adapters("default")).save_pretrained(tmp_path)
    there = with_adapters("mine")
    before = portrait(there)
    with pytest.raises(ResiDualError, match=r"without adapters .* got one with 'mine'.*TaskSet"):
        ZeroShotClassifier.from_pretrained(tmp_path, model=there)
    assert portrait(there) == before


def test_several_adapters_go_to_the_hub_and_back(hub, tmp_path: Path) -> None:  # noqa: F811
    made = classifier(both_sides())
    made.push_to_hub("me/sides")
    again = ZeroShotClassifier.from_pretrained("me/sides", model=base())
    assert Adapters.of(again.model).active == ("image", "text")
    wanted = made.predict_logits(photographs(3))
    assert torch.allclose(again.predict_logits(photographs(3)), wanted, atol=1e-5)


def test_names_of_classes_are_kept_as_they_are(tmp_path: Path) -> None:
    names = ("a\x1b[2J", "b\nc", "d\u202e")
    made = ZeroShotClassifier(base(), names, torch.randn(3, 16))
    made.save_pretrained(tmp_path)
    assert ZeroShotClassifier.from_pretrained(tmp_path, model=base()).class_names == names


# --- older directories

OLD = Path(__file__).parents[1] / "saved_at_c52a2e8"


@table("name", ["readout", "stream", "coarse", "unadapted"])
def test_directories_of_before_still_load(name: str) -> None:
    model = clip_model(Size(width=12, readout=8, layers=2), seed=4)
    loaded = ZeroShotClassifier.from_pretrained(OLD / name, model=model)
    with torch.no_grad():
        logits = loaded.logits(run_tower(loaded.model, pixels(3, seed=77)))
    wanted = torch.tensor(json.loads((OLD / "logits.json").read_text())[name])
    assert torch.allclose(logits, wanted, atol=1e-3)
    assert loaded.split is None


def test_an_only_adapter_of_another_name_as_peft_puts_it(tmp_path: Path) -> None:
    made = classifier(with_adapters("digits"))
    made.save_pretrained(tmp_path)
    record = json.loads((tmp_path / "residual_classifier.json").read_text())
    del record["adapters"], record["active"]
    (tmp_path / "residual_classifier.json").write_text(json.dumps(record))
    (tmp_path / "digits").mkdir()
    for file in (CONFIG, WEIGHTS):
        (tmp_path / file).rename(tmp_path / "digits" / file)
    again = ZeroShotClassifier.from_pretrained(tmp_path, model=base())
    assert list(again.model.peft_config) == ["digits"]
    wanted = made.predict_logits(photographs(3))
    assert torch.allclose(again.predict_logits(photographs(3)), wanted, atol=1e-5)


# --- records and files of strangers


def spoiled(tmp_path: Path, **changes: object) -> Path:
    folder = tmp_path / "spoiled"
    classifier(with_adapters("one", "two")).save_pretrained(folder)
    path = folder / "residual_classifier.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


@table(
    ("changes", "message"),
    [
        ({"adapters": {"one": "", "two": "../elsewhere"}}, "plain folders"),
        ({"adapters": {"one": "", "two": "run"}}, "plain folders"),
        ({"adapters": {"one": "", "two": ""}}, "plain folders"),
        ({"adapters": {"a.b": ""}}, "without dots"),
        ({"adapters": {"one": "", "two": "absent"}}, "adapter_config.json', which is missing"),
        ({"active": ["three"]}, "'three' is none of those saved"),
        ({"adapters": ["one"]}, "field adapters: wanted"),
        ({"class_names": ["a", "b"]}, r"shape \(3, 16\) for 2 classes"),
        ({"class_names": ["a"] * 3}, "occurs 3 times"),
        ({"logit_scale": -1.0}, "a logit_scale above 0"),
        ({"logit_scale": 0}, "a logit_scale above 0"),
        ({"logit_scale": 1e300}, "a logit_scale above 0"),
        ({"logit_bias": "1"}, "field logit_bias: wanted a finite number"),
        ({"templates": [1]}, r"field templates\[0\]: wanted text"),
        ({"split": {"digest": 1}}, "field split.digest: wanted text"),
    ],
    ids=str,
)
def test_records_of_strangers_are_refused(tmp_path: Path, changes: dict, message: str) -> None:
    folder, model = spoiled(tmp_path, **changes), base()
    before = portrait(model)
    with pytest.raises(ResiDualError, match=message):
        ZeroShotClassifier.from_pretrained(folder, model=model)
    assert portrait(model) == before


def test_the_last_of_several_adapters_is_looked_at_before_the_first_is_put_in(
    tmp_path: Path,
) -> None:
    folder, model = spoiled(tmp_path), base()
    tensors = load_file(folder / "two" / WEIGHTS)
    save_file(
        {**tensors, "base_model.model.logit_scale": torch.zeros(())}, folder / "two" / WEIGHTS
    )
    before = portrait(model)
    with pytest.raises(ResiDualError, match="no part of this adapter"):
        ZeroShotClassifier.from_pretrained(folder, model=model)
    assert portrait(model) == before


@table(
    ("name", "kind", "dtype"),
    [
        ("../../x", "CLIPModel", "float32"),
        ("./x", "CLIPModel", "float32"),
        ("a/b/c", "CLIPModel", "float32"),
        ("~/x", "CLIPModel", "float32"),
        ("me/clip", "Trainer", "float32"),
        ("me/clip", "pipeline", "float32"),
        ("me/clip", "nn.Linear", "float32"),
        ("me/clip", "__loader__", "float32"),
        ("me/clip", "CLIPModel", "save"),
        (None, "CLIPModel", "float32"),
    ],
)
def test_base_models_of_strangers(tmp_path: Path, name, kind, dtype) -> None:
    folder = spoiled(tmp_path, base_model=name, base_class=kind, dtype=dtype)
    with pytest.raises(ResiDualError, match=r"pass it: from_pretrained\(directory, model="):
        ZeroShotClassifier.from_pretrained(folder)


def test_a_path_in_a_file_from_the_hub_is_not_followed(hub, tmp_path: Path) -> None:  # noqa: F811
    base().save_pretrained(tmp_path / "base")
    made = classifier(type(base()).from_pretrained(tmp_path / "base"))
    made.save_pretrained(tmp_path / "saved")
    ZeroShotClassifier.from_pretrained(tmp_path / "saved")  # here the path means something
    made.push_to_hub("me/saved")
    with pytest.raises(ResiDualError, match="a place on the machine where it was made"):
        ZeroShotClassifier.from_pretrained("me/saved")


@table(
    ("changes", "message"),
    [
        ({"megatron_config": {"a": 1}, "megatron_core": "planted"}, "'megatron_config'="),
        ({"target_modules": r"((\w|\.)+)+X"}, "field target_modules"),
        ({"exclude_modules": r"((\w|\.)+)+X"}, "'exclude_modules'="),
        ({"rank_pattern": {r"((\w|\.)+)+X": 3}}, "'rank_pattern'="),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"modules_to_save": ["visual_projection"]}, "'modules_to_save'="),
        ({"peft_type": "OFT"}, "of type 'OFT'"),
    ],
    ids=str,
)
def test_what_loras_of_strangers_may_say(tmp_path: Path, changes: dict, message: str) -> None:
    classifier(get_peft_model(base(), LORA)).save_pretrained(tmp_path)
    path = tmp_path / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(ResiDualError, match=message):
        ZeroShotClassifier.from_pretrained(tmp_path, model=base())


@table(
    ("name", "tensor"),
    [
        ("base_model.model.visual_projection.weight", torch.zeros(16, 12)),
        ("base_model.model.x.lora_A.other.weight", torch.zeros(2, 2)),
        ("base_model.model.x.lora_A.weight", torch.full((2, 2), float("nan"))),
    ],
)
def test_tensors_beside_a_lora_are_refused(tmp_path: Path, name: str, tensor) -> None:
    classifier(get_peft_model(base(), LORA)).save_pretrained(tmp_path)
    save_file({**load_file(tmp_path / WEIGHTS), name: tensor}, tmp_path / WEIGHTS)
    model = base()
    before = portrait(model)
    with pytest.raises(ResiDualError, match=r"no part of a LoRA|NaN, infinite"):
        ZeroShotClassifier.from_pretrained(tmp_path, model=model)
    assert portrait(model) == before


# --- tasks


@table(
    ("edit", "message"),
    [
        ("foreign", "no part of this adapter"),
        ("others", "no part of this adapter"),
        ("absurd", "diverged in training"),
        ("classes", "for 2 classes"),
        ("embeddings", "NaN or infinite"),
        ("scale", "a logit_scale above 0"),
    ],
)
def test_a_refused_task_changes_no_other_answer(tmp_path: Path, edit: str, message: str) -> None:
    classifier(with_adapters("default")).save_pretrained(tmp_path / "good")
    shutil.copytree(tmp_path / "good", tmp_path / "evil")
    path, record = tmp_path / "evil" / WEIGHTS, tmp_path / "evil" / "residual_classifier.json"
    tensors, described = load_file(path), json.loads(record.read_text())
    gains = next(key for key in tensors if key.endswith("_gains"))
    if edit == "foreign":
        tensors["base_model.model.vision_model.post_layernorm.weight"] = torch.zeros(12)
    elif edit == "others":
        tensors[f"{gains}.good"] = torch.zeros_like(tensors[gains])
    elif edit == "absurd":
        tensors[gains] = torch.full_like(tensors[gains], 3e38)
    elif edit == "classes":
        described["class_names"] = ["a", "b"]
    elif edit == "scale":
        described["logit_scale"] = -2.0
    else:
        nan = {"class_embeddings": torch.full((3, 16), float("nan"))}
        save_file(nan, tmp_path / "evil" / "residual_classifier.safetensors")
    save_file(tensors, path)
    record.write_text(json.dumps(described))
    for tasks in (
        TaskSet.from_pretrained({"good": tmp_path / "good"}, model=base()),
        TaskSet(base()),
    ):
        before = portrait(tasks.model)
        answers = tasks.predict_logits(photographs(3)) if len(tasks) else {}
        with pytest.raises(ResiDualError, match=message):
            tasks.add("evil", tmp_path / "evil")
        assert portrait(tasks.model) == before
        for name, logits in answers.items():
            assert torch.equal(tasks.predict_logits(photographs(3))[name], logits)


@table("case", ["another name", "the other is active", "both sides", "disabled"])
def test_a_task_takes_the_active_adapter(tmp_path: Path, case: str) -> None:
    made = classifier(CASES[case]())
    made.save_pretrained(tmp_path)
    tasks = TaskSet(base())
    tasks.add("it", tmp_path)
    wanted = made.predict_logits(photographs(3))
    assert torch.allclose(tasks.predict_logits(photographs(3))["it"], wanted, atol=1e-4)


def test_several_active_adapters_are_no_task(tmp_path: Path) -> None:
    classifier(CASES["both active"]()).save_pretrained(tmp_path)
    with pytest.raises(ResiDualError, match="has 2 adapters active at once"):
        TaskSet(base()).add("it", tmp_path)
