"""Decoding in other processes: the same batches, from wherever it is called, or in this one."""

import io
import json
import logging
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
import torch
from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import Image

from residual_peft.data import ProcessedImages, batches, collate, decoding
from residual_peft.data.images import UnreadableImage
from residual_peft.errors import ResiDualError
from tests.launch import ENVIRONMENT, ROOT
from tests.pictures import PROCESSOR, png, stored
from tests.tokenizers import clip_tokenizer

MIXED = [png(seed=0), b"broken", None, png(seed=3), *[png(seed=s) for s in range(4, 20)], b""]


@pytest.fixture
def eager(monkeypatch):
    """Processes pay from the first image on."""
    counts = []
    real = decoding._started

    def recorded(images, pieces, count, batch):
        counts.append((count, sum(map(len, pieces))))
        return real(images, pieces, count, batch)

    monkeypatch.setattr(decoding, "_started", recorded)
    monkeypatch.setattr(decoding, "SECONDS", {"fork": 0.0})
    monkeypatch.setattr(decoding, "usable_cores", lambda: 2)
    return counts


def items(contents=None, **options):
    contents = [png(seed=seed) for seed in range(40)] if contents is None else contents
    return ProcessedImages(stored(contents), PROCESSOR, "the split 'train'", **options)


def same(first, second):
    pairs = list(zip(first, second, strict=True))
    return bool(pairs) and all(
        a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a) for a, b in pairs
    )


def test_by_default_several_processes_decode_what_comes_after_the_first_images(eager):
    here = list(batches(items(), batch_size=12, num_workers=0))
    state = torch.random.get_rng_state()
    there = list(batches(items(), batch_size=12))
    assert same(here, there)
    assert torch.cat([batch["index"] for batch in there]).tolist() == list(range(40))
    assert eager == [(2, 40 - 12)]  # pieces of eight, and four to the end of the first batch
    # what is random elsewhere does not depend on where images are decoded
    assert torch.equal(state, torch.random.get_rng_state())


def test_few_and_small_images_start_nothing(monkeypatch):
    monkeypatch.setattr(decoding, "_started", lambda *_: pytest.fail("a process was started"))
    assert len(list(batches(items(), batch_size=12))) == 4


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_drop_out_and_are_listed(workers):
    loader = batches(items(MIXED), batch_size=4, num_workers=workers, skip=True)
    for _ in range(2):  # read again, they are listed once
        found = list(loader)
        assert [len(batch["labels"]) for batch in found] == [2, 4, 4, 4, 4]
        rows = torch.cat([batch["index"] for batch in found]).tolist()
        assert rows == [0, *range(3, 20)]
        assert torch.cat([batch["labels"] for batch in found]).tolist() == [r % 2 for r in rows]
        assert loader.skipped == [
            (1, "image 1 of the split 'train'", "not an image that PIL knows"),
            (2, "image 2 of the split 'train'", "an empty row"),
            (20, "image 20 of the split 'train'", "an empty file"),
        ]
    with pytest.raises(UnreadableImage, match=r"could not read image 1 of the split 'train'"):
        list(batches(items(MIXED), batch_size=4, num_workers=workers))


@pytest.mark.parametrize("workers", [0, 2])
def test_images_of_which_none_can_be_read_are_one_error(workers):
    loader = batches(items([b"no"] * 9), batch_size=4, num_workers=workers, skip=True)
    with pytest.raises(
        ResiDualError, match=r"none of the 9 of the split 'train' could be read; the first: image 0"
    ):
        list(loader)


def test_what_a_terminal_would_obey_is_written_out_when_it_is_skipped(tmp_path, caplog):
    path = tmp_path / "a\x1b[2J.png"
    path.write_bytes(b"no")
    column = Dataset.from_dict({"image": [str(path)] * 2}).cast_column("image", ImageFeature())
    loader = batches(column, PROCESSOR, num_workers=0, skip=True)
    with pytest.raises(ResiDualError, match=r"the first: '.*/a\\x1b\[2J.png' \(not an image"):
        list(loader)
    assert loader.skipped[0][1] == str(path)
    images = ProcessedImages(column, PROCESSOR, skip=True)
    with pytest.raises(ResiDualError, match="none of the 2"):
        collate([images[0], images[1]])
    assert r"a\x1b[2J.png' (not an image" in caplog.text
    assert "\x1b" not in caplog.text


def test_a_file_that_vanishes_on_the_way_is_one_of_them(tmp_path):
    paths = []
    for seed in range(6):
        paths.append(tmp_path / f"{seed}.png")
        paths[-1].write_bytes(png(seed=seed))
    data = items().dataset.select(range(6)).remove_columns("image")
    features = items().dataset.features["image"]
    data = data.add_column(
        "image", [{"bytes": None, "path": str(p)} for p in paths], feature=features
    )
    loader = batches(data, PROCESSOR, batch_size=2, num_workers=0, skip=True)
    found = []
    for batch in loader:
        found += batch["index"].tolist()
        paths[3].unlink(missing_ok=True)
    assert found == [0, 1, 2, 4, 5]
    assert loader.skipped == [(3, str(paths[3]), "no such file")]


def test_a_daemonic_process_decodes_by_itself():
    """As in a pool of processes: those may have no children."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        counts = pool.apply_async(_count, ()).get(timeout=60)
    assert counts == [12, 12, 12, 4]


def _count():
    return [len(batch["labels"]) for batch in batches(items(), batch_size=12, num_workers=2)]


class Deadly(ProcessedImages):
    def __getitem__(self, index):
        if index == 30:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def test_a_process_that_dies_is_one_line():
    data = Deadly(stored([png(seed=seed) for seed in range(40)]), PROCESSOR)
    with pytest.raises(ResiDualError, match=r"a process that decodes images has died"):
        list(batches(data, batch_size=12, num_workers=2))


class Faulty(ProcessedImages):
    def __getitem__(self, index):
        raise KeyError("a mistake in the program")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_mistake_in_a_data_set_is_no_bad_image(workers):
    data = Faulty(stored([png(), png()]), PROCESSOR)
    with pytest.raises(KeyError, match="a mistake in the program"):
        list(batches(data, num_workers=workers, skip=True))


def test_where_no_process_can_start_this_one_decodes(monkeypatch, caplog):
    def refuse(loader):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(decoding.DataLoader, "__iter__", refuse)
    found = list(batches(items(), batch_size=12, num_workers=2))
    assert same(found, list(batches(items(), batch_size=12, num_workers=0)))
    assert "images are decoded in this process" in caplog.text


def test_who_stops_early_leaves_no_process_behind():
    children = set(multiprocessing.active_children())
    for _ in batches(items(), batch_size=4, num_workers=2):
        break
    deadline = time.time() + 20
    while set(multiprocessing.active_children()) - children and time.time() < deadline:
        time.sleep(0.05)
    assert not set(multiprocessing.active_children()) - children


def test_cores_are_those_that_may_be_used(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    monkeypatch.setattr(decoding.Path, "read_text", lambda _: "max 100000\n")
    assert decoding.usable_cores() == 6
    monkeypatch.setattr(decoding.Path, "read_text", lambda _: "250000 100000\n")  # 2.5 of them
    assert decoding.usable_cores() == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert decoding.usable_cores() == 1


def test_what_travels_to_another_process():
    assert decoding.travels(items())
    hooked = items()
    hooked.hook = lambda: None
    assert not decoding.travels(hooked)
    large = items()
    large.more = np.zeros(decoding.LARGEST_PICKLE + 1, np.uint8)
    assert not decoding.travels(large)


def test_tensors_of_any_kind_travel_as_bytes():
    for tensor in (
        torch.randn(2, 3, 4, dtype=torch.bfloat16),
        torch.tensor([3, 1]),
        torch.randn(0, 3),
        torch.tensor([True, False]),
        torch.randn(3, 2).T,
    ):
        packed = pickle.loads(pickle.dumps(decoding._packed(tensor)))
        assert torch.equal(decoding._unpacked(packed), tensor)


def script(folder, method, kind, *, by_file=True):
    """What the script says, in a process of its own."""
    clip_tokenizer().save_pretrained(folder)
    path = folder / "script.py"  # beside it, `tests/tokenizers.py` would hide the real one
    path.write_text((ROOT / "tests" / "decoding_script.py").read_text())
    environment = {k: v for k, v in ENVIRONMENT.items() if k != "TOKENIZERS_PARALLELISM"}
    done = subprocess.run(
        [sys.executable, str(path) if by_file else "-", method, kind, str(folder)],
        input=None if by_file else path.read_text(),
        cwd=ROOT,
        env=environment | {"OMP_NUM_THREADS": "2", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (folder / "runs").read_text() == "run\n"  # no process ran the script again
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def test_a_script_without_a_guard_and_one_from_a_pipe(tmp_path):
    found, told = script(tmp_path, "default", "tokenizer", by_file=False)
    assert found == {"same": True, "started": [2]}
    assert "fork" not in told  # as tokenizers say, once for each process


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "kind", "by_file", "started"),
    [
        ("default", "plain", True, [2]),
        ("spawn", "plain", True, [2]),
        ("spawn", "plain", False, [2]),
        ("spawn", "own class", True, []),
        ("forkserver", "tokenizer", True, [2]),
        ("forkserver", "no pickle", True, []),
        ("fork", "no pickle", True, [2]),
        ("fork", "own class", False, [2]),
    ],
)
def test_however_processes_start(tmp_path, method, kind, by_file, started):
    found, _ = script(tmp_path, method, kind, by_file=by_file)
    assert found == {"same": True, "started": started}


def test_the_trainers_loader_passes_over_bad_images(caplog):
    data = items([png(), b"broken", png(seed=2)], skip=True)
    with caplog.at_level(logging.WARNING):
        batch = decoding.read_piece(data, range(3))
    assert batch.rows == [0, 2]
    assert [image.row for image in batch.unread] == [1]


def test_huge_images_are_refused_without_a_warning(tmp_path):
    stream = io.BytesIO()
    Image.new("1", (10_000, 9_000)).save(stream, "PNG")
    loader = batches(items([png(), stream.getvalue()]), num_workers=0, skip=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        (batch,) = loader
    assert batch["index"].tolist() == [0]
    ((row, _, reason),) = loader.skipped
    assert (row, reason) == (1, "10000 x 9000 pixels are more than 89,478,485")
