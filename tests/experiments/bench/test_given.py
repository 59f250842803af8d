"""Shifted and corrupted test images, groups, and bases per protocol: against the same by hand."""

from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import load_dataset
from peft import get_peft_model
from PIL import Image

from residual_peft.classifiers.backbones import load_backbone
from residual_peft.classifiers.zero_shot import ZeroShotClassifier
from residual_peft.data import batches, load_data
from residual_peft.errors import ResiDualError
from residual_peft.experiments.bench.corruptions import CorruptingProcessor
from residual_peft.experiments.bench.entries import DataEntry, Protocol
from residual_peft.experiments.bench.given import worst
from residual_peft.experiments.bench.images import load_images, load_shifted, subgroups_of
from residual_peft.experiments.bench.registry import Registry
from residual_peft.experiments.bench.run import run_registry
from residual_peft.solvers.coordinates import collect_coordinates
from residual_peft.solvers.methods import METHODS, Rows
from residual_peft.solvers.store import write_coordinates
from residual_peft.tuner import ResiDualConfig
from tests.experiments.bench.case import pictures, small_registry

TEMPLATES = ("a {}.", "the {}.")


def table_of(folder: Path, count: int = 60) -> None:
    """Images that two columns tell of: half of the light ones are dark at the left, and so on."""
    generator = np.random.default_rng(5)
    lines = ["file_name,label,side"]
    for row in range(count):
        label, side = row % 2, (row // 2) % 3
        pixels = generator.integers(0, 90, (16, 16, 3)) + 120 * label
        pixels[:, : 4 * side] = generator.integers(0, 255, (16, 4 * side, 3))
        (folder / "images").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / "images" / f"{row}.png")
        lines.append(f"images/{row}.png,{('dark', 'light')[label]},{('no', 'some', 'much')[side]}")
    (folder / "table.csv").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def registry(tmp_path_factory) -> Registry:
    folder = tmp_path_factory.mktemp("given")
    found = small_registry(folder, ("zero-shot", "ridge"))
    pictures(folder / "dusk" / "train", ("black", "white"), 6, 8)
    pictures(folder / "dusk" / "test", ("black", "white"), 10, 9)
    table_of(folder / "listed")
    listed = DataEntry(str(folder / "listed" / "table.csv"), label_column="label",
                       subgroups="side", test=0.4, templates=TEMPLATES)  # fmt: skip
    return replace(
        found,
        data={
            "grey": replace(found.data["grey"], shifted=("dusk", "gone")),
            "listed": listed,
            "dusk": DataEntry(str(folder / "dusk")),
            "gone": found.data["gone"],
        },
        protocols={
            "all": Protocol("full", corruptions=("jpeg", "gaussian-noise"), severities=(2, 5)),
            "few": Protocol("shots", 2),
            "halves": Protocol("base-to-novel", 3),
        },
        aside=("dusk", "gone"),
    )


@pytest.fixture(scope="module")
def ran(registry: Registry, tmp_path_factory) -> tuple[list, list[str]]:
    said: list[str] = []
    return run_registry(registry, tmp_path_factory.mktemp("out"), say=said.append), said


def test_what_was_fitted_on_clean_images_is_asked_for_others(registry, ran) -> None:
    """Each image corrupted here, one by one, and the other data set's folder read by `datasets`."""
    results, said = ran
    backbone = load_backbone(registry.models["tiny"].source)
    model = get_peft_model(backbone.model, ResiDualConfig())
    images = load_data(registry.data["grey"].source, seed=42)
    names, inner = images.class_names, backbone.image_processor
    classifier = ZeroShotClassifier.from_text(model, backbone.tokenizer, names, TEMPLATES)
    train = collect_coordinates(model, batches(images.train, inner))
    outcome = METHODS["ridge"].run(Rows.of(classifier, train))

    def share(dataset) -> float:
        data = collect_coordinates(model, batches(dataset, inner))
        return float((outcome.logits(classifier, data).argmax(1) == data.labels).double().mean())

    expected = {}
    for corruption in ("jpeg", "gaussian-noise"):
        for severity in (2, 5):
            worse = CorruptingProcessor(inner, corruption, severity)
            changed = images.test.map(lambda row, p=worse: {"image": p.corrupted(row["image"])})
            expected[f"{corruption} {severity}"] = share(changed)
    dusk = load_dataset("imagefolder", data_dir=registry.data["dusk"].source)["test"]
    own = [names.index(dusk.features["label"].names[label]) for label in dusk["label"]]
    assert max(own) > 1  # the classes have other numbers here
    expected["dusk"] = share(
        dusk.remove_columns("label").add_column("label", own, feature=images.test.features["label"])
    )
    found = {(r.data, r.protocol, r.method): r for r in results}
    assert found["grey", "all", "ridge"].shifted == pytest.approx(expected)
    assert set(found["grey", "few", "zero-shot"].shifted) == {"dusk"}
    assert found["grey", "halves", "ridge"].shifted == {}
    assert {r.data for r in results} == {"grey", "listed"}
    assert sum("gone, shifted images of grey: could not load the data" in s for s in said) == 1


def test_the_worst_group_is_of_a_class_and_a_value(registry, ran) -> None:
    entry = registry.data["listed"]
    images = load_images(entry)
    sides = subgroups_of(entry, images)
    # by the pictures themselves: the left four columns are noise from 0 to 254 where side is more
    for row, side in zip(images.test, sides, strict=True):
        pixels = np.asarray(row["image"].convert("RGB"), float)
        spread = pixels[:, :4].std() > 45, pixels[:, 4:8].std() > 45
        assert side == {(0, 0): "no", (1, 0): "some", (1, 1): "much"}[spread]
    for result in (r for r in ran[0] if r.data == "listed"):
        shares = defaultdict(list)
        for right, label, side in zip(result.hits, images.test["label"], sides, strict=True):
            shares[f"{images.class_names[label]}, {side}"].append(float(right))
        means = {name: sum(values) / len(values) for name, values in shares.items()}
        assert result.worst_group_accuracy == pytest.approx(min(means.values()))
        assert means[result.worst_group] == min(means.values())
    assert worst(torch.tensor([True, False, True, True]), ("a", "b", "b", "a")) == ("b", 0.5)
    assert {r.worst_group for r in ran[0] if r.data == "grey"} == {None}


def test_a_protocol_may_have_another_basis(registry, tmp_path: Path) -> None:
    """As in a registry of that basis alone, row for row; and the other rows are as they were."""
    data = {name: replace(registry.data[name], shifted=()) for name in ("grey", "dusk")}
    one = replace(registry, data=data, protocols={"few": Protocol("shots", 2)}, aside=("dusk",))
    bases = {"few-own": "own", "few-dusk": "dusk"}
    more = {name: Protocol("shots", 2, basis=basis) for name, basis in bases.items()}
    both = replace(one, protocols={**one.protocols, **more})
    assert both.bases == ("weights", "own", "dusk")
    found = {(r.protocol, r.method): r for r in run_registry(both, tmp_path / "all", say=id)}
    assert len(found) == 6
    for name, basis in {"few": "weights", **bases}.items():
        alone = replace(one, basis=basis, protocols={name: Protocol("shots", 2)})
        assert both.digest("tiny", "grey", name) == alone.digest("tiny", "grey", name)
        for result in run_registry(alone, tmp_path / name, say=id):
            mine = found[name, result.method]
            assert (mine.right, mine.basis, mine.key) == (result.right, basis, result.key)
    assert len({r.registry for r in found.values()}) == 3


def test_of_shots_only_what_is_drawn_is_read(registry, tmp_path: Path, monkeypatch) -> None:
    """Eight images of 48 for each of two seeds, and the rows are those of a run that reads all."""
    read: list[int] = []

    def counted(model, images, folder, **options):
        read.append(len(images))
        return write_coordinates(model, images, folder, **options)

    monkeypatch.setattr("residual_peft.experiments.bench.encoding.write_coordinates", counted)
    few = Protocol("shots", 2, seeds=(0, 1))
    data = {"grey": replace(registry.data["grey"], shifted=())}
    part = replace(registry, data=data, protocols={"few": few}, aside=())
    found = run_registry(part, tmp_path / "few", say=id)
    assert max(read) <= 16
    assert sorted(read)[0] == 8  # the test images
    both = replace(part, protocols={"few": few, "all": Protocol("full")})
    other = run_registry(both, tmp_path / "both", say=id)
    assert max(read) == 48
    assert len(found) == 4
    for one, more in zip(found, other, strict=False):
        assert (one.key, one.right, one.images) == (more.key, more.right, more.images)
        assert one.calibration_error == pytest.approx(more.calibration_error)


def test_images_of_strange_classes_or_of_the_task_are_refused(registry, tmp_path: Path) -> None:
    images = load_images(registry.data["grey"])
    pictures(tmp_path / "other", ("black", "pale"), 6, 3)
    with pytest.raises(ResiDualError, match="'pale' is not a class of"):
        load_shifted(DataEntry(str(tmp_path / "other")), images)
    whole = load_images(replace(registry.data["grey"], test=0.4, validation=0.0))
    one = tmp_path / "copies"
    for row in whole.train.select(range(6)):
        (one / whole.class_names[row["label"]]).mkdir(parents=True, exist_ok=True)
    for number, path in enumerate(Path(registry.data["grey"].source).rglob("*.png")):
        (one / path.parent.name).mkdir(parents=True, exist_ok=True)
        (one / path.parent.name / f"{number}.png").write_bytes(path.read_bytes())
    assert len(load_shifted(DataEntry(str(one)), whole)) == len(whole.test)
    alone = replace(whole, digests={**whole.digests, "train": whole.whole()[1]})
    with pytest.raises(ResiDualError, match="are training images of"):
        load_shifted(DataEntry(str(one)), alone)
    with pytest.raises(ResiDualError, match="wanted the groups of images in the column 'place'"):
        subgroups_of(replace(registry.data["listed"], subgroups="place"), images)
