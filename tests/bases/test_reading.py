"""The one loop that reads images: what it gives, what it leaves, and what memory it takes."""

import json

import pytest
import torch
from peft import get_peft_model

from residual_peft import (
    ResiDualConfig,
    SpectralBasis,
    ZeroShotClassifier,
    collect_coordinates,
    collect_with_basis,
    find_tower,
)
from residual_peft.analysis import collect_contributions
from residual_peft.bases import reading as loop
from residual_peft.bases.decomposition import contributions, decompose
from residual_peft.bases.reading import Captures, reading
from residual_peft.classifiers.class_means import class_means, class_means_of
from residual_peft.errors import ResiDualError
from residual_peft.solvers.coordinates import collect_readouts
from residual_peft.towers.running import run_tower
from residual_peft.tuner import gains_of
from tests.launch import run
from tests.models import TOWERS, clip_model, pixels
from tests.pairs import table
from tests.pooled import CASES
from tests.tokenizers import VOCABULARY
from tests.training_case import adapted_classifier


def labelled(count=7, size=3):
    labels = torch.arange(count) % 3
    return [
        {"pixel_values": p, "labels": y, "index": i}
        for p, y, i in zip(
            pixels(count).split(size),
            labels.split(size),
            torch.arange(count).split(size),
            strict=True,
        )
    ]


def moved():
    model = adapted_classifier().model
    with torch.no_grad():
        gains_of(model).mul_(torch.linspace(0, 2, gains_of(model).numel()))
    return model


def test_readouts_labels_and_rows_are_those_of_plain_calls():
    model = moved()
    for adapters in (False, True):
        batches = labelled()
        for batch, kind in zip(batches, (torch.int64, torch.uint8, torch.int32), strict=True):
            batch["labels"] = batch["labels"].to(kind)
        seen = list(reading(model, None, batches, adapters=adapters))
        assert {part.labels.dtype for part in seen} == {torch.int64}
        assert [len(part.readout) for part in seen] == [3, 3, 1]
        assert torch.cat([part.labels for part in seen]).tolist() == [0, 1, 2, 0, 1, 2, 0]
        assert torch.cat([part.index for part in seen]).tolist() == list(range(7))
        plain = model if adapters else clip_model(vocab_size=VOCABULARY)
        with torch.no_grad():
            expected = run_tower(plain, pixels(7))
        torch.testing.assert_close(torch.cat([part.readout for part in seen]), expected)


def test_units_are_those_of_decompose():
    model, tower = moved(), find_tower(clip_model())
    for check in ("first", "all"):
        for part, batch in zip(
            reading(model, None, labelled(), taps=True, check=check), labelled(), strict=True
        ):
            found = decompose(model, batch)
            units = contributions(find_tower(model), part.capture, tower.units())
            torch.testing.assert_close(units.float(), found.contributions)
            torch.testing.assert_close(part.readout, found.readout)


@table("taps", [False, True])
def test_an_embedding_that_is_no_number_is_refused_in_whichever_batch(taps):
    """Pixels are finite, and what the model makes of them is not."""
    wild = pixels(2)
    wild[1] *= 1e30
    with pytest.raises(ResiDualError, match="NaN or infinite: load it in float32 or bfloat16"):
        list(reading(clip_model(), None, [pixels(2), wild], taps=taps, check="first"))


def test_between_two_batches_the_model_is_as_it_was():
    model = moved()
    model.train()
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    for _ in reading(model, None, labelled(), taps=True):
        assert model.training
        assert torch.is_grad_enabled()
        # the adapter is on
        assert model(pixel_values=pixels(1)).image_embeds.requires_grad
        now = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
        assert now == hooks


@pytest.mark.parametrize("check", ["first", "all"])
def test_units_that_do_not_add_up_are_refused_where_they_are_checked(check):
    model, calls = clip_model(), []

    block = model.vision_model.encoder.layers[0]
    own = block.forward

    def disturbed(*args, **kwargs):  # no hook: while others have any, all batches are checked
        calls.append(1)
        return own(*args, **kwargs) + (len(calls) > 1)

    block.forward = disturbed
    passed = reading(model, None, labelled(), taps=True, check=check)
    if check == "first":
        assert len(list(passed)) == 3
        return
    with pytest.raises(ResiDualError, match="do not add up"):
        list(passed)


def test_nothing_that_is_seen_holds_on_to_more_than_itself():
    """A readout that is a view of all tokens would keep them."""
    model = TOWERS["Dinov2Model"]()
    for part in reading(model, None, labelled()):
        assert part.readout.untyped_storage().nbytes() == part.readout.nbytes


def test_inside_inference_mode_ordinary_tensors_come_out():
    model = adapted_classifier().model
    with torch.inference_mode():
        rows = collect_with_basis(model, labelled(40))
        more = collect_coordinates(model, labelled())
        seen = next(iter(reading(model, None, labelled(), taps=True)))
        basis = SpectralBasis.fit(model, labelled(40))
    for tensor in (rows.coordinates, rows.readout, more.coordinates, seen.readout, basis.means):
        assert not tensor.is_inference()


def test_labels_that_do_not_suit_the_images_are_refused():
    batch = {"pixel_values": pixels(3), "labels": torch.zeros(2)}
    for model in (clip_model(),):
        with pytest.raises(ResiDualError, match="wanted a label for each of 3 images of a batch"):
            list(reading(model, None, [batch]))


@pytest.mark.parametrize("name", ["SiglipModel", "ViTModel, mean", "Siglip2Model"])
def test_pooled_towers_run_in_parts_that_bound_what_is_held(name, monkeypatch):
    """All tokens of all layers are held until a pass ends: a large batch comes in parts."""
    case = CASES[name]
    model = case.build()
    tower = find_tower(model, **dict(case.options))
    images = [{**case.batch(20), "labels": torch.arange(20) % 3}]
    whole = list(reading(model, tower, images, taps=True))
    assert [len(part.readout) for part in whole] == [4, 16]
    monkeypatch.setattr(loop, "HELD", {"cpu": 1})
    parts = list(reading(model, tower, images, taps=True))
    assert [len(part.readout) for part in parts] == [4] + [1] * 16
    assert torch.equal(torch.cat([part.labels for part in parts]), images[0]["labels"])
    for field in ("stream", "pooled"):
        torch.testing.assert_close(
            torch.cat([getattr(part.capture, field) for part in parts]),
            torch.cat([getattr(part.capture, field) for part in whole]),
        )
    # one that nothing looks into is not cut up, one that an adapter looks into is
    assert [len(part.readout) for part in reading(model, tower, images)] == [20]
    if not case.options:
        adapted = get_peft_model(model, ResiDualConfig())
        sizes = [len(part.readout) for part in reading(adapted, None, images, adapters=True)]
        assert sizes == [4] + [1] * 16


def test_captures_come_back_as_they_were():
    model = CASES["SiglipModel"].build()
    seen = [part.capture for part in reading(model, None, labelled(), taps=True)]
    kept = Captures(("heads", "mlps", "stream", "pooled", "pooler"))
    for capture in seen:
        kept.add(capture)
    for found, capture in zip(kept.drained(), seen, strict=True):
        assert found.embed is None
        for name in ("stream", "pooled", "pooler"):
            assert torch.equal(getattr(found, name), getattr(capture, name))
        for name in ("heads", "mlps"):
            pairs = zip(getattr(found, name), getattr(capture, name), strict=True)
            assert all(torch.equal(a, b) for a, b in pairs)


def test_class_means_of_a_pass_are_those_of_their_own_pass():
    model, names = clip_model().double(), ("dark", "grey", "light")
    batches = [{**b, "pixel_values": b["pixel_values"].double()} for b in labelled(12)]
    rows = collect_readouts(model, batches)
    expected = class_means(model, batches, names)
    torch.testing.assert_close(class_means_of(rows.readout, rows.labels, names), expected)
    made = ZeroShotClassifier.from_class_means(model, batches, names)
    torch.testing.assert_close(made.class_embeddings, expected)
    with pytest.raises(ResiDualError, match="of all 4 classes, got none of fish"):
        class_means_of(rows.readout, rows.labels, (*names, "fish"))


def test_contributions_of_a_list_of_batches_are_those_of_a_loader():
    """Where the number of images is not known, rows are kept in blocks: the same numbers."""
    model = clip_model()

    class Known(list):
        image_count = 7

    one = collect_contributions(model, labelled())
    two = collect_contributions(model, Known(labelled()))
    assert one.labels.tolist() == two.labels.tolist()
    for mine, other in zip(one.parts, two.parts, strict=True):
        assert torch.equal(mine.coordinates, other.coordinates)


MEMORY = """
import gc, json, sys
import torch
from peft import get_peft_model
from transformers import Dinov2Config, Dinov2Model
from residual_peft import ResiDualConfig, collect_coordinates, collect_with_basis
from residual_peft.analysis import collect_contributions
torch.manual_seed(0)
tower = Dinov2Model(Dinov2Config(hidden_size=384, num_hidden_layers=12, num_attention_heads=6,
                                 image_size=112, patch_size=14))
model = get_peft_model(tower.eval(), ResiDualConfig())
kept = []

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

def batches(count):
    for number in range(count):
        labels = torch.randint(0, 5, (32,))
        yield {"pixel_values": torch.randn(32, 3, 112, 112), "labels": labels}
        kept.append(resident())

passes = {"basis": collect_with_basis, "coordinates": collect_coordinates,
          "contributions": collect_contributions}
passes[sys.argv[1]](model, batches(14))
print(json.dumps([(later - kept[3]) / 32 / (len(kept) - 4) for later in kept[-1:]]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["basis", "coordinates", "contributions"])
def test_a_pass_grows_by_what_it_keeps(name):
    """Bytes an image, from the fourth batch on: clones between large tensors made it megabytes."""
    (each,) = json.loads(run("-c", MEMORY, name, timeout=600).splitlines()[-1])
    written, kept = 4 * 384 * (2 * 12 + 2), 4 * (12 * 384 * 2 + 384)
    allowed = {"basis": written, "coordinates": kept, "contributions": kept + 4 * 384}
    assert each < 1.3 * allowed[name] + 2**14
