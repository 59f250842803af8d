"""Copies by class: nothing moved, nothing written over, names that any system takes."""

import os
from pathlib import Path

import pytest

from residual_peft.app.sorting import Sorting, folder_name


def put(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


def files(root: Path) -> dict[str, str]:
    return {str(p.relative_to(root)): p.read_text() for p in root.rglob("*") if p.is_file()}


def test_a_name_that_is_taken_gets_a_number(tmp_path: Path) -> None:
    one, two, same = (
        put(tmp_path / folder / "x.png", text)
        for folder, text in (("a", "one"), ("b", "two"), ("c", "one"))
    )
    sorting = Sorting(tmp_path / "out", ["cat", "dog"])
    assert sorting.put(one, "cat") == tmp_path / "out" / "cat" / "x.png"
    assert sorting.put(two, "cat") == tmp_path / "out" / "cat" / "x (2).png"
    assert sorting.put(same, "cat") == tmp_path / "out" / "cat" / "x.png"
    assert sorting.put(two, None) == tmp_path / "out" / "unsure" / "x.png"
    assert (sorting.copied, sorting.present) == (3, 1)
    expected = {"cat/x.png": "one", "cat/x (2).png": "two", "unsure/x.png": "two"}
    assert files(tmp_path / "out") == expected
    assert Path(one).read_text() == "one"


def test_what_is_no_file_is_not_written_over(tmp_path: Path) -> None:
    """Folders and links, the latter even if they lead nowhere."""
    file = put(tmp_path / "x.png", "one")
    out = tmp_path / "out" / "cat"
    (out / "x.png").mkdir(parents=True)
    (out / "x (2).png").symlink_to(tmp_path / "elsewhere")
    assert Sorting(tmp_path / "out", ["cat", "dog"]).put(file, "cat") == out / "x (3).png"
    assert not (tmp_path / "elsewhere").exists()


def test_a_copy_that_fails_leaves_nothing(tmp_path: Path, monkeypatch) -> None:
    file = put(tmp_path / "x.png", "one")

    def full(source, target):
        target.write(b"o")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfileobj", full)
    with pytest.raises(OSError, match="No space left"):
        Sorting(tmp_path / "out", ["cat", "dog"]).put(file, "cat")
    assert files(tmp_path / "out") == {}


def test_classes_have_folders_of_their_own(tmp_path: Path) -> None:
    names = ["a/b", "a:b", "..", "unsure", "Unsure", "x" * 300, ".", "nul\0"]
    sorting = Sorting(tmp_path / "out", names)
    folders = [*sorting.folders.values(), sorting.unsure]
    assert len({folder.casefold() for folder in folders}) == len(names) + 1
    for folder in folders:
        assert os.path.basename(folder) == folder
        assert folder not in ("", ".", "..")
    assert sorting.folders["unsure"] == "unsure"
    assert sorting.unsure == "unsure (3)"
    assert folder_name("grüne Äpfel") == "grüne Äpfel"


def test_dates_stay(tmp_path: Path) -> None:
    file = put(tmp_path / "x.png", "one")
    os.utime(file, (1e9, 1e9))
    copy = Sorting(tmp_path / "out", ["cat", "dog"]).put(file, "dog")
    assert copy.stat().st_mtime == 1e9
