"""`residual-peft compare` shows what every method gives, and saves nothing."""

import json
from pathlib import Path

from tests.app.fitting.photos import photos
from tests.commands import stop


def test_it_prints_the_table_and_saves_nothing(tmp_path: Path, monkeypatch, capsys) -> None:
    """With --balanced by the recalls, which are told."""
    root = photos(tmp_path / "photos", ("cat", "dog"), 12)
    for path in sorted((root / "dog").iterdir())[6:]:
        path.unlink()
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    given = ("compare", "--data", "photos", "--balanced", "--test", "0.3")
    assert stop(monkeypatch, *given) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].split()[-3:] == ["numbers", "bytes", "seconds"]
    assert "recall  test recall" in shown[0]
    assert stop(monkeypatch, *given, "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert sorted(tmp_path.rglob("*")) == before
    told = shown[1 : 1 + len(rows)]
    for line, row in zip(told, rows, strict=True):
        assert line.startswith(row["name"])
        assert line.replace(" *", "").split()[1] == f"{row['log_loss']:.3f}"
        assert (row["bytes"] == 0) is (row["name"] == "zero-shot")
        assert 0 <= row["recall"] <= 1
    (chosen,) = [row for row in rows if row["chosen"]]
    assert chosen["recall"] > max(row["recall"] for row in rows) - 0.1
