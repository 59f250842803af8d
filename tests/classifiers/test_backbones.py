"""A name or a path -> a frozen float32 CLIP that is known by that name."""

from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel

from residual_peft.classifiers.backbones import load_backbone, load_image_tower
from residual_peft.errors import ResiDualError
from residual_peft.hub.directories import DEMO_MODEL, known_name
from residual_peft.hub.files import read_tensors, write_tensors
from residual_peft.towers.running import run_tower
from tests.models import TOWERS, clip_model, pixels
from tests.pairs import table
from tests.pooled import POOLED
from tests.tokenizers import VOCABULARY, clip_tokenizer
from tests.training_case import save_clip

CLASSIFIERS = [name for name in (*TOWERS, *POOLED) if "ForImageClassification" in name]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A CLIP as others save it, in half precision."""
    save_clip(tmp_path, dtype=torch.float16)
    return tmp_path


def test_a_directory_gives_model_tokenizer_and_processor(folder: Path) -> None:
    clip = load_backbone(folder)
    assert {parameter.dtype for parameter in clip.model.parameters()} == {torch.float32}
    assert not any(parameter.requires_grad for parameter in clip.model.parameters())
    assert not any(module.training for module in clip.model.modules())
    expected = clip_model(vocab_size=VOCABULARY).half().float()
    with torch.no_grad():
        torch.testing.assert_close(
            run_tower(clip.model, pixels()), run_tower(expected, pixels()), rtol=0, atol=1e-6
        )
    assert clip.tokenizer("cat")["input_ids"] == clip_tokenizer()("cat")["input_ids"]
    assert clip.image_processor.crop_size["height"] == 16
    assert clip.name == clip.model.name_or_path == str(folder)


def test_the_bundled_model_is_the_default_and_goes_by_its_name() -> None:
    clip = load_backbone()
    assert clip.name == known_name(clip.model.name_or_path) == DEMO_MODEL


def test_the_image_tower_alone_reads_out_the_same(folder: Path) -> None:
    tower, clip = load_image_tower(folder), load_backbone(folder)
    assert not tower.training
    assert not hasattr(tower, "text_model")
    assert tower.name_or_path == tower.config._name_or_path == str(folder)
    with torch.no_grad():
        torch.testing.assert_close(run_tower(tower, pixels()), run_tower(clip.model, pixels()))


@pytest.mark.parametrize("load", [load_backbone, load_image_tower])
def test_what_is_nowhere_is_named(load) -> None:
    with pytest.raises(ResiDualError, match="could not find the model 'nobody/nothing': it is no"):
        load("nobody/nothing")


def test_a_directory_without_a_clip_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ResiDualError, match=r"wanted a CLIP.* in transformers format in '.*', got n"
    ):
        load_backbone(tmp_path)


@pytest.mark.parametrize("load", [load_backbone, load_image_tower])
def test_weights_cut_short_are_refused(folder: Path, load) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(
        ResiDualError, match=r"wanted a CLIP.* in transformers format in '.*', got n"
    ):
        load(folder)


@table("name", ["ViTModel", "ViTMSNModel", "ViTMAEModel", "PixioModel", *CLASSIFIERS])
def test_another_known_tower_is_loaded_as_what_it_is(folder: Path, name: str) -> None:
    build = TOWERS[name] if name in TOWERS else POOLED[name].build
    batch = POOLED[name].batch() if name in POOLED else pixels()
    build().save_pretrained(folder)
    found = load_backbone(folder)
    assert type(found.model).__name__ == name
    assert found.tokenizer is None
    assert torch.equal(run_tower(found.model, batch), run_tower(build(), batch))


@pytest.mark.parametrize("load", [load_backbone, load_image_tower])
def test_another_architecture_is_refused_and_not_drawn_at_random(folder: Path, load) -> None:
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": 9}
    BertModel(BertConfig(intermediate_size=16, **sizes)).save_pretrained(folder)
    with pytest.raises(ResiDualError, match=r"model_type is 'bert', and \d+ weights are missing"):
        load(folder)


@pytest.mark.parametrize("load", [load_backbone, load_image_tower])
def test_a_missing_weight_is_named(folder: Path, load) -> None:
    tensors, metadata = read_tensors(folder / "model.safetensors")
    del tensors["visual_projection.weight"]
    write_tensors(folder / "model.safetensors", tensors, metadata)
    with pytest.raises(ResiDualError, match=r"1 weights .* such as visual_projection\.weight"):
        load(folder)


def test_a_directory_without_an_image_processor_is_refused(folder: Path) -> None:
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(ResiDualError, match="wanted an image processor in"):
        load_backbone(folder)


def test_the_same_weights_in_modules_of_their_own(folder: Path) -> None:
    first = load_backbone(folder)
    second = first.again()
    second.model.half().get_submodule("vision_model").encoder = torch.nn.Identity()
    assert len(list(first.model.modules())) > len(list(second.model.modules()))
    assert {own.dtype for own in first.model.parameters()} == {torch.float16}
    held = {id(buffer) for buffer in first.model.buffers()}
    assert {id(buffer) for buffer in second.model.buffers()} <= held
