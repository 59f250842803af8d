"""Gains on the image side and the text side of one model: an adapter for each, both at once."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor
from torch.nn import functional

from residual_peft import ResiDualConfig, Unit, decompose, fit_bases, gains_by_module
from residual_peft.classifiers.outputs import readout_of
from residual_peft.errors import ResiDualError
from residual_peft.towers.registry import find_tower
from residual_peft.towers.running import run_tower
from residual_peft.tuner import adapted_tower, adapter_basis, gains_of
from tests.models import clip_model, pixels
from tests.pairs import table
from tests.tuner.twin import SlowBasis, relative, slow_adapted

EOS = 63


def token_ids(count: int = 5, seed: int = 3) -> Tensor:
    """Texts whose end is at different places, with other tokens behind it."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, EOS, (count, 9), generator=generator)
    ends = torch.randint(1, 9, (count,), generator=generator)
    ids[torch.arange(count), ends] = EOS
    return ids


def both_sides(mode: str = "readout", dtype: torch.dtype = torch.float32) -> PeftModel:
    """CLIP with an adapter for each side, bases from data, random gains, both active."""
    model = get_peft_model(
        clip_model().to(dtype), ResiDualConfig(side="image", mode=mode), adapter_name="image"
    )
    model.add_adapter("text", ResiDualConfig(side="text", mode=mode))
    fit_bases(model, [pixels(60, seed=5).to(dtype)], adapter_name="image")
    fit_bases(model, [{"input_ids": token_ids(60, seed=6)}], adapter_name="text")
    generator = torch.Generator().manual_seed(7)
    for name in ("image", "text"):
        for gains in gains_by_module(model, name).values():
            gains.data = 1 + 0.5 * torch.randn(gains.shape, generator=generator)
    model.base_model.set_adapter(["image", "text"])
    return model.eval()


def by_hand(model: PeftModel, name: str, inputs: Tensor, **options: Any) -> Tensor:
    """y' of one side by plain loops over what `decompose` says of the bare model."""
    found = decompose(clip_model().double(), inputs, **options)
    parts = dict(zip(found.units, found.contributions.unbind(1), strict=True))
    parts[Unit("output")] = found.readout
    basis = adapter_basis(model, name)
    split = gains_of(model, name).detach().double().split(basis.component_counts)
    return slow_adapted(
        parts,
        basis.units,
        {u: SlowBasis(basis[u].components.double(), basis[u].mean.double()) for u in basis.units},
        dict(zip(basis.units, split, strict=True)),
        keep=True,
        restore_mean=True,
    )


def forward(model: Any, dtype: torch.dtype = torch.float32) -> Any:
    return model(input_ids=token_ids(), pixel_values=pixels().to(dtype))


def test_logits_are_those_of_both_adapted_readouts() -> None:
    model = both_sides()
    images = by_hand(model, "image", pixels().double())
    texts = by_hand(model, "text", token_ids(), side="text")
    found = forward(model)
    normed = functional.normalize(images, dim=1), functional.normalize(texts, dim=1)
    assert relative(found.image_embeds, normed[0]) < 1e-5
    assert relative(found.text_embeds, normed[1]) < 1e-5
    scale = clip_model().logit_scale.exp().double()
    assert relative(found.logits_per_image, scale * normed[0] @ normed[1].T) < 1e-5
    for side, wanted in (("image", images), ("text", texts)):
        with model.disable_adapter():
            anatomy = find_tower(model, side)
            inputs = pixels() if side == "image" else token_ids()
            assert relative(run_tower(model, inputs, anatomy=anatomy), wanted) > 1e-2


def test_one_active_side_leaves_the_other_as_it_is() -> None:
    model, plain = both_sides(), forward(clip_model())
    both = forward(model)
    model.set_adapter("text")
    text = forward(model)
    assert torch.equal(text.image_embeds, plain.image_embeds)
    assert torch.equal(text.text_embeds, both.text_embeds)
    model.set_adapter("image")
    image = forward(model)
    assert torch.equal(image.text_embeds, plain.text_embeds)
    assert torch.equal(image.image_embeds, both.image_embeds)


@pytest.mark.parametrize("mode", ["readout", "stream"])
def test_the_loss_reaches_the_gains_of_both_sides_and_nothing_else(mode: str) -> None:
    model = both_sides(mode, torch.float64).train()
    model.base_model.set_adapter(["image", "text"])
    loss = functional.cross_entropy(forward(model, torch.float64).logits_per_image, torch.arange(5))
    loss.backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert all("residual_peft_gains" in name for name in trained)
    assert {name.rpartition(".")[2] for name in trained} == {"image", "text"}
    for name, side in (("image", pixels().double()), ("text", token_ids())):
        path, gains = next(iter(gains_by_module(model, name).items()))
        assert gains.grad is not None, path
        assert gains.grad.abs().min() > 0
        step, before = torch.zeros_like(gains), gains.detach().clone()
        step[1] = 1e-4 if mode == "readout" else 1e-3
        values = []
        for sign in (1, -1):
            gains.data = before + sign * step
            logits = forward(model, torch.float64).logits_per_image
            values.append(functional.cross_entropy(logits, torch.arange(5)).item())
        gains.data = before
        slope = (values[0] - values[1]) / (2 * float(step[1]))
        assert slope == pytest.approx(float(gains.grad[1]), rel=2e-2, abs=1e-5), side.shape


@pytest.mark.parametrize("mode", ["readout", "stream"])
def test_both_sides_are_saved_and_loaded(mode: str, tmp_path: Path) -> None:
    model = both_sides(mode)
    wanted = forward(model).logits_per_image
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(clip_model(), tmp_path / "text", "text")
    loaded.load_adapter(tmp_path / "image", "image")
    loaded.base_model.set_adapter(["image", "text"])
    assert relative(forward(loaded).logits_per_image, wanted) < 1e-6
    assert loaded.peft_config["text"].side == "text"


def test_stream_mode_merges_both_sides() -> None:
    model = both_sides("stream")
    wanted = forward(model).logits_per_image
    assert relative(wanted, forward(clip_model()).logits_per_image) > 1e-2
    merged = model.merge_and_unload(adapter_names=["image", "text"])
    assert relative(forward(merged).logits_per_image, wanted) < 1e-5


def test_an_adapter_of_the_text_side_is_of_its_weights(tmp_path: Path) -> None:
    model = both_sides()
    model.save_pretrained(tmp_path)
    other = clip_model()
    with torch.no_grad():
        other.vision_model.post_layernorm.bias += 1  # another image tower
    PeftModel.from_pretrained(other, tmp_path / "text")
    with torch.no_grad():
        other.text_model.final_layer_norm.bias += 1
    with pytest.raises(ResiDualError, match="belongs to the weights of CLIPModel"):
        PeftModel.from_pretrained(other, tmp_path / "text")


def test_names_per_sample_go_to_their_own_side() -> None:
    model = both_sides()
    names = ["image", "text", "__base__", "image", "text"]
    found = model(input_ids=token_ids(), pixel_values=pixels(), adapter_names=names)
    both, plain = forward(model), forward(clip_model())
    for row, name in enumerate(names):
        image, text = both if name == "image" else plain, both if name == "text" else plain
        torch.testing.assert_close(found.image_embeds[row], image.image_embeds[row])
        torch.testing.assert_close(found.text_embeds[row], text.text_embeds[row])
    with pytest.raises(ValueError, match="same as the number of inputs, but got 4 and 5"):
        model(input_ids=token_ids(), pixel_values=pixels(), adapter_names=names[:4])


@table("mode", ["readout", "stream"])
def test_names_of_one_side_are_as_many_as_its_samples(mode: str) -> None:
    model, names = both_sides(mode), ["image", "__base__", "__base__", "image", "image"]
    given = {"input_ids": token_ids(2), "pixel_values": pixels()}
    found = model(**given, adapter_names=names)
    both, plain = model(**given), clip_model()(**given)
    for row, name in enumerate(names):
        image = both if name == "image" else plain
        torch.testing.assert_close(found.image_embeds[row], image.image_embeds[row])
    torch.testing.assert_close(found.text_embeds, plain.text_embeds)


def test_what_takes_images_keeps_to_the_image_tower() -> None:
    model = get_peft_model(clip_model(), ResiDualConfig(side="text"))
    assert find_tower(model).side == "image"
    assert adapted_tower(model).side == "text"
    assert torch.equal(run_tower(model, pixels()), run_tower(clip_model(), pixels()))
    assert readout_of(model(pixel_values=pixels())).shape == (5, 16)


def test_token_ids_that_are_no_batch_are_refused() -> None:
    model = clip_model()
    with pytest.raises(
        ResiDualError, match=r"whole numbers of shape \(texts, tokens\), got torch.f"
    ):
        decompose(model, torch.zeros(2, 3), side="text")
    with pytest.raises(
        ResiDualError, match="no 'input_ids': run the texts through the model's tok"
    ):
        decompose(model, {"pixel_values": pixels()}, side="text")
    with pytest.raises(ResiDualError, match="wanted side 'image' or 'text', got 'sound'"):
        find_tower(model, "sound")
