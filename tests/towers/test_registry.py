"""From a model to its tower: known classes, one's own, and models that PEFT has wrapped."""

from typing import Any

import pytest
import torch
from peft import LNTuningConfig, LoraConfig, get_peft_model
from torch import nn
from transformers import CLIPModel

from residual_peft.errors import ResiDualError
from residual_peft.towers.anatomy import TowerAnatomy
from residual_peft.towers.registry import (
    ARCHITECTURES,
    base_model,
    find_tower,
    register_architecture,
)
from tests.models import clip_model, clip_vision_model


@pytest.mark.parametrize("model", [nn.Sequential(nn.Linear(3, 3)), nn.Linear(3, 3)], ids=type)
def test_an_unknown_architecture_is_named_with_the_known_ones(model: nn.Module) -> None:
    name = type(model).__name__
    with pytest.raises(
        ResiDualError,
        match=f"the architecture {name} is not known; wanted one of AltCLIPModel, .* CLIPModel, ",
    ):
        find_tower(model)
    with pytest.raises(ResiDualError) as caught:
        find_tower(model)
    lines = str(caught.value).splitlines()
    assert lines[1:4] == [
        "    from residual_peft import TowerAnatomy, register_architecture",
        f'    @register_architecture("{name}")',
        f'    def describe(model): return TowerAnatomy("{name}", model, tower=model.tower, ...)',
    ]
    assert lines[4] == (
        "decompose(model, pixel_values) then checks that the units sum to the model's own readout."
    )


def test_a_subclass_is_read_as_its_parent() -> None:
    class MyCLIP(CLIPModel):
        pass

    model = MyCLIP(clip_model().config)
    assert find_tower(model).architecture == "MyCLIP"


def test_others_can_register_an_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("residual_peft.towers.registry.ARCHITECTURES", dict(ARCHITECTURES))

    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = clip_vision_model()

    @register_architecture("Wrapper")
    def inner(model: Any) -> TowerAnatomy:
        return find_tower(model.inner)

    assert find_tower(Wrapper()).width == 24


def test_peft_wrapping_is_taken_off() -> None:
    plain = clip_model()
    anatomy = find_tower(plain)
    peft_model = get_peft_model(plain, LoraConfig(target_modules=["out_proj", "fc2", "q_proj"]))
    assert hasattr(plain.vision_model.encoder.layers[0].self_attn.out_proj, "base_layer")
    for wrapped in (peft_model, peft_model.base_model, plain):
        found = find_tower(wrapped)
        assert base_model(wrapped) is plain
        assert found.architecture == "CLIPModel"
        assert found.layers[1].output_projection is anatomy.layers[1].output_projection
        assert found.layers[1].mlp_projection is anatomy.layers[1].mlp_projection
        assert torch.equal(found.head_factor(1), anatomy.head_factor(1))


def test_a_wrapped_final_norm_is_unwrapped() -> None:
    model = clip_vision_model()
    norm = model.post_layernorm
    get_peft_model(model, LNTuningConfig(target_modules=["post_layernorm"]))
    anatomy = find_tower(model)
    assert model.post_layernorm is not norm
    assert anatomy.final_norm is norm
    assert anatomy.model.get_submodule(anatomy.projection_path) is model.post_layernorm
