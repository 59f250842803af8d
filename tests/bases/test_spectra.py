"""Spectra from the weights alone."""

import torch

from residual_peft.bases.basis import SpectralBasis
from residual_peft.towers.registry import find_tower
from tests.models import BUILDERS, EVERY, SIZES, Size, clip_model, pixels
from tests.pairs import in_turn

KINDS = ("embed", "head", "mlp", "output")


@in_turn(name=SIZES, builder=BUILDERS)
def test_weights_alone_give_the_svd_of_each_map_to_the_readout(name: str, builder: str) -> None:
    size = SIZES[name]
    model = BUILDERS[builder](size).double()
    basis = SpectralBasis.from_weights(model, units=KINDS)
    tower = getattr(model, "vision_model", model)
    readout, e = find_tower(model).readout_matrix(), size.width // size.heads
    assert (basis.source, basis.num_samples) == ("weights", None)
    for unit in basis.units:
        matrix = readout
        if unit.kind == "mlp":
            matrix = readout @ tower.encoder.layers[unit.layer].mlp.fc2.weight.detach()
        if unit.head is not None:
            weight = tower.encoder.layers[unit.layer].self_attn.out_proj.weight.detach()
            matrix = readout @ weight[:, unit.head * e : (unit.head + 1) * e]
        found = basis[unit]
        rebuilt = found.components.T @ found.eigenvalues.diag() @ found.components
        torch.testing.assert_close(rebuilt, matrix @ matrix.T, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(found.total_variance, matrix.square().sum())
        if unit.kind != "output":
            assert not found.mean.any()
    output = basis["output"].mean
    torch.testing.assert_close(output, find_tower(model).readout_bias())


def test_weights_span_what_the_data_does() -> None:
    model = clip_model(Size(width=36, heads=3, readout=30))
    weights = SpectralBasis.from_weights(model, ["mlp"])["layer1.mlp"].components
    data = SpectralBasis.fit(model, pixels(60), ["mlp"])["layer1.mlp"].components
    # a bias divided by a changing sigma is the one direction that the weights' map has not
    outside = data - data @ weights.T @ weights
    assert torch.linalg.matrix_rank(outside, atol=1e-6) <= 1


def test_a_basis_from_weights_can_be_cut() -> None:
    basis = SpectralBasis.from_weights(clip_model(), components=3)
    assert set(basis.component_counts) == {3}
    assert max(SpectralBasis.from_weights(clip_model(), components=0.5).component_counts) < 8


def test_layer_scale_is_part_of_the_maps() -> None:
    model = EVERY["Dinov2Model"](Size(layers=1)).double()
    basis = SpectralBasis.from_weights(model, ("head", "mlp"))
    readout = find_tower(model).readout_matrix()

    def weight_of(*ends: str) -> torch.Tensor:  # releases of transformers keep it elsewhere
        (found,) = (p.detach() for name, p in model.named_parameters() if name.endswith(ends))
        return found

    output = weight_of("attention.output.dense.weight", "attention.o_proj.weight")
    writes = weight_of("layer_scale1.lambda1")[:, None] * output
    maps = {
        "layer0.head0": writes[:, :12],
        "layer0.head1": writes[:, 12:],
        "layer0.mlp": weight_of("layer_scale2.lambda1")[:, None] * weight_of("mlp.fc2.weight"),
    }
    for name, weight in maps.items():
        found, matrix = basis[name], readout @ weight
        rebuilt = found.components.T @ found.eigenvalues.diag() @ found.components
        torch.testing.assert_close(rebuilt, matrix @ matrix.T, rtol=1e-9, atol=1e-10)
