"""The module that is traced says what the classifier says, and leaves the model as it was."""

import pytest
import torch
from peft import get_peft_model
from torch import Tensor

from residual_peft.bases.decomposition import decompose
from residual_peft.classifiers.exporting.graph import ClassifierGraph
from residual_peft.classifiers.heads import ClassHead
from residual_peft.classifiers.trained_head import TrainedHead
from residual_peft.classifiers.zero_shot import ZeroShotClassifier
from residual_peft.tuner import (
    ResiDualConfig,
    ResiDualStreamLinear,
    fit_bases,
    gains_by_module,
    readout_state,
)
from tests.models import EVERY, hooks, pixels
from tests.pairs import table
from tests.pooled import POOLED

CLASSES = 4
BUILDERS = {**EVERY, **{name: case.build for name, case in POOLED.items()}}
# tower, head, several labels, of the config
CASES = {
    "no adapter": ("CLIPVisionModel", None, False, None),
    "gains": ("CLIPModel", None, False, {}),
    "gains, several labels": ("SiglipModel", None, True, {"units": ("head",)}),
    "one gain per unit": ("ViTModel", None, False, {"granularity": "unit", "restore_mean": False}),
    "drop": ("BlipModel", None, False, {"remainder": "drop"}),
    "coordinates": ("Dinov2WithRegistersModel", "coordinates", False, {}),
    "coordinates of a mean": ("ViTModel", "coordinates", True, {"readout": "mean"}),
    "embedding": ("CLIPVisionModelWithProjection", "embedding", False, {}),
    "stream": ("CLIPModel", None, False, {"mode": "stream"}),
    "stream, embedding": ("DeiTModel", "embedding", True, {"mode": "stream"}),
    "two adapters": ("CLIPModel", None, False, {"components": 3}),
}


def random_head(columns: int, features: str) -> TrainedHead:
    """Of fewer classes than there are, so that texts decide as well."""
    draw = torch.Generator().manual_seed(7)
    head = ClassHead(
        mean=torch.randn(columns, generator=draw),
        scale=torch.rand(columns, generator=draw) + 0.5,
        weights=torch.randn(columns, CLASSES - 1, generator=draw) / columns**0.5,
        offset=torch.randn(CLASSES - 1, generator=draw),
        text_weight=0.7,
        temperature=0.4,
    )
    return TrainedHead(head, features)


def made(tower: str, head: str | None, several: bool, config: dict | None) -> ZeroShotClassifier:
    model = BUILDERS[tower]()
    if config is not None:
        model = get_peft_model(model, ResiDualConfig(**config))
        fit_bases(model, [pixels(60, seed=5)])
        randomize(model)
    width = decompose(model.eval(), pixels(1)).readout.shape[1]
    if head is not None and (config or {}).get("readout"):
        width = readout_state(model).directions.shape[1]
    draw = torch.Generator().manual_seed(3)
    classifier = ZeroShotClassifier(
        model,
        [f"class {number}" for number in range(CLASSES)],
        torch.randn(CLASSES, width, generator=draw),
        logit_scale=6.0,
        multi_label=several,
        logit_bias=-0.8 if several else 0.0,
    )
    if head is not None:
        columns = width if head == "embedding" else len(readout_state(model).directions)
        classifier.head = random_head(columns, head)
    return classifier


def randomize(model: torch.nn.Module, adapter: str = "default") -> None:
    """In either mode."""
    draw = torch.Generator().manual_seed(len(adapter))
    for gains in gains_by_module(model, adapter).values():
        gains.data = 1 + 0.5 * torch.randn(gains.shape, generator=draw)


def weights(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@table("name", CASES)
def test_the_graph_answers_as_the_classifier(name: str) -> None:
    classifier = made(*CASES[name])
    if name == "two adapters":
        classifier.model.add_adapter("second", ResiDualConfig())
        randomize(classifier.model, "second")
        classifier.model.base_model.set_adapter(["default", "second"])
    images = pixels(5, seed=2)
    wanted = torch.cat([found for _, found in classifier.classified([images])])
    before, tapped = weights(classifier.model), hooks(classifier.model)
    classifier.model.train()
    graph = ClassifierGraph(classifier)
    with graph.ready():
        probabilities, logits = graph(images)
    assert torch.allclose(logits, wanted, atol=1e-5, rtol=1e-5)
    assert not logits.requires_grad
    single = torch.softmax(wanted.double(), 1)
    expected = torch.sigmoid(wanted.double()) if classifier.multi_label else single
    assert torch.allclose(probabilities.double(), expected, atol=1e-5)
    assert classifier.model.training
    assert hooks(classifier.model) == tapped
    after = classifier.model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_a_merge_that_fails_leaves_the_weights_as_they_were(monkeypatch) -> None:
    classifier = made(*CASES["stream"])
    layers = [m for m in classifier.model.modules() if isinstance(m, ResiDualStreamLinear)]
    before, fused = weights(classifier.model), torch.backends.mha.get_fastpath_enabled()

    def full(*_: object) -> None:
        assert layers[0].merged
        raise RuntimeError("no memory")

    monkeypatch.setattr(layers[-1], "merge", full)
    with pytest.raises(RuntimeError, match="no memory"), ClassifierGraph(classifier).ready():
        raise AssertionError("ready")
    assert not any(layer.merged for layer in layers)
    assert torch.backends.mha.get_fastpath_enabled() == fused
    after = classifier.model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
