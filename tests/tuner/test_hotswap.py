"""Other gains into a model that stays as it is."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from peft.utils import hotswap
from safetensors.torch import load_file, save_file

from residual_peft.bases.basis import SpectralBasis
from residual_peft.errors import ResiDualError
from residual_peft.towers.running import run_tower
from residual_peft.tuner import (
    ResiDualConfig,
    fit_bases,
    gains_of,
    hotswap_adapter,
    load_adapter,
    readout_state,
)
from tests.models import clip_model, clip_vision_model_with_projection, pixels
from tests.pairs import in_turn, table
from tests.tuner.twin import IMAGES, adapted, randomize_gains

WEIGHTS = "adapter_model.safetensors"
KINDS = {
    "default": {},
    "star": {"units": ("head",), "components": 0.9, "remainder": "drop", "restore_mean": False},
    "coarse": {"units": ("head",), "granularity": "unit", "restore_mean": False},
}


@pytest.fixture
def basis(tmp_path: Path) -> Path:
    found = SpectralBasis.fit(clip_model(), [pixels(IMAGES, seed=5)])
    found.save_pretrained(tmp_path / "basis")
    return tmp_path / "basis"


def other(directory: Path, seed: int = 3, base=None, **options) -> torch.Tensor:
    """Save another adapter, as another run would have, and return its readouts."""
    model = get_peft_model(base or clip_model(), ResiDualConfig(**options))
    if model.peft_config["default"].needs_basis and "basis" not in options:
        fit_bases(model, [pixels(IMAGES, seed=5)])
    randomize_gains(model, seed=seed)
    model.save_pretrained(directory)
    return run_tower(model.eval(), pixels()).detach()


@in_turn(
    kind=KINDS,
    loaded=[False, True],
)
def test_the_model_becomes_what_the_file_is(tmp_path: Path, kind: str, loaded: bool) -> None:
    wanted = other(tmp_path / "other", **KINDS[kind])
    model = adapted(ResiDualConfig(**KINDS[kind]))
    if loaded:
        model.save_pretrained(tmp_path / "mine")
        model = load_adapter(clip_model(), tmp_path / "mine", is_trainable=True)
    before, gains, state = run_tower(model, pixels()), gains_of(model), readout_state(model)
    address, optimizer = gains.data_ptr(), torch.optim.Adam([gains])
    hotswap_adapter(model, tmp_path / "other")
    assert torch.equal(run_tower(model, pixels()), wanted)
    assert not torch.equal(before, wanted)
    assert gains_of(model) is gains is optimizer.param_groups[0]["params"][0]
    assert gains.data_ptr() == address
    assert gains.requires_grad
    assert readout_state(model) is state


@pytest.mark.parametrize("save_basis", [True, False])
def test_with_or_without_the_basis_in_the_file(
    tmp_path: Path, basis: Path, save_basis: bool
) -> None:
    wanted = other(tmp_path / "other", basis=basis, save_basis=save_basis)
    model = get_peft_model(clip_model(), ResiDualConfig(basis=basis))
    hotswap_adapter(model, tmp_path / "other")
    assert torch.equal(run_tower(model.eval(), pixels()), wanted)


def test_bases_from_the_weights(tmp_path: Path) -> None:
    chosen = {"unit_pattern": ("head0", "mlp")}  # a list in the file
    model = adapted(ResiDualConfig(**chosen), fit=False)
    wanted = run_tower(model, pixels())
    model.save_pretrained(tmp_path)
    fresh = get_peft_model(clip_model(), ResiDualConfig(**chosen))
    hotswap_adapter(fresh, tmp_path)
    assert torch.equal(run_tower(fresh.eval(), pixels()), wanted)


def test_one_of_several_by_name_and_onto_another_class(tmp_path: Path) -> None:
    wanted = other(tmp_path / "other")
    image_side = clip_vision_model_with_projection()
    image_side.load_state_dict(clip_model().state_dict(), strict=False)
    model = get_peft_model(image_side, ResiDualConfig(), adapter_name="first")
    model.add_adapter("second", ResiDualConfig())
    fit_bases(model, [pixels(IMAGES, seed=5)], "second")
    kept = gains_of(model, "first").detach().clone()
    hotswap_adapter(model.eval(), tmp_path / "other", "second")
    model.set_adapter("second")
    assert torch.equal(run_tower(model, pixels()), wanted)
    assert torch.equal(gains_of(model, "first"), kept)


def test_a_compiled_model_is_not_compiled_again(tmp_path: Path) -> None:
    wanted = other(tmp_path / "other")
    model = adapted()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, backend=backend)
    with torch.no_grad():
        compiled(pixel_values=pixels())
        count = len(graphs)
        hotswap_adapter(compiled, tmp_path / "other")
        found = compiled(pixel_values=pixels()).image_embeds
    assert count > 0
    assert len(graphs) == count
    assert torch.allclose(found, wanted, atol=1e-6)


def test_as_many_gains_of_other_units_are_refused(tmp_path: Path) -> None:
    coarse = KINDS["coarse"]
    other(tmp_path, layers_to_transform=[0], **coarse)
    model = adapted(ResiDualConfig(layers_to_transform=[1], **coarse))
    with pytest.raises(ResiDualError, match=r"layers_to_transform is \[0\] there and \[1\] here"):
        hotswap_adapter(model, tmp_path)
    model = adapted(ResiDualConfig(unit_pattern=["layer0.head0", "layer1.head1"], **coarse))
    with pytest.raises(ResiDualError, match="layers_to_transform is"):
        hotswap_adapter(model, tmp_path)


def with_gains(directory: Path, gains: torch.Tensor | None) -> None:
    tensors = load_file(directory / WEIGHTS)
    name = next(key for key in tensors if key.endswith("gains"))
    tensors.pop(name)
    save_file(tensors | ({} if gains is None else {name: gains}), directory / WEIGHTS)


REFUSED = {
    "another basis": (lambda d: refit(d), "they belong to another basis"),
    "fewer components": (lambda d: other(d, components=2), "they belong to another basis"),
    "from the weights": (lambda d: adapted(fit=False).save_pretrained(d), "another basis"),
    "other units": (lambda d: other(d, units=("head",)), r"units is \('head',\) there and"),
    "drop": (lambda d: other(d, remainder="drop"), "remainder is 'drop' there and 'keep' here"),
    "means": (lambda d: other(d, restore_mean=False), "restore_mean is False there"),
    "other weights": (lambda d: other(d, base=clip_model(seed=1)), "belong to other weights of"),
    "whole modules": (
        lambda d: other(d, modules_to_save=["text_projection"]),
        "modules_to_save are whole modules",
    ),
    "NaN": (
        lambda d: (other(d), with_gains(d, gains_of(adapted()).detach() / 0)),
        r"NaN or infinite values in residual_peft_gains",
    ),
    "cut gains": (lambda d: (other(d), with_gains(d, torch.ones(3))), r"of shape \(3,\)"),
    "no gains": (lambda d: (other(d), with_gains(d, None)), "lack residual_peft_gains"),
    "no file": (lambda d: (other(d), (d / WEIGHTS).unlink()), "wanted the adapter's weights in"),
    "nothing": (lambda d: None, "could not find the adapter"),
}


def refit(directory: Path) -> None:
    model = get_peft_model(clip_model(), ResiDualConfig())
    fit_bases(model, [pixels(IMAGES, seed=6)])
    model.save_pretrained(directory)


@table("case", REFUSED)
def test_what_does_not_fit_is_refused_and_changes_nothing(tmp_path: Path, case: str) -> None:
    make, message = REFUSED[case]
    make(tmp_path / "other")
    model = adapted()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ResiDualError, match=message):
        hotswap_adapter(model, tmp_path / "other")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_there_must_be_an_adapter_to_swap(tmp_path: Path) -> None:
    other(tmp_path)
    with pytest.raises(ResiDualError, match=r"no ResiDual adapter 'x' .*; the model has default"):
        hotswap_adapter(adapted(), tmp_path, "x")
    with pytest.raises(ResiDualError, match=r"no ResiDual adapter 'default' .*has none"):
        hotswap_adapter(clip_model(), tmp_path)


def test_pefts_own_knows_lora_alone_and_says_so(tmp_path: Path) -> None:
    other(tmp_path)
    model = PeftModel.from_pretrained(clip_model(), tmp_path)
    with pytest.raises(ValueError, match="Hotswapping only supports LORA but RESIDUAL_PEFT was"):
        hotswap.hotswap_adapter(model, str(tmp_path), "default")
