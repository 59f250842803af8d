"""Many adapters in one model: what they cost, and that they keep to themselves."""

import copy
import itertools
import pickle
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from residual_peft.bases.basis import SpectralBasis
from residual_peft.errors import ResiDualError
from residual_peft.towers.running import run_tower
from residual_peft.tuner import ResiDualConfig, ResiDualReadout, gains_of, readout_state
from tests.models import BUILDERS, clip_model, pixels
from tests.pairs import in_turn, table
from tests.tuner.twin import IMAGES, expected, randomize_gains, relative
from tests.tuner.zoo import KINDS, zoo

KEEP = [name for name, (options, _) in KINDS.items() if "remainder" not in options]


def layer_of(model: nn.Module) -> ResiDualReadout:
    return next(module for module in model.modules() if isinstance(module, ResiDualReadout))


@pytest.mark.parametrize("builder", BUILDERS)
def test_each_is_what_it_is_alone(builder: str) -> None:
    model, images, base = zoo(builder), pixels().double(), BUILDERS[builder]().double()
    for name in itertools.chain(KINDS, reversed(KINDS)):
        model.set_adapter(name)
        found = run_tower(model, images)
        assert relative(found, expected(base, model, images, name)) < 1e-10, name


@table("pair", list(itertools.combinations(KEEP, 2)), ids="+".join)
def test_two_at_once_add_what_they_change(pair: tuple[str, str]) -> None:
    model, images, base = zoo(), pixels().double(), clip_model().double()
    plain = run_tower(base, images)
    wanted = plain + sum(expected(base, model, images, name) - plain for name in pair)
    model.base_model.set_adapter(list(pair))
    assert relative(run_tower(model, images).detach(), wanted) < 1e-10
    run_tower(model, images).sum().backward()
    trained = {name for name in KINDS if gains_of(model, name).grad is not None}
    assert trained == set(pair)
    assert all(gains_of(model, name).requires_grad == (name in pair) for name in KINDS)


def test_disabling_nests() -> None:
    model, images = zoo(), pixels().double()
    plain, wanted = run_tower(clip_model().double(), images), run_tower(model, images)
    with model.disable_adapter():
        assert torch.equal(run_tower(model, images), plain)
        with model.disable_adapter():
            assert torch.equal(run_tower(model, images), plain)
        assert torch.equal(run_tower(model, images), plain)  # still inside the outer one
    assert torch.equal(run_tower(model, images), wanted)
    with pytest.raises(RuntimeError, match="inside"), model.disable_adapter():
        raise RuntimeError("inside")
    assert torch.equal(run_tower(model, images), wanted)


def test_deleting_one_leaves_the_others() -> None:
    model, images, base = zoo(), pixels().double(), clip_model().double()
    left = list(KINDS)
    for name in ("few", "coarse", "other images"):
        model.delete_adapter(name)
        left.remove(name)
        assert list(model.peft_config) == left
        assert not [key for key in model.state_dict() if key.endswith(f".{name}")]
        assert set(layer_of(model).adapter_states) == set(left)
        for other in left:
            model.set_adapter(other)
            wanted = expected(base, model, images, other)
            assert relative(run_tower(model, images), wanted) < 1e-10
    with pytest.raises(ResiDualError, match="there is no adapter 'few'"):
        gains_of(model, "few")


# --- memory


def held(model: nn.Module) -> dict[int, int]:
    """Storages that the readout's layer holds beside its base layer: address -> bytes."""
    layer = layer_of(model)
    tensors: list[Tensor] = [
        tensor
        for name, tensor in itertools.chain(layer.named_parameters(), layer.named_buffers())
        if not name.startswith("base_layer")
    ]
    for state in layer.adapter_states.values():
        tensors += [value for value in vars(state).values() if isinstance(value, Tensor)]
    found = (tensor.untyped_storage() for tensor in tensors)
    return {storage.data_ptr(): storage.nbytes() for storage in found if storage.nbytes()}


def many(count: int, directory: Path, **options) -> PeftModel:
    model = None
    for index in range(count):
        config = ResiDualConfig(basis=directory, **options)
        if model is None:
            model = get_peft_model(clip_model(), config, adapter_name="a0")
        else:
            model.add_adapter(f"a{index}", config)
        randomize_gains(model, f"a{index}", seed=index)
    return model.eval()


MOVES = {
    "as it is": lambda model: model,
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "float64": lambda model: model.double(),
    "half": lambda model: model.half(),
    "new tensors": lambda model: model._apply(torch.clone),
    "state dict": lambda model: (model.load_state_dict(model.state_dict()), model)[1],
}


@pytest.fixture(scope="module")
def basis(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("basis")
    SpectralBasis.fit(clip_model(), [pixels(IMAGES, seed=5)]).save_pretrained(directory)
    return directory


@table("move", MOVES)
def test_a_hundred_adapters_cost_a_hundred_gain_vectors(basis: Path, move: str) -> None:
    one = MOVES[move](many(1, basis))
    model = MOVES[move](many(100, basis))
    gains = gains_of(model, "a0")
    size = gains.numel() * gains.element_size()
    single, whole = held(one), held(model)
    assert sum(single.values()) > 5 * size  # there is a basis to share
    assert sum(whole.values()) == sum(single.values()) + 99 * size
    addresses = {gains_of(model, f"a{index}").data_ptr() for index in range(100)}
    assert len(addresses) == 100
    assert len(whole) == len(single) + 99
    model.set_adapter("a57")
    if move not in ("half", "float64"):
        alone = many(1, basis)
        gains_of(alone, "a0").data.copy_(gains_of(model, "a57").data)
        assert torch.equal(run_tower(model, pixels()), run_tower(alone, pixels()))


@in_turn(
    save_basis=[True, False],
    low_cpu_mem_usage=[True, False],
)
def test_loaded_side_by_side_they_share(
    basis: Path, tmp_path: Path, save_basis: bool, low_cpu_mem_usage: bool
) -> None:
    model = many(8, basis, save_basis=save_basis)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(clip_model(), tmp_path / "a0", adapter_name="a0")
    single = held(loaded)
    for index in range(1, 8):
        path = tmp_path / f"a{index}"
        loaded.load_adapter(path, f"a{index}", low_cpu_mem_usage=low_cpu_mem_usage)
        size = (path / "adapter_model.safetensors").stat().st_size
        assert (size < 1500) is not save_basis
    gains = gains_of(loaded, "a0")
    extra = sum(held(loaded).values()) - sum(single.values())
    assert extra == 7 * gains.numel() * gains.element_size()
    states = {id(readout_state(loaded, f"a{index}")) for index in range(8)}
    assert len(states) == 1
    for index in (3, 7):
        for each in (model, loaded):
            each.set_adapter(f"a{index}")
        assert torch.equal(run_tower(loaded, pixels()), run_tower(model, pixels()))


def test_training_one_leaves_the_others(basis: Path) -> None:
    model = many(3, basis)
    before = {name: gains_of(model, name).detach().clone() for name in model.peft_config}
    model.set_adapter("a1")
    run_tower(model, pixels()).square().sum().backward()
    torch.optim.SGD(model.parameters(), 0.1).step()
    changed = [n for n, old in before.items() if not torch.equal(old, gains_of(model, n).detach())]
    assert changed == ["a1"]
