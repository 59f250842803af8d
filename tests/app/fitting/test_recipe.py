"""`residual_peft.fit` in Python, from whatever holds images; and the file that repeats a fit."""

import shutil
from dataclasses import replace
from pathlib import Path

import pandas
import pytest
import torch
import yaml
from datasets import DatasetDict
from peft import LoraConfig, get_peft_model

import residual_peft
from residual_peft import ResiDualConfig, ResiDualError, ZeroShotClassifier, load_data
from residual_peft.app.fitting import Recipe, evaluate_adapter
from residual_peft.classifiers.backbones import load_backbone
from residual_peft.solvers.methods import Rows
from tests.app.fitting.photos import photos
from tests.pairs import table
from tests.training_case import save_clip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    save_clip(folder / "model")
    photos(folder / "photos", count=12)
    return folder


def test_whatever_holds_the_images_gives_the_same(root: Path, tmp_path: Path) -> None:
    paths = sorted((root / "photos").rglob("*.png"))
    pairs = [(str(path), path.parent.name) for path in paths]
    whole = load_data(root / "photos", validation=0, test=0).train
    backbone = load_backbone(root / "model")
    sources = {
        "folder": str(root / "photos"),
        "frame": pandas.DataFrame(pairs, columns=["file", "species"]),
        "splits": DatasetDict({"train": whole}),
    }
    options = {"method": "ridge-embedding", "templates": ["a {}."], "seed": 2, "words": []}
    found = {}
    for name, data in sources.items():
        model = backbone if name == "frame" else str(root / "model")
        found[name] = residual_peft.fit(data, model=model, **options)
    first = found["folder"]
    for fitted in found.values():
        head, other = fitted.classifier.head.head, first.classifier.head.head
        torch.testing.assert_close(head.weights, other.weights, rtol=1e-4, atol=1e-5)
        assert fitted.classifier.split.digest == first.classifier.split.digest
    assert "ridge-embedding *" in first.table
    assert repr(first).startswith("zero-shot 0.")
    assert first.table in repr(first)
    page = first.report(tmp_path / "page.html")
    assert "ZeroShotClassifier" in page.read_text()
    saved = first.save(tmp_path / "adapter")
    image = paths[0]
    other = ZeroShotClassifier.from_pretrained(saved).predict(image)
    assert other.as_dict() == first.classifier.predict(image).as_dict()


@table(
    ("options", "message"),
    [
        ({"metod": "ridge"}, "'metod' is not an option of fit; did you mean 'method'?"),
        ({"config": {"unit": "head"}}, "'unit' is not a setting of the adapter's config; did you"),
        ({"config": {"units": ("heads",)}}, "units: wanted a tuple of"),
        ({"method": "best"}, "wanted a method of zero-shot, gains"),
        ({"few": "3"}, "the option few: wanted a whole number or null, got '3'."),
        ({"few": 0}, "the option few: wanted a number from 1 to"),
        ({"seed": 2**32}, "the option seed: wanted a number from 0 to 4294967295, got 4294967296"),
        ({"batch_size": 2.5}, "the option batch_size: wanted a whole number, got 2.5"),
        ({"max_bad": True}, "the option max_bad: wanted a finite number, got True"),
        ({"validation": 1.5}, "the option validation: wanted a number from 0 to 1, got 1.5"),
        ({"trainer": True, "method": "ridge"}, "fits gains, and every image counts alike; got met"),
        ({"trainer": True, "balanced": True}, "got balanced=True with trainer=True"),
    ],
)
def test_a_misspelt_option_is_told_before_any_work(options, message) -> None:
    with pytest.raises(ResiDualError) as told:
        residual_peft.fit("nowhere", **options)
    assert message in str(told.value)


def test_the_file_says_all_that_a_shell_can(root: Path) -> None:
    config = ResiDualConfig(
        units=("head",), components=0.9, seed=4, layers_to_transform=[0], remainder="drop"
    )
    recipe = Recipe(("a {}.", "{}: *"), config, seed=7, words=["red"], max_bad=0.25)
    found = yaml.safe_load(text := recipe.as_file(root / "photos", str(root / "model")))
    assert found["data"] == str(root / "photos")
    assert (found["model"], found["template"]) == (str(root / "model"), ["a {}.", "{}: *"])
    assert (found["units"], found["components"], found["max_bad"]) == ("head", 0.9, 0.25)
    settings = dict(setting.split("=") for setting in found["set"])
    again = {name: yaml.safe_load(value) for name, value in settings.items()}
    assert again == {"seed": 4, "layers_to_transform": [0], "remainder": "drop"}
    own = {"units": (found["units"],), "components": found["components"]}
    assert ResiDualConfig(**own, **again).to_dict() == config.to_dict()
    assert "# words came from Python and is not here: list" in text.splitlines()
    # whole units have no means to restore where no basis has them
    assert Recipe.of({"config": {"granularity": "unit"}}).settled().restore_mean is False
    table = pandas.DataFrame({"image": ["a"], "label": ["b"]})
    assert "# data came from Python and is not here: DataFrame" in Recipe().as_file(table, "m/id")


def test_what_was_cut_or_loaded_before_is_not_claimed_to_be_otherwise(root: Path, tmp_path) -> None:
    data, model = load_data(root / "photos", test=0.3, seed=5), load_backbone(root / "model")
    options = {"method": "zero-shot", "templates": ["a {}."], "words": []}
    with pytest.raises(
        ResiDualError, match="in bfloat16, got a Backbone, which is in float32: load"
    ):
        residual_peft.fit(data, model=model, dtype="bfloat16", **options)
    with pytest.raises(ResiDualError, match=r"an ImageData, which has been read and cut .* few=3"):
        residual_peft.fit(data, model=model, few=3, **options)
    fitted = residual_peft.fit(data, model=model, dtype="float32", out=tmp_path / "a", **options)
    text = (tmp_path / "a" / "run" / "run.yaml").read_text()
    assert not {"few", "validation", "test", "group_column"} & set(yaml.safe_load(text))
    assert "# the data were cut with {'shares': {'validation': 0.1, 'test': 0.3}, 'seed': 5" in text
    assert fitted.images.split == data.split
    lora = LoraConfig(target_modules=["q_proj"])
    kinds = ((ResiDualConfig(), "one of ours"), (lora, "without another method's .* layer of lora"))
    for config, message in kinds:  # which `save` would leave out
        adapted = get_peft_model(model.model, config)
        for changed in (model, replace(model, model=adapted)):
            with pytest.raises(ResiDualError, match=message):
                residual_peft.fit(data, model=changed, **options)
        adapted.unload()


def test_few_images_and_groups_are_what_is_measured_later(
    root: Path, tmp_path: Path, monkeypatch
) -> None:
    options = {"method": "ridge-embedding", "templates": ["a {}."], "words": []}
    options["model"] = load_backbone(root / "model")
    few = residual_peft.fit(root / "photos", few=5, out=tmp_path / "few", **options)
    assert few.summary.splits == {"train": 15, "test": 21}
    found = evaluate_adapter(tmp_path / "few", root / "photos")
    assert (found["images"], found["data"]) == (21, "the data of its fit")
    assert found["accuracy"] == few.summary.adapted["accuracy"]
    assert found["left_out_as_trained_on"] == 0
    assert yaml.safe_load((tmp_path / "few" / "run" / "run.yaml").read_text())["few"] == 5

    seen, real = [], Rows.of
    monkeypatch.setattr(
        Rows, "of", lambda *given, **more: seen.append(real(*given, **more)) or seen[-1]
    )
    paths = sorted((root / "photos").rglob("*.png"))
    people = [f"p{number % 9}" for number in range(len(paths))]
    table = pandas.DataFrame(
        {"file": map(str, paths), "label": [p.parent.name for p in paths], "who": people}
    )
    options["model"] = load_backbone(root / "model")
    grouped = residual_peft.fit(table, group_column="who", out=tmp_path / "grouped", **options)
    (rows,) = seen
    own = [who for split in ("train", "validation") for who in grouped.images.groups[split]]
    for who in set(own):
        mine = torch.tensor([other == who for other in own])
        assert len(rows.fold[mine].unique()) == len(rows.groups[mine].unique()) == 1
    assert len(rows.groups.unique()) == len(set(own)) == 9 - len(set(grouped.images.groups["test"]))
    found = evaluate_adapter(tmp_path / "grouped", table)
    assert found["images"] == len(grouped.images.test)
    assert found["left_out_as_trained_on"] == 0


def test_folders_are_put_into_prompts_without_their_numbers(root: Path, tmp_path, caplog) -> None:
    for number, name in enumerate(("cat", "dog", "owl")):
        shutil.copytree(root / "photos" / name, tmp_path / "photos" / f"{number:03}.{name}")
    caplog.set_level("INFO", "residual_peft")
    model, options = load_backbone(root / "model"), {"method": "zero-shot", "templates": ["a {}."]}
    found = residual_peft.fit(tmp_path / "photos", model=model, words=[], **options).classifier
    assert "in prompts '000.cat' is 'cat', '001.dog' is 'dog'" in caplog.text
    assert found.class_names == ("000.cat", "001.dog", "002.owl")
    plain = residual_peft.fit(root / "photos", model=load_backbone(root / "model"), **options)
    assert found.class_embeddings.equal(plain.classifier.class_embeddings)
