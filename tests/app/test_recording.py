"""What a fit of a class head leaves for its report, and what of it stays at home."""

import csv
from pathlib import Path

import pytest
import torch

from residual_peft.analysis import explain_head
from residual_peft.app.fitting import fit_adapter
from residual_peft.classifiers.zero_shot import ZeroShotClassifier
from residual_peft.data import batches, load_data
from residual_peft.reporting import write_report
from residual_peft.reporting.run_record import RunRecord
from residual_peft.solvers.coordinates import collect_coordinates
from residual_peft.tuner.gains import KINDS, Gains
from tests.app.fitting.photos import photos
from tests.training_case import save_clip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recorded")
    save_clip(folder / "model")
    photos(folder / "photos", count=16)
    return folder


class Shifts(Gains):
    """A kind of gain that scales nothing."""

    start, scales = 0.0, False

    def factors(self, coordinates: torch.Tensor) -> torch.Tensor:
        return torch.ones_like(coordinates)


def fit(root: Path, out: Path, method: str, **options) -> RunRecord:
    model, data = str(root / "model"), str(root / "photos")
    fit_adapter(model, data, out, templates=["a {}."], method=method, words=[], **options)
    return RunRecord.load(out)


def test_a_class_heads_shares_are_those_of_the_test_images(root: Path, tmp_path: Path) -> None:
    record = fit(root, tmp_path / "a", "ridge")
    classifier = ZeroShotClassifier.from_pretrained(tmp_path / "a")
    test = load_data(str(root / "photos")).test
    rows = collect_coordinates(classifier.model, batches(test, classifier.image_processor))
    truth = explain_head(classifier, rows)
    assert record.gains is None
    assert record.head.units == truth.units
    torch.testing.assert_close(record.head.share, truth.share.float(), atol=1e-4, rtol=1e-3)
    pro, con = truth.reasons(0)
    found = record.head.reasons[0]
    assert [(r.unit, r.component) for r in found.pro] == [(r.unit, r.component) for r in pro]
    assert [(r.unit, r.component) for r in found.con] == [(r.unit, r.component) for r in con]
    wrong = int((record.after.argmax(1) != record.labels).sum())
    rows = list(csv.DictReader((tmp_path / "a" / "run" / "mistakes.csv").open()))
    assert len(rows) == wrong
    assert len(record.mistakes) == min(wrong, 24)
    assert all(Path(row["file"]).is_file() for row in rows)
    assert record.trust.images > 0
    assert (tmp_path / "a" / "run" / "suspicious.csv").is_file()


def test_a_head_on_the_embedding_and_gains_say_what_they_are(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = fit(root, tmp_path / "a", "ridge-embedding")
    assert (record.head.features, record.head.units, record.gains) == ("embedding", (), None)
    record = fit(root, tmp_path / "a", "gains")
    assert record.head is None
    assert record.gains is not None
    monkeypatch.setitem(KINDS, "shift", Shifts)
    record = fit(root, tmp_path / "a", "gains", config={"granularity": "shift"})
    assert (record.head, record.gains, record.words) == (None, None, ())
    write_report(record, tmp_path / "page.html")
    assert "Where in the model" not in (tmp_path / "page.html").read_text()
