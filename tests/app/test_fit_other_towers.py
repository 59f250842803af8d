"""`fit` on models that are no CLIP, and what its directory then answers by itself."""

import json
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard
from PIL import Image

from residual_peft import ZeroShotClassifier
from residual_peft.app.fitting import evaluate_adapter, fit_adapter
from residual_peft.app.studies import study_model
from residual_peft.errors import ResiDualError
from residual_peft.hub.cards import TASK
from residual_peft.reporting.run_record import RunRecord
from tests.commands import stop
from tests.dual_encoders import saved
from tests.models import Size

pytestmark = pytest.mark.usefixtures("one_tokenizer")
COLOURS = {"red": 0, "green": 1, "blue": 2}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of class folders: noisy squares of three colours."""
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for name, channel in COLOURS.items():
        (folder / name).mkdir()
        for index in range(40):
            array = generator.integers(0, 160, (20, 20, 3))
            array[..., channel] += 60
            Image.fromarray(array.clip(0, 255).astype(np.uint8)).save(
                folder / name / f"{index}.png"
            )
    return folder


@pytest.mark.parametrize(
    ("name", "options", "start"),
    [
        ("ViTForImageClassification", [], "class means"),
        ("Dinov2Model", ["--readout", "patches"], "class means"),
        ("PixioModel", [], "class means"),
        ("Siglip2ForImageClassification", [], "class means"),
        ("SiglipModel", [], "zero-shot"),
        ("Siglip2Model", [], "zero-shot"),
        ("BlipForImageTextRetrieval", ["--trainer"], "zero-shot"),
        ("SiglipModel", ["--readout", "mean"], "class means"),
    ],
)
def test_fit_evaluates_and_predicts_from_the_directory_alone(
    name: str,
    options: list[str],
    start: str,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model, out = saved(name, tmp_path / "model"), tmp_path / "adapter"
    words = ["--words", str(_words(tmp_path))] if start == "zero-shot" else []
    arguments = ("--model", str(model), "--data", str(photos), "--out", str(out))
    assert stop(monkeypatch, "fit", *arguments, *options, *words) == 0
    said = capsys.readouterr().out.split()
    first = next(i for i, word in enumerate(said) if word == "->")
    before, after = float(said[first - 1]), float(said[first + 2])
    assert f"{start} {before:.3f} -> adapted {after:.3f}" in " ".join(said)
    assert after >= max(before, 0.6)
    assert (out / "report.html").is_file()
    assert evaluate_adapter(out, str(photos))["accuracy"] == pytest.approx(after, abs=5e-4)
    classifier = ZeroShotClassifier.from_pretrained(out)
    assert type(classifier.model.get_base_model()).__name__ == name
    wanted = dict(zip(("", *options[:1]), ("", *options[1:]), strict=False)).get("--readout")
    assert classifier.model.peft_config["default"].readout == wanted
    card = ModelCard.load(out / "README.md")
    told = ("image-classification", True) if start == "class means" else (TASK, False)
    assert (card.data.pipeline_tag, "the means of their training images" in card.text) == told
    family = {"Siglip": "SigLIP", "Dinov2": "DINOv2", "ViTFor": "ViT", "BlipFor": "BLIP"}
    spoken = next((said for start, said in family.items() if name.startswith(start)), "Pixio")
    assert f"by an adapted {spoken}" in card.text
    assert spoken.lower() in "".join(card.data.tags)
    picture = next((photos / "red").iterdir())
    assert classifier.predict(picture).label in COLOURS
    assert len(RunRecord.load(out).facts.templates) == (start == "zero-shot")


def _words(folder: Path) -> Path:
    path = folder / "words.txt"
    path.write_text("red\ngreen\nblue\na square\n")
    return path


def test_analyse_and_explain_without_a_text_tower(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = Size(width=40, heads=4)
    model, out = str(saved("Dinov2Model", tmp_path / "model", wide)), tmp_path / "adapter"
    data = ("--data", str(photos))
    study = tmp_path / "study"
    assert stop(monkeypatch, "analyse", "--model", model, *data, "--out", str(study)) == 0
    found = json.loads((study / "study.json").read_text())
    assert found["words"] == []
    assert stop(monkeypatch, "fit", "--model", model, *data, "--out", str(out)) == 0
    assert stop(monkeypatch, "explain", str(out), *data) == 0
    with pytest.raises(ResiDualError, match="Dinov2Model has no text tower: classes are the means"):
        study_model(model, str(photos), templates=["a {}"])


def test_what_needs_texts_is_refused_before_any_work(photos: Path, tmp_path: Path) -> None:
    model, out = str(saved("ViTModel", tmp_path / "model")), tmp_path / "adapter"
    with pytest.raises(ResiDualError, match="ViTModel has no text tower: classes are the means"):
        fit_adapter(model, str(photos), out, templates=["a {}"], method="gains")
    with pytest.raises(ResiDualError, match="so leave out the words"):
        fit_adapter(model, str(photos), out, words=["red", "green"], method="gains")
    assert not out.exists()


def test_a_siglip_gets_as_many_components_as_a_head_has_dimensions(
    photos: Path, tmp_path: Path
) -> None:
    model, out = saved("SiglipModel", tmp_path / "model"), tmp_path / "adapter"
    fit_adapter(str(model), str(photos), out, words=[], method="gains")
    counts = ZeroShotClassifier.from_pretrained(out).model.peft_config["default"].component_counts
    assert set(counts) == {12}
