"""Which weights a basis belongs to: refused on others, accepted in another precision."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from residual_peft.bases.basis import SpectralBasis
from residual_peft.bases.fingerprint import Fingerprint
from residual_peft.errors import ResiDualError
from residual_peft.towers.registry import find_tower
from tests.models import clip_model, clip_vision_model, clip_vision_model_with_projection, randomize
from tests.pooled import CASES


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_a_copy_in_another_precision_is_the_same_model(dtype: torch.dtype) -> None:
    basis = SpectralBasis.from_weights(clip_model())
    basis.check_belongs_to(clip_model().to(dtype))
    half = SpectralBasis.from_weights(clip_model().to(dtype))
    half.check_belongs_to(clip_model())


def named(model: Any, name: str) -> Any:
    model.config._name_or_path = name
    return model


def test_other_weights_are_refused_with_both_names() -> None:
    basis = SpectralBasis.from_weights(named(clip_model(), "me/clip-one"))
    with pytest.raises(
        ResiDualError,
        match=r"the basis belongs to the weights of me/clip-one \(CLIPModel\), and this model, "
        r"you/clip-two \(CLIPModel\), has others: load it onto the model that it was fitted on",
    ):
        basis.check_belongs_to(named(clip_model(seed=1), "you/clip-two"))


def test_a_basis_of_another_width_is_refused_with_both_widths() -> None:
    basis = SpectralBasis.from_weights(clip_model())
    with pytest.raises(
        ResiDualError, match=r"CLIPModel with a readout of width 16, but this model, .* width 24"
    ):
        basis.check_belongs_to(clip_vision_model())


@pytest.mark.parametrize(
    "path", ["visual_projection.weight", "vision_model.encoder.layers.1.mlp.fc1.bias"]
)
def test_one_changed_number_is_other_weights(path: str) -> None:
    model = clip_model()
    basis = SpectralBasis.from_weights(model)
    with torch.no_grad():
        model.get_parameter(path).flatten()[3] += 0.5
    with pytest.raises(ResiDualError, match="has others"):
        basis.check_belongs_to(model)


def test_the_text_tower_and_adapters_are_no_part_of_it() -> None:
    model = clip_model()
    expected = Fingerprint.of(model)
    vision = clip_vision_model_with_projection()
    vision.vision_model.load_state_dict(model.vision_model.state_dict())
    vision.visual_projection.load_state_dict(model.visual_projection.state_dict())
    assert Fingerprint.of(vision).matches(expected)
    with torch.no_grad():
        model.text_projection.weight.zero_()
    get_peft_model(model, LoraConfig(target_modules=["out_proj", "visual_projection"]))
    assert Fingerprint.of(model) == expected


def test_a_merged_adapter_changes_the_weights() -> None:
    model = clip_model()
    basis = SpectralBasis.from_weights(model)
    config = LoraConfig(target_modules=["out_proj"], init_lora_weights=False)
    get_peft_model(model, config).merge_adapter()
    with pytest.raises(ResiDualError, match="has others"):
        basis.check_belongs_to(model)


def test_the_same_digests_of_another_width_are_no_match() -> None:
    fingerprint = Fingerprint.of(clip_model())
    assert fingerprint.matches(replace(fingerprint, name="another", architecture="another"))
    assert not fingerprint.matches(replace(fingerprint, width=17))
    assert not fingerprint.matches(replace(fingerprint, digests={}))


def test_a_fingerprint_with_fields_missing_is_refused() -> None:
    data = Fingerprint.of(clip_model()).to_dict()
    assert Fingerprint.from_dict(data) == Fingerprint.of(clip_model())
    for wrong in ({**data, "digests": None}, {"name": "x"}, None):
        with pytest.raises(ResiDualError, match="a fingerprint has name, architecture, width"):
            Fingerprint.from_dict(wrong)  # type: ignore[arg-type]


def test_a_mean_of_tokens_does_not_depend_on_the_pooling_that_it_takes_the_place_of() -> None:
    build = CASES["SiglipModel"].build
    one, other = build(), build()
    randomize(other.vision_model.head, seed=3)
    own = [Fingerprint.of(model) for model in (one, other)]
    means = [Fingerprint.of(find_tower(model, readout="mean")) for model in (one, other)]
    assert means[0].matches(means[1])
    assert not own[0].matches(own[1])
    assert not own[0].matches(means[0])
