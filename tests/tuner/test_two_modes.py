"""One model has adapters of one mode, whichever door they come by; a refusal leaves nothing."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from residual_peft.tuner import ResiDualConfig, gains_by_module
from tests.models import clip_model, pixels
from tests.pairs import table

MODES = ("readout", "stream")
REFUSED = r"wanted an adapter with mode='{}' like '\w+', which the model has, got mode='{}'"


def by_peft(model: Any, config: Any, name: str) -> Any:
    """Wrapped, and wrapped once more where it was."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    return get_peft_model(base, config, adapter_name=name)


def by_peft_again(model: Any, config: Any, name: str) -> Any:
    """Wrapped twice, with the wrapper inside."""
    return get_peft_model(model, config, adapter_name=name)


def by_add_adapter(model: Any, config: Any, name: str) -> Any:
    if not isinstance(model, PeftModel):
        return get_peft_model(model, config, adapter_name=name)
    model.add_adapter(name, config)
    return model


def by_transformers(model: Any, config: Any, name: str) -> Any:
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    base.add_adapter(config, name)
    return base


def embeds(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(pixel_values=pixels()).image_embeds
    return found


def picture(model: nn.Module) -> dict[str, Any]:
    """All that a refused adapter could have changed."""
    return {
        "modules": {name: type(module) for name, module in model.named_modules()},
        "tensors": {name: tensor.data_ptr() for name, tensor in model.state_dict().items()},
        "trained": [name for name, p in model.named_parameters() if p.requires_grad],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()],
        "configs": {n: id(c) for n, c in getattr(model, "peft_config", {}).items()},
        "class": type(model),
    }


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("first", [by_peft, by_transformers])
@table("second", [by_peft, by_peft_again, by_add_adapter, by_transformers])
@table("name", ["one", "other"])
def test_a_second_mode_is_refused(mode: str, first: Any, second: Any, name: str) -> None:
    other = MODES[1 - MODES.index(mode)]
    model = first(clip_model(), ResiDualConfig(mode=mode), "one")
    for gains in gains_by_module(model).values():
        gains.data.fill_(1.5)
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    before, wanted = picture(inner), embeds(model)
    taken = name == "one" and (first, second) in (
        (by_transformers, by_transformers),
        (by_peft, by_add_adapter),
    )
    why = "already exists" if taken else REFUSED.format(mode, other)  # theirs, or ours
    with pytest.raises(ValueError, match=why):
        second(model, ResiDualConfig(mode=other), name)
    assert picture(inner) == before
    assert torch.equal(embeds(model), wanted)


@pytest.mark.parametrize("mode", MODES)
def test_a_refused_first_adapter_leaves_a_bare_model(mode: str) -> None:
    base = clip_model()
    before = picture(base)
    wrong = ResiDualConfig(mode=mode, target_modules=["nowhere"])
    for door in (by_transformers, by_peft):
        with pytest.raises(ValueError, match=r"nowhere"):
            door(base, wrong, "one")
        assert picture(base) == before
        assert not base._hf_peft_config_loaded
    by_transformers(base, ResiDualConfig(mode=mode), "one")


@pytest.mark.parametrize("mode", MODES)
def test_after_the_last_of_one_mode_the_other_may_come(mode: str) -> None:
    other = MODES[1 - MODES.index(mode)]
    model = get_peft_model(clip_model(), ResiDualConfig(mode=mode))
    base = model.unload()
    again = get_peft_model(base, ResiDualConfig(mode=other))
    torch.testing.assert_close(
        embeds(again), embeds(get_peft_model(clip_model(), ResiDualConfig()))
    )


@pytest.mark.parametrize("mode", MODES)
def test_lora_may_be_there_first(mode: str) -> None:
    model = clip_model()
    model.add_adapter(LoraConfig(target_modules=["text_model.encoder.layers.0.mlp.fc1"]), "lora")
    model.add_adapter(ResiDualConfig(mode=mode), "ours")
    wanted = get_peft_model(clip_model(), ResiDualConfig(mode=mode))
    torch.testing.assert_close(embeds(model), embeds(wanted))
