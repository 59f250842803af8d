"""Bases as they are stored: heads in e + 1 dimensions, against directions in all d."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from residual_peft.bases.basis import SpectralBasis
from residual_peft.towers.registry import find_tower
from residual_peft.towers.running import run_tower
from residual_peft.towers.units import Unit
from residual_peft.tuner import ResiDualConfig, adapter_basis, fit_bases, gains_of
from residual_peft.tuner.readout.head_space import HeadSpace, stored_width
from tests.models import BUILDERS, SIZES, Size, clip_model, pixels
from tests.pairs import dealt, in_turn, table
from tests.tuner.twin import IMAGES, adapted, expected, randomize_gains, relative

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model.visual_projection.residual_peft_"
UNITS = ("embed", "head", "mlp")


def no_bias(model: nn.Module) -> None:
    for layer in find_tower(model).layers:
        layer.output_projection.bias.data.zero_()


def idle_head(model: nn.Module) -> None:
    find_tower(model).layers[0].output_projection.weight.data[:, :12] = 0


def equal_columns(model: nn.Module) -> None:
    for layer in find_tower(model).layers:
        weight = layer.output_projection.weight.data
        weight[:, 1::2] = weight[:, ::2] * 0.5


DAMAGES = {
    "full rank": lambda model: None,
    "no bias": no_bias,
    "an idle head without bias": lambda model: (no_bias(model), idle_head(model)),
    "half the rank": equal_columns,
}


def whole(basis: SpectralBasis) -> Tensor:
    return torch.cat(basis.components)


def through(model: nn.Module, basis: SpectralBasis) -> tuple[Tensor, Tensor]:
    """A basis packed and unpacked again."""
    space = HeadSpace(find_tower(model), basis.units)
    eigenvalues = torch.cat(basis.eigenvalues)
    stored = space.pack(basis.components, basis.means, eigenvalues, basis.total_variance)
    heads = sum(unit.kind == "head" for unit in basis.units)
    inside = sum(
        count
        for unit, count in zip(basis.units, basis.component_counts, strict=True)
        if unit.kind == "head"
    )
    width = stored_width(find_tower(model))
    assert stored.head_components.shape == (inside, width)
    assert stored.head_means.shape == (heads, width)
    return space.unpack(stored, basis.component_counts)


@table(("size", "damage", "source"), dealt(SIZES, DAMAGES, ("data", "weights")))
def test_nothing_is_lost(size: str, damage: str, source: str) -> None:
    model = clip_model(SIZES[size]).double()
    DAMAGES[damage](model)
    if source == "data":
        basis = SpectralBasis.fit(model, [pixels(IMAGES, SIZES[size]).double()], UNITS)
    else:
        basis = SpectralBasis.from_weights(model, UNITS)
    components, means = through(model, basis)
    assert float((components - whole(basis)).abs().max()) < 1e-10
    assert float((means - basis.means).abs().max()) < 1e-10


def test_the_frame_depends_on_no_choice_of_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another machine's LAPACK may turn what QR and SVD return; what was stored must not notice."""
    model = clip_model().double()
    space = HeadSpace(find_tower(model), find_tower(model).units(("head",)))
    wanted = dict(space.frames)
    qr, svd = torch.linalg.qr, torch.linalg.svd
    turn = (-1.0) ** torch.arange(13)

    def other_qr(matrix: Tensor) -> tuple[Tensor, Tensor]:
        frame, triangle = qr(matrix)
        return frame * turn, turn[:, None] * triangle

    def other_svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        left, values, right = svd(matrix)
        return left * -turn, values, -turn[:, None] * right

    monkeypatch.setattr(torch.linalg, "qr", other_qr)
    monkeypatch.setattr(torch.linalg, "svd", other_svd)
    found = HeadSpace(find_tower(model), space.units).frames
    for unit, frame in found.items():
        assert relative(frame, wanted[unit]) < 1e-12
        assert relative(frame.T @ frame, torch.eye(13).double()) < 1e-12
        factor = space.factors[unit]
        root = frame.T @ factor  # (BᵀB)^½ is symmetric and positive
        assert relative(root, root.T) < 1e-10
        assert float(torch.linalg.eigvalsh(root).min()) > 0
    assert set(found) == {Unit("head", layer, head) for layer in (0, 1) for head in (0, 1)}


@in_turn(
    size=SIZES,
    damage=["full rank", "half the rank"],
)
def test_saved_and_loaded_in_every_shape(tmp_path: Path, size: str, damage: str) -> None:
    base, plain = clip_model(SIZES[size]), clip_model(SIZES[size])
    DAMAGES[damage](base)
    DAMAGES[damage](plain)
    model = get_peft_model(base, ResiDualConfig(units=UNITS))
    fit_bases(model, [pixels(IMAGES, SIZES[size], seed=5)])
    randomize_gains(model)
    images = pixels(size=SIZES[size])
    found = run_tower(model.eval(), images)
    assert relative(found, expected(plain, model, images)) < 1e-5
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(plain, tmp_path)
    assert torch.equal(run_tower(loaded, images), found)


@pytest.mark.parametrize("builder", BUILDERS)
def test_float32_factors_give_the_readout_of_float64_directions(builder: str) -> None:
    """What rounding the factors costs: a float64 model on the basis as float32 keeps it."""
    exact, images = adapted(builder=builder, dtype=torch.float64), pixels().double()
    rounded = adapted(builder=builder).double()
    fit_bases(exact, [pixels(IMAGES, seed=5).double()])
    gains_of(exact).data.copy_(gains_of(rounded).data)
    assert torch.equal(gains_of(exact), gains_of(rounded))
    base = BUILDERS[builder]().double()
    effect = run_tower(exact, images) - run_tower(base, images)
    assert effect.norm() > 1e-2 * run_tower(base, images).norm()
    assert relative(run_tower(rounded, images), run_tower(exact, images)) < 2e-6


def vit_b16() -> nn.Module:
    """A tower of the sizes of ViT-B/16, its biases not zero."""
    config = CLIPVisionConfig(image_size=224, patch_size=16, hidden_size=768, projection_dim=512)
    config.intermediate_size, config.num_hidden_layers, config.num_attention_heads = 3072, 12, 12
    torch.manual_seed(0)
    model = CLIPVisionModelWithProjection(config).eval()
    for layer in find_tower(model).layers:
        nn.init.normal_(layer.output_projection.bias, std=0.1)
    return model


def test_all_components_of_all_heads_of_a_vit_b16_take_less_than_10_mb(tmp_path: Path) -> None:
    model = get_peft_model(vit_b16(), ResiDualConfig(units=("head",)))
    randomize_gains(model)
    assert model.peft_config["default"].component_counts == [64] * 144
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        wanted = run_tower(model, images)
    model.save_pretrained(tmp_path)
    size = (tmp_path / WEIGHTS).stat().st_size
    numbers = 144 * 64 * 65 + 144 * 65 + 2 * 144 * 64 + 144  # G, m, eigenvalues and gains, variance
    assert 4 * numbers < size < 4 * numbers + 2000
    assert size < 10e6 / 3
    loaded = PeftModel.from_pretrained(model.unload(), tmp_path)
    with torch.no_grad():
        assert torch.equal(run_tower(loaded, images), wanted)


def test_the_file_holds_no_direction_of_a_head_in_full(tmp_path: Path) -> None:
    size = Size(width=32, heads=4, readout=30)
    adapted(ResiDualConfig(units=("head",)), size=size).save_pretrained(tmp_path)
    shapes = {
        name.removeprefix(PREFIX): t.shape for name, t in load_file(tmp_path / WEIGHTS).items()
    }
    assert shapes["head_components"] == (72, 9)
    assert shapes["head_means"] == (8, 9)
    assert shapes["components"] == shapes["means"] == (0, 30)


def test_a_loaded_adapter_gives_its_basis_back_in_readout_space(tmp_path: Path) -> None:
    model = get_peft_model(clip_model(), ResiDualConfig())
    fitted = fit_bases(model, [pixels(IMAGES, seed=5)])
    model.save_pretrained(tmp_path)
    found = adapter_basis(PeftModel.from_pretrained(clip_model(), tmp_path))
    assert found.units == fitted.units
    assert relative(whole(found), whole(fitted)) < 1e-6
    assert relative(found.means, fitted.means) < 1e-6
    gram = found["layer1.head0"].components.double()
    assert relative(gram @ gram.T, torch.eye(len(gram)).double()) < 1e-6
