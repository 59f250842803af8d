"""A look by name: near copies by a model, the sheet, and the first lines of a fit."""

import json
from pathlib import Path

import pytest
from PIL import Image

from residual_peft.app.looking import look
from residual_peft.demo.tasks import world_task
from residual_peft.errors import ResiDualError
from residual_peft.hub.directories import DEMO_MODEL


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    task = world_task("shape", 60, seed=4)
    names = task.features["label"].names
    for number, row in enumerate(task):
        path = tmp_path / "photos" / names[row["label"]] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        row["image"].save(path)
    return tmp_path / "photos"


def test_pictures_saved_anew_are_near_copies(folder: Path, tmp_path: Path) -> None:
    before = look(folder, model=DEMO_MODEL)
    assert before.near is not None
    assert before.survey.copies == ()
    known = {place.file for group in before.near for place in group.places}
    first = sorted(folder.rglob("*.png"))[0]
    other = folder / "heart" / "saved anew.jpg"
    Image.open(first).resize((80, 80), Image.Resampling.BICUBIC).save(other, quality=85)
    (folder / "heart" / "same.png").write_bytes(first.read_bytes())
    found = look(folder, model=DEMO_MODEL)
    assert found.near is not None
    (copy,) = found.survey.copies
    name = str(first.relative_to(folder))
    assert {place.file for place in copy.places} == {name, "heart/same.png"}
    (group,) = [g for g in found.near if "heart/saved anew.jpg" in {p.file for p in g.places}]
    assert name in {place.file for place in group.places}
    extra = {place.file for group in found.near for place in group.places} - known
    assert extra <= {name, "heart/same.png", "heart/saved anew.jpg"}
    lines = found.lines()
    assert any(line.startswith("near copies: ") for line in lines)
    read = json.loads(json.dumps(found.as_dict()))
    assert read["model"] == DEMO_MODEL
    assert len(read["near_copies"]) == len(found.near)
    sheet = found.write_sheet(tmp_path / "sheet.html").read_text()
    assert "Nearly the same images" in sheet


def test_copies_of_one_file_are_no_near_copies(folder: Path) -> None:
    first = sorted(folder.rglob("*.png"))[0]
    (first.parent / "again.png").write_bytes(first.read_bytes())
    found = look(folder, model=DEMO_MODEL, alike=0.9999)
    assert found.near == ()
    assert len(found.survey.copies) == 1


def test_without_a_model_nothing_is_said_of_near_copies(folder: Path) -> None:
    found = look(folder)
    assert found.near is None
    assert "near_copies" not in found.as_dict()
    assert not any(line.startswith("near") for line in found.lines())


def test_what_cannot_be_is_said(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ResiDualError, match="alike: wanted a cosine between -1 and 1, got 2"):
        look(folder, alike=2)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ResiDualError, match="found no images in"):
        look(tmp_path / "empty")
