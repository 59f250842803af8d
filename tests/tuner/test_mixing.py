"""Several adapters at once: one per sample (`adapter_names`), and weighted sums of adapters."""

import copy
import threading

import numpy as np
import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn

from residual_peft.errors import ResiDualError
from residual_peft.towers.running import run_tower
from residual_peft.tuner import (
    ResiDualConfig,
    ResiDualReadout,
    fit_bases,
    gains_of,
    mixing,
    readout_state,
)
from tests.models import BUILDERS, clip_model, pixels
from tests.pairs import in_turn, table
from tests.tuner.twin import IMAGES, adapted, expected, randomize_gains, relative

BASE = "__base__"
OTHERS = {
    "same basis": {},
    "drop": {"remainder": "drop"},
    "few": {"components": 2},
    "heads": {"units": ("head",), "restore_mean": False},
    "coarse": {"units": ("head",), "granularity": "unit", "restore_mean": False},
}
MIXES = {
    "one basis": ["default", "same basis", "same basis", "default", "same basis"],
    "with the base": [BASE, "default", BASE, "same basis", "default"],
    "base alone": [BASE] * 5,
    "every kind": ["few", "coarse", "drop", "heads", "default"],
    "two of a kind": ["coarse", "few", BASE, "few", "coarse"],
}


def several(builder: str = "CLIPModel", dtype: torch.dtype = torch.float32) -> PeftModel:
    model = adapted(builder=builder, dtype=dtype)
    for name, options in OTHERS.items():
        model.add_adapter(name, ResiDualConfig(**options))
        fit_bases(model, [pixels(IMAGES, seed=5).to(dtype)], name)
        randomize_gains(model, name, seed=len(name))
    return model.eval()


def named(model: PeftModel, images: torch.Tensor, names: list[str]) -> torch.Tensor:
    """The readout of a call as users make it."""
    output = model(pixel_values=images, adapter_names=names)
    return getattr(output, "image_embeds", output.pooler_output if "pooler_output" in output else 0)


def alone(model: PeftModel, images: torch.Tensor, names: list[str]) -> torch.Tensor:
    rows = []
    for row, name in enumerate(names):
        if name == BASE:
            with model.disable_adapter():
                rows.append(run_tower(model, images[row : row + 1]))
        else:
            model.set_adapter(name)
            rows.append(run_tower(model, images[row : row + 1]))
    return torch.cat(rows)


@table("builder", BUILDERS)
@table("mix", MIXES)
def test_each_sample_gets_what_its_adapter_gives_alone(builder: str, mix: str) -> None:
    model, images, names = several(builder), pixels(5), MIXES[mix]
    wanted = alone(model, images, names)
    model.set_adapter("few")  # the active one plays no part
    assert relative(named(model, images, names), wanted) < 1e-6
    assert relative(named(model, images, names[::-1]), alone(model, images, names[::-1])) < 1e-6


def test_each_sample_equals_the_definition_in_float64() -> None:
    model, images = several(dtype=torch.float64), pixels(5).double()
    names = MIXES["every kind"]
    base = clip_model().double()
    wanted = [expected(base, model, images[i : i + 1], name) for i, name in enumerate(names)]
    assert relative(named(model, images, names), torch.cat(wanted)) < 1e-10


def test_text_beside_the_images_and_a_tuple_of_names() -> None:
    model, names = several(), tuple(MIXES["with the base"])
    tokens = torch.randint(0, 60, (3, 7))
    with torch.no_grad():
        found = model(pixel_values=pixels(), input_ids=tokens, adapter_names=names)
    assert relative(found.image_embeds, nn.functional.normalize(alone(model, pixels(), names))) < (
        1e-6
    )
    assert found.logits_per_image.shape == (5, 3)


def test_adapters_over_one_basis_take_coordinates_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = several(), []
    original = mixing.coordinates_of

    def count(state, capture):
        seen.append(len(capture.stream))
        return original(state, capture)

    monkeypatch.setattr(mixing, "coordinates_of", count)
    named(model, pixels(5), MIXES["with the base"])
    assert seen == [3]
    named(model.to(torch.float64), pixels(5).double(), MIXES["one basis"])
    assert seen == [3, 5]
    assert readout_state(model, "default") is readout_state(model, "same basis")


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_pre_hooks) for module in model.modules())


def test_nothing_is_left_behind_even_when_the_forward_raises() -> None:
    model = several()
    before, wanted = hooks(model), run_tower(model, pixels())
    named(model, pixels(), MIXES["every kind"])
    with pytest.raises(
        ResiDualError, match="should be the same as the number of inputs, but got 2"
    ):
        named(model, pixels(), ["default", "few"])
    assert hooks(model) == before
    assert torch.equal(run_tower(model, pixels()), wanted)


def test_disabled_adapters_stay_off() -> None:
    model = several()
    with model.disable_adapter():
        found = named(model, pixels(), MIXES["every kind"])
    assert torch.equal(found, run_tower(clip_model(), pixels()))


@table(
    ("names", "message"),
    [
        (
            ["default", "oops", BASE, "typo", "few"],
            r"non-existing adapter\(s\): oops, typo; the mo",
        ),
        ("default", "adapter_names: wanted a list of names"),
        ([0, 1, 2, 3, 4], "adapter_names: wanted a list of names"),
        ([], "Length of `adapter_names` should be the same"),
    ],
)
def test_names_that_do_not_fit_are_refused(names: list[str], message: str) -> None:
    model = several()
    with pytest.raises(ResiDualError, match=message):
        named(model, pixels(), names)


def test_in_training_mode_names_are_refused_as_peft_does() -> None:
    model = several().train()
    with pytest.raises(ResiDualError, match="Cannot pass `adapter_names` when the model is in tra"):
        named(model, pixels(), MIXES["one basis"])


def test_names_of_one_thread_do_not_reach_another() -> None:
    model, images = several(), pixels(5)
    model.set_adapter("default")
    wanted = {None: run_tower(model, images).detach()}
    for mix in ("one basis", "every kind"):
        wanted[mix] = alone(model, images, MIXES[mix]).detach()
    model.set_adapter("default")
    start, wrong = threading.Barrier(3), []

    def work(mix: str | None) -> None:
        start.wait()
        for _ in range(15):
            found = named(model, images, MIXES[mix]) if mix else run_tower(model, images)
            if relative(found.detach(), wanted[mix]) > 1e-6:
                wrong.append(mix)

    threads = [threading.Thread(target=work, args=(mix,)) for mix in wanted]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    model, images = several().to(dtype), pixels(5).to(dtype)
    names = MIXES["every kind"]
    found = named(model, images, names)
    assert found.dtype == dtype
    assert relative(found, alone(model, images, names)) < 0.02


# --- weighted sums


@in_turn(
    builder=BUILDERS,
    options=[{}, {"remainder": "drop"}, OTHERS["coarse"]],
)
def test_a_weighted_sum_of_adapters_adds_what_they_change(builder: str, options: dict) -> None:
    model = adapted(ResiDualConfig(**options), builder=builder, dtype=torch.float64)
    for seed, name in enumerate("bc"):
        model.add_adapter(name, ResiDualConfig(**options))
        fit_bases(model, [pixels(IMAGES, seed=5).double()], name)
        randomize_gains(model, name, seed=seed)
    images, changes = pixels().double(), []
    neutral = 1.0 if options.get("remainder") != "drop" else 0.0
    model.add_adapter("nothing", ResiDualConfig(**options))
    fit_bases(model, [pixels(IMAGES, seed=5).double()], "nothing")
    gains_of(model, "nothing").data.fill_(neutral)
    outputs = {}
    for name in ("nothing", "default", "b", "c"):
        model.set_adapter(name)
        outputs[name] = run_tower(model, images).detach()
    model.add_weighted_adapter(["default", "b", "c"], [0.5, -1.25, 2], "sum")
    assert model.active_adapter == "c"
    assert not gains_of(model, "sum").requires_grad
    model.set_adapter("sum")
    assert gains_of(model, "sum").requires_grad
    changes = [
        weight * (outputs[name] - outputs["nothing"])
        for name, weight in (("default", 0.5), ("b", -1.25), ("c", 2.0))
    ]
    assert relative(run_tower(model, images).detach(), outputs["nothing"] + sum(changes)) < 1e-6
    # the slow twin of the gains themselves
    wanted = [
        neutral
        + 0.5 * (float(a) - neutral)
        - 1.25 * (float(b) - neutral)
        + 2 * (float(c) - neutral)
        for a, b, c in zip(*(gains_of(model, name) for name in ("default", "b", "c")), strict=True)
    ]
    assert torch.allclose(gains_of(model, "sum").double(), torch.tensor(wanted).double(), atol=1e-6)


def test_the_sum_of_one_is_that_one_and_saves_by_itself(tmp_path) -> None:
    model = several()
    model.add_weighted_adapter(["default"], [1.0], "twin")
    model.add_weighted_adapter(["default", "same basis"], [0.0, 0.0], "none")
    wanted = run_tower(model, pixels())
    model.set_adapter("twin")
    assert torch.equal(run_tower(model, pixels()), wanted)
    assert gains_of(model, "twin") is not gains_of(model, "default")
    model.set_adapter("none")
    assert relative(run_tower(model, pixels()), run_tower(clip_model(), pixels())) < 1e-6
    model.save_pretrained(tmp_path, selected_adapters=["twin"])
    loaded = PeftModel.from_pretrained(clip_model(), tmp_path / "twin")
    assert torch.equal(run_tower(loaded, pixels()), wanted)


def test_a_sum_costs_gains_alone_and_goes_again() -> None:
    model = several()
    layer = next(m for m in model.modules() if isinstance(m, ResiDualReadout))
    weights = [np.float32(0.3), torch.tensor(0.7)]  # as other libraries have numbers
    model.add_weighted_adapter(["default", "same basis"], weights, "sum")
    for mine, theirs in zip(
        layer.stored("sum").tensors, layer.stored("default").tensors, strict=True
    ):
        assert mine is theirs
    assert readout_state(model, "sum") is readout_state(model, "default")
    clone = copy.deepcopy(model)
    assert readout_state(clone, "sum") is readout_state(clone, "default")
    model.delete_adapter("sum")
    assert "sum" not in model.peft_config
    assert not [key for key in model.state_dict() if key.endswith(".sum")]


@table(
    ("adapters", "weights", "name", "message"),
    [
        (["default", "few"], [1, 1], "sum", "'default' and 'few' do not share one basis"),
        (
            ["default", "drop"],
            [1, 1],
            "sum",
            "do not share one basis with the same modules",
        ),
        (["default", "oops"], [1, 1], "sum", "there are no adapters 'oops' to combine; the model"),
        (["default", "same basis"], [1], "sum", "wanted a list of adapters and a weight for each"),
        ([], [], "sum", "wanted a list of adapters and a weight for each"),
        ("default", [1], "sum", "wanted a list of adapters and a weight for each"),
        (["default"], [1], "few", "has an adapter 'few' already"),
        (["default"], [float("nan")], "sum", "weights: wanted finite numbers, got"),
        (["default"], ["1"], "sum", "weights: wanted finite numbers, got"),
    ],
)
def test_sums_that_mean_nothing_are_refused_and_change_nothing(
    adapters, weights, name, message
) -> None:
    model = several()
    before = list(model.state_dict())
    with pytest.raises(ResiDualError, match=message):
        model.add_weighted_adapter(adapters, weights, name)
    assert list(model.state_dict()) == before
    assert list(model.peft_config) == ["default", *OTHERS]


def test_adapters_of_other_images_are_not_summed() -> None:
    model = get_peft_model(clip_model(), ResiDualConfig())
    model.add_adapter("b", ResiDualConfig())
    model.add_weighted_adapter(["default", "b"], [1, 1], "sum")  # both from the weights
    fit_bases(model, [pixels(IMAGES, seed=6)], "b")
    with pytest.raises(ResiDualError, match="do not share one basis"):
        model.add_weighted_adapter(["default", "b"], [1, 1], "more")


def test_whole_modules_are_not_summed() -> None:
    model = get_peft_model(clip_model(), ResiDualConfig(modules_to_save=["text_projection"]))
    with pytest.raises(ResiDualError, match="'default' have modules_to_save, whole modules of"):
        model.add_weighted_adapter(["default"], [1], "sum")
