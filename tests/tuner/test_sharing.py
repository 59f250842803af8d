"""Whole models over shared bases, saved and loaded by torch, safetensors and accelerate."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from accelerate import Accelerator
from peft import get_peft_model
from torch import Tensor, nn

from residual_peft.errors import ResiDualError
from residual_peft.tuner import ResiDualConfig, fit_bases
from residual_peft.tuner.layer import AdapterLayer
from residual_peft.tuner.readout.layer import BASIS
from residual_peft.tuner.sharing import SHARED
from residual_peft.tuner.stream.tensors import STREAM_BASIS
from tests.models import Size, clip_vision_model_with_projection, pixels
from tests.pairs import in_pairs

MODES = ("readout", "stream")
SMALL = Size(layers=1)


def build(mode: str, bases: dict[str, int | None], gains: int = 0, seed: int = 0) -> Any:
    """Adapters by name, each over a basis of images drawn with a seed (None: of the weights)."""
    base = clip_vision_model_with_projection(SMALL, seed=seed)
    first, *others = bases
    config = ResiDualConfig(mode=mode, components=4)  # as many from weights as from images
    model = get_peft_model(base, config, adapter_name=first)
    for name in others:
        model.add_adapter(name, config)
    for name, images in bases.items():
        if images is not None:
            fit_bases(model, [pixels(40, SMALL, seed=images)], name)
    generator = torch.Generator().manual_seed(gains)
    for name, parameter in model.named_parameters():
        if "residual_peft_gains" in name:
            parameter.data = 1 + 0.5 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def outputs(model: Any) -> dict[str, Tensor]:
    """What each adapter makes of the same images."""
    found = {}
    for name in model.peft_config:
        model.set_adapter(name)
        with torch.no_grad():
            found[name] = model(pixel_values=pixels(4, SMALL)).image_embeds
    return found


def by_torch(source: nn.Module, target: nn.Module, directory: Path) -> None:
    torch.save(source.state_dict(), directory / "state.pt")
    target.load_state_dict(torch.load(directory / "state.pt", weights_only=True))


def by_safetensors(source: nn.Module, target: nn.Module, directory: Path) -> None:
    safetensors.torch.save_model(source, str(directory / "model.safetensors"))
    safetensors.torch.load_model(target, str(directory / "model.safetensors"))


def by_accelerate(source: nn.Module, target: nn.Module, directory: Path) -> None:
    for model in (source, target):
        accelerator = Accelerator(cpu=True)
        accelerator._models.clear()
        accelerator.prepare(model)
        if model is source:
            accelerator.save_state(str(directory))
        else:
            accelerator.load_state(str(directory))


WAYS = (by_torch, by_safetensors, by_accelerate)


def check_shares(model: nn.Module, one: str, other: str, shared: bool) -> None:
    """Whether two adapters hold the same tensors in memory."""
    for layer in model.modules():
        if isinstance(layer, AdapterLayer):
            for kind in BASIS if hasattr(layer, BASIS[0]) else STREAM_BASIS:
                tensors = getattr(layer, kind)
                if tensors[one].any() and "mean" not in kind:
                    assert (tensors[one] is tensors[other]) == shared, kind


@in_pairs(
    way=WAYS,
    before=({"a": 9, "b": 9}, {"a": None, "b": None}, {"a": 8, "b": 9}),
    mode=MODES,
)
def test_adapters_over_one_basis_come_back(
    mode: str, way: Callable[..., None], before: dict[str, int | None], tmp_path: Path
) -> None:
    source = build(mode, {"a": 3, "b": 3}, gains=1)
    wanted = outputs(source)
    target = build(mode, before)
    if way is by_torch and before == {"a": 8, "b": 9}:
        target = build(mode, before, seed=7)  # and other weights below
    way(source, target, tmp_path)
    found = outputs(target)
    for name in "ab":
        assert torch.equal(found[name], wanted[name]), name
    check_shares(target, "a", "b", True)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("way", WAYS)
def test_nobody_takes_the_basis_of_another(
    mode: str, way: Callable[..., None], tmp_path: Path
) -> None:
    # in the model that loads, c shares with the one that it does not share with in the file
    source = build(mode, {"a": 3, "b": 4, "c": 4, "d": 3}, gains=1)
    wanted = outputs(source)
    target = build(mode, {"a": 8, "b": 9, "c": 7, "d": 6})
    way(source, target, tmp_path)
    found = outputs(target)
    for name in "abcd":
        assert torch.equal(found[name], wanted[name]), name
    check_shares(target, "a", "d", True)
    check_shares(target, "b", "c", True)
    check_shares(target, "a", "b", False)


@pytest.mark.parametrize("mode", MODES)
def test_other_pairs_share_in_the_model_that_loads(mode: str) -> None:
    source = build(mode, {"a": 3, "b": 4, "c": 4}, gains=1)
    wanted = outputs(source)
    file = source.state_dict()
    for key in [key for key in file if key.endswith(".c") and "gains" not in key]:
        del file[key]  # as safetensors does, and no more was said
    target = build(mode, {"a": 8, "b": 9, "c": 8})
    target.load_state_dict(file, strict=False)
    found = outputs(target)
    for name in "abc":
        assert torch.equal(found[name], wanted[name]), name


@pytest.mark.parametrize("mode", MODES)
def test_two_bases_come_into_a_model_that_had_one(mode: str, tmp_path: Path) -> None:
    source = build(mode, {"a": 3, "b": 4}, gains=1)
    wanted = outputs(source)
    target = build(mode, {"a": 9, "b": 9})
    by_torch(source, target, tmp_path)
    found = outputs(target)
    for name in "ab":
        assert torch.equal(found[name], wanted[name]), name
    check_shares(target, "a", "b", False)


@pytest.mark.parametrize("mode", MODES)
def test_one_adapter_loaded_by_itself_leaves_the_others(mode: str, tmp_path: Path) -> None:
    source = build(mode, {"a": 3}, gains=1)
    wanted = outputs(source)["a"]
    target = build(mode, {"a": 9, "b": 9}, gains=2)
    before = outputs(target)["b"]
    own = {key: value for key, value in source.state_dict().items() if "residual_peft" in key}
    target.load_state_dict(own, strict=False)
    found = outputs(target)
    assert torch.equal(found["a"], wanted)
    assert torch.equal(found["b"], before)
    check_shares(target, "a", "b", False)


@pytest.mark.parametrize("mode", MODES)
def test_gains_without_any_basis_keep_the_models_own(mode: str) -> None:
    source = build(mode, {"a": 3, "b": 3}, gains=1)
    wanted = outputs(source)
    target = build(mode, {"a": 3, "b": 3}, gains=2)
    file = source.state_dict()
    gains = {key: value for key, value in file.items() if "gains" in key or key.endswith(SHARED)}
    target.load_state_dict(gains, strict=False)
    found = outputs(target)
    for name in "ab":
        assert torch.equal(found[name], wanted[name]), name


@pytest.mark.parametrize("mode", MODES)
def test_a_file_that_does_not_say_whose_basis_is_refused(mode: str) -> None:
    source = build(mode, {"a": 3, "b": 4, "c": 4}, gains=1)
    file = {k: v for k, v in source.state_dict().items() if not k.endswith(SHARED)}
    dropped = [key for key in file if key.endswith(".c") and "gains" not in key]
    for key in dropped:
        del file[key]
    target = build(mode, {"a": 8, "b": 9, "c": 7})
    with pytest.raises(ResiDualError, match=r"gains for the adapter 'c' .* does not say which"):
        target.load_state_dict(file, strict=False)
    del file[next(key for key in file if key.endswith("gains.a"))]
    file[next(iter(file)).partition("residual_peft")[0] + SHARED] = torch.tensor([[5]])
    noted = source.state_dict()
    key = next(key for key in noted if key.endswith(SHARED))
    for wrong in (noted[key][:2], noted[key] + 5, noted[key].float()):
        with pytest.raises(ResiDualError, match=r"does not say whose bases the 3 adapters"):
            target.load_state_dict(noted | {key: wrong})


@pytest.mark.parametrize("mode", MODES)
def test_a_file_without_the_note_is_read_where_it_is_clear(mode: str) -> None:
    source = build(mode, {"a": 3, "b": 3}, gains=1)
    wanted = outputs(source)
    file = {k: v for k, v in source.state_dict().items() if not k.endswith(SHARED)}
    for key in [key for key in file if key.endswith(".b") and "gains" not in key]:
        del file[key]
    target = build(mode, {"a": 8, "b": 9})
    target.load_state_dict(file)  # nothing is missing
    found = outputs(target)
    for name in "ab":
        assert torch.equal(found[name], wanted[name]), name


@pytest.mark.parametrize("mode", MODES)
def test_one_adapter_is_saved_without_a_note(mode: str, tmp_path: Path) -> None:
    alone = build(mode, {"a": 3})
    assert not [key for key in alone.state_dict() if key.endswith(SHARED)]
    both = build(mode, {"a": 3, "b": 3})
    assert [key for key in both.state_dict() if key.endswith(SHARED)]
    both.save_pretrained(tmp_path)
    for name in "ab":
        file = safetensors.torch.load_file(tmp_path / name / "adapter_model.safetensors")
        assert all("residual_peft_" in key for key in file)
