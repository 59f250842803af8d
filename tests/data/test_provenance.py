"""No door trains on the images that another door tests on."""

import hashlib
import inspect

import numpy as np
import pytest
from peft import get_peft_model
from PIL import Image

from residual_peft.app import fitting, studies
from residual_peft.classifiers.zero_shot import ZeroShotClassifier
from residual_peft.data import load_data
from residual_peft.data.provenance import digest_of, image_digest
from residual_peft.solvers.training import trainer_kwargs, training_arguments
from residual_peft.tuner import ResiDualConfig
from tests.models import clip_model
from tests.pictures import image_processor
from tests.tokenizers import VOCABULARY, clip_tokenizer

DOORS = [load_data, *(f for m in (fitting, studies) for _, f in inspect.getmembers(m))]


def test_all_doors_split_with_the_same_seed():
    seeds = {
        door.__name__: inspect.signature(door).parameters["seed"].default
        for door in DOORS
        if callable(door) and "seed" in inspect.signature(door).parameters
    }
    seeds = {name: seed for name, seed in seeds.items() if seed is not inspect.Parameter.empty}
    assert {"load_data", "Recipe", "study"} <= set(seeds)
    assert set(seeds.values()) <= {0, None}  # None is the adapter's own
    assert {seeds[name] for name in ("load_data", "Recipe", "study")} == {0}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    pixels = np.random.default_rng(0)
    for name in ("cat", "dog", "owl"):
        (folder / name).mkdir()
        for number in range(20):
            image = Image.fromarray(pixels.integers(0, 255, (16, 16, 3), dtype=np.uint8))
            image.save(folder / name / f"{number}.png")
    return folder


def test_what_the_trainer_trains_on_no_other_door_tests_on(photos, tmp_path):
    data = load_data(photos)
    names = data.class_names
    classifier = ZeroShotClassifier.from_text(
        get_peft_model(clip_model(vocab_size=VOCABULARY), ResiDualConfig()),
        clip_tokenizer(),
        names,
        "a {}.",
        text_model=clip_model(vocab_size=VOCABULARY),
        image_processor=image_processor(),
    )
    trainer_kwargs(classifier, data, training_arguments(tmp_path / "run"))
    classifier.save_pretrained(tmp_path / "adapter")
    saved = ZeroShotClassifier.from_pretrained(
        tmp_path / "adapter", model=clip_model(vocab_size=VOCABULARY)
    )
    elsewhere = load_data(str(photos), seed=0)  # as the command line calls it
    assert saved.split == elsewhere.split
    assert set(saved.fitted_on) == {
        digest for split in ("train", "validation") for digest in elsewhere.digests[split]
    }
    assert not set(saved.fitted_on) & set(elsewhere.digests["test"])


def test_digests_are_of_content_and_of_the_whole_whatever_the_order():
    assert image_digest(b"a") == hashlib.sha256(b"a").hexdigest()[:32]
    rows = [("train", "cat", image_digest(b"a")), ("test", "dog", image_digest(b"b"))]
    assert digest_of(rows) == digest_of(reversed(rows))
    changed = [("train", "dog", rows[0][2]), ("validation", "dog", rows[1][2])]
    assert len({digest_of([*rows[:1], row]) for row in [rows[1], *changed]}) == 3
