"""The contact sheet: one file, some of each class, what is wrong, names shown as they are."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from residual_peft.data import load_data
from residual_peft.data.survey import Copies, survey
from residual_peft.reporting import contact_sheet
from residual_peft.reporting.contact_sheet import write_contact_sheet


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(40):
        path = tmp_path / "photos" / ("<b>cat", "dog")[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (9, 9, 3), np.uint8)
        Image.fromarray(pixels).save(path)
    return tmp_path / "photos"


def pictures(text: str) -> int:
    return len(re.findall(r'<img src="data:image/(?:png|jpeg);base64,', text))


def test_a_sheet_shows_some_of_each_class_and_asks_for_nothing(folder: Path, tmp_path) -> None:
    data = load_data(folder, validation=0, test=0)
    found = survey(data)
    path = write_contact_sheet(tmp_path / "new" / "sheet.html", data, found, lines=["<i>said"])
    text = path.read_text()
    assert pictures(text) == 2 * 20
    assert "&lt;b&gt;cat" in text
    assert "&lt;i&gt;said" in text
    assert "<b>cat" not in text
    assert not re.findall(r'(?:src|href)="(?!data:)', text)
    assert "default-src 'none'" in text
    assert str(tmp_path) not in text
    assert "<title>photos</title>" in text
    cut = load_data(folder)  # parts of one split are shown as what they were cut from
    again = write_contact_sheet(tmp_path / "again.html", cut, survey(cut)).read_text()
    shown = [set(re.findall(r'src="data:([^"]+)"', page)) for page in (text, again)]
    assert len(shown[0]) == 40
    assert shown[0] == shown[1]


def test_copies_come_first_with_their_classes(folder: Path, tmp_path: Path) -> None:
    one = folder / "<b>cat" / "00.png"
    (folder / "dog" / "same.png").write_bytes(one.read_bytes())
    data = load_data(folder, validation=0, test=0)
    found = survey(data)
    near = (Copies((found.places[2], found.places[5])),)
    text = write_contact_sheet(tmp_path / "sheet.html", data, found, near).read_text()
    place = text.index("The same image in several splits or classes")
    assert place < text.index("Nearly the same images") < text.index("<h2>Classes</h2>")
    assert pictures(text) == 20 + 21 + 2 + 2
    assert text.count("dog/same.png") >= 2


def test_a_sheet_stays_a_file_to_mail(folder: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(contact_sheet, "PICTURES", 10)
    data = load_data(folder, validation=0, test=0)
    text = write_contact_sheet(tmp_path / "sheet.html", data, survey(data)).read_text()
    assert pictures(text) == 10
    assert "5 shown" in text
