"""Hooks that see what the parts of a tower write and leave nothing behind."""

import copy
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from residual_peft.bases.decomposition import decompose
from residual_peft.errors import ResiDualError
from residual_peft.towers.captures import Capture, _frames, capture_of
from residual_peft.towers.registry import find_tower
from residual_peft.towers.running import run_tower
from residual_peft.towers.taps import install_taps, tapped
from residual_peft.towers.units import Unit
from tests.models import BUILDERS, Size, clip_model, clip_vision_model, hooks, pixels, vision
from tests.slow import slow_streams

pytestmark = pytest.mark.usefixtures("nothing_left_behind")


def test_a_tower_that_raises_leaves_no_frame_and_the_next_call_is_right() -> None:
    model = clip_model()
    expected = decompose(model, pixels(seed=1)).readout
    install_taps(find_tower(model), layers=True)

    def explode(module: nn.Module, args: tuple) -> None:
        raise KeyError("boom")

    handle = model.vision_model.encoder.layers[1].register_forward_pre_hook(explode)
    with pytest.raises(KeyError, match="boom"):
        run_tower(model, pixels())
    assert not _frames.open
    handle.remove()
    assert torch.equal(decompose(model, pixels(seed=1)).readout, expected)


def captured(model: nn.Module, images: Tensor) -> tuple[Tensor, Capture | None]:
    """Run a model with permanent taps, and catch what travels with the final norm's output."""
    norm, seen = find_tower(model).final_norm, []
    handle = norm.register_forward_hook(lambda module, args, output: seen.append(output))
    try:
        with torch.no_grad():
            readout = run_tower(model, images)
    finally:
        handle.remove()
    return readout, capture_of(seen[0])


def assert_captures(capture: Capture | None, model: nn.Module, images: Tensor) -> None:
    assert capture is not None
    written, stream = slow_streams(model, images)
    for layer, block in enumerate(vision(model).encoder.layers):
        heads, mlp = capture.heads[layer], capture.mlps[layer]
        attention = sum(x for u, x in written.items() if u.layer == layer and u.kind == "head")
        torch.testing.assert_close(block.self_attn.out_proj(heads), attention)
        torch.testing.assert_close(mlp, written[Unit("mlp", layer)])
    torch.testing.assert_close(capture.embed, written[Unit("embed")])
    torch.testing.assert_close(capture.stream, stream)


@pytest.mark.parametrize("builder", BUILDERS)
def test_permanent_taps_let_the_capture_travel_with_the_data(builder: str) -> None:
    model, images = BUILDERS[builder]().double(), pixels().double()
    assert captured(model, images)[1] is None
    handles = install_taps(find_tower(model))
    assert_captures(captured(model, images)[1], model, images)
    assert captured(model, images)[1].layers == [None, None]  # type: ignore[union-attr]
    for handle in handles:
        handle.remove()
    assert hooks(model) == 0
    assert captured(model, images)[1] is None


def test_a_capture_holds_only_what_was_asked_for_and_no_graph() -> None:
    model = clip_model()
    install_taps(find_tower(model))
    norm, seen = find_tower(model).final_norm, []
    norm.register_forward_hook(lambda module, args, output: seen.append(output))
    run_tower(model, pixels())
    capture = capture_of(seen[0])
    assert capture is not None
    assert capture.layers == [None, None]
    assert seen[0].requires_grad
    for tensor in (capture.stream, capture.embed, *capture.heads, *capture.mlps):
        assert tensor is not None
        assert not tensor.requires_grad
        assert tensor.untyped_storage().nbytes() == tensor.numel() * 4  # not the whole sequence


@pytest.mark.parametrize("how", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_taps_survive_copying(how: Callable[[Any], Any]) -> None:
    model = clip_model().double()
    install_taps(find_tower(model))
    twin = how(model)
    with torch.no_grad():
        twin.vision_model.encoder.layers[0].mlp.fc2.bias += 1
    for number, each in enumerate((twin, model, twin)):
        images = pixels(seed=number).double()
        assert_captures(captured(each, images)[1], each, images)
        decompose(each, images)


@pytest.mark.parametrize("layers_first", [True, False])
def test_overlapping_taps_do_not_disturb_each_other(layers_first: bool) -> None:
    model, images = clip_model().double(), pixels().double()
    install_taps(find_tower(model), layers=layers_first)
    with tapped(model, layers=not layers_first) as tap:
        decompose(model, pixels(seed=1).double())
        _, both = captured(model, images)
        capture = tap.take()
    assert (capture.layers[1] is None) == layers_first
    for each in (both, capture, captured(model, images)[1]):
        assert_captures(each, model, images)
    assert both is not None
    assert both.layers[1] is not None
    alone = captured(model, images)[1]
    assert alone is not None
    assert (alone.layers[1] is None) != layers_first


def test_a_part_that_did_not_run_is_named() -> None:
    model = clip_model()
    with tapped(model) as tap:
        run_tower(model, pixels())
        capture = tap.take()
    capture.heads[1] = None
    assert capture.of(Unit("mlp", 1)) is capture.mlps[1]
    assert capture.of(Unit("output")) is capture.stream
    with pytest.raises(ResiDualError, match=r"ran without layer1\.head0: a module of the tower"):
        capture.of(Unit("head", 1, 0))


def test_two_threads_in_one_model_get_what_they_would_get_alone() -> None:
    model = clip_model(Size(layers=3)).double()
    install_taps(find_tower(model))
    batches = [pixels(3 + number, seed=number).double() for number in range(2)]
    alone: list[Any] = [captured(model, images)[1] for images in batches]
    barrier = threading.Barrier(2, timeout=20)
    for block in model.vision_model.encoder.layers:  # both stand inside the tower at once
        block.self_attn.out_proj.register_forward_pre_hook(lambda m, a: void(barrier.wait()))
    norm = find_tower(model).final_norm
    seen: dict[int, Any] = {}
    norm.register_forward_hook(lambda m, a, out: void(seen.update({len(out): capture_of(out)})))
    threads = [threading.Thread(target=run_tower, args=(model, images)) for images in batches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for images, expected in zip(batches, alone, strict=True):
        found = seen[len(images)]
        for one, other in zip(
            (*found.heads, *found.mlps, found.embed, found.stream),
            (*expected.heads, *expected.mlps, expected.embed, expected.stream),
            strict=True,
        ):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_taps_of_another_thread_read_nothing_and_may_go_in_the_middle_of_a_pass() -> None:
    model = clip_model()
    tower, expected = find_tower(model), decompose(model, pixels())
    taps: list[Any] = []
    # before the taps in the order of the hooks: torch still calls those, of some without kwargs
    tower.tower.register_forward_pre_hook(lambda *_: void(taps[0].remove()))
    tower.final_norm.register_forward_hook(lambda *_: void([tap.remove() for tap in taps]))
    taps += install_taps(tower, layers=True, key="main", own=threading.get_ident())
    found: list[Any] = []

    def other() -> None:
        with tapped(model) as tap:
            run_tower(model, pixels())
            found.append(tap.take())
        found.append({**_frames.open, **_frames.finished})

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    capture, left = found
    assert not left
    assert capture.layers == [None] * len(capture.layers)  # it did not ask for them
    assert torch.equal(decompose(model, pixels()).contributions, expected.contributions)


def void(_: object) -> None:
    """Swallow a value: a hook that returns something replaces what it saw."""


def test_gradient_checkpointing_runs_blocks_again_without_a_frame() -> None:
    model = clip_vision_model()
    install_taps(find_tower(model), layers=True)
    model.gradient_checkpointing_enable()
    model.train()
    model(pixels()).pooler_output.sum().backward()
    assert model.embeddings.patch_embedding.weight.grad is not None
    assert not _frames.open


def test_sigma_of_a_half_precision_stream_is_float32() -> None:
    stream = (torch.randn(4, 24) + 3).bfloat16()
    totals = Capture(heads=[], mlps=[], layers=[], stream=stream).totals(1e-5)
    assert totals.dtype == torch.float32
    expected = (stream.double().var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(totals.double(), 1 / expected, rtol=1e-5, atol=0)
