import copy
import inspect
import pickle

import pytest
import torch
from peft import get_peft_model

from residual_peft.towers.running import run_tower
from residual_peft.tuner import ResiDualConfig
from tests.models import clip_model, clip_vision_model_with_projection, pixels
from tests.tuner.twin import adapted

TEXT = torch.tensor([[0, 5, 9, 63], [0, 7, 63, 1]])


@pytest.mark.parametrize(
    "clone", [lambda m: m, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))]
)
def test_images_alone_give_their_readout(clone) -> None:
    model = clone(adapted())
    output = model(pixel_values=pixels())
    assert list(output.keys()) == ["image_embeds"]
    assert torch.equal(output.image_embeds, run_tower(model, pixels()))
    assert torch.equal(model.base_model(pixel_values=pixels()).image_embeds, output.image_embeds)
    assert torch.equal(model(None, pixels()).image_embeds, output.image_embeds)
    assert torch.equal(model(pixel_values=pixels(), return_dict=False)[0], output.image_embeds)


def test_images_with_text_run_the_models_own_forward() -> None:
    model = adapted()
    with model.disable_adapter():
        found = model(input_ids=TEXT, pixel_values=pixels())
    wanted = clip_model()(input_ids=TEXT, pixel_values=pixels())
    assert torch.equal(found.logits_per_image, wanted.logits_per_image)
    adapted_logits = model(input_ids=TEXT, pixel_values=pixels()).logits_per_image
    assert not torch.allclose(adapted_logits, wanted.logits_per_image)
    readout = run_tower(model, pixels())
    normalized = readout / readout.norm(dim=1, keepdim=True)
    embeds = model(input_ids=TEXT, pixel_values=pixels()).image_embeds
    torch.testing.assert_close(embeds, normalized)


def test_the_trainer_sees_the_models_own_columns() -> None:
    model = adapted()
    signature = inspect.signature(model.get_base_model().forward)
    assert list(signature.parameters) == list(inspect.signature(clip_model().forward).parameters)
    assert "pixel_values" in signature.parameters


def test_a_forward_that_others_set_is_kept() -> None:
    base, calls = clip_model(), []
    own = base.forward

    def forward(*args: object, **kwargs: object) -> object:
        calls.append(1)
        return own(*args, **kwargs)

    base.forward = forward
    model = get_peft_model(base, ResiDualConfig())
    model(input_ids=TEXT, pixel_values=pixels())
    assert calls == [1]
    assert model.unload().forward is forward


def test_image_towers_keep_their_forward() -> None:
    model = adapted(builder="CLIPVisionModelWithProjection")
    assert "forward" not in model.get_base_model().__dict__
    output = model(pixel_values=pixels())
    assert type(output) is type(clip_vision_model_with_projection()(pixels()))
    assert torch.equal(output.image_embeds, run_tower(model, pixels()))


@pytest.mark.parametrize("builder", ["CLIPModel", "CLIPVisionModelWithProjection"])
def test_pefts_class_for_feature_extraction_takes_images(builder: str) -> None:
    model = adapted(ResiDualConfig(task_type="FEATURE_EXTRACTION"), builder=builder)
    assert type(model).__name__ == "PeftModelForFeatureExtraction"
    found = model(pixel_values=pixels()).image_embeds
    assert torch.equal(found, run_tower(model, pixels()))
