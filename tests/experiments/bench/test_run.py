"""A small bench against the same by hand, killed ones, and ones that go on."""

import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from torch.nn import functional

from residual_peft.app.benching import run_bench
from residual_peft.classifiers.backbones import load_backbone
from residual_peft.classifiers.heads.gaussian import fit_gaussian
from residual_peft.classifiers.heads.nearest import fit_neighbours
from residual_peft.classifiers.heads.projection import fit_projection
from residual_peft.classifiers.zero_shot import ZeroShotClassifier
from residual_peft.data import batches, load_data
from residual_peft.errors import ResiDualError
from residual_peft.experiments.bench.entries import Protocol
from residual_peft.experiments.bench.fits import FITS, STRENGTHS
from residual_peft.experiments.bench.images import draw, load_images
from residual_peft.experiments.bench.registry import Registry
from residual_peft.experiments.bench.results import Result, append, latest, packed, read_results
from residual_peft.experiments.bench.run import run_registry, runs_of
from residual_peft.solvers.coordinates import collect_coordinates
from residual_peft.solvers.methods import METHODS, Rows
from residual_peft.tuner import ResiDualConfig, fit_bases
from tests.experiments.bench.case import small_registry

QUICK = ("zero-shot", "ridge", "knn")


def test_hits_are_packed_without_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    for count in (1, 3, 4, 5, 90):
        hits = torch.rand(count, generator=generator) > 0.5
        result = replace(_any_result(), right=packed(hits), images={"test": count})
        assert torch.equal(result.hits, hits)


def _any_result() -> Result:
    return Result(
        "m", "d", "p", "ridge", 0, "", 0.5, 0.5, 0.1, 3, 12, 0.1, 0.1, 1, {"test": 4}, "", "", (),
        (), "weights", "0",
    )  # fmt: skip


@pytest.fixture(scope="module")
def registry(tmp_path_factory) -> Registry:
    return small_registry(tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="module")
def ran(registry: Registry, tmp_path_factory) -> tuple[list[Result], list[str], Path]:
    folder, said = tmp_path_factory.mktemp("ran") / "out", []
    return run_registry(registry, folder, say=said.append), said, folder


class ByHand:
    """The same task without the bench: its model, its classes and coordinates of its splits."""

    def __init__(self, registry: Registry, basis: str | None = None) -> None:
        images = load_data(registry.data["grey"].source, seed=42)
        backbone = load_backbone(registry.models["tiny"].source)
        model = get_peft_model(backbone.model, ResiDualConfig())
        processor = backbone.image_processor
        if basis is not None:
            others = load_data(registry.data[basis].source, seed=42, test=registry.data[basis].test)
            fit_bases(model, batches(others.train, processor))
        self.names = images.class_names
        self.classifier = ZeroShotClassifier.from_text(
            model, backbone.tokenizer, self.names, ("a {}.", "the {}.")
        )
        self.train, self.test = (
            collect_coordinates(model, batches(images[split], processor))
            for split in ("train", "test")
        )


@pytest.fixture(scope="module")
def by_hand(registry: Registry) -> ByHand:
    return ByHand(registry)


def found(results: list[Result], protocol: str, method: str, seed: int = 0) -> Result:
    (one,) = [
        r for r in results
        if (r.data, r.protocol, r.method, r.seed) == ("grey", protocol, method, seed)
    ]  # fmt: skip
    return one


def agree(result: Result, logits: torch.Tensor, labels: torch.Tensor) -> None:
    """Accuracy, recall and calibration error, counted by hand."""
    right = logits.argmax(1) == labels
    assert torch.equal(result.hits, right)
    assert result.accuracy == pytest.approx(right.double().mean().item())
    recalls = [right[labels == c].double().mean().item() for c in labels.unique().tolist()]
    assert result.mean_per_class_recall == pytest.approx(sum(recalls) / len(recalls))
    sure = logits.double().softmax(1).max(1).values
    error = 0.0
    for low in range(15):
        inside = (sure > low / 15) & (sure <= (low + 1) / 15)
        if inside.any():
            gap = right[inside].double().mean() - sure[inside].mean()
            error += abs(float(gap)) * int(inside.sum()) / len(labels)
    assert result.calibration_error == pytest.approx(error, abs=1e-4)


def test_every_run_has_its_line_and_what_is_missing_is_said(registry, ran) -> None:
    results, said, folder = ran
    own = [run for run in runs_of(registry) if run[1] != "gone"]
    # three classes have no half
    own = [run for run in own if run[1:3] != ("other", "halves")]
    assert [(r.model, r.data, r.protocol, r.seed, r.method) for r in results] == own
    assert not any(r.method == "knn" for r in results if r.protocol == "all")
    lines = (folder / "results.jsonl").read_text().splitlines()
    assert len(lines) == len(own)
    assert all(json.loads(line)["machine"] for line in lines)
    assert sum("left out: tiny on gone: could not load the data" in line for line in said) == 1
    assert sum("tiny on other, halves, seed 0: wanted four classes" in line for line in said) == 1
    assert not list(folder.rglob("*.safetensors"))  # coordinates go when they are not needed
    for result in results:
        assert result.class_names
        assert result.templates
        assert {"torch", "pillow"} <= set(result.versions)
        assert result.peak_memory > 2**20
        assert len(result.split) == 32
    assert len({(r.data, r.split) for r in results}) == 2


def test_numbers_are_those_of_the_methods_by_hand(ran, by_hand: ByHand) -> None:
    results, train, test = ran[0], by_hand.train, by_hand.test
    classifier, count = by_hand.classifier, len(by_hand.names)
    z, texts = classifier.logits(train.readout), classifier.logits(test.readout)
    agree(found(results, "all", "zero-shot"), texts, test.labels)
    assert found(results, "all", "zero-shot").images == {"train": len(train), "test": len(test)}
    ridge = METHODS["ridge"].run(Rows.of(classifier, train))
    agree(found(results, "all", "ridge"), ridge.logits(classifier, test), test.labels)
    assert found(results, "all", "ridge").trained == ridge.parameter_count
    outcome = METHODS["gains"].run(Rows.of(classifier, train))
    agree(found(results, "all", "gains"), outcome.logits(classifier, test), test.labels)
    assert found(results, "all", "gains").trained == train.coordinates.shape[1]
    # one by one: nearest neighbours of a draw
    index = draw(Protocol("shots", 2), train.labels, count, 1).rows
    options = {"zero_shot": z[index], "power": 0.5}
    near = fit_neighbours(train.coordinates[index], train.labels[index], count, **options)
    logits = near.logits(test.coordinates, texts)
    agree(found(results, "2-shot", "knn", 1), logits, test.labels)


@pytest.mark.parametrize("name", ["knn", "gda"])
def test_copies_are_left_out_together_by_rivals_as_well(name: str, by_hand: ByHand) -> None:
    train = by_hand.train.rows(torch.arange(0, len(by_hand.train), 3).repeat(2))
    rows = Rows.of(by_hand.classifier, train)
    assert rows.groups is not None
    fit = {"knn": fit_neighbours, "gda": fit_gaussian}[name]
    texts = by_hand.classifier.logits(by_hand.test.readout)
    given = (train.coordinates, train.labels, rows.class_count)
    together, singly = (
        fit(*given, zero_shot=rows.zero_shot, power=0.5, groups=groups).logits(
            by_hand.test.coordinates, texts
        )
        for groups in (rows.groups, None)
    )
    found = FITS[name](rows).logits(by_hand.test)
    assert torch.equal(found, together)
    assert not torch.allclose(found, singly)


def test_new_classes_and_other_tasks_are_those_by_hand(registry, ran, by_hand: ByHand) -> None:
    results, classifier = ran[0], by_hand.classifier
    halves = draw(registry.protocols["halves"], by_hand.train.labels, 4, 0)
    train, test = by_hand.train.rows(halves.rows), by_hand.test
    base = halves.classes.tolist()
    embeddings = classifier.class_embeddings
    moved = fit_projection(
        functional.normalize(train.readout, dim=1).double(),
        torch.tensor([base.index(label) for label in train.labels.tolist()]),
        embeddings[halves.classes],
        logit_scale=classifier.logit_scale,
        strengths=STRENGTHS,
    )
    novel = [row for row, label in enumerate(test.labels.tolist()) if label not in base]
    unit = functional.normalize(test.readout[novel], dim=1).double() @ moved.scorer.matrix.mT
    guess = halves.novel[(unit @ embeddings[halves.novel].double().mT).argmax(1)]
    result = found(results, "halves", "linear-map")
    right = (guess == test.labels[novel]).double().mean().item()
    assert result.novel_accuracy == pytest.approx(right)
    both = result.accuracy + right
    assert result.harmonic_mean == pytest.approx(2 * result.accuracy * right / both if both else 0)
    # a head tells new classes by their texts alone
    texts = classifier.logits(test.readout[novel])[:, halves.novel]
    plain = (halves.novel[texts.argmax(1)] == test.labels[novel]).double().mean().item()
    assert found(results, "halves", "ridge").novel_accuracy == pytest.approx(plain)
    assert found(results, "all", "ridge").forgotten == {}
    (before, after), = found(results, "all", "gains").forgotten.values()  # fmt: skip
    other = [r for r in results if (r.data, r.protocol, r.method) == ("other", "all", "zero-shot")]
    assert before == pytest.approx(other[0].accuracy)
    assert 0 <= after <= 1


def test_it_refuses_results_that_are_there_and_goes_on_when_told_to(
    registry, ran, tmp_path
) -> None:
    results, _, folder = ran
    before = (folder / "results.jsonl").read_bytes()
    with pytest.raises(ResiDualError, match=r"holds results already: go on with --resume"):
        run_registry(registry, folder)
    said: list[str] = []
    part = registry.only(data=["grey", "other"], protocols=["2-shot", "all"])
    assert run_registry(part, folder, resume=True, say=said.append) == results
    assert said == [f"0 runs to do, {len(results)} runs done."]
    assert (folder / "results.jsonl").read_bytes() == before
    changed = replace(part.data["grey"], templates=("no {}.",))
    other = replace(part, data={"grey": changed}, methods=("zero-shot",))
    again = run_registry(other, folder, resume=True, say=said.append)
    assert len(again) == len(results) + 3  # the old lines stay
    # of what was changed, the new rows alone
    assert [r for r in latest(again) if r.templates == ("no {}.",)] == again[-3:]
    old = [r for r in results if r.data != "grey" or r.protocol == "halves"]
    assert [r for r in latest(again) if r not in again[-3:]] == old
    # runs of other images than there are now are done again beside one that is missing
    for row in again[-3:-1]:
        append(tmp_path / "results.jsonl", replace(row, split="another"))
    anew = run_registry(other, tmp_path, resume=True, say=said.append)
    assert "2 runs again: tiny on grey, of other images than there are now." in said
    assert {(r.key, r.right) for r in latest(anew)} == {(r.key, r.right) for r in again[-3:]}
    assert {r.split for r in anew} == {again[-1].split}
    # whoever goes back to the entry as it was has its rows again, which are not the last
    back, _ = run_bench(part, folder, resume=True, say=said.append)
    assert sorted(back, key=repr) == sorted(results, key=repr)
    assert said[-1] == "3 results of earlier entries or images stay out of the summaries."
    assert (folder / "results.jsonl").read_bytes().startswith(before)


def waiting(process: int, file: Path, lines: int) -> Iterator[None]:
    for _ in range(600):
        if file.exists() and file.read_bytes().count(b"\n") >= lines:
            return
        assert os.waitpid(process, os.WNOHANG)[0] == 0, "it ended before it was killed"
        time.sleep(0.05)
        yield
    raise AssertionError("no line came")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_killed_run_goes_on_where_it_stopped(registry, ran, tmp_path: Path) -> None:
    """A process of its own is killed twice; then half a line is left, and the rest is done."""
    part = registry.only(data=["grey"], protocols=["2-shot", "all"], methods=QUICK)
    folder, file = tmp_path / "out", tmp_path / "out" / "results.jsonl"
    for lines in (1, 4):
        if (process := os.fork()) == 0:
            try:
                run_registry(part, folder, resume=True, say=lambda line: None)
            finally:
                os._exit(1)
        for _ in waiting(process, file, lines):
            pass
        os.kill(process, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL
    whole = file.read_bytes()
    whole = whole[: whole.rfind(b"\n") + 1]
    kept = whole.count(b"\n")
    assert 4 <= kept < len(runs_of(part))
    file.write_bytes(whole + whole[:100])
    said: list[str] = []
    results = run_registry(part, folder, resume=True, say=said.append)
    assert said[0] == "A killed run left half a line, which was dropped."
    assert said[1].endswith(f"{kept} runs done.")
    assert file.read_bytes().startswith(whole)
    assert len(file.read_bytes().splitlines()) == len(runs_of(part))
    unbroken = {r.key: r for r in ran[0]}
    for result in results:  # equal to what was never interrupted
        assert result.right == unbroken[result.key].right
        assert result.trained == unbroken[result.key].trained
    (folder / "results.jsonl").write_bytes(b'{"model": 3}\n')
    with pytest.raises(ResiDualError, match=r"results\.jsonl', line 1, field model: wanted text"):
        read_results(folder)


@pytest.mark.slow
@pytest.mark.parametrize("basis", ["own", "other"])
def test_bases_of_ones_own_images_or_of_anothers(basis: str, registry, tmp_path) -> None:
    part = replace(registry, basis=basis).only(
        data=["grey"], methods=["gains", "ridge"], protocols=["all"]
    )
    results = run_registry(part, tmp_path / basis, say=lambda line: None)
    hand = ByHand(registry, "grey" if basis == "own" else basis)
    for method in part.methods:
        result = found(results, "all", method)
        outcome = METHODS[method].run(Rows.of(hand.classifier, hand.train))
        agree(result, outcome.logits(hand.classifier, hand.test), hand.test.labels)
        assert not result.forgotten  # the basis's data set is no task here


def test_processes_share_the_pairs(registry, tmp_path: Path, monkeypatch) -> None:
    """As under `accelerate launch`, one after the other: each its own pairs, in its own file."""
    part = registry.only(data=["grey", "other"], protocols=["all"], methods=["ridge"])
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, data in enumerate(("grey", "other")):
        monkeypatch.setenv("RANK", str(rank))
        results = run_registry(part, tmp_path, say=lambda line: None)
        assert results[-1].data == data
        assert len((tmp_path / f"results-{rank}.jsonl").read_text().splitlines()) == 1
    assert [result.data for result in results] == ["grey", "other"]
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ResiDualError, match=r"results-0\.jsonl' holds results already"):
        run_registry(part, tmp_path, say=lambda line: None)
    for rank, world in (("0", ""), ("", "2"), ("1", "1"), ("2", "2"), ("-1", "2"), ("one", "2")):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", world)
        message = rf"RANK below WORLD_SIZE in the environment, .* got '{rank}' and '{world}'\."
        with pytest.raises(ResiDualError, match=message):
            run_registry(part, tmp_path, resume=True, say=lambda line: None)


def test_a_full_disk_leaves_whole_lines(tmp_path: Path, monkeypatch) -> None:
    path, write = tmp_path / "results.jsonl", os.write
    append(path, _any_result())
    whole = path.read_bytes()
    monkeypatch.setattr(os, "write", lambda file, line: write(file, line[:50]))
    with pytest.raises(ResiDualError, match="no space is left on that disk"):
        append(path, replace(_any_result(), seed=1))
    monkeypatch.undo()
    assert path.read_bytes() == whole
    append(path, replace(_any_result(), seed=2))
    assert [result.seed for result in read_results(tmp_path)] == [0, 2]


def test_images_to_choose_by_change_nothing_else(registry, tmp_path: Path) -> None:
    """The same training images with and without them, and answers of what does not use them."""
    protocols = {"alone": Protocol("shots", 3, seeds=(2,)),
                 "beside": Protocol("shots", 3, 5, seeds=(2,))}  # fmt: skip
    methods = ("ridge", "lin", "gains-interpolated")
    own = replace(registry, protocols=protocols, methods=methods).only(data=["grey"])
    found = {(r.protocol, r.method): r for r in run_registry(own, tmp_path, say=id)}
    alone, beside = (found[name, "ridge"] for name in protocols)
    assert (alone.right, alone.images["train"]) == (beside.right, 12)
    assert beside.images == {**alone.images, "validation": 20}
    assert "chosen by 20 validation images" in found["beside", "lin"].notes[0]
    assert "chosen by 20 validation images" in found["beside", "gains-interpolated"].notes[-1]
    labels = torch.tensor(load_images(registry.data["grey"]).train["label"])
    one, other = (draw(protocol, labels, 4, 2) for protocol in protocols.values())
    assert torch.equal(one.rows, other.rows)
    assert not one.validation.numel()
    assert not torch.isin(other.validation, other.rows).any()
    assert labels[other.validation].bincount().tolist() == [5] * 4
    with pytest.raises(ResiDualError, match="validation_shots beside shots"):
        Protocol("full", validation_shots=2)
