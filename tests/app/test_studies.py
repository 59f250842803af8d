"""From names to an analysis: what it says is what the functions say, and files are whole."""

import json
import re
from pathlib import Path

import pytest
import torch
from datasets import DatasetDict
from peft import get_peft_model
from PIL import Image

from residual_peft import ResiDualConfig, ResiDualError, ZeroShotClassifier, fit_bases, load_data
from residual_peft.analysis import (
    ImageExplanation,
    collect_contributions,
    explain_adapter,
    layer_ablation,
    rank_units,
    selection_curve,
)
from residual_peft.app.explaining import study_adapter
from residual_peft.app.studies import study_model, write_study
from residual_peft.classifiers.backbones import load_backbone
from residual_peft.data import batches
from residual_peft.demo.tasks import HANDWRITING_TEMPLATES, handwriting
from residual_peft.hub.directories import DEMO_MODEL
from residual_peft.solvers.coordinates import collect_coordinates
from residual_peft.tuner import gains_of

SIZES = {"train": 120, "validation": 60, "test": 50}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    whole = handwriting()
    folder = tmp_path_factory.mktemp("data") / "digits"
    parts = {split: whole[split].select(range(count)) for split, count in SIZES.items()}
    DatasetDict(parts).save_to_disk(str(folder))
    return folder


@pytest.fixture(scope="module")
def study(digits: Path):
    return study_model(DEMO_MODEL, str(digits), templates=HANDWRITING_TEMPLATES)


@pytest.fixture(scope="module")
def adapter(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    clip, data = load_backbone(), load_data(str(digits))
    model = get_peft_model(clip.model, ResiDualConfig())
    fit_bases(model, batches(data.train, clip.image_processor))
    gains = gains_of(model)
    gains.data = 1 + 0.5 * torch.randn(gains.shape, generator=torch.Generator().manual_seed(3))
    classifier = ZeroShotClassifier.from_text(
        model,
        clip.tokenizer,
        data.class_names,
        HANDWRITING_TEMPLATES,
        image_processor=clip.image_processor,
    )
    return classifier.save_pretrained(tmp_path_factory.mktemp("adapter") / "mine")


def test_a_study_says_what_the_functions_say(study, digits: Path) -> None:
    clip, data = load_backbone(), load_data(str(digits))
    classifier = ZeroShotClassifier.from_text(
        clip.model, clip.tokenizer, data.class_names, HANDWRITING_TEMPLATES
    )
    train, test = (
        collect_contributions(clip.model, batches(data[split], clip.image_processor))
        for split in ("train", "test")
    )
    w = classifier.class_embeddings
    ranking = rank_units(train, w, "supervised")
    assert study.selection.rankings[0].units == ranking.units
    curve = selection_curve(ranking, test, w)
    assert study.selection.curve("S").points == curve.points
    whole = layer_ablation(test, w, ablation="mean", reference=train)
    assert study.ablations[0] == whole
    assert [str(item.unit) for item in study.words] == [str(u) for u in study.similarity.units]
    assert study.images == SIZES
    assert study.dataset == "the dataset"  # as `load_data` calls what was saved to disk


def test_a_study_on_disk(study, tmp_path: Path) -> None:
    names = write_study(study, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(names)
    found = json.loads((tmp_path / "out" / "study.json").read_text())
    assert found == json.loads(json.dumps(study.as_dict()))
    assert len(found["words"]) == 48
    assert str(tmp_path) not in (tmp_path / "out" / "study.json").read_text()
    for name in names[1:]:
        width, height = Image.open(tmp_path / "out" / name).size
        assert (width < 800) if name == "similarity.png" else (width, height) == (960, 630)


def test_at_most_so_many_images(digits: Path) -> None:
    few = study_model(DEMO_MODEL, str(digits), images=3, words=["one", "two", "three"])
    assert few.images == {"train": 3, "validation": 3, "test": 3}
    assert {len(item.texts) for item in few.words} <= {0, 1, 2, 3}
    small = study_model(DEMO_MODEL, str(digits), images=40, words=[])
    assert small.words == ()
    assert small.images == {"train": 40, "validation": 40, "test": 40}
    with pytest.raises(ResiDualError, match="at least three images of each split, got images=2"):
        study_model(DEMO_MODEL, str(digits), images=2)


def check_sum(lines: list[str], moved: ImageExplanation) -> None:
    """What is printed of an image adds up: five for, five against, the others, the length."""
    shown = lines[lines.index(next(line for line in lines if "margin" in line)) + 1 :]
    effects = [float(line.split("margin ")[1]) for line in shown[:-1]]
    assert [effect > 0 for effect in effects] == [True] * 5 + [False] * 5
    assert effects[0] == pytest.approx(float(moved.effects.max()), abs=0.006)
    assert effects[5] == pytest.approx(float(moved.effects.min()), abs=0.006)
    last = re.fullmatch(
        r"  ([\d,]+) others: (\S+); the embedding's changed length: (\S+); together (\S+)",
        shown[-1],
    )
    assert last, shown[-1]
    assert int(last[1].replace(",", "")) == len(moved.effects) - 10
    assert float(last[4]) == pytest.approx(moved.margin_after - moved.margin_before, abs=0.006)
    assert sum(effects) + float(last[2]) + float(last[3]) == pytest.approx(float(last[4]), abs=0.07)


def test_what_an_adapter_changed(adapter: Path, digits: Path, tmp_path: Path) -> None:
    load_data(str(digits)).test[0]["image"].save(tmp_path / "one.png")
    found = study_adapter(adapter, str(digits), images=[tmp_path / "one.png"], count=4)
    classifier = ZeroShotClassifier.from_pretrained(adapter)
    test = batches(load_data(str(digits)).test, classifier.image_processor)
    truth = explain_adapter(classifier, collect_coordinates(classifier.model, test))
    torch.testing.assert_close(found.explanation.share, truth.share)
    assert found.strongest == tuple(truth.strongest(4))
    assert [(w.unit, w.component) for w in found.words] == [
        (e.unit, e.component) for e in found.strongest
    ]
    (moved,) = found.images.values()
    total = float(moved.effects.sum()) + moved.rescaling + moved.settings
    assert total == pytest.approx(moved.margin_after - moved.margin_before, abs=1e-3)
    line = next(line for line in found.lines() if "one.png" in line)
    said = f"{moved.from_class} -> {moved.to_class}"
    stays = f"stays {moved.from_class}, next {moved.to_class}"
    assert (said if moved.margin_after > 0 else stays) in line
    check_sum(found.lines(), moved)
    written = json.loads(json.dumps(found.as_dict()))
    assert len(written["components"]) == 4
    assert len(written["units"]) == 54
    assert written["components"][0]["words"][0]["text"] == found.words[0].texts[0][0]


def test_other_classes_are_refused(adapter: Path) -> None:
    data = handwriting()["test"].select(range(40))
    names = [f"n{i}" for i in range(10)]
    data = data.cast_column("label", data.features["label"].__class__(names=names))
    with pytest.raises(
        ResiDualError, match=r"with the adapter's classes \(0, 1, .* got images of n0, n1"
    ):
        study_adapter(adapter, DatasetDict(train=data, test=data))
