"""`residual-peft look`: lines, JSON, a sheet; and what it needs no model for."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas
import pytest
from huggingface_hub import HfApi
from PIL import Image

from tests.commands import photos, stop
from tests.hub_client import hub  # noqa: F401  a fixture
from tests.launch import ENVIRONMENT, ROOT
from tests.pairs import table


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    return photos(tmp_path / "photos", "size", 30, seed=5)


def test_lines_and_a_sheet(folder: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    out = tmp_path / "sheet.html"
    assert stop(monkeypatch, "look", str(folder), "--out", str(out)) == 0
    captured = capsys.readouterr()
    first, *_, last = captured.out.splitlines()
    assert first.startswith("30 images of 2 classes (train 30)")
    assert last == f"The contact sheet is {out}"
    assert captured.err.startswith(f"Looking at {folder}.")
    assert "<!doctype html>" in out.read_text()


def test_json_is_all_that_is_printed(folder: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    out = tmp_path / "sheet.html"
    given = ("look", str(folder), "--json", "--out", str(out))
    assert stop(monkeypatch, *given) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["images"] == 30
    assert found["source"] == str(folder)


def test_a_look_needs_no_models(folder: Path) -> None:
    """What takes seconds to import is for whoever asks for near copies."""
    program = "import sys; from residual_peft import cli\ntry:\n    cli.main()\nfinally:\n"
    program += "    print({'peft', 'sklearn', 'transformers.modeling_utils'} & {*sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", program, "look", folder],
        cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == "set()"


def _table(root: Path, images: Path, name: str) -> str:
    """The images by name and label, as a table of some kind beside them."""
    files = sorted(images.rglob("*.png"))
    frame = pandas.DataFrame(
        {"file_name": [str(f.relative_to(root)) for f in files],
         "label": [f.parent.name for f in files]}
    )  # fmt: skip
    write = {
        ".csv": lambda path: frame.to_csv(path, index=False),
        ".tsv": lambda path: frame.to_csv(path, index=False, sep="\t"),
        ".jsonl": lambda path: frame.to_json(path, orient="records", lines=True),
        ".parquet": frame.to_parquet,
    }
    write[Path(name).suffix](root / name)
    return name


def _split(root: Path, images: Path) -> str:
    for split in ("train", "test"):
        shutil.copytree(images, root / "whole" / split)
    for number, path in enumerate(sorted((root / "whole").rglob("*.png"))):
        Image.new("RGB", (9, 9), (number, 0, 0)).save(path)  # no image is in both
    return "whole"


def _flat(root: Path, images: Path, name: str) -> str:
    """One folder of images beside each other, with metadata."""
    (root / "flat").mkdir()
    for path in images.rglob("*.png"):
        shutil.copy(path, root / "flat" / f"{path.parent.name}-{path.name}")
    frame = [(p.name, p.name.partition("-")[0]) for p in sorted((root / "flat").iterdir())]
    table = pandas.DataFrame(frame, columns=["file_name", "label"])
    write = {"csv": lambda p: table.to_csv(p, index=False), "parquet": table.to_parquet,
             "jsonl": lambda p: table.to_json(p, orient="records", lines=True)}  # fmt: skip
    write[name](root / "flat" / f"metadata.{name}")
    return "flat"


def _on_the_hub(root: Path, images: Path) -> str:
    api = HfApi()
    api.create_repo("me/photos", repo_type="dataset")
    api.upload_folder(repo_id="me/photos", repo_type="dataset", folder_path=images)
    return "me/photos"


KINDS: dict[str, Callable[[Path, Path], str]] = {
    "a folder": lambda root, images: images.name,
    "train and test": _split,
    "nested": lambda root, images: shutil.copytree(images, root / "a" / "b" / "c") and "a",
    **{name: partial(_table, name=name) for name in ("t.csv", "t.tsv", "t.jsonl", "t.parquet")},
    **{f"metadata.{name}": partial(_flat, name=name) for name in ("csv", "jsonl", "parquet")},
    "zip": lambda root, images: (
        Path(shutil.make_archive(str(root / "packed"), "zip", root, images.name)).name
    ),
    "tar": lambda root, images: (
        Path(shutil.make_archive(str(root / "packed"), "gztar", root, images.name)).name
    ),
    "a Hub id": _on_the_hub,
}


@table("kind", KINDS)
def test_every_kind_of_data_is_the_same_images(
    kind,
    hub,  # noqa: F811
    tmp_path,
    monkeypatch,
    capsys,
) -> None:
    (tmp_path / "photos").mkdir()
    images = photos(tmp_path / "photos", "size", 12, seed=5)
    counts = {path.name: len(list(path.iterdir())) for path in sorted(images.iterdir())}
    data = KINDS[kind](tmp_path, images)
    monkeypatch.chdir(tmp_path)
    assert stop(monkeypatch, "look", data, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    twice = 2 if kind == "train and test" else 1
    assert found["classes"] == {name: twice * count for name, count in counts.items()}
    assert found["splits"] == {"train": 12} | ({"test": 12} if twice == 2 else {})
    assert found["skipped"] == found["copies"] == []


@table(
    ("given", "message"),
    [
        (["photos", "--out", "."], "wanted a file to write to, got the directory '.'"),
        (["nowhere/at-all"], "could not load the data 'nowhere/at-all'"),
    ],
)
def test_mistakes(given, message, folder, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert stop(monkeypatch, "look", *given) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
