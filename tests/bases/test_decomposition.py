import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from residual_peft.bases.decomposition import checked_capture, contributions, decompose
from residual_peft.bases.exactness import _check_close, _tolerance, check_exact
from residual_peft.errors import ResiDualError
from residual_peft.towers.registry import find_tower
from residual_peft.towers.running import run_tower
from residual_peft.towers.taps import Capture, _frames, capture_of, tapped
from residual_peft.towers.units import Unit
from tests.models import (
    ALL,
    EVERY,
    SIZES,
    Size,
    clip_model,
    clip_vision_model,
    clip_vision_model_with_projection,
    pixels,
)
from tests.slow import slow_contributions


def vision(model: nn.Module) -> Any:
    return getattr(model, "vision_model", model)


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    yield
    assert not _frames.open
    assert not _frames.finished


def relative(found: Tensor, expected: Tensor) -> float:
    return float(((found - expected).norm(dim=-1) / expected.norm(dim=-1)).max())


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize(("builder", "name"), ALL)
def test_contributions_sum_to_the_models_own_output(
    builder: str, name: str, dtype: torch.dtype, limit: float
) -> None:
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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layers", [1, 12])
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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layers", [2, 12])
def test_half_precision_excuses_its_own_rounding_and_no_more(
    dtype: torch.dtype, layers: int
) -> None:
    """Two roundings per layer and one more, half an ulp each, like a random walk; four times it."""
    size = Size(layers=layers)
    model = clip_vision_model_with_projection(size).to(dtype)
    anatomy = find_tower(model)
    limit = 2 * torch.finfo(dtype).eps * (2 * layers + 1) ** 0.5
    for error, refused in ((0.25 * limit, False), (2 * limit, True)):
        capture, readout = checked_capture(model, anatomy, pixels(8, size))
        capture.layers = [layer.double() for layer in capture.layers]  # type: ignore[union-attr]
        capture.layers[-1][3] *= 1 + error  # type: ignore[index]
        if refused:
            with pytest.raises(ResiDualError, match=f"at layer {layers - 1} "):
                check_exact(anatomy, capture, readout)
        else:
            check_exact(anatomy, capture, readout)


def test_double_precision_is_held_to_its_own_rounding() -> None:
    model, images = clip_model().double(), pixels(8).double()
    anatomy = find_tower(model)
    capture, readout = checked_capture(model, anatomy, images)
    check_exact(anatomy, capture, readout)
    capture.layers[-1][3] *= 1 + 1e-8  # type: ignore[index]
    with pytest.raises(ResiDualError, match=r"at layer \d .* 1e-10"):
        check_exact(anatomy, capture, readout)


def test_products_of_ten_bits_are_excused_where_they_are_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    anatomy = find_tower(clip_model())
    capture, readout = checked_capture(clip_model(), anatomy, pixels())
    on_a_gpu: Any = SimpleNamespace(dtype=readout.dtype, device=torch.device("cuda"))
    for allowed, wanted in ((False, 1e-5), (True, 2 * 2**-10 * 7**0.5)):
        monkeypatch.setattr(torch.backends.cuda, "matmul", SimpleNamespace(allow_tf32=allowed))
        assert _tolerance(capture, on_a_gpu, 3) == pytest.approx(wanted)
        assert _tolerance(capture, readout, 3) == 1e-5


def test_sigma_of_a_half_precision_stream_is_float32() -> None:
    stream = (torch.randn(4, 24) + 3).bfloat16()
    totals = Capture(heads=[], mlps=[], layers=[], stream=stream).totals(1e-5)
    assert totals.dtype == torch.float32
    expected = (stream.double().var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(totals.double(), 1 / expected, rtol=1e-5, atol=0)


def test_autocast_passes_the_check() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        found = decompose(clip_model(), pixels())
    assert found.contributions.dtype == torch.float32


def add(amount: float) -> Callable:
    def hook(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        return output + amount * torch.randn_like(output)

    return hook


@pytest.mark.parametrize("part", ["block", "self_attn.out_proj", "layer_norm"])
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_the_check_names_the_first_layer_that_was_changed(layer: int, part: str) -> None:
    model = clip_model(Size(layers=4))
    blocks = model.vision_model.encoder.layers
    for block in blocks[layer:]:
        if part == "layer_norm":  # a block that norms its output: what it writes is not a sum
            block.register_forward_hook(lambda module, args, output: output * 1.001)
        else:
            module = block if part == "block" else block.get_submodule(part)
            module.register_forward_hook(add(1e-3))
    with pytest.raises(ResiDualError, match=rf"at layer {layer} their sum is off by .* 1e-05"):
        decompose(model, pixels())


def test_the_check_sees_a_readout_that_is_not_the_streams() -> None:
    model = clip_model()
    model.visual_projection.register_forward_hook(add(1e-3))
    with pytest.raises(ResiDualError, match=r"do not add up .* at the readout their sum is off"):
        decompose(model, pixels())
    model = clip_model()

    def shift(module: nn.Module, args: tuple, output: BaseModelOutput) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=output.last_hidden_state + torch.randn(24))

    model.vision_model.encoder.register_forward_hook(shift)
    with pytest.raises(ResiDualError, match="at the final norm's input their sum is off"):
        decompose(model, pixels())


def test_one_bad_sample_in_a_batch_is_enough() -> None:
    model, images = clip_model(), pixels(40)
    anatomy = find_tower(model)
    capture, readout = checked_capture(model, anatomy, images)
    check_exact(anatomy, capture, readout)
    assert capture.layers[1] is not None
    capture.layers[1][17] *= 1 + 1e-4
    with pytest.raises(ResiDualError, match="at layer 1 "):
        check_exact(anatomy, capture, readout)


def test_a_large_sample_does_not_hide_the_error_of_a_small_one() -> None:
    seen = torch.tensor([[1.0, 0.0], [1e6, 0.0]], dtype=torch.float64)
    _check_close("layer 0", seen, seen, [seen], 1e-5)
    with pytest.raises(ResiDualError, match=r"off by 1\.4e-03"):
        _check_close("layer 0", seen + torch.tensor([[1e-3], [0.0]]), seen, [seen * 0], 1e-5)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_pixels_that_are_not_finite_are_refused_with_their_image(value: float) -> None:
    images = pixels(6)
    images[3, 1, 2, 2] = value
    images[5, 0, 0, 0] = value
    with pytest.raises(
        ResiDualError, match=r"NaN or infinite values in 2 of 6 images .* \(first: image 3\)"
    ):
        decompose(clip_model(), images)


@pytest.mark.parametrize(
    ("images", "got"),
    [
        (pixels()[0], r"torch.float32 of shape \(3, 16, 16\)"),
        (pixels()[:0], r"torch.float32 of shape \(0, 3, 16, 16\)"),
        (pixels().byte(), r"torch.uint8 of shape \(5, 3, 16, 16\)"),
        ([[0.0]], "got a list"),
    ],
)
def test_what_is_no_batch_of_pixels_is_refused(images: object, got: str) -> None:
    with pytest.raises(ResiDualError, match=f"wanted pixel_values as .*{got}"):
        decompose(clip_model(), images)  # type: ignore[arg-type]


def test_weights_that_overflow_are_refused_with_their_layer() -> None:
    model = clip_model(Size(layers=3))
    with torch.no_grad():
        model.vision_model.encoder.layers[1].mlp.fc2.bias[0] = float("nan")
    with pytest.raises(ResiDualError, match="NaN or infinite values, first seen at layer 1"):
        decompose(model, pixels())


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
