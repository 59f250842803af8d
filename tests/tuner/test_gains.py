from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from torch.nn import functional

from residual_peft.analysis.movement import gains_per_component
from residual_peft.bases.basis import SpectralBasis
from residual_peft.bases.decomposition import decompose
from residual_peft.data import batches
from residual_peft.errors import ResiDualError
from residual_peft.solvers import solve_gains
from residual_peft.solvers.coordinates import collect_coordinates
from residual_peft.solvers.objectives import GainProblem, Objective
from residual_peft.towers.running import run_tower
from residual_peft.towers.taps import tapped
from residual_peft.towers.units import Unit
from residual_peft.tuner import (
    ResiDualConfig,
    base_of,
    compose,
    coordinates_of,
    gains_of,
    load_adapter,
    readout_state,
)
from residual_peft.tuner.gains import KINDS, Gains
from tests.models import BUILDERS, EVERY, SIZES, TOWERS, clip_model, pixels
from tests.pairs import dealt, in_turn, table
from tests.training_case import adapted_classifier, task
from tests.tuner.twin import adapted, expected, randomize_gains, relative

OPTIONS = {
    "default": {},
    "heads": {"units": ("head",)},
    "mlps": {"units": ("mlp",)},
    "embed": {"units": ("embed",)},
    "everything": {"units": ("embed", "head", "mlp")},
    "means dropped": {"restore_mean": False},
    "remainder dropped": {"remainder": "drop"},
    "both dropped": {"remainder": "drop", "restore_mean": False},
    "first three": {"components": 3},
    "first three, both dropped": {"components": 3, "remainder": "drop", "restore_mean": False},
    "share": {"components": 0.8},
    "share, remainder dropped": {"components": 0.8, "remainder": "drop"},
    "share, means dropped": {"components": 0.8, "restore_mean": False},
    "output": {"units": ("output",)},
    "output, two, all dropped": {
        "units": ("output",),
        "components": 2,
        "remainder": "drop",
        "restore_mean": False,
    },
    "one layer": {"units": ("embed", "head", "mlp"), "layers_to_transform": [1]},
    "per unit": {"units": ("embed", "head", "mlp"), "granularity": "unit", "restore_mean": False},
    "per unit, output": {"units": ("output",), "granularity": "unit", "restore_mean": False},
}
PAPER = ("residual", "residual_star", "coarse", "rd_y")
CONFIGS = {
    **{name: (lambda o=options: ResiDualConfig(**o)) for name, options in OPTIONS.items()},
    **{f"paper {name}": (lambda n=name: ResiDualConfig.paper(n)) for name in PAPER},
}


@in_turn(name=CONFIGS, builder=BUILDERS)
def test_equals_the_definition_in_float64(name: str, builder: str) -> None:
    model = adapted(CONFIGS[name](), builder=builder, dtype=torch.float64)
    images = pixels().double()
    found = run_tower(model, images)
    assert relative(found, expected(EVERY[builder]().double(), model, images)) < 1e-10
    assert relative(found, run_tower(EVERY[builder]().double(), images)) > 1e-3


@table(
    ("builder", "name"),
    dealt(TOWERS, ("default", "paper residual", "paper residual_star", "paper rd_y")),
)
def test_equals_the_definition_for_every_tower(name: str, builder: str) -> None:
    test_equals_the_definition_in_float64(name, builder)


@table(
    ("size", "name"),
    dealt(SIZES, ("default", "paper residual_star", "paper coarse", "paper rd_y")),
)
def test_equals_the_definition_in_float32_at_odd_sizes(name: str, size: str) -> None:
    model = adapted(CONFIGS[name](), size=SIZES[size])
    images = pixels(size=SIZES[size])
    wanted = expected(clip_model(SIZES[size]), model, images)
    assert relative(run_tower(model, images), wanted) < 1e-5


@table("name", ["default", "paper residual", "paper rd_y", "share"])
def test_equals_the_definition_without_data(name: str) -> None:
    model = adapted(CONFIGS[name](), dtype=torch.float64, fit=False)
    images = pixels().double()
    wanted = expected(clip_model().double(), model, images)
    assert relative(run_tower(model, images), wanted) < 1e-10


def test_components_are_cut_with_and_without_data() -> None:
    for fit in (False, True):
        model = adapted(ResiDualConfig(components=3), fit=fit)
        assert model.peft_config["default"].component_counts == [3] * 6
        share = adapted(ResiDualConfig(components=0.5), fit=fit).peft_config["default"]
        every = adapted(ResiDualConfig(), fit=fit).peft_config["default"]
        assert 6 <= sum(share.component_counts) < 0.6 * sum(every.component_counts)


@pytest.mark.parametrize("remainder", ["keep", "drop"])
def test_one_gain_per_unit_with_means_restored(tmp_path, remainder: str) -> None:
    base = clip_model().double()
    basis = SpectralBasis.fit(base, [pixels(40, seed=3).double()], ("head", "mlp"))
    basis.save_pretrained(tmp_path, torch.float64)
    config = ResiDualConfig(granularity="unit", basis=tmp_path, remainder=remainder)
    model = adapted(config, dtype=torch.float64, fit=False)
    images = pixels().double()
    assert gains_of(model).shape == (len(basis.units),)
    assert relative(run_tower(model, images), expected(base, model, images)) < 1e-10
    # the means matter: the same without them is another readout
    bare = adapted(
        ResiDualConfig(granularity="unit", restore_mean=False, remainder=remainder),
        dtype=torch.float64,
    )
    assert relative(run_tower(bare, images), run_tower(model, images)) > 1e-3


def test_coarse_scales_whole_contributions() -> None:
    """The same from `decompose`: Σ λ_u x_u over the heads, and nothing else."""
    model = adapted(ResiDualConfig.paper("coarse"), dtype=torch.float64)
    images = pixels().double()
    found = decompose(clip_model().double(), images)
    heads = [index for index, unit in enumerate(found.units) if unit.kind == "head"]
    gains = gains_of(model).double()
    wanted = torch.einsum("u,bud->bd", gains, found.contributions[:, heads])
    assert relative(run_tower(model, images), wanted) < 1e-10


def test_coarse_needs_no_basis_and_one_gain_per_head() -> None:
    model = adapted(ResiDualConfig.paper("coarse"), fit=False)
    assert gains_of(model).shape == (4,)
    assert model.peft_config["default"].component_counts == []


def test_rd_y_has_one_gain_per_direction_of_the_readout() -> None:
    model = adapted(ResiDualConfig.paper("rd_y"))
    assert gains_of(model).shape == (16,)


def test_head_space_equals_readout_space() -> None:
    """c = A ẑ − Φ μ is Φ (x − μ), unit by unit, in the order of the units."""
    units = ("embed", "head", "mlp")
    model = adapted(ResiDualConfig(units=units, components=4), dtype=torch.float64)
    images = pixels().double()
    state = readout_state(model)
    with tapped(model) as tap:
        run_tower(model, images)
        capture = tap.take()
    found = decompose(clip_model().double(), images)
    layer = next(m for m in model.modules() if hasattr(m, "adapter_settings"))
    stored = layer.state("default")
    blocks = stored.directions.split(list(state.counts))
    wanted = [
        (found.contributions[:, found.units.index(unit)] - mean) @ block.T
        for unit, block, mean in zip(state.settings.units, blocks, stored.means, strict=True)
    ]
    assert state.settings.units[0] == Unit("embed")
    assert relative(coordinates_of(state, capture), torch.cat(wanted, 1)) < 1e-10


@table("name", CONFIGS)
def test_coordinates_path_gives_the_same_readout_and_gradient(name: str) -> None:
    model = adapted(CONFIGS[name](), dtype=torch.float64)
    images = pixels().double()
    model.set_adapter("default")
    run_tower(model, images).square().sum().backward()
    state, gains = readout_state(model), gains_of(model)
    with torch.no_grad(), model.disable_adapter(), tapped(model) as tap:
        readout = run_tower(model, images)
        capture = tap.take()
    coordinates, base = coordinates_of(state, capture), base_of(state, readout)
    other = gains.detach().clone().requires_grad_()
    result = compose(state, base, coordinates, other)
    assert relative(result.detach(), run_tower(model, images).detach()) < 1e-12
    result.square().sum().backward()
    assert relative(other.grad, gains.grad) < 1e-6  # the gains are float32


def test_affine_in_the_gains() -> None:
    """y'((a + b)/2) = (y'(a) + y'(b))/2."""
    model = adapted(ResiDualConfig.paper("residual"), dtype=torch.float64)
    images, outputs = pixels().double(), []
    randomize_gains(model, seed=1)
    a = gains_of(model).detach().clone()
    randomize_gains(model, seed=2)
    b = gains_of(model).detach().clone()
    for gains in (a, b, (a + b) / 2):
        gains_of(model).data = gains
        outputs.append(run_tower(model, images).detach())
    assert relative((outputs[0] + outputs[1]) / 2, outputs[2]) < 1e-6


def test_gains_start_at_ones_or_at_a_seeded_draw() -> None:
    ones = get_peft_model(clip_model(), ResiDualConfig())
    assert bool((gains_of(ones) == 1).all())
    drawn = [
        gains_of(get_peft_model(clip_model(), ResiDualConfig(gain_init="normal", seed=seed)))
        for seed in (0, 0, 1)
    ]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    large = get_peft_model(clip_model(SIZES["many heads"]), ResiDualConfig(gain_init="normal"))
    assert abs(float(gains_of(large).mean()) - 1) < 0.2
    assert abs(float(gains_of(large).std()) - 1) < 0.2


class Shifts(Gains):
    """A kind that nobody has yet: a number that is added to each coordinate."""

    start = 0.0
    scales = False

    def factors(self, coordinates: torch.Tensor) -> torch.Tensor:
        return torch.ones_like(coordinates)


def shifted(gains: torch.Tensor, model: torch.nn.Module, readout: torch.Tensor) -> torch.Tensor:
    """y + Σ p_k φ_k, one component after the other."""
    for number, direction in zip(gains.double(), readout_state(model).directions, strict=True):
        readout = readout + number * direction.double()
    return readout


def test_another_kind_of_gain_is_one_class(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Fitted, moved, summed, one per sample, saved and solved for: all of it asks the class."""
    monkeypatch.setitem(KINDS, "shift", Shifts)
    model = adapted(ResiDualConfig(granularity="shift", components=3), gains=False)
    readout = run_tower(clip_model(), pixels())
    assert relative(run_tower(model, pixels()), readout) < 1e-6  # they begin at 0
    gains = torch.randn(len(gains_of(model)), generator=torch.Generator().manual_seed(2))
    gains_of(model).data.copy_(gains)
    expected_readout = shifted(gains, model, readout.double())
    assert relative(run_tower(model, pixels()), expected_readout) < 1e-5
    model.add_weighted_adapter(["default"], [-2.0], "twice")
    with torch.no_grad():
        mixed = model(
            pixel_values=pixels()[:4], adapter_names=["default", "twice", "__base__", "default"]
        ).image_embeds
    opposite = shifted(-2 * gains, model.base_model, readout.double())
    for row, wanted in enumerate((expected_readout, opposite, readout, expected_readout)):
        assert relative(mixed[row], wanted[row]) < 1e-5
    model.save_pretrained(tmp_path, selected_adapters=["default"])
    loaded = load_adapter(clip_model(), tmp_path)
    assert torch.equal(run_tower(loaded, pixels()), run_tower(model, pixels()))
    with pytest.raises(ResiDualError, match="granularity='shift' with mode='stream'"):
        ResiDualConfig(granularity="shift", mode="stream")


def test_another_kind_of_gain_is_solved_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "shift", Shifts)
    classifier = adapted_classifier(ResiDualConfig(granularity="shift", components=3))
    loader = batches(task().train, classifier.image_processor, batch_size=16)
    rows = collect_coordinates(classifier.model, loader)
    gains = torch.randn(rows.state.gains.number, dtype=torch.float64).requires_grad_()
    problem = GainProblem(classifier, rows, Objective(strength=0.2), torch.float64)
    outputs = rows.base.double()
    for number, direction in zip(gains, rows.state.directions.double(), strict=True):
        outputs = outputs + number * direction
    cosines = functional.normalize(outputs, dim=1) @ classifier.class_embeddings.double().T
    slow = functional.cross_entropy(classifier.logit_scale * cosines, rows.labels)
    slow = slow + 0.1 * (gains**2).sum()
    slow.backward()
    value, gradient, _ = problem.value_and_gradient(gains.detach())
    assert value == pytest.approx(slow.item(), rel=1e-6)
    torch.testing.assert_close(gradient, gains.grad, atol=1e-6, rtol=1e-5)
    fit = solve_gains(classifier, rows, objective=Objective(strength=0.2), max_iterations=20)
    start = torch.zeros_like(fit.gains)
    assert problem.value_and_gradient(fit.gains)[0] < problem.value_and_gradient(start)[0]
    with pytest.raises(ResiDualError, match="Shifts, which scale no coordinates"):
        gains_per_component(classifier, rows, None)
