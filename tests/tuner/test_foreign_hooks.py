"""Ablation and activation patching: what the model used is what was tapped, or it is refused."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn

from residual_peft import SpectralBasis, decompose
from residual_peft.bases.exactness import check_exact
from residual_peft.errors import ResiDualError
from residual_peft.towers.anatomy import TowerAnatomy
from residual_peft.towers.registry import find_tower
from residual_peft.towers.running import run_tower
from residual_peft.towers.taps import tapped
from residual_peft.towers.units import Unit
from residual_peft.tuner import ResiDualConfig, gains_of
from tests.models import EVERY, Size, clip_model, pixels
from tests.pairs import table
from tests.pooled import POOLED

TOWERS = ("CLIPVisionModelWithProjection", "ViTModel", "Dinov2Model", "SiglipVisionModel")
REFUSED = r"do not add up to the model's own output.*a hook"


def zero_head(module: nn.Module, args: Any) -> Any:
    """Ablate the first head: what it hands to the output projection."""
    x = args[0].clone()
    x[..., : x.shape[-1] // 2] = 0
    return (x, *args[1:])


def zero_head_in_place(module: nn.Module, args: Any) -> None:
    args[0][..., : args[0].shape[-1] // 2] = 0


def double_mlp(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return 2 * output


def double_mlp_in_place(module: nn.Module, args: Any, output: Tensor) -> None:
    output *= 2


def from_another_image(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return output.flip(0)


def on_head(tower: TowerAnatomy, hook: Any) -> Any:
    return tower.layers[-1].output_projection.register_forward_pre_hook(hook)


def on_mlp(tower: TowerAnatomy, hook: Any) -> Any:
    return tower.layers[-1].mlp.register_forward_hook(hook)


def on_embedding(tower: TowerAnatomy, hook: Any) -> Any:
    return tower.embedding.register_forward_hook(hook)


UNITS = [
    (on_head, zero_head),
    (on_head, zero_head_in_place),
    (on_mlp, double_mlp),
    (on_mlp, double_mlp_in_place),
    (on_mlp, from_another_image),
    (on_embedding, from_another_image),
]


def steer(module: nn.Module, args: Any, output: Any) -> Any:
    """Add to what is passed on, whatever it is."""
    return (output[0] + 1, *output[1:]) if isinstance(output, tuple) else output + 1


def on_block(tower: TowerAnatomy, hook: Any) -> Any:
    return tower.layers[0].module.register_forward_hook(hook)


def on_attention_output(tower: TowerAnatomy, hook: Any) -> Any:
    return tower.layers[-1].output_projection.register_forward_hook(hook)


def on_final_norm(tower: TowerAnatomy, hook: Any) -> Any:
    return tower.final_norm.register_forward_hook(hook)


def on_readout(tower: TowerAnatomy, hook: Any) -> Any:
    assert isinstance(tower.projection, nn.Module)
    return tower.projection.register_forward_hook(hook)


ELSEWHERE = [on_block, on_attention_output, on_final_norm, on_readout]


def build(kind: str = TOWERS[0]) -> Any:
    if kind == "SiglipVisionModel":
        return POOLED[kind].build().eval()
    return EVERY[kind]().eval()


def images(seed: int = 0) -> Tensor:
    return pixels(6, seed=seed)


def adapted_by_hand(base: nn.Module, gains: Callable[[list[Unit]], Tensor]) -> Tensor:
    """y' with one gain per unit on what `decompose` says, of a model with hooks and no adapter."""
    found = decompose(base, images())
    units = [unit for unit in found.units if unit.kind in ("head", "mlp")]
    chosen = [found.units.index(unit) for unit in units]
    changes = gains(units)[:, None] - 1
    return found.readout + (found.contributions[:, chosen] * changes).sum(1)


def random_gains(units: list[Unit]) -> Tensor:
    return 1 + torch.randn(len(units), generator=torch.Generator().manual_seed(3))


WHOLE = {"granularity": "unit", "restore_mean": False}


CASES = [(TOWERS[0], *case) for case in UNITS]
CASES += [(kind, *case) for kind in TOWERS[1:] for case in UNITS if "in_place" not in str(case[1])]


@pytest.mark.parametrize("first", ["hook", "adapter"])
@table(("kind", "place", "hook"), CASES)
def test_what_the_model_used_is_what_was_tapped(
    kind: str, place: Any, hook: Any, first: str
) -> None:
    base = build(kind)
    plain = run_tower(base, images())
    if first == "hook":
        place(find_tower(base), hook)
    model = get_peft_model(base, ResiDualConfig(**WHOLE)).eval()
    gains = gains_of(model)
    gains.data.copy_(random_gains([Unit("embed")] * len(gains)))
    if first == "adapter":
        place(find_tower(base), hook)
    found = run_tower(model, images()).detach()
    hooked = build(kind)
    place(find_tower(hooked), hook)
    assert not torch.allclose(run_tower(hooked, images()), plain)
    wanted = adapted_by_hand(hooked, random_gains)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@table("place", ELSEWHERE)
@table("first", ["hook", "adapter"])
def test_what_no_unit_writes_is_refused(place: Any, first: str) -> None:
    base = build()
    if first == "hook":
        place(find_tower(base), steer)
    model = get_peft_model(base, ResiDualConfig()).eval()
    gains_of(model).data.fill_(2.0)
    handle = place(find_tower(base), steer) if first == "adapter" else None
    # behind the final norm's taps: what they read never gets to the readout
    lost = place is on_final_norm and first == "adapter"
    with pytest.raises(ResiDualError, match=r"did not just compute" if lost else REFUSED):
        model(pixel_values=images())
    with pytest.raises(ResiDualError, match=REFUSED):
        decompose(model, images())
    with model.disable_adapter():
        model(pixel_values=images())
    if handle is not None:
        handle.remove()
        model(pixel_values=images())


def test_what_changes_the_input_of_the_readout_is_refused() -> None:
    base = build()
    model = get_peft_model(base, ResiDualConfig()).eval()
    gains_of(model).data.fill_(2.0)

    def in_place(module: nn.Module, args: Any) -> None:
        args[0].add_(1)

    handle = base.visual_projection.register_forward_pre_hook(in_place)
    with torch.no_grad(), pytest.raises(ResiDualError, match=REFUSED):
        model(pixel_values=images())
    handle.remove()
    base.visual_projection.register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    with pytest.raises(ResiDualError, match=r"did not just compute"):
        model(pixel_values=images())


def test_hooks_that_only_read_change_nothing() -> None:
    base = build()
    model = get_peft_model(base, ResiDualConfig()).eval()
    gains_of(model).data.fill_(2.0)
    wanted = model(pixel_values=images()).image_embeds
    seen: list[Any] = []
    for module in base.vision_model.modules():
        module.register_forward_hook(lambda module, args, output: seen.append(output))
    assert torch.equal(model(pixel_values=images()).image_embeds, wanted)
    assert seen


@pytest.mark.parametrize("place_and_hook", [(on_mlp, double_mlp), (on_head, zero_head)])
def test_hooks_registered_while_tapped_are_seen(place_and_hook: Any) -> None:
    place, hook = place_and_hook
    base = build()
    anatomy = find_tower(base)
    with torch.no_grad(), tapped(base, layers=True) as tap:
        place(anatomy, hook)
        for seed in (1, 2):
            readout = run_tower(base, images(seed))
            check_exact(anatomy, tap.take(), readout)


def test_a_basis_is_that_of_the_hooked_model() -> None:
    # the ablated head writes R b/H /σ alone, which has one dimension
    plain, hooked = (get_peft_model(build(), ResiDualConfig()) for _ in range(2))
    on_head(find_tower(hooked), zero_head)
    head = Unit("head", len(find_tower(hooked).layers) - 1, 0)
    found = [SpectralBasis.fit(model, [pixels(40)])[head] for model in (plain, hooked)]
    assert len(found[0].components) > 1
    assert float(found[1].total_variance) < 1e-2 * float(found[0].total_variance)


def test_a_hook_that_leaves_the_first_batch_alone_is_noticed() -> None:
    base = build()
    calls: list[int] = []

    def later(module: nn.Module, args: Any, output: Any) -> Any:
        calls.append(1)
        return output if len(calls) == 1 else steer(module, args, output)

    on_block(find_tower(base), later)
    with pytest.raises(ResiDualError, match=REFUSED):
        SpectralBasis.fit(base, [pixels(20), pixels(20, seed=1)])


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_keep_their_own_order(clone: Any) -> None:
    original = get_peft_model(build(), ResiDualConfig()).eval()
    gains_of(original).data.fill_(2.0)
    before = original(pixel_values=images()).image_embeds
    model = clone(original)
    on_mlp(find_tower(model), double_mlp)
    hooked = build()
    on_mlp(find_tower(hooked), double_mlp)
    reference = get_peft_model(hooked, ResiDualConfig()).eval()
    gains_of(reference).data.fill_(2.0)
    found = model(pixel_values=images()).image_embeds
    assert torch.equal(found, reference(pixel_values=images()).image_embeds)
    assert torch.equal(original(pixel_values=images()).image_embeds, before)


@pytest.mark.parametrize("fullgraph", [True, False])
def test_compiled_it_sees_what_eager_sees(fullgraph: bool) -> None:
    torch._dynamo.reset()
    model = get_peft_model(build(), ResiDualConfig()).eval()
    gains_of(model).data.fill_(2.0)
    compiled = torch.compile(model, backend="eager", fullgraph=fullgraph)
    with torch.no_grad():
        torch.testing.assert_close(compiled(images()), model(images()))
        torch._dynamo.reset()
        on_mlp(find_tower(model), double_mlp)
        if not fullgraph:  # the check of foreign hooks asks for numbers
            found = compiled(images()).image_embeds
            torch.testing.assert_close(found, model(images()).image_embeds)
    torch._dynamo.reset()


def test_hidden_states_may_be_asked_for() -> None:
    model = get_peft_model(clip_model(Size(layers=1)), ResiDualConfig()).eval()
    gains_of(model).data.fill_(2.0)
    wanted = model(pixel_values=images()).image_embeds
    model.get_base_model().get_image_features(images(), output_hidden_states=True)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(pixel_values=images()).image_embeds, wanted)
    torch._dynamo.reset()
