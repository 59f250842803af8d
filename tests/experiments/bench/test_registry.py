"""Registries that are read: the paper's, bad ones, parts of one; and draws of their protocols."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from residual_peft.errors import ResiDualError
from residual_peft.experiments.bench.entries import DataEntry, Protocol, Published
from residual_peft.experiments.bench.images import draw, load_images
from residual_peft.experiments.bench.plan import plan
from residual_peft.experiments.bench.registry import read_registry
from residual_peft.experiments.bench.run import runs_of
from tests.experiments.bench.case import METHODS as NAMES
from tests.experiments.bench.case import pictures, small_registry
from tests.pairs import table

TOP = '[models.a]\nsource = "a"\n[data.b]\nsource = "b"\n[protocols.c]\nkind = "full"\n'
PUBLISHED = "[published.x]\nmodel = 'a'\nsource = 's'\n"


@table(
    ("text", "said"),
    [
        ("x = ", "is not TOML"),
        ("[models.a]\n", r"field models\.a\.source: wanted text, got none"),
        (TOP + "methods = ['magic']", "'magic' is not a method"),
        (TOP + "[protocols.d]\nkind = 'shots'", r"field protocols\.d: wanted shots with"),
        (TOP + "shots = 3", r"field protocols\.c: wanted shots with the kind 'shots', and none"),
        (TOP + "[data.b2]\nsource = 3", r"field data\.b2\.source: wanted text, got 3"),
        (TOP + "[data.b2]\nsource = 'b'\ntemplates = ['x']", r"data\.b2: the prompt template 'x'"),
        (TOP + "[data.b2]\nsource = 'b'\ntest = 2", r"data\.b2\.test: wanted a number from 0 to"),
        (TOP + "[data.b2]\nsuorce = 'b'", r"data\.b2"),
        (TOP + "[models.'../x']\nsource = 'b'", "wanted a name of letters, digits"),
        (TOP + "corruptions = ['fog']", r"field protocols\.c: 'fog' is not a corruption"),
        (
            TOP + "corruptions = ['jpeg']\nseverities = [6]",
            r"severities\[0\]: wanted a number from 1 to 5",
        ),
        (TOP + "basis = 'weigths'", "'weigths' is not a data set to fit bases on"),
        (TOP + "[data.b2]\nsource = 'b'\nshifted = ['b2']", "'b2' is not another data set of"),
        (
            TOP + "[data.b2]\nsource = 'b'\nsubgroup_names = ['x', 'y']",
            "wanted a column in subgroups",
        ),
        (TOP + PUBLISHED, r"field published\.x: wanted a published accuracy or average"),
        (TOP + PUBLISHED + "accuracy.c = {d = 3}", "'d' is not a task of the registry"),
        (TOP + PUBLISHED + "average.d = 3", "'d' is not a protocol of the registry"),
        (TOP + PUBLISHED + "average.c = 101", r"published\.x\.average\.c: wanted"),
        ("basis = 'imagenet'\n" + TOP, "'imagenet' is not a data set to fit bases on"),
        ("basis = 2026-01-01\n" + TOP, "field basis: wanted text"),
    ],
)
def test_a_bad_registry_is_one_clear_line(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "registry.toml"
    path.write_text(text if not text.endswith(("'magic']",)) else f"methods = ['magic']\n{TOP}")
    with pytest.raises(ResiDualError, match=said) as caught:
        read_registry(path)
    assert "registry.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_registry_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ResiDualError, match="'fusionbnch' is not a TOML file, nor a registry that"):
        read_registry("fusionbnch")
    with pytest.raises(ResiDualError, match=r"mine\.toml"):
        read_registry(tmp_path / "mine.toml")
    # what lies beside a registry is found there, and rows count wherever the two lie
    digests = set()
    for place in (tmp_path / "here", tmp_path / "there"):
        (place / "b").mkdir(parents=True)
        (place / "mine.toml").write_text(TOP)
        found = read_registry(place / "mine.toml")
        assert (found.models["a"].source, found.data["b"].source) == ("a", str(place / "b"))
        digests.add(found.digest("a", "b", "c"))
    assert len(digests) == 1


def test_draws_are_what_they_say() -> None:
    generator = np.random.default_rng(0)
    labels = torch.from_numpy(generator.integers(0, 7, 200))
    for seed in range(3):
        shots = draw(Protocol("shots", 4), labels, 7, seed)
        assert torch.equal(labels[shots.rows].bincount(minlength=7), torch.full((7,), 4))
        assert len(shots.rows.unique()) == 28
        assert not len(shots.novel)
        halves = draw(Protocol("base-to-novel"), labels, 7, seed)
        assert sorted([*halves.classes.tolist(), *halves.novel.tolist()]) == list(range(7))
        assert len(halves.classes) == 4
        assert sorted(halves.rows.tolist()) == [
            row for row in range(200) if labels[row] in halves.classes
        ]
        again = draw(Protocol("shots", 4), labels, 7, seed)
        assert torch.equal(again.rows, shots.rows)
    assert not torch.equal(draw(Protocol("shots", 4), labels, 7, 0).rows, again.rows)


def test_names_are_checked(tmp_path: Path) -> None:
    registry = small_registry(tmp_path)
    with pytest.raises(ResiDualError, match="'tinyy' is not a model of the registry; did you mean"):
        registry.only(models=["tinyy"])
    with pytest.raises(ResiDualError, match="is not a method of the registry"):
        registry.only(methods=["gda"])
    assert registry.only(methods=[*NAMES[:2]]).methods == NAMES[:2]


def test_a_data_set_for_the_bases_is_no_task_unless_it_is_asked_for(tmp_path: Path) -> None:
    whole = replace(small_registry(tmp_path), basis="other")
    part = whole.only(data=["grey"])
    assert (set(part.data), part.tasks) == ({"grey", "other"}, ("grey",))
    assert {run[1] for run in runs_of(part)} == {e.data for e in plan(part) if e.runs} == {"grey"}
    assert part.digest("tiny", "grey", "all") == whole.digest("tiny", "grey", "all")
    assert part.only().tasks == ("grey",)
    assert part.only(data=["other"]).tasks == ("other",)
    assert whole.only().tasks == tuple(whole.data)
    with pytest.raises(ResiDualError, match="wanted at least one model, data set"):
        replace(part, aside=("grey", "other"))


def test_published_figures_stay_with_what_they_are_of(tmp_path: Path) -> None:
    row = Published("tiny", "s", {"all": {"grey": 80.0, "other": 70.0}}, {"all": 75.0})
    means = Published("tiny", "t", average={"2-shot": 60.0, "all": 70.0})
    whole = replace(small_registry(tmp_path), published={"LoRA": row, "LP++": means})
    part = whole.only(data=["grey"])  # no mean of data sets that are left out
    assert part.published == {"LoRA": Published("tiny", "s", {"all": {"grey": 80.0}})}
    assert whole.only(data=["gone"]).published == {}
    few = whole.only(protocols=["2-shot"]).published
    assert few == {"LP++": Published("tiny", "t", average={"2-shot": 60.0})}
    assert whole.only().published == whole.published
    bare = replace(whole, published={})
    assert bare.digest("tiny", "grey", "all") == part.digest("tiny", "grey", "all")


def test_shifted_data_come_along_and_are_no_tasks(tmp_path: Path) -> None:
    whole = small_registry(tmp_path)
    data = {
        "grey": replace(whole.data["grey"], shifted=("other",)),
        "other": replace(whole.data["other"], shifted=("gone",)),
        "gone": whole.data["gone"],
    }
    part = replace(whole, data=data).only(data=["grey"])
    assert (part.tasks, part.aside) == (("grey",), ("other", "gone"))
    # rows without shifts hold; those with them are others
    digests = [r.digest("tiny", "grey", "all") for r in (whole, part)]
    assert digests[0] != digests[1]
    with_rows = replace(part, data=data | {"grey": whole.data["grey"]})
    assert with_rows.digest("tiny", "grey", "all") == digests[0]


def test_a_training_image_is_no_test_image(tmp_path: Path) -> None:
    for split, count, seed in (("train", 12, 0), ("test", 8, 1)):
        pictures(tmp_path / split, ("black", "white"), count, seed)
    shutil.copy(tmp_path / "train" / "black" / "000.png", tmp_path / "test" / "black" / "copy.png")
    images = load_images(DataEntry(str(tmp_path)))
    assert (len(images.train) + len(images["validation"]), len(images.test)) == (12, 8)
    known = {*images.digests["train"], *images.digests["validation"]}
    assert not known.intersection(images.digests["test"])
    shutil.rmtree(tmp_path / "test")
    shutil.copytree(tmp_path / "train", tmp_path / "test")
    with pytest.raises(ResiDualError, match=r"all 12 test images of .* are training or validation"):
        load_images(DataEntry(str(tmp_path)))
