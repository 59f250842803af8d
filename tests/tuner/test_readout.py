import copy
import gc
import pickle
import threading

import pytest
import torch
from peft import get_peft_model
from torch import nn

from residual_peft.errors import ResiDualError
from residual_peft.towers import taps
from residual_peft.towers.running import run_tower
from residual_peft.tuner import (
    ResiDualConfig,
    ResiDualReadout,
    active_adapter,
    adapter_basis,
    base_of,
    compose,
    coordinates_of,
    fit_bases,
    gains_by_unit,
    gains_of,
    readout_state,
    restart_gains,
)
from tests.models import EVERY, FAMILIES, SIZES, Size, clip_model, clip_vision_model, pixels
from tests.pairs import dealt, table
from tests.tuner.twin import IMAGES, adapted, expected, randomize_gains, relative


def layer_of(model: nn.Module) -> ResiDualReadout:
    return next(m for m in model.modules() if isinstance(m, ResiDualReadout))


@table(
    ("builder", "fit", "units"),
    dealt(FAMILIES, (False, True), [("head",), ("embed", "head", "mlp"), ("output",)]),
)
def test_identity_at_the_start(builder: str, fit: bool, units: tuple[str, ...]) -> None:
    model = adapted(ResiDualConfig(units=units), builder=builder, fit=fit, gains=False)
    wanted = run_tower(EVERY[builder](), pixels())
    assert relative(run_tower(model, pixels()), wanted) < 1e-6


def test_drop_with_all_units_and_directions_is_the_identity_but_for_the_bias() -> None:
    config = ResiDualConfig(units=("embed", "head", "mlp"), remainder="drop")
    model = adapted(config, gains=False, dtype=torch.float64)
    images = pixels().double()
    bias = layer_of(model).anatomy.readout_bias()
    assert (
        relative(run_tower(model, images) + bias, run_tower(clip_model().double(), images)) < 1e-9
    )


def test_only_gains_are_trained_and_get_gradients() -> None:
    model = get_peft_model(clip_model(), ResiDualConfig())
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained == ["base_model.model.visual_projection.residual_peft_gains.default"]
    run_tower(model, pixels()).square().sum().backward()
    assert bool((gains_of(model).grad != 0).all())
    assert all(p.grad is None for p in model.parameters() if p is not gains_of(model))
    assert model.get_nb_trainable_parameters()[0] == len(gains_of(model))


def test_print_trainable_parameters(capsys: pytest.CaptureFixture) -> None:
    model = get_peft_model(clip_model(), ResiDualConfig())
    model.print_trainable_parameters()
    assert capsys.readouterr().out.startswith(f"trainable params: {len(gains_of(model)):,d} ||")


@pytest.mark.parametrize("inputs_require_grad", [False, True])
def test_no_activation_of_the_backbone_is_kept_for_backward(inputs_require_grad: bool) -> None:
    model = adapted()
    if inputs_require_grad:  # as gradient checkpointing does
        tower = model.get_base_model().vision_model
        tower.pre_layrnorm.register_forward_hook(lambda m, a, out: out.requires_grad_())
    saved: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        readout = run_tower(model, pixels())
    if not inputs_require_grad:
        total = sum(tensor.numel() for tensor in saved)
        components, width = readout_state(model).directions.shape
        assert 0 < total <= 2 * (5 * components) + components * width
    nodes, seen = [readout.grad_fn], set()
    while nodes:  # the graph from the readout ends in the gains
        node = nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            nodes += [parent for parent, _ in node.next_functions]
    leaves = [node.variable for node in seen if hasattr(node, "variable")]
    assert len(leaves) == 1
    assert leaves[0] is gains_of(model)


@table("builder", FAMILIES)
def test_disable_adapter_gives_the_base_model(builder: str) -> None:
    model = adapted(builder=builder)
    before, base = run_tower(model, pixels()), run_tower(EVERY[builder](), pixels())
    with model.disable_adapter():
        assert torch.equal(run_tower(model, pixels()), base)
    assert torch.equal(run_tower(model, pixels()), before)
    assert relative(before, base) > 1e-3


def test_two_adapters_side_by_side() -> None:
    model = adapted(ResiDualConfig(units=("head",)))
    first = run_tower(model, pixels())
    model.add_adapter("other", ResiDualConfig.paper("residual_star"))
    assert torch.equal(run_tower(model, pixels()), first)
    assert not gains_of(model, "other").requires_grad
    fit_bases(model, [pixels(IMAGES, seed=5)], "other")
    randomize_gains(model, "other", seed=9)
    model.set_adapter("other")
    assert active_adapter(model) == "other"
    assert gains_of(model, "other").requires_grad
    assert not gains_of(model, "default").requires_grad
    wanted = expected(clip_model(), model, pixels(), "other")
    assert relative(run_tower(model, pixels()), wanted) < 1e-5
    model.set_adapter("default")
    assert torch.equal(run_tower(model, pixels()), first)


def test_adapters_active_together_add_what_they_change() -> None:
    model = adapted(ResiDualConfig(units=("head",)), dtype=torch.float64)
    model.add_adapter("other", ResiDualConfig(units=("mlp",), components=3))
    randomize_gains(model, "other")
    images, base = pixels().double(), run_tower(clip_model().double(), pixels().double())
    changes = []
    for name in ("default", "other"):
        model.set_adapter(name)
        changes.append(run_tower(model, images) - base)
    model.base_model.set_adapter(["default", "other"])
    assert relative(run_tower(model, images), base + changes[0] + changes[1]) < 1e-12
    with pytest.raises(ResiDualError, match="wanted one active adapter, got"):
        readout_state(model)


def test_adapters_that_drop_the_remainder_are_not_added_to_others() -> None:
    model = adapted()
    model.add_adapter("star", ResiDualConfig.paper("residual_star"))
    model.base_model.set_adapter(["default", "star"])
    with pytest.raises(ResiDualError, match=r"\['default', 'star'\].*remainder='drop'"):
        run_tower(model, pixels())


def test_delete_adapter_leaves_nothing_of_it() -> None:
    model = adapted()
    model.add_adapter("other", ResiDualConfig(units=("mlp",)))
    randomize_gains(model, "other")
    model.set_adapter("other")
    wanted = run_tower(model, pixels())
    model.set_adapter("default")
    with pytest.warns(UserWarning, match="Adapter default was active which is now deleted"):
        model.delete_adapter("default")
    assert active_adapter(model) == "other"
    assert torch.equal(run_tower(model, pixels()), wanted)
    layer = layer_of(model)
    for name, value in {**vars(layer), **layer._modules}.items():
        assert not hasattr(value, "keys") or "default" not in value, name
    assert not [key for key in model.state_dict() if "default" in key]
    with pytest.raises(ResiDualError, match="there is no adapter 'default'; the model has other"):
        gains_of(model, "default")


def test_without_any_adapter_left_the_model_is_the_base_model() -> None:
    model = adapted()
    model.delete_adapter("default")
    # PEFT's own PeftModel cannot be called without an adapter; the tuner below it can
    assert torch.equal(run_tower(model.base_model, pixels()), run_tower(clip_model(), pixels()))


@table("builder", FAMILIES)
def test_unload_gives_the_model_back_as_it_was(builder: str) -> None:
    fresh = EVERY[builder]()
    model = adapted(builder=builder).unload()
    assert type(model) is type(fresh)
    assert list(model.state_dict()) == list(fresh.state_dict())
    assert torch.equal(run_tower(model, pixels()), run_tower(fresh, pixels()))
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert "forward" not in module.__dict__


@pytest.mark.parametrize(
    "merge",
    [
        lambda model: model.merge_adapter(),
        lambda model: model.merge_and_unload(),
        lambda model: layer_of(model).merge(),
    ],
)
def test_merging_is_refused_and_changes_nothing(merge) -> None:
    model = adapted()
    before = run_tower(model, pixels())
    with pytest.raises(ResiDualError, match=r"cannot be merged: .* mode='stream' merges"):
        merge(model)
    assert torch.equal(run_tower(model, pixels()), before)


def test_threads_get_what_they_would_get_alone() -> None:
    model = adapted(size=SIZES["many heads"])
    batches = [pixels(3 + i, SIZES["many heads"], seed=i) for i in range(4)]
    alone = [run_tower(model, batch).detach() for batch in batches]
    start, wrong = threading.Barrier(len(batches)), []

    def work(index: int) -> None:
        start.wait()
        for _ in range(25):
            if not torch.equal(run_tower(model, batches[index]), alone[index]):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(batches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def captures() -> int:
    gc.collect()
    return sum(isinstance(thing, taps.Capture) for thing in gc.get_objects())


def test_the_forward_leaves_nothing_behind() -> None:
    model = adapted()
    before = (
        {name: set(module.__dict__) for name, module in model.named_modules()},
        len(pickle.dumps(model)),
    )
    assert captures() == 0
    run_tower(model, pixels())
    assert captures() == 0
    after = (
        {name: set(module.__dict__) for name, module in model.named_modules()},
        len(pickle.dumps(model)),
    )
    assert after == before


def test_a_forward_that_raises_leaves_nothing_behind() -> None:
    model = adapted()
    wanted = run_tower(model, pixels())
    block = model.get_base_model().vision_model.encoder.layers[1]

    def fail(module: nn.Module, args: object) -> None:
        raise RuntimeError("broken block")

    handle = block.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="broken block"):
        run_tower(model, pixels())
    handle.remove()
    assert captures() == 0
    assert torch.equal(run_tower(model, pixels()), wanted)


def test_an_input_from_elsewhere_is_refused() -> None:
    model = adapted()
    projection = model.get_base_model().visual_projection
    with pytest.raises(ResiDualError, match="visual_projection got an input that the final norm"):
        projection(torch.randn(2, 24))
    with model.disable_adapter():
        assert projection(torch.randn(2, 24)).shape == (2, 16)


@table(
    ("builder", "clone"),
    dealt(FAMILIES, (copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)))),
)
def test_copies_stand_by_themselves(builder: str, clone) -> None:
    model = adapted(builder=builder)
    wanted = run_tower(model, pixels())
    other = clone(model)
    assert torch.equal(run_tower(other, pixels()), wanted)
    gains_of(other).data.fill_(0.3)
    changed = run_tower(other, pixels())
    assert relative(changed, wanted) > 1e-3
    assert torch.equal(run_tower(model, pixels()), wanted)
    assert layer_of(other).anatomy.model is not layer_of(model).anatomy.model
    fit_bases(other, [pixels(50, seed=6)])
    assert torch.equal(run_tower(model, pixels()), wanted)
    assert torch.equal(
        run_tower(clone(model).unload(), pixels()), run_tower(EVERY[builder](), pixels())
    )


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_rounds_the_model_and_not_the_bases(half: torch.dtype) -> None:
    model = adapted()
    wanted, gains = run_tower(model, pixels()), gains_of(model)
    stored = [t.clone() for t in layer_of(model).stored("default").tensors]
    model.to(half)
    layer = layer_of(model)
    assert layer.base_layer.weight.dtype == half
    for tensor, before in zip(layer.stored("default").tensors, stored, strict=True):
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, before)
    assert gains_of(model) is gains
    assert gains.dtype == torch.float32
    assert readout_state(model).directions.dtype == torch.float32
    found = run_tower(model, pixels().to(half))
    assert found.dtype == half
    assert relative(found, wanted) < 0.05


def test_a_half_precision_model_gets_float32_bases() -> None:
    model = get_peft_model(clip_model().bfloat16(), ResiDualConfig())
    fit_bases(model, [pixels(40).bfloat16()])
    assert {t.dtype for t in layer_of(model).stored("default").tensors} == {torch.float32}
    values = layer_of(model).stored("default").head_components
    assert not torch.equal(values, values.bfloat16().float())


def test_float64_models_keep_float64_bases() -> None:
    model = adapted(dtype=torch.float64)
    assert {t.dtype for t in layer_of(model).stored("default").tensors} == {torch.float64}
    assert readout_state(model).directions.dtype == torch.float64
    assert gains_of(adapted(dtype=torch.float64, gains=False)).dtype == torch.float64
    widened = adapted()
    widened.add_adapter("twin", ResiDualConfig())
    fit_bases(widened, [pixels(IMAGES, seed=5)], "twin")  # whose state is the first's
    widened.double()
    images = pixels().double()
    wanted = expected(clip_model().double(), widened, images)
    assert relative(run_tower(widened, images), wanted) < 1e-10


def test_autocast_does_not_round_what_the_gains_add() -> None:
    model = adapted()
    state, gains = readout_state(model), gains_of(model)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = run_tower(model, pixels())
        with model.disable_adapter(), taps.tapped(model) as tap:
            readout = run_tower(model, pixels())
            capture = tap.take()
    assert found.dtype == torch.bfloat16
    coordinates = coordinates_of(state, capture)
    wanted = compose(state, base_of(state, readout), coordinates, gains)
    assert torch.equal(found, wanted.bfloat16())


def test_equal_bases_are_shared_and_stay_shared() -> None:
    model = adapted()
    for name in ("b", "c"):
        model.add_adapter(name, ResiDualConfig())
        fit_bases(model, [pixels(IMAGES, seed=5)], name)
        randomize_gains(model, name, seed=ord(name))
    model.add_adapter("other", ResiDualConfig(components=2))

    def check(shared: nn.Module) -> None:
        layer = layer_of(shared)
        for name in ("b", "c"):
            for mine, theirs in zip(
                layer.stored(name).tensors, layer.stored("default").tensors, strict=True
            ):
                assert mine is theirs
            state = readout_state(shared, name)
            assert state.head_maps.dtype == layer.dtype
            assert state is readout_state(shared, "default")
        assert layer.stored("other").components is not layer.stored("default").components

    check(model)
    check(copy.deepcopy(model))
    check(model._apply(torch.clone))  # as a move to another device gives new tensors
    check(model.to(torch.bfloat16))
    check(model.to(torch.float64))


def test_fitting_one_of_several_sharing_adapters_leaves_the_others() -> None:
    model = adapted()
    wanted = run_tower(model, pixels())
    model.add_adapter("b", ResiDualConfig())
    fit_bases(model, [pixels(IMAGES, seed=5)], "b")
    fit_bases(model, [pixels(IMAGES, seed=6)], "b")
    assert torch.equal(run_tower(model, pixels()), wanted)


def test_fitting_restarts_the_gains_and_keeps_the_parameter_where_it_fits() -> None:
    model = get_peft_model(clip_model(), ResiDualConfig(gain_init="normal", components=4))
    start, parameter = gains_of(model).detach().clone(), gains_of(model)
    randomize_gains(model)
    basis = fit_bases(model, (batch for batch in pixels(IMAGES, seed=5).split(7)))
    assert gains_of(model) is parameter
    assert torch.equal(parameter.detach(), start)
    assert parameter.requires_grad
    config = model.peft_config["default"]
    assert config.component_counts == basis.component_counts
    assert (config.basis_source, config.num_samples) == ("data", IMAGES)
    assert relative(torch.cat(adapter_basis(model).components), torch.cat(basis.components)) < 1e-6


def test_gains_by_unit_follow_the_units() -> None:
    model = adapted(ResiDualConfig(components=3))
    found = gains_by_unit(model)
    assert list(found) == layer_of(model).anatomy.units(("head", "mlp"))
    assert torch.equal(torch.cat(list(found.values())), gains_of(model).detach())
    assert {len(values) for values in found.values()} == {3}
    coarse = gains_by_unit(adapted(ResiDualConfig.paper("coarse")))
    assert {len(values) for values in coarse.values()} == {1}


def test_gains_restart_with_the_same_or_another_seed() -> None:
    model = get_peft_model(clip_model(), ResiDualConfig.paper("residual", seed=2))
    parameter, start = gains_of(model), gains_of(model).detach().clone()
    restart_gains(model, 3)
    other = get_peft_model(clip_model(), ResiDualConfig.paper("residual", seed=3))
    assert torch.equal(parameter.detach(), gains_of(other).detach())
    assert model.peft_config["default"].seed == 3
    restart_gains(model, 2)
    assert gains_of(model) is parameter
    assert torch.equal(parameter.detach(), start)


def test_fitting_coarse_reads_no_image_and_restarts_the_gains() -> None:
    model = adapted(ResiDualConfig.paper("coarse"), fit=False, gains=False)
    start = gains_of(model).detach().clone()
    randomize_gains(model, seed=3)
    assert fit_bases(model, iter(())) is None
    assert torch.equal(gains_of(model).detach(), start)


def test_fitting_sees_the_unadapted_model() -> None:
    model = adapted(gains=False)
    first = fit_bases(model, [pixels(IMAGES, seed=5)])
    randomize_gains(model)
    assert torch.equal(first.means, fit_bases(model, [pixels(IMAGES, seed=5)]).means)


def test_fitting_refuses_what_is_not_there() -> None:
    model = adapted()
    with pytest.raises(ResiDualError, match="there is no adapter 'other'; the model has default"):
        fit_bases(model, [pixels()], "other")
    with pytest.raises(ResiDualError, match="got a CLIPModel without; make one"):
        fit_bases(clip_model(), [pixels()])
    with pytest.raises(ResiDualError, match="too few images"):
        fit_bases(get_peft_model(clip_model(), ResiDualConfig(components=6)), [pixels(4)])
    with pytest.raises(ResiDualError, match="NaN"):
        fit_bases(model, [pixels() / 0])


@pytest.mark.parametrize("mode", ["readout", "stream"])
def test_a_name_that_torch_does_not_take_is_refused_and_leaves_no_trace(mode: str) -> None:
    model = clip_model()
    before = sorted(model.state_dict())
    for name, other in (("v1.2", "v1_2"), ("copy", "copy_1"), ("", "_1")):
        message = rf"name without a dot.*, got '{name}': call it '{other}'"
        with pytest.raises(ResiDualError, match=message):
            get_peft_model(model, ResiDualConfig(mode=mode), adapter_name=name)
        assert sorted(model.state_dict()) == before
        one = get_peft_model(clip_model(), ResiDualConfig(mode=mode))
        with pytest.raises(ResiDualError, match=message):
            one.add_weighted_adapter(["default"], [1], name)
        one.double()  # as all of one adapter


def test_layers_that_are_not_there_are_refused() -> None:
    base = clip_model()
    with pytest.raises(ResiDualError, match=r"layers_to_transform=\[1, 5\].*2 layers, 0 to 1"):
        get_peft_model(base, ResiDualConfig(layers_to_transform=[1, 5]))
    assert not any(isinstance(m, ResiDualReadout) for m in base.modules())


def test_other_target_modules_are_refused() -> None:
    with pytest.raises(ResiDualError, match=r"target_modules=\['fc1'\].*at 'visual_projection'"):
        get_peft_model(clip_model(), ResiDualConfig(target_modules=["fc1"]))


def test_unknown_architectures_are_refused() -> None:
    with pytest.raises(ResiDualError, match="the architecture Linear is not known"):
        get_peft_model(nn.Linear(2, 2), ResiDualConfig())


def test_the_users_config_is_not_written_to() -> None:
    config = ResiDualConfig(units=("head",))
    for builder in (clip_model, clip_vision_model):
        model = get_peft_model(builder(Size()), config)
        assert model.peft_config["default"].component_counts is not None
    assert config == ResiDualConfig(units=("head",))


def test_status_names_the_adapters() -> None:
    model = adapted()
    model.add_adapter("other", ResiDualConfig())
    status = model.get_model_status()
    assert status.available_adapters == ["default", "other"]
    assert status.active_adapters == ["default"]
    assert status.enabled is True
    assert status.trainable_params == len(gains_of(model))
