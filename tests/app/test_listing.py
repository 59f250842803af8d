"""Images that are to be looked at: which ones, in which order, and the tables of them."""

import csv
import io
from pathlib import Path

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image

from residual_peft.app.listing import MISTAKE_HEADERS, mistakes_of, pictured, write_noted
from residual_peft.classifiers.evaluation import Evaluation
from residual_peft.data.checking import files_of

NAMES = ("cat", "dog")


def photos(folder: Path, count: int = 4) -> Dataset:
    paths = []
    for index in range(count):
        path = folder / NAMES[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((9, 9, 3), 40 * index, np.uint8)).save(path)
        paths.append(str(path))
    columns = {"image": paths, "label": [i % 2 for i in range(count)]}
    features = Features(image=ImageFeature(), label=ClassLabel(names=list(NAMES)))
    return Dataset.from_dict(columns, features=features)


def test_mistakes_are_listed_the_worst_first(tmp_path: Path) -> None:
    data = photos(tmp_path)
    # image 0 is right; of 1, 2 and 3 the label is ever less likely
    logits = torch.tensor([[3.0, 0.0], [1.0, 0.0], [0.0, 2.0], [3.0, 0.0]])
    found = mistakes_of(Evaluation(NAMES, logits, torch.tensor([0, 1, 0, 1])), data)
    assert [item.row for item in found] == [3, 2, 1]
    assert [(item.label, item.other) for item in found] == [(1, 0), (0, 1), (1, 0)]
    assert found[0].score == float(logits[3].double().softmax(0)[0])
    write_noted(tmp_path / "all.csv", found, NAMES, MISTAKE_HEADERS)
    rows = list(csv.DictReader((tmp_path / "all.csv").open()))
    assert rows[0] == {
        "file": str(tmp_path / "dog" / "3.png"),
        "label": "dog",
        "prediction": "cat",
        "score": "0.9526",
    }
    shown = pictured(found, 2)
    assert [item.file for item in shown] == ["dog/3.png", "cat/2.png"]
    assert Image.open(io.BytesIO(shown[0].image)).getpixel((0, 0)) == (120, 120, 120)


def test_rows_are_those_of_the_data_set_where_some_could_not_be_read(tmp_path: Path) -> None:
    data = photos(tmp_path)
    logits = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    index = torch.tensor([2, 3])
    found = mistakes_of(Evaluation(NAMES, logits, torch.tensor([0, 1]), index), data)
    assert [Path(item.file).name for item in found] == ["2.png", "3.png"]


def test_an_image_without_a_file_is_called_by_its_row(tmp_path: Path) -> None:
    data = photos(tmp_path, 2)
    inside = [
        {"bytes": Path(p["path"]).read_bytes()}
        for p in data.cast_column("image", ImageFeature(decode=False))["image"]
    ]
    data = Dataset.from_dict({"image": inside}, features=Features(image=ImageFeature()))
    assert files_of(data, [1], "the test split") == ["row 1 of the test split"]
