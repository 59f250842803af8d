"""One adapter on every class that holds the same tower."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPModel, CLIPVisionModel, CLIPVisionModelWithProjection

from residual_peft.bases.fingerprint import Fingerprint
from residual_peft.errors import ResiDualError
from residual_peft.towers.running import run_tower
from residual_peft.tuner import ResiDualConfig, fit_bases, load_adapter
from tests.models import clip_model, clip_vision_model, pixels
from tests.pairs import in_pairs
from tests.tuner.saved_files import CONFIG, WEIGHTS, edit_config
from tests.tuner.twin import IMAGES, randomize_gains

CLASSES = {"CLIPModel": CLIPModel, "image side": CLIPVisionModelWithProjection}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    clip_model().save_pretrained(tmp_path / "clip")
    return tmp_path / "clip"


def with_adapter(model: nn.Module, directory: Path, **options) -> torch.Tensor:
    adapted = get_peft_model(model, ResiDualConfig(**options))
    fit_bases(adapted, [pixels(IMAGES, seed=5)])
    randomize_gains(adapted)
    adapted.save_pretrained(directory)
    return run_tower(adapted.eval(), pixels()).detach()


@in_pairs(start=CLASSES, end=CLASSES, load=(PeftModel.from_pretrained, load_adapter))
def test_from_one_class_to_the_other(tmp_path: Path, checkpoint: Path, start, end, load) -> None:
    wanted = with_adapter(CLASSES[start].from_pretrained(checkpoint), tmp_path / "adapter")
    model = load(CLASSES[end].from_pretrained(checkpoint), tmp_path / "adapter")
    assert torch.equal(run_tower(model, pixels()), wanted)
    assert torch.equal(model(pixel_values=pixels()).image_embeds, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_their_fingerprints_agree(checkpoint: Path, dtype: torch.dtype) -> None:
    one, other = (
        Fingerprint.of(cls.from_pretrained(checkpoint, dtype=dtype)) for cls in CLASSES.values()
    )
    assert one.digests == other.digests
    assert one.matches(other)
    assert one.architecture != other.architecture


def test_the_readout_may_be_elsewhere_in_the_other_class(tmp_path: Path) -> None:
    """As CLIPVisionModel has its final norm one level down in older transformers."""
    wanted = with_adapter(clip_vision_model(), tmp_path)
    edit_config(tmp_path, target_modules=["vision_model.post_layernorm"])
    tensors = load_file(tmp_path / WEIGHTS)
    moved = {
        key.replace(".post_layernorm.", ".vision_model.post_layernorm."): tensor
        for key, tensor in tensors.items()
    }
    assert moved.keys() != tensors.keys()
    save_file(moved, tmp_path / WEIGHTS)
    for options in ({}, {"low_cpu_mem_usage": True}):
        model = PeftModel.from_pretrained(clip_vision_model(), tmp_path, **options)
        assert torch.equal(run_tower(model, pixels()), wanted)
        assert model.peft_config["default"].target_modules == ["post_layernorm"]
    model.load_adapter(tmp_path, "again")
    model.set_adapter("again")
    assert torch.equal(run_tower(model, pixels()), wanted)


def test_another_readout_of_the_same_tower_is_refused(tmp_path: Path, checkpoint: Path) -> None:
    with_adapter(CLIPModel.from_pretrained(checkpoint), tmp_path / "adapter")
    tower = CLIPVisionModel.from_pretrained(checkpoint)
    with pytest.raises(ResiDualError, match="with a readout of width 16, but this model"):
        PeftModel.from_pretrained(tower, tmp_path / "adapter")
    assert (tmp_path / "adapter" / CONFIG).is_file()
