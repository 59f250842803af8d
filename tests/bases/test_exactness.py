"""The check that units add up to what the model computed: what it names, and what it excuses."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from residual_peft.bases.decomposition import checked_capture, decompose
from residual_peft.bases.exactness import _check_close, _tolerance, check_exact
from residual_peft.errors import ResiDualError
from residual_peft.towers.registry import find_tower
from tests.models import (
    Size,
    clip_model,
    clip_vision_model_with_projection,
    pixels,
)
from tests.pairs import in_turn, table


@in_turn(
    dtype=[torch.bfloat16, torch.float16],
    layers=[2, 12],
)
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


def add(amount: float) -> Callable:
    def hook(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        return output + amount * torch.randn_like(output)

    return hook


@table("part", ["block", "self_attn.out_proj", "layer_norm"])
@table("layer", [0, 1, 2])
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


def test_weights_that_overflow_are_refused_with_their_layer() -> None:
    model = clip_model(Size(layers=3))
    with torch.no_grad():
        model.vision_model.encoder.layers[1].mlp.fc2.bias[0] = float("nan")
    with pytest.raises(ResiDualError, match="NaN or infinite values, first seen at layer 1"):
        decompose(model, pixels())
