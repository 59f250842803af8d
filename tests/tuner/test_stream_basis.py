"""Bases of stream mode against one full SVD of every head's stacked contributions."""

from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn

from residual_peft.errors import ResiDualError
from residual_peft.tuner import ResiDualConfig, fit_bases, gains_by_module
from tests.models import SIZES, clip_model, pixels
from tests.pairs import dealt, table
from tests.tuner.stream_twin import CASES, TOKENS, VECTORS, Mlp, adapted_stream, cast_batches
from tests.tuner.twin import relative

F64 = torch.float64


def run(model: Any, batch: Any) -> Any:
    if hasattr(model, "get_image_features"):
        return model.get_image_features(pixel_values=batch)
    if isinstance(batch, Tensor) and hasattr(model, "config"):
        batch = {"pixel_values": batch}
    return model(**batch) if isinstance(batch, dict) else model(batch)


def slow_contributions(base: nn.Module, path: str, batches: list, heads: int) -> list[Tensor]:
    """a_h = W_h z_h + b/H of every token that a Linear saw: H of (N, D)."""
    module: Any = base.get_submodule(path)
    inputs: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    with torch.no_grad():
        for batch in batches:
            run(base, batch)
    handle.remove()
    z = torch.cat([x.reshape(-1, x.shape[-1]) for x in inputs]).detach()
    weight = module.weight.detach()
    weight = weight if isinstance(module, nn.Linear) else weight.T
    bias = 0 if module.bias is None else module.bias.detach()
    size = z.shape[1] // heads
    return [
        z[:, h * size : (h + 1) * size] @ weight[:, h * size : (h + 1) * size].T + bias / heads
        for h in range(heads)
    ]


@pytest.mark.parametrize("case", CASES)
def test_one_pass_is_the_full_svd(case: str) -> None:
    what = CASES[case]
    base = what.build().to(F64)
    config = ResiDualConfig(mode="stream", target_modules=what.targets)
    model = get_peft_model(what.build().to(F64), config)
    batches = cast_batches(what.batches, F64)
    found = fit_bases(model, batches)
    assert isinstance(found, dict)
    assert found.keys() == gains_by_module(model).keys()
    for path, basis in found.items():
        written = slow_contributions(base, path, batches, len(basis.heads))
        for head, a in zip(basis.heads, written, strict=True):
            centred = a - a.mean(0)
            _, singular, right = torch.linalg.svd(centred, full_matrices=False)
            eigenvalues = singular.square() / (len(a) - 1)
            count = len(head.eigenvalues)
            assert relative(head.eigenvalues, eigenvalues[:count]) < 1e-10, path
            assert float(eigenvalues[count:].sum()) < 1e-10 * float(eigenvalues.sum())
            assert relative(head.mean, a.mean(0)) < 1e-10
            assert relative(head.total_variance, eigenvalues.sum()) < 1e-10
            strong = eigenvalues[:count] > 1e-6 * eigenvalues[0]
            cosines = (head.components * right[:count]).sum(1).abs()[strong]
            assert float((1 - cosines).max()) < 1e-8, path


@table(("case", "fit"), dealt(CASES, (False, True)))
def test_what_a_layer_keeps_is_what_was_found(case: str, fit: bool) -> None:
    model = adapted_stream(case, dtype=F64, fit=fit)
    for path in gains_by_module(model):
        layer = model.base_model.model.get_submodule(path)
        basis = layer.basis("default")
        components, maps = layer.state("default").directions, layer.state("default").maps
        mean = layer.residual_peft_input_mean["default"]
        size = layer.in_features // len(basis.heads)
        weight = layer.unmerged_weight
        bias = layer.linear.bias
        for h, head in enumerate(basis.heads):
            part = slice(h * size, (h + 1) * size)
            phi = head.components
            identity = torch.eye(len(phi), dtype=F64)
            assert float((phi @ phi.T - identity).abs().max()) < 1e-10
            assert float((maps[h, : len(phi)] - phi @ weight[:, part]).abs().max()) < 1e-10
            assert float(maps[h, len(phi) :].abs().sum()) == 0
            shared = 0 if bias is None else bias / len(basis.heads)
            assert float((head.mean - weight[:, part] @ mean[part] - shared).abs().max()) < 1e-10
        assert (not mean.any()) == (not fit)
        assert torch.equal(components, torch.cat([head.components for head in basis.heads]))


@table("size", SIZES)
def test_weights_alone_give_the_svd_of_each_heads_columns(size: str) -> None:
    base = clip_model(SIZES[size]).double()
    model = get_peft_model(base, ResiDualConfig(mode="stream"))
    for path in gains_by_module(model):
        layer = model.base_model.model.get_submodule(path)
        basis = layer.basis("default")
        expected_heads = SIZES[size].heads if "out_proj" in path else 1
        assert len(basis.heads) == expected_heads
        for part, head in zip(layer.weight.chunk(expected_heads, 1), basis.heads, strict=True):
            left, singular, _ = torch.linalg.svd(part, full_matrices=False)
            assert relative(head.eigenvalues, singular.square()) < 1e-10
            assert float((1 - (head.components * left.T).sum(1).abs()).max()) < 1e-8


@pytest.mark.parametrize("per_batch", [1, 7, 30])
def test_batches_make_no_difference(per_batch: int) -> None:
    images = pixels(30, seed=5)
    whole = fit_bases(adapted_stream("CLIPModel", fit=False), images)
    parts = fit_bases(adapted_stream("CLIPModel", fit=False), images.split(per_batch))
    assert isinstance(whole, dict)
    assert isinstance(parts, dict)
    for path, basis in whole.items():
        for one, other in zip(basis.heads, parts[path].heads, strict=True):
            assert relative(other.eigenvalues, one.eigenvalues) < 1e-5


def test_fitting_leaves_the_model_as_it_was_and_restarts_the_gains() -> None:
    model = adapted_stream("CLIPModel").train()
    hooks = [len(module._forward_pre_hooks) for module in model.modules()]
    seen: list[int] = []
    fit_bases(model, [{"pixel_values": pixels(9)}, pixels(4)], progress=seen.append)
    assert seen == [9, 4]
    assert [len(module._forward_pre_hooks) for module in model.modules()] == hooks
    assert model.training
    assert all(bool((gains == 1).all()) for gains in gains_by_module(model).values())
    assert all(gains.requires_grad for gains in gains_by_module(model).values())
    config = model.peft_config["default"]
    assert (config.basis_source, config.num_samples) == ("data", 13)


def test_an_adapter_in_use_does_not_bend_the_basis() -> None:
    first, again = adapted_stream("CLIPModel", fit=False), adapted_stream("CLIPModel")
    one, other = (fit_bases(model, pixels(20)) for model in (first, again))
    for path, basis in one.items():
        assert all(
            torch.equal(a.components, b.components)
            for a, b in zip(basis.heads, other[path].heads, strict=True)
        )


def test_components_differ_by_head_when_a_share_is_asked_for() -> None:
    model = adapted_stream("CLIPModel", components=0.8)
    counts = model.peft_config["default"].component_counts
    assert any(len(set(found)) > 1 for found in counts.values())
    for path, gains in gains_by_module(model).items():
        assert len(gains) == sum(counts[path])


def test_one_gain_per_head() -> None:
    model = adapted_stream("CLIPModel", granularity="unit")
    assert [len(gains) for gains in gains_by_module(model).values()] == [2, 1, 2, 1]


def test_refusals_leave_the_adapter_as_it_was() -> None:
    model = adapted_stream("plain")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def refused(message: str, batches: Any) -> None:
        with pytest.raises(ResiDualError, match=message):
            fit_bases(model, batches)
        assert all(torch.equal(model.state_dict()[name], t) for name, t in before.items())
        assert not any(module._forward_pre_hooks for module in model.modules())

    refused("too few samples: .* at first, got 0 in 0 samples", [])
    refused("too few samples: .* at first, got 1 in 1 samples", [VECTORS[:1, 0]])
    refused("NaN or infinite values, seen at the input of first", [VECTORS / 0])
    refused(
        "wanted batches that are tensors or mappings of the arguments of Mlp, got a list", [[1]]
    )
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        fit_bases(model, [VECTORS[..., :3]])
    assert not any(module._forward_pre_hooks for module in model.modules())
    model.merge_adapter()
    with pytest.raises(
        ResiDualError, match=r"\['default'\] are merged into first.*unmerge_adapter"
    ):
        fit_bases(model, [VECTORS])


def test_a_module_that_is_never_called_is_named() -> None:
    class Idle(Mlp):
        def __init__(self) -> None:
            super().__init__()
            self.idle = nn.Linear(3, 3)

    config = ResiDualConfig(mode="stream", target_modules=["first", "idle"])
    model = get_peft_model(Idle(), config)
    with pytest.raises(ResiDualError, match=r"at idle, got 0 .*exclude a module"):
        fit_bases(model, [VECTORS])


def test_a_dual_encoder_takes_pairs_for_its_text_side() -> None:
    config = ResiDualConfig(mode="stream", target_modules=r"text_model.*out_proj")
    model = get_peft_model(clip_model(), config)
    found = fit_bases(model, [{"input_ids": TOKENS, "pixel_values": pixels(4)}])
    assert isinstance(found, dict)
    assert list(found) == ["text_model.encoder.layers.0.self_attn.out_proj"]
    assert len(next(iter(found.values())).heads) == 2


def test_processes_that_do_not_run_are_not_waited_for() -> None:
    with pytest.raises(ResiDualError, match=r"needs torch\.distributed, which is not running here"):
        fit_bases(adapted_stream("CLIPModel"), pixels(9), across_processes=True)
