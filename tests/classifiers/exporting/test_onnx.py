"""One ONNX file says what the classifier says, tells what a script must know, and nothing more."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from peft import get_peft_model

from residual_peft.classifiers.exporting import export_onnx
from residual_peft.classifiers.exporting import onnx as exporting
from residual_peft.classifiers.exporting.graph import ClassifierGraph
from residual_peft.classifiers.heads import ClassHead
from residual_peft.classifiers.trained_head import TrainedHead
from residual_peft.classifiers.zero_shot import ZeroShotClassifier
from residual_peft.data.processors import Preparation
from residual_peft.errors import ResiDualError
from residual_peft.tuner import (
    ResiDualConfig,
    adapted_tower,
    fit_bases,
    gains_by_module,
    readout_state,
)
from tests.models import EVERY, pixels
from tests.open_clip_models import open_clip_model
from tests.pairs import table
from tests.pictures import image_processor, photographs
from tests.pooled import POOLED

BUILDERS = {**EVERY, **{name: case.build for name, case in POOLED.items()}}
BUILDERS["open_clip"] = open_clip_model
NAMES = ("a cat", "ein Löwe", "猫", "two words")
# tower, whether it has a class head, several labels, of the config
CASES = {
    "gains": ("CLIPModel", False, False, {}),
    "several labels": ("SiglipModel", True, True, {}),
    "a tower without texts": ("Dinov2Model, SwiGLU", True, False, {}),
    "stream": ("CLIPVisionModel", False, False, {"mode": "stream"}),
    "fused attention, no heads": ("open_clip", False, False, {"units": ("mlp",)}),
}


def made(tower: str, head: bool, several: bool, config: dict) -> ZeroShotClassifier:
    model = get_peft_model(BUILDERS[tower](), ResiDualConfig(**config))
    fit_bases(model, [pixels(60, seed=5)])
    for gains in gains_by_module(model).values():
        gains.data = 1 + 0.5 * torch.randn(gains.shape, generator=torch.Generator().manual_seed(1))
    stream = config.get("mode") == "stream"
    width = model.config.hidden_size if stream else adapted_tower(model).readout_width
    draw = torch.Generator().manual_seed(3)
    classifier = ZeroShotClassifier(
        model.eval(),
        NAMES,
        torch.randn(len(NAMES), width, generator=draw),
        logit_scale=6.0,
        multi_label=several,
        logit_bias=-0.8 if several else 0.0,
        image_processor=image_processor(),
    )
    if head:
        columns = len(readout_state(model).directions)
        plain = ClassHead(
            mean=torch.randn(columns, generator=draw),
            scale=torch.rand(columns, generator=draw) + 0.5,
            weights=torch.randn(columns, len(NAMES), generator=draw) / columns**0.5,
            offset=torch.randn(len(NAMES), generator=draw),
            text_weight=0.3,
            temperature=0.5,
        )
        scores = None if several else torch.linspace(0.1, 3, 40)
        classifier.head = TrainedHead(plain, "coordinates", left_out_scores=scores)
    return classifier


def session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_file_predicts_what_the_classifier_predicts(name: str, tmp_path: Path) -> None:
    classifier, path = made(*CASES[name]), tmp_path / "deep" / "model.onnx"
    found = export_onnx(classifier, path)
    assert [item.name for item in path.parent.iterdir()] == ["model.onnx"]
    assert found.bytes == path.stat().st_size
    assert found.probability_difference <= exporting.TOLERANCE
    assert found.size == (16, 16)
    running, pictures = session(path), photographs(7, seed=4)
    facts = running.get_modelmeta().custom_metadata_map
    said = {key: json.loads(value) for key, value in facts.items()}
    assert tuple(said["class_names"]) == NAMES
    assert said["several_labels"] is classifier.multi_label
    recipe = Preparation(**said["preprocessing"])
    for few in (pictures[:1], pictures):
        inputs = {exporting.INPUT: np.stack([recipe(picture) for picture in few])}
        probabilities, logits = running.run(None, inputs)
        wanted = [found.probabilities for found in classifier.predict(few)]
        np.testing.assert_allclose(probabilities, wanted, atol=1e-4)
        np.testing.assert_allclose(logits, classifier.predict_logits(few), atol=1e-3)
    labels = [found.labels for found in classifier.predict(pictures)]
    if classifier.multi_label:
        chosen = [tuple(np.array(NAMES)[row >= said["threshold"]]) for row in probabilities]
        assert chosen == labels
        assert {len(names) for names in labels} != {1}
    if name == "a tower without texts":
        assert said["plausible_by"] == "jackknife"
        sets = [p.plausible for p in classifier.predict(pictures, coverage=0.9)]
        assert [
            tuple(np.array(NAMES)[row >= said["plausible"]["0.9"]]) for row in probabilities
        ] == sets
    content = path.read_bytes()
    for personal in (Path(torch.__file__).parent, Path(exporting.__file__).parents[2], Path.home()):
        assert str(personal).encode() not in content
    model = onnx.load_from_string(content)
    onnx.checker.check_model(model, full_check=True)
    assert {entry.version for entry in model.opset_import} == {exporting.OPSET}
    tower = ClassifierGraph(classifier).anatomy.tower
    weights = sum(p.numel() * 4 for p in tower.parameters())
    assert found.bytes < 2 * weights + 60_000  # no text tower, nothing twice


@pytest.mark.slow
def test_a_model_in_bfloat16_is_computed_in_float32(tmp_path: Path) -> None:
    classifier = made(*CASES["gains"])
    classifier.model.to(torch.bfloat16)
    found = export_onnx(classifier, tmp_path / "model.onnx", images=photographs(3))
    assert (found.dtype, found.images) == ("bfloat16", 3)
    assert next(classifier.model.parameters()).dtype == torch.bfloat16
    inputs = {exporting.INPUT: pixels(4, seed=8).numpy()}
    (probabilities,) = session(found.path).run(["probabilities"], inputs)
    ((_, logits),) = classifier.classified([pixels(4, seed=8)])
    np.testing.assert_allclose(probabilities, logits.float().softmax(1), atol=0.1)


class Off:
    """A session whose answers are those of a graph, but for one number."""

    def __init__(self, graph: ClassifierGraph, off: float, which: int) -> None:
        self.graph, self.off, self.which = graph, off, which

    def run(self, names: list[str], inputs: dict) -> list[np.ndarray]:
        found = [part.numpy().copy() for part in self.graph(torch.from_numpy(inputs["pixels"]))]
        found[self.which][-1, 0] += self.off
        return found


class Program:
    def save(self, path: str, external_data: bool) -> None:
        Path(path).write_bytes(b"new")


@table("off", [(2e-4, 0), (math.nan, 0), (0.1, 1)])
def test_what_answers_otherwise_is_refused_and_not_written(off, tmp_path, monkeypatch) -> None:
    classifier, path = made(*CASES["gains"]), tmp_path / "model.onnx"
    path.write_bytes(b"old")
    graphs, told = [], []
    classifier.held_out = torch.linspace(0.1, 2, 40)
    wanted = {str(c): math.exp(-classifier.sets(c, "held-out").threshold) for c in (0.8, 0.9, 0.95)}
    monkeypatch.setattr(exporting, "_traced", lambda graph, _: graphs.append(graph) or Program())
    monkeypatch.setattr(exporting, "_with_metadata", lambda _, facts: told.append(facts))
    monkeypatch.setattr(exporting, "running", lambda _: Off(graphs[-1], *off))
    with pytest.raises(ResiDualError, match=r"wanted a graph that answers as torch.*differ by"):
        export_onnx(classifier, path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    monkeypatch.setattr(exporting, "running", lambda _: Off(graphs[-1], 5e-5, 0))
    assert 4e-5 < export_onnx(classifier, path).probability_difference < 6e-5
    assert path.read_bytes() == b"new"
    # as the classifier says it, though its adapter is away while the graph is traced
    assert (told[-1]["plausible"], told[-1]["plausible_by"]) == (wanted, "held-out")
    classifier.held_out = None
    export_onnx(classifier, path)
    assert (told[-1]["plausible"], told[-1]["plausible_by"]) == ({}, None)


def test_what_cannot_be_exported_is_said_before_any_work(tmp_path, monkeypatch) -> None:
    classifier, path = made(*CASES["gains"]), tmp_path / "model.onnx"
    monkeypatch.setattr("residual_peft.classifiers.exporting.graph.LARGEST", 1000)
    with pytest.raises(ResiDualError, match=r"at most 2 GiB, and the weights of the image tower"):
        export_onnx(classifier, path)
    monkeypatch.undo()

    def fails(*_: object, **__: object) -> None:
        raise torch.onnx.OnnxExporterError("Failed.") from ValueError("no such operator\nmore")

    monkeypatch.setattr(torch.onnx, "export", fails)
    with pytest.raises(ResiDualError, match=r"cannot export the image tower CLIPModel.*\(no such"):
        export_onnx(classifier, path)
    constant = SimpleNamespace(inputs=[SimpleNamespace(shape=(2, 3, 16, 16))])
    program = SimpleNamespace(model=SimpleNamespace(graph=constant))
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: program)
    with pytest.raises(ResiDualError, match=r"it takes the number of images for a constant"):
        export_onnx(classifier, path)
    classifier.image_processor = None
    with pytest.raises(ResiDualError, match="image processor"):
        export_onnx(classifier, path)
    flexible = get_peft_model(BUILDERS["Siglip2Model"](), ResiDualConfig())
    width = adapted_tower(flexible).readout_width
    other = ZeroShotClassifier(
        flexible, ["a", "b"], torch.eye(2, width), image_processor=image_processor()
    )
    with pytest.raises(ResiDualError, match="takes patches of images of any shape"):
        export_onnx(other, path)
    assert not list(tmp_path.iterdir())
