"""Numbers that no adapter and no basis has are refused where they enter, in one line."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from residual_peft import SpectralBasis
from residual_peft.errors import ResiDualError
from residual_peft.tuner import (
    ResiDualConfig,
    adapter_basis,
    fit_bases,
    gains_by_module,
    hotswap_adapter,
    put_basis,
)
from residual_peft.tuner.saved import LARGEST_GAIN
from tests.models import Size, clip_model, clip_vision_model_with_projection, pixels
from tests.pairs import table

MODES = ("readout", "stream")
SMALL = Size(layers=1)
INF, NAN = float("inf"), float("nan")
FINITE = "NaN or infinite"


def base() -> Any:
    return clip_vision_model_with_projection(SMALL)


@pytest.fixture(scope="module")
def fitted() -> SpectralBasis:
    return SpectralBasis.fit(base(), [pixels(40, SMALL)], ("embed", "head", "mlp"))


def scaled(tensors: list[Tensor], factor: float) -> list[Tensor]:
    return [tensors[0], tensors[1] * factor, *tensors[2:]]


def turned(tensors: list[Tensor]) -> list[Tensor]:
    """Each row still of length one, but two of them alike."""
    first = tensors[1].clone()
    first[1] = first[0]
    return [tensors[0], first, *tensors[2:]]


BASES: dict[str, tuple[Callable[[SpectralBasis], SpectralBasis], str]] = {
    "mean NaN": (lambda b: replace(b, means=b.means * NAN), f"{FINITE} values in means"),
    "mean large": (lambda b: replace(b, means=b.means + 1e30), "hold means from 1e\\+30"),
    "component inf": (
        lambda b: replace(b, components=scaled(b.components, INF)),
        "directions of layer0.head0 are not orthonormal",
    ),
    "component long": (
        lambda b: replace(b, components=scaled(b.components, 1.05)),
        "directions of layer0.head0 are not orthonormal \\(off by 1.0e-01",
    ),
    "components alike": (
        lambda b: replace(b, components=turned(b.components)),
        "directions of layer0.head0 are not orthonormal \\(off by 1.0e\\+00",
    ),
    "eigenvalue negative": (
        lambda b: replace(b, eigenvalues=scaled(b.eigenvalues, -1)),
        "hold eigenvalues from -",
    ),
    "eigenvalue NaN": (
        lambda b: replace(b, eigenvalues=scaled(b.eigenvalues, NAN)),
        f"{FINITE} values in eigenvalues",
    ),
    "total NaN": (
        lambda b: replace(b, total_variance=b.total_variance * NAN),
        f"{FINITE} values in total_variance",
    ),
    "total negative": (
        lambda b: replace(b, total_variance=-b.total_variance),
        "hold total_variance from -",
    ),
}


@table("fault", BASES)
def test_a_basis_that_is_none_is_refused(fault: str, fitted: SpectralBasis, tmp_path: Path) -> None:
    spoil, message = BASES[fault]
    config = ResiDualConfig(units=("embed", "head", "mlp"))
    model = get_peft_model(base(), config).eval()
    with torch.no_grad():
        for gains in gains_by_module(model).values():
            gains.fill_(1.5)
    before = model(pixels(5, SMALL)).image_embeds
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ResiDualError, match=message):
        put_basis(model, spoil(fitted))
    assert torch.equal(model(pixels(5, SMALL)).image_embeds, before)
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert model.peft_config["default"].basis_source == "weights"
    put_basis(model, fitted)  # as it was, it goes


def test_a_basis_in_half_precision_is_one(fitted: SpectralBasis, tmp_path: Path) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        fitted.save_pretrained(tmp_path, dtype=dtype)
        config = ResiDualConfig(units=("head", "mlp"), basis=str(tmp_path))
        get_peft_model(base(), config)


@pytest.fixture(scope="module", params=MODES)
def saved(request: Any, tmp_path_factory: Any) -> Path:
    folder: Path = tmp_path_factory.mktemp("adapter")
    model = get_peft_model(base(), ResiDualConfig(mode=request.param))
    fit_bases(model, [pixels(40, SMALL)])
    model.save_pretrained(folder)
    return folder


# what says so first: the look at a file, or at the numbers together
ADAPTERS = [
    ("gains", NAN, FINITE),
    ("gains", 3e38, r"hold gains from 3e\+38"),
    ("eigenvalues", -1.0, "hold eigenvalues from -1"),
    ("total_variance", -1.0, "hold total_variance from -1"),
    ("components|directions", 3e38, r"not orthonormal|hold \w+ from 3e\+38"),
    ("components|directions", 0.3, "not orthonormal"),
    ("means|input_mean", 3e38, r"hold \w+ from 3e\+38"),
]


def spoiled(saved: Path, folder: Path, names: str, value: float) -> Path:
    for file in saved.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tensors = load_file(folder / "adapter_model.safetensors")
    wanted = names.split("|")
    keys = [key for key in tensors if key.endswith(tuple(f"_{name}" for name in wanted))]
    key = next(key for key in keys if tensors[key].numel())
    tensors[key] = torch.full_like(tensors[key], value)
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    return folder


def loaded_by_transformers(folder: Path) -> Any:
    model = base()
    model.load_adapter(str(folder))
    return model


@table(("names", "value", "message"), ADAPTERS)
def test_an_adapters_file_is_refused_by_every_door(
    saved: Path, names: str, value: float, message: str, tmp_path: Path
) -> None:
    folder = spoiled(saved, tmp_path, names, value)
    with pytest.raises(ResiDualError, match=message):
        PeftModel.from_pretrained(base(), folder)
    model = PeftModel.from_pretrained(base(), saved).eval()
    before = model(pixels(5, SMALL)).image_embeds
    with pytest.raises(ResiDualError, match=message):
        model.load_adapter(folder, "other")
    assert torch.equal(model(pixels(5, SMALL)).image_embeds, before)
    if names == "gains":
        with pytest.raises(ResiDualError, match=message):
            hotswap_adapter(model, folder)
        assert torch.equal(model(pixels(5, SMALL)).image_embeds, before)
    # transformers tells nobody what it puts in: NaN is what waits for a file
    with pytest.raises(ResiDualError, match=f"{message}|waits for the weights"):
        loaded_by_transformers(folder)(pixels(5, SMALL))


@table(("names", "value", "message"), ADAPTERS)
def test_a_whole_models_state_is_refused(
    saved: Path, names: str, value: float, message: str
) -> None:
    model = PeftModel.from_pretrained(base(), saved)
    state = model.state_dict()
    ends = tuple(f"_{name}.default" for name in names.split("|"))
    key = next(key for key in state if key.endswith(ends) and state[key].numel())
    with pytest.raises(ResiDualError, match=message):
        model.load_state_dict(state | {key: torch.full_like(state[key], value)})
    with pytest.raises(ResiDualError, match=f"{message}|waits for the weights"):
        model(pixels(5, SMALL))  # and it is not used as it is
    whole = PeftModel.from_pretrained(base(), saved)
    model.load_state_dict(whole.state_dict())
    assert torch.equal(model(pixels(5, SMALL)).image_embeds, whole(pixels(5, SMALL)).image_embeds)


@pytest.mark.parametrize("mode", MODES)
def test_the_largest_gains_give_finite_scores(mode: str) -> None:
    model = get_peft_model(base(), ResiDualConfig(mode=mode)).eval()
    state = model.state_dict()
    gains = {
        key: torch.full_like(value, LARGEST_GAIN) for key, value in state.items() if "gains" in key
    }
    model.load_state_dict(state | gains)
    embeds = model(pixels(5, SMALL)).image_embeds
    assert bool(torch.nn.functional.normalize(embeds, dim=-1).isfinite().all())


def test_a_stream_basis_by_reference_is_looked_at(saved: Path, tmp_path: Path) -> None:
    if "stream" not in (saved / "adapter_config.json").read_text():
        return
    folder = spoiled(saved, tmp_path, "directions", 0.3)
    with pytest.raises(ResiDualError, match=r"the basis of the adapter .* not orthonormal"):
        get_peft_model(base(), ResiDualConfig(mode="stream", basis=str(folder)))


@pytest.mark.parametrize("kind", ["from weights", "fitted"])
def test_bases_of_our_own_pass(kind: str) -> None:
    model = get_peft_model(clip_model(), ResiDualConfig(units=("embed", "head", "mlp")))
    if kind == "fitted":
        fit_bases(model, [pixels(8)])  # fewer images than directions
    put_basis(model, adapter_basis(model))
