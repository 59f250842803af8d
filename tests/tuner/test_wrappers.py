"""What others make of an adapted model: replicas, regional compilation, accelerate's wrappers."""

import copy
import importlib
import inspect
import io
import json
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import compile_regions
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch._dynamo.eval_frame import OptimizedModule
from transformers import CLIPModel

from residual_peft.errors import ResiDualError
from residual_peft.tuner import ResiDualConfig, gains_by_module
from residual_peft.tuner.readout.layer import readouts
from tests.models import Size, clip_model, pixels
from tests.pairs import table
from tests.pooled import POOLED

replicating = importlib.import_module("torch.nn.parallel.replicate")

TEXT = torch.randint(2, 60, (5, 8), generator=torch.Generator().manual_seed(0))
TEXT[:, -1] = 63
# they look at values on the way, and the device of the test has none
READ_VALUES = (
    *("Siglip2Model", "Siglip2VisionModel", "Siglip2Model, mean"),
    *("Siglip2ForImageClassification", "BlipForImageTextRetrieval"),
)
MODES = ("readout", "stream")


def with_peft(model: nn.Module, config: Any) -> Any:
    """PEFT's own door."""
    return get_peft_model(model, config)


def with_transformers(model: Any, config: Any) -> Any:
    """Transformers' own door, where there is no PeftModel around the model."""
    model.add_adapter(config)
    return model


DOORS = (with_peft, with_transformers)


def moved(model: nn.Module) -> Any:
    """The same with gains away from one, ready to be run."""
    generator = torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        if "residual_peft_gains" in name:
            parameter.data += 0.5 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def images(model: Any, given: Tensor | None = None) -> Tensor:
    """The embeddings of images alone."""
    output = model(pixel_values=pixels() if given is None else given)
    return output.image_embeds if "image_embeds" in output else output.pooler_output


def pairs(model: Any, given: Tensor | None = None) -> Tensor:
    """The embeddings of images beside texts."""
    given = pixels() if given is None else given
    found: Tensor = model(input_ids=TEXT.to(given.device), pixel_values=given).image_embeds
    return found


# --- replicas


@pytest.fixture
def replicas_on_meta(monkeypatch: pytest.MonkeyPatch) -> Callable[[nn.Module], list[Any]]:
    """Replicate to a second device that every machine has; what stays behind cannot be mixed in."""

    def broadcast(tensors: Any, devices: Any, detach: bool = False) -> Any:
        return [[tensor.to("meta") for tensor in tensors] for _ in devices]

    own = torch.autocast  # knows no such device

    def autocast(kind: str, *args: Any, **kwargs: Any) -> Any:
        return own("cpu" if kind == "meta" else kind, *args, **kwargs)

    monkeypatch.setattr(torch, "autocast", autocast)
    monkeypatch.setattr(replicating, "_broadcast_coalesced_reshape", broadcast)
    monkeypatch.setattr(replicating, "_get_device_index", lambda device, *_: device)
    return lambda model: replicating.replicate(model, [0, 1], detach=True)


@pytest.mark.parametrize("mode", MODES)
@table("make", DOORS)
@table("run", [images, pairs])
def test_a_replica_runs_on_its_own_device(
    replicas_on_meta: Any, mode: str, make: Any, run: Any
) -> None:
    model = moved(make(clip_model(), ResiDualConfig(mode=mode)))
    with torch.no_grad():
        wanted = run(model)
        for replica in replicas_on_meta(model):
            found = run(replica, pixels().to("meta"))
            assert (found.device.type, found.shape) == ("meta", wanted.shape)
        assert torch.equal(run(model), wanted)


@table("kind", [kind for kind in POOLED if kind not in READ_VALUES])
def test_every_kind_of_readout_follows_its_replica(replicas_on_meta: Any, kind: str) -> None:
    case = POOLED[kind]
    model = moved(get_peft_model(case.build(), ResiDualConfig(**dict(case.options))))
    (layer,) = readouts(model)
    anatomy = layer.anatomy
    batch = {name: tensor.to("meta") for name, tensor in case.batch().items()}
    with torch.no_grad():
        (replica, _) = replicas_on_meta(model)
        there = replica.get_base_model()
        if anatomy.side == "image" and hasattr(there, "text_model"):
            assert there(**batch)[0].device.type == "meta"
        else:
            run = getattr(there, f"get_{anatomy.side}_features", there)
            assert run(**batch)[0].device.type == "meta"


def test_replicas_compute_what_the_model_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    def broadcast(tensors: Any, devices: Any, detach: bool = False) -> Any:
        return [[tensor.clone() for tensor in tensors] for _ in devices]

    monkeypatch.setattr(replicating, "_broadcast_coalesced_reshape", broadcast)
    monkeypatch.setattr(replicating, "_get_device_index", lambda device, *_: device)
    for mode in MODES:
        model = moved(get_peft_model(clip_model(), ResiDualConfig(mode=mode)))
        replicas = replicating.replicate(model, [0, 1])
        inputs = [pixels(seed=seed) for seed in (1, 2)]
        with ThreadPoolExecutor(2) as pool:
            found = list(pool.map(images, replicas, inputs))
        for output, given in zip(found, inputs, strict=True):
            assert torch.equal(output, images(model, given))
        torch.cat(found).square().sum().backward()
        for name, gains in gains_by_module(model).items():
            assert gains.grad is not None, name
            assert bool(gains.grad.any())


def test_what_a_replica_needs_is_moved_once(replicas_on_meta: Any) -> None:
    model = moved(get_peft_model(clip_model(), ResiDualConfig()))
    (layer,) = readouts(model)
    for _ in range(3):
        images(replicas_on_meta(model)[0], pixels().to("meta"))
    assert len(layer._moved) == 1
    layer.refresh("default")
    images(replicas_on_meta(model)[0], pixels().to("meta"))
    assert len(layer._moved) == 1


# --- regional compilation


@pytest.fixture
def compiled_calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[nn.Module]]:
    """The compiled modules that are called."""
    torch._dynamo.reset()
    calls: list[nn.Module] = []
    own: Any = OptimizedModule.__call__

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(self)
        return own(self, *args, **kwargs)

    monkeypatch.setattr(OptimizedModule, "__call__", counted)
    yield calls
    torch._dynamo.reset()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("make", DOORS)
def test_regional_compilation_compiles_the_blocks(
    compiled_calls: list[nn.Module], mode: str, make: Any
) -> None:
    model = moved(make(clip_model(), ResiDualConfig(mode=mode)))
    with torch.no_grad():
        wanted = images(model), pairs(model)
        compiled = compile_regions(model, backend="eager")
        for run, expected in zip((images, pairs), wanted, strict=True):
            compiled_calls.clear()
            torch.testing.assert_close(run(compiled), expected)
            assert len(compiled_calls) >= 3  # both blocks and what reads them


@pytest.mark.parametrize("mode", MODES)
def test_no_block_is_compiled_for_its_number(mode: str) -> None:
    """From the ninth on it would not be compiled."""
    graphs: list[int] = []
    for layers in (3, 10):
        deep = moved(get_peft_model(clip_model(Size(layers=layers)), ResiDualConfig(mode=mode)))
        torch._dynamo.reset()
        seen: list[nn.Module] = []

        def counting(graph: nn.Module, _: Any, seen: list[nn.Module] = seen) -> nn.Module:
            seen.append(graph)
            return graph

        with torch.no_grad():
            images(compile_regions(deep, backend=counting))
        graphs.append(len(seen))
    torch._dynamo.reset()
    assert graphs[0] == graphs[1] >= 3


# --- accelerate


@pytest.fixture(autouse=True)
def _one_accelerator() -> Iterator[None]:
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


@pytest.mark.parametrize("mode", MODES)
@table("make", DOORS)
@table("run", [images, pairs])
def test_accelerate_prepares_and_unwraps(mode: str, make: Any, run: Any) -> None:
    model = moved(make(clip_model(), ResiDualConfig(mode=mode)))
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    with torch.no_grad():
        wanted = run(model)
        prepared = accelerator.prepare(model)
        rounded = run(prepared)
        assert rounded.dtype == torch.float32
        assert 0 < float((rounded - wanted).abs().max()) < 0.1
        kept = accelerator.unwrap_model(prepared, keep_fp32_wrapper=True)
        assert torch.equal(run(kept), rounded)
        plain = accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
        assert torch.equal(run(plain), wanted)
        base = plain.unload() if isinstance(plain, PeftModel) else plain
        if base is plain:
            plain.delete_adapter("default")
        assert type(base) is CLIPModel
        assert torch.equal(pairs(base), pairs(clip_model()))
        with pytest.raises(Exception, match=r"input_ids|size"):
            images(base)


# --- the class that takes the model's place


@pytest.mark.parametrize("mode", MODES)
def test_the_last_adapter_takes_the_forward_with_it(mode: str) -> None:
    config = ResiDualConfig(mode=mode)
    unloaded = get_peft_model(clip_model(), config).unload()
    deleted = get_peft_model(clip_model(), config)
    deleted.add_adapter("other", config)
    deleted.delete_adapter("default")
    assert images(deleted).shape == (5, 16)  # there is one yet
    deleted.delete_adapter("other")
    own = with_transformers(clip_model(), config)
    own.add_adapter(config, "other")
    own.delete_adapter(["default"])
    assert images(own).shape == (5, 16)
    own.delete_adapter("other")
    for base in (unloaded, deleted.base_model.model, own):
        assert type(base) is CLIPModel
        assert not [name for name in vars(base) if name.startswith("_residual_peft")]
        assert torch.equal(pairs(base), pairs(clip_model()))
        with pytest.raises(ValueError, match=r"input_ids"):
            images(base)
        tower = base.vision_model
        assert not tower._forward_pre_hooks
        assert not tower._forward_hooks
    own.add_adapter(config)  # and it may come back
    assert images(own).shape == (5, 16)


def test_the_adapted_class_passes_for_the_models_own(tmp_path: Path) -> None:
    model = with_transformers(clip_model(), ResiDualConfig())
    assert isinstance(model, CLIPModel)
    assert type(model) is type(with_transformers(clip_model(), ResiDualConfig()))
    assert str(type(model)) == str(CLIPModel)
    assert inspect.signature(model.forward) == inspect.signature(clip_model().forward)
    assert inspect.signature(type(model).forward) == inspect.signature(CLIPModel.forward)
    peft = get_peft_model(clip_model(), ResiDualConfig())
    peft.save_pretrained(tmp_path / "adapter")
    saved = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert saved["auto_mapping"]["base_model_class"] == "CLIPModel"
    assert saved["auto_mapping"]["parent_library"] == CLIPModel.__module__
    peft.get_base_model().save_pretrained(tmp_path / "base")
    assert json.loads((tmp_path / "base" / "config.json").read_text())["architectures"] == [
        "CLIPModel"
    ]
    hidden = model(pixel_values=pixels(), input_ids=TEXT, output_hidden_states=True)
    assert len(hidden.vision_model_output.hidden_states) == 3


@pytest.mark.parametrize("mode", MODES)
@table("make", DOORS)
def test_copies_are_whole(mode: str, make: Any) -> None:
    model = moved(make(clip_model(), ResiDualConfig(mode=mode)))
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    copies = [
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(buffer, weights_only=False),
    ]
    wanted = images(model)
    for clone in copies:
        assert type(clone) is type(model)
        assert torch.equal(images(clone), wanted)
        for gains in gains_by_module(clone).values():
            gains.data.fill_(1.0)
        assert not torch.allclose(images(clone), wanted)
        base = clone.unload() if isinstance(clone, PeftModel) else clone
        if base is clone:
            clone.delete_adapter("default")
        assert type(base) is CLIPModel
        assert torch.equal(pairs(base), pairs(clip_model()))
    assert torch.equal(images(model), wanted)


@table("make", DOORS)
@table("run", [images, pairs])
def test_a_dual_encoder_compiles_in_one_graph(make: Any, run: Any) -> None:
    torch._dynamo.reset()
    model = moved(make(clip_model(Size(layers=1)), ResiDualConfig()))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(run(compiled), run(model))
    torch._dynamo.reset()


def test_beside_lora_the_forward_goes_with_the_last_of_ours() -> None:
    model = clip_model()
    model.add_adapter(ResiDualConfig(mode="stream"), "ours")
    model.add_adapter(LoraConfig(target_modules=["q_proj"]), "lora")
    model.delete_adapter("ours")
    assert type(model) is CLIPModel
    with pytest.raises((ValueError, ResiDualError), match=r"input_ids"):
        images(model)
