"""Sums over subsets of units against a loop over images and units in float64."""

import json

import pytest
import torch
from torch import Tensor

from residual_peft import ResiDualError
from residual_peft.analysis import Contributions, collect_contributions
from residual_peft.analysis.ablation import layer_ablation, unit_ablation
from residual_peft.analysis.subsets import Stand, correct_whole, correct_with
from residual_peft.data.metrics import accuracy, accuracy_interval, difference_interval
from tests.analysis.selection_case import CLASSES, SIZE, case, classes, naive_right, planted
from tests.models import clip_model, pixels
from tests.pairs import table


@table("block", [None, 7])
@table("others", ["ablate", "keep"])
@table("ablation", ["zero", "mean"])
def test_every_subset_is_that_of_a_loop(ablation: str, others: str, block: int | None) -> None:
    test, reference = case(0), case(1, 41)
    heads, generator = test.index(), torch.Generator().manual_seed(3)
    kept = torch.rand(4, len(heads), generator=generator) < torch.tensor([[0.1], [0.4], [0.9], [1]])
    pool = test.seen.select(["head"])
    stand = Stand(pool, classes(), ablation, others, reference.seen)
    right = correct_with(pool, classes(), kept, stand, block)
    for row, mine in zip(kept, right, strict=True):
        inside = {heads[i] for i in row.nonzero().flatten().tolist()}
        slow = naive_right(
            test, inside, heads, ablation=ablation, others=others, reference=reference
        )
        assert mine.tolist() == slow
    assert len({tuple(row.tolist()) for row in right}) > 1


def test_nothing_ablated_is_the_model_itself() -> None:
    one = case()
    logits = one.readout @ classes().double().T
    right = correct_whole(one.seen.select(["mlp"]), classes())
    assert float(right.float().mean()) == pytest.approx(accuracy(logits, one.labels))
    assert 0.3 < float(right.float().mean()) < 1


def test_means_are_those_of_the_reference_images_alone() -> None:
    """Of some rows the mean of a unit is not the stored one, which is over all images."""
    test, all_images, index = case(), case(1, 41).seen, torch.arange(5)
    images = pixels(41, SIZE, 1)[:5]
    alone = collect_contributions(clip_model(SIZE), [{"pixel_values": images}])
    heads = test.seen.select(["head"])
    kept = torch.eye(len(heads.units), dtype=torch.bool)

    def right(reference: Contributions) -> Tensor:
        stand = Stand(heads, classes(), "mean", reference=reference)
        return correct_with(heads, classes(), kept, stand)

    some = right(all_images.rows(index))
    assert some.equal(right(alone))
    assert not some.equal(right(all_images))


@table("kinds", [("head",), ("mlp",), ("head", "mlp")])
@table(
    ("cumulative", "gone"),
    [
        (False, {"layer 0": [0], "layer 1": [1], "layer 2": [2]}),
        ("from_first", {"layer 0": [0], "layers 0-1": [0, 1], "layers 0-2": [0, 1, 2]}),
        ("from_last", {"layer 2": [2], "layers 1-2": [1, 2], "layers 0-2": [0, 1, 2]}),
    ],
)
@table("ablation", ["zero", "mean"])
def test_layers_are_those_of_a_loop(
    ablation: str, cumulative: str | bool, gone: dict[str, list[int]], kinds: tuple[str, ...]
) -> None:
    test, reference = case(0), case(1, 41)
    curve = layer_ablation(
        test.seen,
        classes(),
        kinds,
        ablation=ablation,
        cumulative=cumulative,
        reference=reference.seen,
    )
    candidates = test.index(kinds)
    whole = correct_whole(test.seen, classes()).tolist()
    assert curve.baseline == sum(whole) / 60
    assert [point.name for point in curve.points] == list(gone)
    for point, layers in zip(curve.points, gone.values(), strict=True):
        kept = {i for i in candidates if test.units[i].layer not in layers}
        slow = naive_right(
            test, kept, candidates, ablation=ablation, others="keep", reference=reference
        )
        assert point.units == len(candidates) - len(kept)
        assert point.accuracy == sum(slow) / 60
        assert point.drop == pytest.approx((sum(whole) - sum(slow)) / 60)
        assert (point.low, point.high) == accuracy_interval(sum(slow), 60)
        assert (point.drop_low, point.drop_high) == difference_interval(whole, slow)
    json.dumps(curve.as_dict())
    assert curve.rows()[0]["name"] == next(iter(gone))


@table("block", [None, 9])
@table("ablation", ["zero", "mean"])
def test_single_units_are_those_of_a_loop(ablation: str, block: int | None) -> None:
    test, reference = case(0), case(1, 41)
    curve = unit_ablation(
        test.seen, classes(), ablation=ablation, reference=reference.seen, block=block
    )
    assert [point.name for point in curve.points] == [str(unit) for unit in test.units]
    assert curve.kinds == ("embed", "head", "mlp")
    everything = list(range(len(test.units)))
    for gone in (0, 1, 8, 9, 20):
        slow = naive_right(
            test,
            set(everything) - {gone},
            everything,
            ablation=ablation,
            others="keep",
            reference=reference,
        )
        assert curve.points[gone].accuracy == sum(slow) / 60
    assert len({point.accuracy for point in curve.points}) > 2


def test_what_a_head_carries_is_lost_with_it() -> None:
    test = planted({"layer1.head3": 1.0})
    units = {p.name: p for p in unit_ablation(test, classes()).points}
    lost = units.pop("layer1.head3")
    assert lost.drop_low > 0.3
    assert max(point.drop for point in units.values()) < 0.05
    assert lost.accuracy < 1 / CLASSES + 0.1
    first, second = layer_ablation(test, classes(), ["head"]).points
    assert second.drop_low > 0.3
    assert first.drop < 0.05


def test_what_a_user_can_mend() -> None:
    test = case().seen
    with pytest.raises(ResiDualError, match="mean ablation needs reference="):
        unit_ablation(test, classes(), ablation="mean")
    with pytest.raises(ResiDualError, match=r"no contributions of layer0\.head0; there are"):
        layer_ablation(test, classes(), ablation="mean", reference=test.select(["mlp"]))
    with pytest.raises(ResiDualError, match="got ablation='resample' and others='keep'"):
        layer_ablation(test, classes(), ablation="resample")
    with pytest.raises(ResiDualError, match=r"'head' and 'mlp' units, got kinds=\('embed',\)"):
        layer_ablation(test, classes(), ["embed"])
    with pytest.raises(ResiDualError, match="'from_first' or 'from_last', got True"):
        layer_ablation(test, classes(), cumulative=True)
    with pytest.raises(ResiDualError, match=r"wanted class embeddings \(C, 20\).*got \(5, 3\)"):
        unit_ablation(test, torch.randn(5, 3))
    with pytest.raises(ResiDualError, match=r"labels from 0 to 1 \(2 classes\), got 4 for image 0"):
        unit_ablation(test, classes()[:2])
    with pytest.raises(ResiDualError, match="at least one image, got block=0"):
        unit_ablation(test, classes(), block=0)
    unlabelled = collect_contributions(clip_model(SIZE), [pixels(3, SIZE)])
    with pytest.raises(ResiDualError, match="wanted labelled images to count right answers on"):
        unit_ablation(unlabelled, classes())
