"""Coordinates on disk: the same as in memory, the same bytes after any interruption."""

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file

from residual_peft.data import ProcessedImages, batches
from residual_peft.errors import ResiDualError
from residual_peft.solvers import fit_gains, solve_gains, strength_path
from residual_peft.solvers.coordinates import collect_coordinates, collect_with_basis
from residual_peft.solvers.objectives import Objective
from residual_peft.solvers.store import (
    CoordinateStore,
    coordinate_bytes,
    write_coordinates,
    writer,
)
from residual_peft.tuner import ResiDualConfig, fit_bases, gains_of
from tests.launch import run
from tests.models import clip_model
from tests.pairs import in_turn
from tests.tokenizers import VOCABULARY
from tests.training_case import Killed, adapted_classifier, images, task

CONFIGS = {
    "default": ResiDualConfig(),
    "heads": ResiDualConfig(units="head", components=2),
    "residual_star": ResiDualConfig.paper("residual_star"),
    "coarse": ResiDualConfig.paper("coarse"),
    "rd_y": ResiDualConfig.paper("rd_y"),
}
SIZES = {"shard_size": 10, "batch_size": 4}  # batches that do not fill a shard, shards that do not


def files(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


class Mortal(ProcessedImages):
    """Dies at an image for which there is no life left."""

    def __init__(self, whole, lives):
        self.__dict__.update(whole.__dict__)
        self.lives = lives

    def __getitem__(self, index):
        if self.lives == 0:
            raise Killed
        self.lives -= 1
        return super().__getitem__(index)


def in_memory(config, fit):
    classifier = adapted_classifier(config)
    data = images(classifier)
    if fit:
        fit_bases(classifier.model, batches(data, batch_size=16))
    return classifier, collect_coordinates(classifier.model, batches(data, batch_size=16))


@in_turn(
    config=CONFIGS.values(),
    fit_basis=[False, True],
)
def test_a_store_holds_what_memory_would(config, fit_basis, tmp_path):
    expected_classifier, expected = in_memory(config, fit_basis)
    classifier = adapted_classifier(config)
    data = images(classifier)
    store = write_coordinates(classifier.model, data, tmp_path / "s", fit_basis=fit_basis, **SIZES)
    assert len(store) == len(store.labels) == len(data)
    assert len(store.parts) == -(-len(data) // 10)
    assert store.ids.tolist() == list(range(len(data)))
    found = store.load()
    torch.testing.assert_close(found.readout, expected.readout)
    torch.testing.assert_close(found.coordinates, expected.coordinates, atol=1e-5, rtol=1e-4)
    assert torch.equal(found.labels, expected.labels)
    assert torch.equal(gains_of(classifier.model), gains_of(expected_classifier.model))
    assert not list((tmp_path / "s").glob("raw*"))
    index = torch.tensor([17, 3, 3, 34])
    some = store.rows(index)
    assert torch.equal(some.coordinates, found.coordinates[index])
    assert torch.equal(some.labels, found.labels[index])
    gains = torch.randn(store.state.gains.number)
    torch.testing.assert_close(found.adapted(gains), expected.adapted(gains), atol=3e-4, rtol=1e-4)
    # in another process: the adapter from its file, the store from its directory
    classifier.model.save_pretrained(tmp_path / "adapter")
    again = adapted_classifier(config).model
    again.load_adapter(tmp_path / "adapter", "saved")
    again.set_adapter("saved")
    assert len(CoordinateStore.open(tmp_path / "s", again, "saved")) == len(data)


@pytest.mark.parametrize("fit_basis", [False, True])
def test_killed_anywhere_it_goes_on_to_the_same_bytes(fit_basis, tmp_path, monkeypatch):
    def write(folder, lives=None):
        classifier = adapted_classifier()
        data = images(classifier)
        data = data if lives is None else Mortal(data, lives)
        return write_coordinates(classifier.model, data, folder, fit_basis=fit_basis, **SIZES)

    write(tmp_path / "whole")
    whole = files(tmp_path / "whole")
    for lives in (0, 5, 23, 5, 12):  # of 36 images in shards of 10
        with pytest.raises(Killed):
            write(tmp_path / "killed", lives)
        with pytest.raises(ResiDualError, match="is not finished; call write_coordinates"):
            CoordinateStore.open(tmp_path / "killed", adapted_classifier().model)
    assert list((tmp_path / "killed").glob("*-00003.safetensors")) == []
    assert list((tmp_path / "killed").glob("*-00002.safetensors"))  # nothing is lost
    if fit_basis:  # and in the second stage, after two shards of coordinates
        real, calls = writer.Writer._write, []

        def dying(self, *arguments):
            if len(calls) == 2:
                raise Killed
            calls.append(1)
            real(self, *arguments)

        monkeypatch.setattr(writer.Writer, "_write", dying)
        with pytest.raises(Killed):
            write(tmp_path / "killed")
        monkeypatch.undo()
        assert len(list((tmp_path / "killed").glob("shard*"))) == 2
        # the images are not needed any more
        write(tmp_path / "killed", 0)
    else:
        write(tmp_path / "killed", 6)
    assert files(tmp_path / "killed") == whole
    write(tmp_path / "killed", 0)  # finished already
    assert files(tmp_path / "killed") == whole


def test_half_precision_is_half_the_size_and_near(tmp_path):
    classifier, expected = in_memory(None, True)
    for dtype, error in (("float16", 1e-3), ("bfloat16", 8e-3)):
        store = write_coordinates(
            classifier.model, images(classifier), tmp_path / dtype, dtype=dtype, **SIZES
        )
        (first, *_) = (tmp_path / dtype).glob("shard-00000*")
        assert str(load_file(first)["coordinates"].dtype) == f"torch.{dtype}"
        found = store.load().coordinates
        assert found.dtype == torch.float32
        assert not torch.equal(found, expected.coordinates)
        assert (found - expected.coordinates).abs().max() < error * expected.coordinates.abs().max()
        size = sum(p.stat().st_size for p in (tmp_path / dtype).glob("shard*"))
        planned = coordinate_bytes(len(store), store.state.gains.number, 16, getattr(torch, dtype))
        assert planned < size < planned + 500 * len(store.parts)  # names and shapes


def test_what_changed_is_named_and_nothing_is_written(tmp_path):
    classifier = adapted_classifier()
    data = images(classifier)
    folder = tmp_path / "s"
    write_coordinates(classifier.model, data, folder, **SIZES)
    before = files(folder)
    processor = type(data.image_processor)(
        **{**data.image_processor.to_dict(), "do_rescale": False}
    )
    other_labels = task().train.map(lambda row: {"label": 0})
    model = clip_model(vocab_size=VOCABULARY)
    with torch.no_grad():
        model.visual_projection.weight[0, 0] += 1
    other_basis = adapted_classifier()
    fit_bases(other_basis.model, batches(data, batch_size=16))
    calls = {
        "weights of another model": (adapted_classifier(model=model).model, data, SIZES),
        "another basis or other units": (other_basis.model, data, SIZES),
        "another image processor": (
            classifier.model,
            ProcessedImages(task().train, processor),
            SIZES,
        ),
        "other images or labels": (
            classifier.model,
            ProcessedImages(other_labels, data.image_processor),
            SIZES,
        ),
        "shard_size 10, not 11": (classifier.model, data, {**SIZES, "shard_size": 11}),
        "batch_size 4, not 5": (classifier.model, data, {**SIZES, "batch_size": 5}),
        "dtype float32, not float16": (classifier.model, data, {**SIZES, "dtype": "float16"}),
        "another way to get the basis": (classifier.model, data, {**SIZES, "fit_basis": True}),
    }
    for message, (with_model, with_data, options) in calls.items():
        with pytest.raises(ResiDualError, match=message):
            write_coordinates(with_model, with_data, folder, **options)
        assert files(folder) == before
    with pytest.raises(ResiDualError, match="with another basis or other units"):
        CoordinateStore.open(folder, other_basis.model)
    with pytest.raises(ResiDualError, match="belongs to the weights"):
        CoordinateStore.open(folder, adapted_classifier(model=model).model)
    with pytest.raises(ResiDualError, match="which is missing"):
        CoordinateStore.open(tmp_path / "none", classifier.model)
    edited = task().train.map(
        lambda row: {"image": row["image"].rotate(90) if row["label"] == 2 else row["image"]}
    )
    with pytest.raises(ResiDualError, match="other images or labels"):
        write_coordinates(
            classifier.model, ProcessedImages(edited, data.image_processor), folder, **SIZES
        )
    classifier.model.get_base_model().config._name_or_path = "/moved/elsewhere"  # the same weights
    write_coordinates(classifier.model, data, folder, **SIZES)
    assert files(folder) | {"manifest.json": b""} == before | {"manifest.json": b""}


def test_bad_options_are_refused(tmp_path):
    classifier = adapted_classifier()
    data = images(classifier)
    for options, message in (
        ({"dtype": "int8"}, "wanted dtype float32, float16, bfloat16, got 'int8'"),
        ({"shard_size": 0}, "shard_size and batch_size of 1 or more"),
        ({"across_processes": True}, "needs torch.distributed, which is not running"),
    ):
        with pytest.raises(ResiDualError, match=message):
            write_coordinates(classifier.model, data, tmp_path / "s", **options)
    empty = ProcessedImages(task().train.select([]), data.image_processor, "the split 'train'")
    with pytest.raises(ResiDualError, match="wanted images, the split 'train' has none"):
        write_coordinates(classifier.model, empty, tmp_path / "s")
    bare = ProcessedImages(task().train.remove_columns("label"), data.image_processor)
    with pytest.raises(ResiDualError, match="has no column 'label'"):
        write_coordinates(classifier.model, bare, tmp_path / "s")
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    "objective", [Objective(strength=0.01), Objective(normalized=False, strength=0.01)]
)
def test_solvers_take_a_store(objective, tmp_path):
    classifier, rows = in_memory(None, True)
    store = write_coordinates(classifier.model, images(classifier), tmp_path / "s", **SIZES)
    solved = [
        solve_gains(classifier, train, objective=objective, tolerance=1e-7, dtype=torch.float64)
        for train in (rows, store)
    ]
    torch.testing.assert_close(solved[0].gains, solved[1].gains, atol=1e-4, rtol=1e-4)
    assert (solved[0].gains - 1).abs().max() > 0.05
    start = torch.ones_like(solved[0].gains)
    options = {"objective": objective, "start": start, "batch_size": 16, "epochs": 3}
    fits = [fit_gains(classifier, train, **options) for train in (rows, store)]
    torch.testing.assert_close(fits[0].gains, fits[1].gains, atol=1e-3, rtol=1e-3)
    paths = [
        strength_path(classifier, train, objective=objective, strengths=(0.1, 0.01), folds=2)
        for train in (rows, store)
    ]
    torch.testing.assert_close(paths[0].loss, paths[1].loss, atol=1e-3, rtol=1e-3)


def test_bar_counts_what_is_done(tmp_path, capsys):
    classifier = adapted_classifier()
    with pytest.raises(Killed):
        write_coordinates(classifier.model, Mortal(images(classifier), 25), tmp_path / "s", **SIZES)
    capsys.readouterr()
    write_coordinates(classifier.model, images(classifier), tmp_path / "s", progress=True, **SIZES)
    shown = capsys.readouterr().err
    total = len(images(classifier))
    assert f"20/{total}" in shown
    assert f"{total}/{total}" in shown
    assert "image/s" in shown


@pytest.mark.parametrize("fit_basis", [False, True])
def test_kill_9_leaves_what_the_next_run_makes_the_same_bytes_of(fit_basis, tmp_path):
    """At images, and while each file is being written: nothing half, nothing left over."""
    run("-m", "tests.store_process", tmp_path, int(fit_basis))
    whole = files(tmp_path / "whole")
    assert len(whole) == (7 if fit_basis else 5)
    assert files(tmp_path / "killed") == whole


def test_the_one_pass_in_memory_gives_the_store_of_one_pass(tmp_path):
    classifier = adapted_classifier()
    data = images(classifier)
    rows = collect_with_basis(classifier.model, batches(data, batch_size=16))
    other = adapted_classifier()
    store = write_coordinates(other.model, data, tmp_path / "s", fit_basis=True, **SIZES)
    torch.testing.assert_close(store.load().coordinates, rows.coordinates, atol=1e-5, rtol=1e-4)


BROKEN = (0, 3, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 35)  # the whole second shard is among them


def with_bad_images(classifier):
    data = images(classifier)
    rows = list(data.dataset)
    for row in BROKEN:
        rows[row] = {**rows[row], "image": {"bytes": b"broken", "path": f"{row}.png"}}
    data.dataset = Dataset.from_list(rows, features=data.dataset.features)
    return data


@pytest.mark.parametrize("fit_basis", [False, True])
def test_images_that_cannot_be_read_are_left_out_and_named(fit_basis, tmp_path, caplog):
    def write(folder, lives=None):
        classifier = adapted_classifier()
        data = with_bad_images(classifier)
        data = data if lives is None else Mortal(data, lives)
        return write_coordinates(classifier.model, data, folder, fit_basis=fit_basis, **SIZES)

    store = write(tmp_path / "whole")
    good = [row for row in range(36) if row not in BROKEN]
    assert len(store) == len(store.labels) == len(good)
    assert store.ids.tolist() == good
    assert store.skipped == tuple((r, f"{r}.png", "not an image that PIL knows") for r in BROKEN)
    assert "skipped 13 of the 36 images of train: '0.png' (not" in caplog.text
    assert sum(map(len, store.parts)) == len(store)

    classifier = adapted_classifier()
    kept = ProcessedImages(task().train.select(good), classifier.image_processor)
    read = collect_with_basis if fit_basis else collect_coordinates
    expected = read(classifier.model, batches(kept, batch_size=16))
    found = store.load()
    torch.testing.assert_close(found.readout, expected.readout)
    torch.testing.assert_close(found.coordinates, expected.coordinates, atol=1e-5, rtol=1e-4)
    assert torch.equal(found.labels, expected.labels)
    index = torch.tensor([22, 0, 7, 8])
    assert torch.equal(store.rows(index).coordinates, found.coordinates[index])

    for lives in (5, 12):
        with pytest.raises(Killed):
            write(tmp_path / "killed", lives)
    assert write(tmp_path / "killed").skipped == store.skipped
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def test_a_store_of_no_image_that_can_be_read_is_refused(tmp_path):
    classifier = adapted_classifier()
    data = images(classifier)
    rows = [{**row, "image": {"bytes": b"no", "path": None}} for row in data.dataset]
    data.dataset = Dataset.from_list(rows, features=data.dataset.features)
    with pytest.raises(ResiDualError, match="none of the 36 of train could be read: image 0 of"):
        write_coordinates(classifier.model, data, tmp_path / "s", **SIZES)
    with pytest.raises(ResiDualError, match="could not read image 0 of train"):
        write_coordinates(classifier.model, data, tmp_path / "t", skip=False, **SIZES)


def test_a_shard_that_lacks_images_without_a_word_is_refused(tmp_path):
    classifier = adapted_classifier()
    write_coordinates(classifier.model, images(classifier), tmp_path / "s", **SIZES)
    path = tmp_path / "s" / "shard-00001.safetensors"
    save_file({k: t[:9].contiguous() for k, t in load_file(path).items()}, path)
    with pytest.raises(ResiDualError, match="does not hold the 10 images that its store says"):
        CoordinateStore.open(tmp_path / "s", classifier.model)
