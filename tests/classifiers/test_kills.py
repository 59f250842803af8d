"""Killed at any moment, a classifier's save leaves the old one or the new one, whole."""

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import get_peft_model

from residual_peft.bases.basis import SpectralBasis
from residual_peft.classifiers.zero_shot import ZeroShotClassifier
from residual_peft.data.provenance import SplitRecord, image_digest
from residual_peft.hub.files import whole_directory
from residual_peft.tuner import ResiDualConfig, load_adapter
from tests.kills import killed
from tests.models import Size, clip_model, pixels
from tests.pictures import image_processor
from tests.tuner.stream_twin import random_gains

SMALL = Size(width=8, layers=1, readout=6)
IMAGES = pixels(3, SMALL)


def base():
    return clip_model(SMALL)


def classifier(names: tuple[str, ...], classes: tuple[str, ...], seed: int) -> ZeroShotClassifier:
    config = ResiDualConfig(mode="stream")  # of which no picture is drawn
    model = get_peft_model(base(), config, adapter_name=names[0])
    for name in names[1:]:
        model.add_adapter(name, config)
    for name in names:
        random_gains(model, name, seed=seed)
    embeddings = torch.randn(len(classes), 6, generator=torch.Generator().manual_seed(seed))
    made = ZeroShotClassifier(
        model.eval(), classes, embeddings, logit_scale=seed, image_processor=image_processor()
    )
    made.split = SplitRecord("ab" * 16, seed)
    made.fitted_on = tuple(image_digest(b"%d" % number) for number in range(seed))
    return made


def said(loaded: ZeroShotClassifier) -> tuple:
    """All that a classifier says."""
    with torch.no_grad():
        logits = loaded.logits(loaded.model(pixel_values=IMAGES).image_embeds)
    rounded = [round(value, 4) for value in logits.flatten().tolist()]
    adapters = tuple(loaded.model.peft_config)
    return loaded.class_names, rounded, adapters, loaded.split, loaded.fitted_on


@pytest.fixture(scope="module")
def two():
    old = classifier(("one", "two"), ("a", "b", "c"), 3)
    return old, classifier(("one",), ("c", "b", "a"), 5)


def loaded_from(folder: Path) -> tuple:
    return said(ZeroShotClassifier.from_pretrained(folder, model=base()))


def outcome(folder: Path, old: ZeroShotClassifier, new: ZeroShotClassifier) -> str:
    found = loaded_from(folder)
    by_peft = load_adapter(base(), folder, "one")
    with torch.no_grad():
        alone = by_peft(pixel_values=IMAGES).image_embeds
    for word, made in (("old", old), ("new", new)):
        made.model.set_adapter("one")
        with torch.no_grad():
            same = torch.allclose(alone, made.model(pixel_values=IMAGES).image_embeds, atol=1e-4)
        if found == said(made) and same:
            return word
    return f"neither: {found}"


@pytest.mark.parametrize(
    ("after", "stride"),
    [
        (False, 13),
        pytest.param(False, 1, marks=pytest.mark.slow),
        pytest.param(True, 1, marks=pytest.mark.slow),
    ],
    ids=["some", "before every step", "after every step"],
)
def test_killed_on_its_way(tmp_path: Path, two: tuple, after: bool, stride: int) -> None:
    old, new = two
    outcomes = []
    for count in range(1, 400, stride):
        folder = tmp_path / f"{count}" / "saved"
        old.save_pretrained(folder)
        (folder / "notes.txt").write_text("mine")
        (folder / "run" / "run.json").write_text("of the old fit")
        status = killed(lambda folder=folder: new.save_pretrained(folder), count, after)
        if status == 0:
            break
        assert status == -signal.SIGKILL
        outcomes.append(outcome(folder, old, new))
        assert outcomes[-1] in ("old", "new"), (count, outcomes[-1])
        assert (folder / "notes.txt").read_text() == "mine"
        there = (folder / "run" / "run.json").exists()
        assert there == (outcomes[-1] == "old"), "the record of a fit belongs to its adapter"
        assert (folder / "two").exists() == (outcomes[-1] == "old")
    assert outcomes == sorted(outcomes, reverse=True)
    assert set(outcomes) == {"old", "new"}
    assert len(outcomes) > 20 / stride


@pytest.mark.slow
def test_killed_at_random(tmp_path: Path, two: tuple) -> None:
    choose, outcomes = random.Random(0), []
    pair, folder = list(two), tmp_path / "saved"
    started = time.monotonic()
    pair[0].save_pretrained(folder)
    pair[0].save_pretrained(folder)
    usual = (time.monotonic() - started) / 2
    for _ in range(30):
        process = os.fork()
        if process == 0:
            pair[1].save_pretrained(folder)
            os._exit(0)
        time.sleep(choose.random() * usual)
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        outcomes.append(outcome(folder, *pair))
        assert outcomes[-1] in ("old", "new")
        if outcomes[-1] == "new":
            pair.reverse()
        assert [path.name for path in tmp_path.iterdir()] == ["saved"]
    assert len(outcomes) == 30


@pytest.mark.parametrize("act", ["basis", "replaced"])
def test_a_basis_is_saved_whole(tmp_path: Path, act: str) -> None:
    bases = [SpectralBasis.fit(base(), [pixels(20, SMALL, seed=s)], components=2) for s in (0, 1)]
    save: Callable[[Path], None] = bases[1].save_pretrained
    outcomes = []
    for count in range(1, 100):
        folder = tmp_path / f"{count}" / "basis"
        folder.parent.mkdir()
        if act == "replaced":
            bases[0].save_pretrained(folder)
        status = killed(lambda folder=folder: save(folder), count, False)
        if status == 0:
            break
        if folder.is_dir():
            found = SpectralBasis.from_pretrained(folder).digest
            assert found in (bases[0].digest, bases[1].digest)
            outcomes.append(found)
        assert whole_directory(folder) == folder
    assert len(set(outcomes)) == (2 if act == "replaced" else 1)
