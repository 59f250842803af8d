"""`residual-peft predict`: a line per image, whatever is among them."""

import csv
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from residual_peft import ZeroShotClassifier
from tests.commands import stop
from tests.launch import ENVIRONMENT, ROOT
from tests.pairs import table

LINE = re.compile(r"(.+): (circle|square|heart) [01]\.\d{3}, \w+ [01]\.\d{3}")


@pytest.fixture
def adapter(saved_adapter: Path) -> str:
    return str(saved_adapter)


def test_a_line_per_image_and_bad_ones_between(adapter, shapes, tmp_path, monkeypatch, capsys):
    bad = tmp_path / "b\x1b[2Jad.png"
    bad.write_text("no image")
    given = (*shapes[:2], str(bad), str(tmp_path / "shapes" / "[2-4].png"))
    assert stop(monkeypatch, "predict", adapter, *given, "--top", "2") == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert len(lines) == 6
    assert lines.pop(2) == f"{tmp_path}/b\\x1b[2Jad.png: not read (not an image that PIL knows)"
    assert [LINE.fullmatch(line)[1] for line in lines] == shapes[:5]
    first, *_, last = captured.err.splitlines()
    assert first == f"Classifying with {adapter}."
    assert last == "5 images classified, 1 file not read."


def test_json_and_csv_say_the_same(adapter, shapes, tmp_path, monkeypatch, capsys) -> None:
    strange = tmp_path / 'a, "b"\n.png'
    os.link(shapes[0], strange)
    given = ("predict", adapter, str(strange), str(tmp_path / "no.png"), *shapes, "--top", "9")
    assert stop(monkeypatch, *given, "--json") == 0
    objects = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert stop(monkeypatch, *given, "--csv") == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [found["file"] for found in objects] == list(given[2:-2])
    assert len(rows) == len(objects) == 12
    for row, found in zip(rows, objects, strict=True):
        assert row["file"] == found["file"]
        assert row["error"] == found.get("error", "")
        for rank, each in enumerate(found.get("top", ()), start=1):
            assert row[f"label_{rank}"] == each["label"]
            assert float(row[f"score_{rank}"]) == pytest.approx(each["score"], abs=1e-6)
    assert objects[1] == {"file": given[3], "error": "no such file"}
    assert (len(objects[0]["top"]), rows[0]["label_4"]) == (3, "")
    several = ZeroShotClassifier.from_pretrained(adapter)
    several.multi_label, several.logit_bias = True, -several.logit_scale * 0.2
    there = str(several.save_pretrained(tmp_path / "several"))
    assert stop(monkeypatch, "predict", there, *given[3:-2], "--csv") == 0
    unread, *rows = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert [row["labels"] for row in rows] == ["; ".join(x.labels) for x in several.predict(shapes)]
    assert (unread["labels"], "labels" in objects[0]) == ("", True)


def test_sets_of_classes_say_what_they_come_from(adapter, shapes, tmp_path, monkeypatch, capsys):
    made = ZeroShotClassifier.from_pretrained(adapter)
    made.held_out = torch.linspace(0.3, 2, 20)
    there = str(made.save_pretrained(tmp_path / "a"))
    given = ("predict", there, *shapes, "--coverage", "0.9", "--json")
    assert stop(monkeypatch, *given) == 0
    captured = capsys.readouterr()
    objects = [json.loads(line) for line in captured.out.splitlines()]
    found = made.predict(shapes, coverage=0.9)
    assert [tuple(said["plausible"]) for said in objects] == [p.plausible for p in found]
    assert {said["plausible_by"] for said in objects} == {"held-out"}
    assert stop(monkeypatch, *given[:-1], str(tmp_path / "no.png"), "--csv") == 0
    *rows, unread = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert [row["plausible"] for row in rows] == ["; ".join(p.plausible) for p in found]
    # an empty set is made by something, and an image that was not read has none
    assert {row["plausible_by"] for row in rows} == {"held-out"}
    assert (unread["plausible"], unread["plausible_by"]) == ("", "")
    last = f"{len(shapes)} images classified; plausible classes by 20 held-out images: "
    assert captured.err.splitlines()[-1] == f"{last}at least 90 % on average."
    wrong = {
        ("--coverage", "0.99"): "wanted 99 images or more",
        ("--sets", "jackknife"): "this classifier has none",
        ("--sets", "any"): "wanted sets by held-out, jackknife+, jackknife, got 'any'",
    }
    for asked, said in wrong.items():
        assert stop(monkeypatch, *given, *asked) == 2
        assert said in capsys.readouterr().err


@table("end", [b"\n", b"\0", b"\r\n"])
def test_names_from_standard_input(adapter, shapes, monkeypatch, capsys, end: bytes) -> None:
    typed = io.TextIOWrapper(io.BytesIO(end.join(map(os.fsencode, shapes[:3])) + end))
    monkeypatch.setattr(sys, "stdin", typed)
    assert stop(monkeypatch, "predict", adapter, "-", shapes[5]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [LINE.match(line)[1] for line in lines] == [*shapes[:3], shapes[5]]


def test_the_first_answers_come_while_names_are_still_written(adapter, shapes) -> None:
    """Through real pipes; and whoever reads may leave before the end, as `head` does.

    What takes a second to import and is not needed here is not imported, unless transformers does.
    """
    program = "import sys; from transformers import CLIPModel; brought = {*sys.modules}\n"
    program += "from residual_peft import cli\ntry:\n    cli.main()\nfinally:\n"
    program += "    heavy = {'datasets', 'sklearn', 'pandas'} & ({*sys.modules} - brought)\n"
    program += "    print('heavy:', heavy, file=sys.stderr)"
    process = subprocess.Popen(
        [sys.executable, "-c", program, "predict", adapter, "-", "--json"],
        cwd=ROOT, env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(os.fsencode("\n".join(shapes * 103 + [""])))  # more than are taken
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["file"] == shapes[0]
        process.stdout.close()
        process.stdin.close()
        said = process.stderr.read().decode()
        assert "Traceback" not in said
        assert "heavy: set()" in said
    assert process.returncode == 141


@table("option", ["--csv", "--json"])
def test_a_table_to_write_to_is_no_image(option, adapter, monkeypatch, capsys) -> None:
    assert stop(monkeypatch, "predict", adapter, "a.png", option, "Found.CSV") == 2
    captured = capsys.readouterr()
    assert not captured.out
    assert (
        "wanted images, got 'Found.CSV', which is not there: --csv and --json print, and > Foun"
        in (captured.err)
    )


def test_none_that_can_be_read_is_status_2(adapter, tmp_path, monkeypatch, capsys) -> None:
    (tmp_path / "empty").mkdir()
    given = (str(tmp_path / "empty"), str(tmp_path / "no.png"))
    assert stop(monkeypatch, "predict", adapter, *given) == 2
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [
        f"{given[0]}: not read (a folder without images)",
        f"{given[1]}: not read (no such file)",
    ]
    message = "but none of 2 files could be read; each line says why."
    assert captured.err.splitlines()[-1].endswith(message)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    assert stop(monkeypatch, "predict", adapter, "-") == 2
    assert "no file was named: none could be read" in capsys.readouterr().err


def test_sorting_says_what_it_copied(adapter, shapes, tmp_path, monkeypatch, capsys) -> None:
    out = tmp_path / "sorted"
    given = ("predict", adapter, str(tmp_path / "shapes"), "--sort-into", str(out))
    for said in (f"10 copied into {out}.", f"0 copied into {out}, 10 already there."):
        assert stop(monkeypatch, *given, "--sure", "0.4") == 0
        assert capsys.readouterr().err.splitlines()[-1].endswith(said)
    assert len([path for path in out.rglob("*") if path.is_file()]) == 10
    assert {path.name for path in out.iterdir()} <= {"circle", "square", "heart", "unsure"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["photos", "--json", "--csv"], "wanted one of --json and --csv, got both."),
        (["photos", "--sort-into", "file"], "wanted a directory to write to, got the file"),
    ],
)
def test_what_cannot_be_is_told_at_once(tmp_path, monkeypatch, capsys, given, message) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    assert stop(monkeypatch, "predict", "no-adapter", *given) == 2
    assert message in capsys.readouterr().err
