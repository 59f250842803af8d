"""Where a tower keeps its parts, and the linear maps between them."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from residual_peft.errors import ResiDualError
from residual_peft.towers.registry import (
    find_tower,
)
from residual_peft.towers.running import run_tower
from tests.models import ALL, BUILDERS, EVERY, SIZES, clip_model, pixels, vision
from tests.pairs import dealt, table


@table(("builder", "name"), [*ALL, *dealt(EVERY, ("one layer", "usual"))])
def test_sizes_are_read_from_the_modules(builder: str, name: str) -> None:
    size = SIZES[name]
    anatomy = find_tower(EVERY[builder](size))
    assert anatomy.architecture == builder.split(",")[0]
    assert anatomy.width == size.width
    assert anatomy.num_heads == size.heads
    assert anatomy.head_dim == size.width // size.heads
    assert len(anatomy.layers) == size.layers
    projected = hasattr(anatomy.model, "visual_projection")
    assert anatomy.readout_width == (size.readout if projected else size.width)


def test_units_come_in_the_order_in_which_they_write() -> None:
    anatomy = find_tower(clip_model())
    names = [str(unit) for unit in anatomy.units(("output", "mlp", "embed", "head"))]
    assert names == [
        "embed",
        *["layer0.head0", "layer0.head1", "layer0.mlp"],
        *["layer1.head0", "layer1.head1", "layer1.mlp"],
        "output",
    ]
    assert [str(unit) for unit in anatomy.units(["mlp"])] == ["layer0.mlp", "layer1.mlp"]
    with pytest.raises(
        ResiDualError, match=r"unknown units \['heads'\]; the kinds are embed, head"
    ):
        anatomy.units(["heads"])


@table(("name", "builder"), dealt(SIZES, BUILDERS))
def test_given_sigma_the_readout_is_one_matrix_and_a_bias(name: str, builder: str) -> None:
    model = BUILDERS[builder](SIZES[name]).double()
    anatomy = find_tower(model)
    stream = torch.randn(6, anatomy.width, dtype=torch.float64)
    sigma = (stream.var(1, correction=0, keepdim=True) + anatomy.final_norm.eps).sqrt()
    expected = vision(model).post_layernorm(stream)
    if anatomy.projection is not None:
        expected = model.visual_projection(expected)
    found = stream @ anatomy.readout_matrix().T / sigma + anatomy.readout_bias()
    assert anatomy.readout_matrix().shape == (anatomy.readout_width, anatomy.width)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_a_projection_with_a_bias_and_a_norm_without_weights() -> None:
    model = clip_model().double()
    model.visual_projection = nn.Linear(24, 16).double()
    model.vision_model.post_layernorm = nn.LayerNorm(24, elementwise_affine=False)
    anatomy = find_tower(model)
    stream = torch.randn(6, 24, dtype=torch.float64)
    sigma = (stream.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    expected = model.visual_projection(model.vision_model.post_layernorm(stream))
    found = stream @ anatomy.readout_matrix().T / sigma + anatomy.readout_bias()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@table("name", SIZES)
def test_a_heads_factor_is_its_columns_seen_from_the_readout(name: str) -> None:
    size = SIZES[name]
    model = clip_model(size).double()
    anatomy = find_tower(model)
    matrix, e = anatomy.readout_matrix(), size.width // size.heads
    for layer, block in enumerate(model.vision_model.encoder.layers):
        factor = anatomy.head_factor(layer)
        assert factor.shape == (size.heads, size.readout, e + 1)
        torch.testing.assert_close(anatomy.head_factor(layer, matrix), factor)
        for head in range(size.heads):
            columns = block.self_attn.out_proj.weight[:, head * e : (head + 1) * e]
            bias = block.self_attn.out_proj.bias / size.heads
            torch.testing.assert_close(factor[head, :, :e], matrix @ columns)
            torch.testing.assert_close(factor[head, :, e], matrix @ bias)


def test_layer_scale_is_folded_into_the_output_projection() -> None:
    model = clip_model().double()
    anatomy = find_tower(model)
    scale = torch.randn(24, dtype=torch.float64)
    scaled = replace(
        anatomy, layers=tuple(replace(layer, attention_scale=scale) for layer in anatomy.layers)
    )
    z = torch.randn(5, 24, dtype=torch.float64)
    expected = model.vision_model.encoder.layers[1].self_attn.out_proj(z) * scale
    weight, bias = scaled.stream_weight(1)
    found = torch.einsum("bhe,hde->bd", z.unflatten(1, (2, 12)), weight) + bias
    torch.testing.assert_close(found, expected)


def test_an_output_projection_without_bias() -> None:
    model = clip_model()
    model.vision_model.encoder.layers[0].self_attn.out_proj.bias = None
    _, bias = find_tower(model).stream_weight(0)
    assert bias.shape == (24,)
    assert not bias.any()


@table("builder", EVERY)
def test_the_projection_path_leads_to_the_module_that_gives_the_readout(builder: str) -> None:
    model = EVERY[builder]()
    anatomy, seen = find_tower(model), []
    module = anatomy.model.get_submodule(anatomy.projection_path)
    module.register_forward_hook(lambda module, args, output: seen.append(output))
    readout = run_tower(model, pixels())
    assert len(seen) == 1
    assert torch.equal(seen[0][:, 0] if anatomy.reads_tokens else seen[0], readout)


def test_a_fused_output_projection_is_refused_with_its_layer() -> None:
    model = clip_model()
    attention = model.vision_model.encoder.layers[1].self_attn
    attention.out_proj = NonDynamicallyQuantizableLinear(24, 24)
    with pytest.raises(
        ResiDualError,
        match=r"output projection of layer 1 is a NonDynamicallyQuantizableLinear; wanted a plain",
    ):
        find_tower(model)


def test_a_quantised_output_projection_is_refused() -> None:
    model = clip_model()
    projection = model.vision_model.encoder.layers[0].self_attn.out_proj
    projection.weight = nn.Parameter(torch.zeros(24, 24, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ResiDualError, match=r"layer 0 keeps a \(24, 24\) weight of torch.int8"):
        find_tower(model)
    projection.weight = nn.Parameter(torch.zeros(288, 1))  # packed, as 4-bit weights are
    with pytest.raises(ResiDualError, match=r"keeps a \(288, 1\) weight .* wanted \(24, 24\)"):
        find_tower(model)


def test_heads_that_do_not_divide_the_width_and_another_norm_are_refused() -> None:
    model = clip_model()
    model.vision_model.encoder.layers[0].self_attn.num_heads = 5
    with pytest.raises(
        ResiDualError, match="takes 24 features, which 5 heads cannot share equally"
    ):
        find_tower(model)
    model = clip_model()
    model.vision_model.post_layernorm = nn.RMSNorm(24)
    with pytest.raises(ResiDualError, match="wanted a LayerNorm before the readout, got RMSNorm"):
        find_tower(model)
