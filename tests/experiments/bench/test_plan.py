"""What a plan says before anything is run, against what is read when it is."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from residual_peft.experiments.bench import encoding
from residual_peft.experiments.bench.descent import EPOCHS, HELD_OUT_SHARE, RATES, Training
from residual_peft.experiments.bench.entries import DataEntry, ModelEntry, Protocol
from residual_peft.experiments.bench.fits import Fitted
from residual_peft.experiments.bench.images import load_images, most_needed, needed
from residual_peft.experiments.bench.methods import METHODS
from residual_peft.experiments.bench.plan import lines, plan
from residual_peft.experiments.bench.registry import Registry
from residual_peft.experiments.bench.run import run_registry
from residual_peft.solvers.store import write_coordinates
from tests.experiments.bench.case import pictures, small_registry

FAR = "no/such-model"


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    found = small_registry(tmp_path, ("zero-shot",))
    pictures(tmp_path / "dusk", ("black", "white"), 10, 9)
    data = {
        "grey": replace(found.data["grey"], shifted=("dusk",)),
        "other": found.data["other"],
        "dusk": DataEntry(str(tmp_path / "dusk")),
    }
    protocols = {
        "few": Protocol("shots", 2, seeds=(0, 1), corruptions=("jpeg",), severities=(1, 2)),
        "one": Protocol("shots", 1, seeds=(1,)),
        "halves": Protocol("base-to-novel", 2),
        "own": Protocol("shots", 1, basis="own", without=("lora",)),
    }
    models = {**found.models, "far": ModelEntry(FAR, coordinates=100, width=10)}
    return replace(found, models=models, data=data, protocols=protocols, aside=("dusk",))


def test_what_lies_here_is_counted_as_it_is_read(registry, tmp_path, monkeypatch) -> None:
    here = replace(registry.only(models=["tiny"]), methods=("zero-shot", "lora"))
    read: dict[str, int] = {}
    again = counts_what_it_encodes(monkeypatch)

    def counted(model, images, folder, **options):
        name = Path(folder).relative_to(tmp_path / "out" / "coordinates" / "tiny").parts[0]
        data = name.rpartition("-")[0]
        read[data] = read.get(data, 0) + len(images)
        return write_coordinates(model, images, folder, **options)

    monkeypatch.setattr(encoding, "write_coordinates", counted)
    run_registry(here, tmp_path / "out", say=id)
    planned = {each.data: each for each in plan(here)}
    assert {name: each.images for name, each in planned.items()} == read
    for each in planned.values():
        assert each.measured
        read_at_most = each.images + 3 * each.backwards + each.again
        assert each.hours == pytest.approx(read_at_most / each.rate / 3600)
        assert each.bytes > 0
        assert each.again >= again[each.data] > 0
    assert planned["grey"].again == again["grey"]  # the other has too few classes to halve
    said = lines(list(planned.values()))
    assert sum(read.values()) == int(said[3].split()[0])
    assert "(tiny: " in said[-1]
    assert "images a second here); downloads" in said[-1]


def counts_what_it_encodes(monkeypatch) -> dict[str, int]:
    """A method as those that train the backbone, which does not: what it reads of each data set."""
    again = {"grey": 0, "other": 0}

    def fit(training: Training) -> Fitted:
        classifier = training.rows.classifier
        data = "grey" if {"black", "white", "dark"} & set(classifier.class_names) else "other"
        again[data] += RATES * (EPOCHS + 1) * round(len(training.rows.labels) * HELD_OUT_SHARE)

        def encode(images) -> torch.Tensor:
            again[data] += len(images)
            return torch.ones(len(images), classifier.class_embeddings.shape[1])

        def logits(rows) -> torch.Tensor:
            return classifier.logits(rows.readout)

        return Fitted(logits, 1, 4, lambda rows: rows.readout, encode=encode)

    monkeypatch.setitem(METHODS, "lora", fit)
    return again


def test_hours_are_never_made_up(registry) -> None:
    far = registry.only(models=["far"])
    (grey, other) = plan(far)
    assert (grey.rate, grey.hours, other.hours) == (None, None, None)
    assert lines([grey, other])[-1] == (
        "How many hours that takes is not known: the weights of 1 model are not here. "
        "Say --images-per-second."
    )
    (stated, _) = plan(far, 2.0)
    assert stated.hours == pytest.approx(grey.images / 2 / 3600)
    assert not stated.measured
    assert "(1 model as stated)" in lines([stated])[-1]
    unread = replace(stated, images=None)
    assert ", 1 line with '?' left out (1 model as stated)" in lines([stated, unread])[-1]
    through = replace(stated, images=100, backwards=10, again=20)
    assert through.hours == pytest.approx((100 + 3 * 10 + 20) / 2 / 3600)
    for_bases = replace(registry, basis="dusk").only(models=["far"])
    bases = plan(for_bases, 1.0)[-1]
    train = len(load_images(registry.data["dusk"]).train)
    assert (bases.data, bases.runs, bases.images) == ("bases of dusk", 0, train)


def test_what_is_drawn_at_most(registry) -> None:
    generator = torch.Generator().manual_seed(0)
    for classes, count in ((3, 40), (7, 200), (12, 60)):
        labels = torch.randint(classes, (count,), generator=generator)
        for protocols in (
            [Protocol("shots", 2, seeds=(0, 1)), Protocol("shots", 5, seeds=(1, 2))],
            [Protocol("shots", 1), Protocol("base-to-novel", 3, seeds=(0, 4))],
            [Protocol("shots", 1, 4), Protocol("shots", 2, validation_shots=1)],
            [Protocol("base-to-novel")],
            [Protocol("full"), Protocol("shots", 1)],
        ):
            exact = len(needed(protocols, labels, classes))
            assert 0 <= exact <= most_needed(protocols, count, classes) <= count
    one = [Protocol("shots", 2), Protocol("shots", 3)]
    labels = torch.arange(50) % 5
    assert len(needed(one, labels, 5)) == most_needed(one, 50, 5) == 15  # three hold the two
    assert most_needed(one, 50, None) is None
