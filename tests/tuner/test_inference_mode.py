"""What is prepared under `torch.inference_mode` can be trained afterwards."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import nn

from residual_peft import ZeroShotClassifier
from residual_peft.tuner import ResiDualConfig, adapter_basis, fit_bases, gains_by_module, put_basis
from tests.models import Size, clip_model, pixels
from tests.pairs import in_turn
from tests.tokenizers import VOCABULARY, clip_tokenizer

MODES = ("readout", "stream")
SMALL = Size(layers=1)
NAMES = ["dark", "grey", "light"]


def base() -> Any:
    """Made outside: gradients cannot pass weights that were made in inference mode."""
    with torch.inference_mode(False):
        return clip_model(SMALL, vocab_size=VOCABULARY)


def adapted(mode: str) -> Any:
    return get_peft_model(base(), ResiDualConfig(mode=mode))


def fitted(mode: str, folder: Path) -> Any:
    model = adapted(mode)
    fit_bases(model, [pixels(40, SMALL)])
    return model


def given_a_basis(mode: str, folder: Path) -> Any:
    model = adapted(mode)
    if mode == "readout":
        put_basis(model, adapter_basis(model))
    return model


def loaded(mode: str, folder: Path) -> Any:
    adapted(mode).save_pretrained(folder)
    return PeftModel.from_pretrained(base(), folder, is_trainable=True)


def loaded_by_assignment(mode: str, folder: Path) -> Any:
    adapted(mode).save_pretrained(folder)
    return PeftModel.from_pretrained(base(), folder, is_trainable=True, low_cpu_mem_usage=True)


def loaded_by_transformers(mode: str, folder: Path) -> Any:
    adapted(mode).save_pretrained(folder)
    model = base()
    model.load_adapter(str(folder), is_trainable=True)
    return model


def assigned(mode: str, folder: Path) -> Any:
    """A whole state whose tensors take the place of the model's own."""
    model = adapted(mode)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ours = {name: tensor for name, tensor in state.items() if "residual_peft" in name}
    model.load_state_dict(ours, strict=False, assign=True)
    return model


def combined(mode: str, folder: Path) -> Any:
    model = adapted(mode)
    model.base_model.add_weighted_adapter(["default"], [0.5], "sum")
    model.set_adapter("sum")
    return model


def run(mode: str, folder: Path) -> Any:
    model = adapted(mode)
    model(pixel_values=pixels(5, SMALL))
    return model


WAYS = [
    *(fitted, given_a_basis, loaded, loaded_by_assignment, loaded_by_transformers),
    *(assigned, combined, run),
]


@in_turn(
    mode=MODES,
    prepare=WAYS,
)
def test_it_can_be_trained(
    mode: str, prepare: Callable[[str, Path], nn.Module], tmp_path: Path
) -> None:
    with torch.inference_mode():
        model = prepare(mode, tmp_path / "inside")
        classifier = ZeroShotClassifier.from_text(model, clip_tokenizer(), NAMES, "a {}.")
    usual = prepare(mode, tmp_path / "outside")
    reference = ZeroShotClassifier.from_text(usual, clip_tokenizer(), NAMES, "a {}.")
    labels = torch.arange(5) % 3
    gradients = []
    for one, judge in ((model, classifier), (usual, reference)):
        for gains in gains_by_module(one).values():
            gains.requires_grad_(True)
        judge.loss(one(pixel_values=pixels(5, SMALL)), labels).backward()
        gradients.append([gains.grad for gains in gains_by_module(one).values()])
    assert all(bool(gradient.any()) for gradient in gradients[0])
    for found, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(found, wanted)


def test_under_no_grad_nothing_is_recorded() -> None:
    with torch.no_grad():
        model = fitted("readout", Path())
        assert not torch.is_grad_enabled()
    assert not any(tensor.requires_grad for tensor in model.state_dict(keep_vars=False).values())
