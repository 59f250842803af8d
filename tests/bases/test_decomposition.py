"""One forward pass to what every unit wrote to the readout."""

import threading

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from residual_peft.bases.decomposition import checked_capture, contributions, decompose
from residual_peft.errors import ResiDualError
from residual_peft.towers.captures import capture_of
from residual_peft.towers.registry import find_tower
from residual_peft.towers.running import run_tower
from residual_peft.towers.taps import tapped
from residual_peft.towers.units import Unit
from tests.models import (
    ALL,
    EVERY,
    SIZES,
    Size,
    clip_model,
    clip_vision_model,
    clip_vision_model_with_projection,
    hooks,
    pixels,
)
from tests.pairs import dealt, in_turn, table
from tests.slow import slow_contributions

pytestmark = pytest.mark.usefixtures("nothing_left_behind")


def relative(found: Tensor, expected: Tensor) -> float:
    return float(((found - expected).norm(dim=-1) / expected.norm(dim=-1)).max())


@table(("case", "precision"), dealt(ALL, [(torch.float64, 1e-10), (torch.float32, 1e-5)]))
def test_contributions_sum_to_the_models_own_output(
    case: tuple[str, str], precision: tuple[torch.dtype, float]
) -> None:
    (builder, name), (dtype, limit) = case, precision
    size = SIZES[name]
    model, images = EVERY[builder](size).to(dtype), pixels(5, size).to(dtype)
    found = decompose(model, images)
    with torch.no_grad():
        own = run_tower(model, images)
    assert found.readout.dtype == found.contributions.dtype == found.bias.dtype == dtype
    assert len(found.units) == 1 + size.layers * (size.heads + 1)
    assert found.contributions.shape == (5, len(found.units), own.shape[1])
    assert torch.equal(found.readout, own)
    assert relative(found.contributions.sum(1) + found.bias, own) < limit


@pytest.mark.parametrize(("builder", "name"), ALL)
def test_each_contribution_is_that_of_a_slow_twin(builder: str, name: str) -> None:
    size = SIZES[name]
    model, images = EVERY[builder](size).double(), pixels(5, size).double()
    found, expected = decompose(model, images), slow_contributions(model, images)
    for index, unit in enumerate(found.units):
        torch.testing.assert_close(
            found.contributions[:, index], expected[unit], rtol=1e-9, atol=1e-11, msg=str(unit)
        )
    torch.testing.assert_close(found.readout, expected[Unit("output")], rtol=1e-9, atol=1e-11)


def test_the_output_is_a_unit_with_its_bias() -> None:
    model, images = clip_model().double(), pixels().double()
    anatomy = find_tower(model)
    capture, readout = checked_capture(model, anatomy, images)
    found = contributions(anatomy, capture, [Unit("mlp", 1), Unit("output")])
    torch.testing.assert_close(found[:, 1], readout)
    torch.testing.assert_close(found[:, 0], slow_contributions(model, images)[Unit("mlp", 1)])


@in_turn(dtype=(torch.bfloat16, torch.float16), layers=(1, 12))
def test_half_precision_passes_the_check_and_is_summed_in_float32(
    dtype: torch.dtype, layers: int
) -> None:
    size = Size(layers=layers)
    for seed in range(3):
        model = clip_vision_model_with_projection(size, seed).to(dtype)
        found = decompose(model, pixels(4, size))
        assert found.contributions.dtype == found.readout.dtype == torch.float32
        # no bound but the check's own: the stream itself is rounded in every layer
        assert relative(found.contributions.sum(1) + found.bias, found.readout) < 0.05


def test_autocast_passes_the_check() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        found = decompose(clip_model(), pixels())
    assert found.contributions.dtype == torch.float32


def test_an_unknown_architecture_is_refused() -> None:
    with pytest.raises(ResiDualError, match="architecture Linear is not known"):
        decompose(nn.Linear(3, 3), pixels())


def test_hooks_are_gone_when_the_block_has_run_or_raised() -> None:
    model = clip_model()
    decompose(model, pixels())
    assert hooks(model) == 0
    with pytest.raises(KeyError), tapped(model) as tap:  # noqa: PT012
        assert hooks(model) > 0
        run_tower(model, pixels())
        raise KeyError
    assert hooks(model) == 0
    with pytest.raises(RuntimeError, match="no forward pass of the tapped tower"):
        tap.take()
    images = pixels()
    images[0] = float("nan")
    with pytest.raises(ResiDualError):
        decompose(model, images)
    assert hooks(model) == 0


def test_two_threads_can_decompose_at_once() -> None:
    model = clip_model().double()
    batches = [pixels(2 + number % 3, seed=number).double() for number in range(8)]
    alone = [decompose(model, images).contributions for images in batches]
    together: list[Tensor | None] = [None] * 8

    def work(start: int) -> None:
        for number in range(start, 8, 2):
            together[number] = decompose(model, batches[number]).contributions

    threads = [threading.Thread(target=work, args=(start,)) for start in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other)
    assert hooks(model) == 0


def lora(model: nn.Module, **options: object) -> PeftModel:
    config = LoraConfig(
        r=2, target_modules=["out_proj", "fc2", "q_proj", "visual_projection"], **options
    )
    peft_model = get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if "lora_" in name:
                parameter.normal_()
    return peft_model


def test_an_adapted_model_is_decomposed_without_its_adapter_and_left_as_it_was() -> None:
    model, images = clip_model(), pixels()
    expected = decompose(model, images)
    peft_model = lora(model, lora_dropout=0.5).train()
    with torch.no_grad():
        adapted = run_tower(peft_model.eval(), images)
    peft_model.train()
    modes = [module.training for module in peft_model.modules()]
    trainable = [parameter.requires_grad for parameter in peft_model.parameters()]
    for wrapped in (peft_model, peft_model.base_model, model):
        found = decompose(wrapped, images)
        torch.testing.assert_close(found.contributions, expected.contributions)
        torch.testing.assert_close(found.readout, expected.readout)
    assert not torch.allclose(adapted, expected.readout, atol=1e-2)
    assert modes == [module.training for module in peft_model.modules()]
    assert trainable == [parameter.requires_grad for parameter in peft_model.parameters()]
    with torch.no_grad():
        assert torch.equal(run_tower(peft_model.eval(), images), adapted)


def test_a_merged_adapter_is_part_of_the_weights() -> None:
    model, images = clip_model(), pixels()
    peft_model = lora(model)
    peft_model.merge_adapter()
    with torch.no_grad():
        adapted = run_tower(peft_model, images)
    torch.testing.assert_close(decompose(peft_model, images).readout, adapted)
    assert model.visual_projection.merged


def test_dropout_in_training_mode_does_not_reach_the_decomposition() -> None:
    model, images = clip_model(), pixels()
    expected = decompose(model, images).readout
    for block in model.vision_model.encoder.layers:
        block.self_attn.dropout = 0.9
    model.train()
    assert torch.equal(decompose(model, images).readout, expected)
    assert model.training
    assert model.vision_model.encoder.layers[0].self_attn.training


def test_tensors_returned_carry_no_capture_and_no_graph() -> None:
    found = decompose(clip_vision_model(), pixels())
    assert capture_of(found.readout) is None
    assert not found.readout.requires_grad
