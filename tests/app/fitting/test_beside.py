"""Sets of classes from a fit on: what is learned from, kept, reported, and given again."""

import math
from pathlib import Path

import pytest
import torch
from PIL import Image

from residual_peft import ZeroShotClassifier, fit
from residual_peft.app.fitting import beside
from residual_peft.classifiers.files import ROWS
from residual_peft.classifiers.heads.jackknife_plus import RidgeWithout
from residual_peft.errors import ResiDualError
from residual_peft.reporting.run_record import RunRecord
from tests.app.fitting.photos import NAMES, photos
from tests.pairs import table
from tests.training_case import save_clip


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    save_clip(folder / "model")
    data = photos(folder / "photos", count=30)
    options = {"model": str(folder / "model"), "templates": ["a {}."], "validation": 0.2}
    later = photos(folder / "later", count=8, seed=1)
    for path in data.glob("*/00?.png"):  # saved anew: other bytes, and the same pixels
        with Image.open(path) as image:
            image.save(later / path.parent.name / f"again {path.name}", compress_level=0)
    rows = [f"{path},{path.parent.name},{int(path.stem) // 3}" for path in data.glob("*/*.png")]
    (folder / "grouped.csv").write_text("\n".join(["image,label,person", *sorted(rows)]) + "\n")
    return str(data), options


@table("method", ["ridge-embedding", "gains", "auto"])
def test_held_out_images_are_not_learned_from_and_calibrate(given, method, tmp_path) -> None:
    data, options = given
    options = options | {"validation": str(Path(data).parent / "later"), "test": 0.3}
    fitted = fit(data, out=tmp_path / "a", method=method, sets="held-out", **options)
    made, images = fitted.classifier, fitted.images
    learned = {image.tobytes() for image in images["train"]["image"]}
    pictures = images["validation"]["image"]
    new = torch.tensor([image.tobytes() not in learned for image in pictures])
    train, held_out = len(images["train"]), int(new.sum())
    assert 24 < held_out < len(new)
    assert len(made.fitted_on) == train
    if method == "ridge-embedding":
        assert len(made.head.left_out_scores) == train
    logits = made.predict_logits(list(pictures)).double()[new]
    labels = torch.tensor(images["validation"]["label"])[new]
    scores = (-logits.log_softmax(1)[torch.arange(held_out), labels]).sort().values
    torch.testing.assert_close(made.held_out, scores.float(), rtol=1e-3, atol=1e-4)
    known = f"up to {held_out / (held_out + 1):.3f}"
    known += f"; {len(new) - held_out} that the fit learned from, too, were left out"
    assert any(known in finding for finding in fitted.summary.findings)
    again = ZeroShotClassifier.from_pretrained(tmp_path / "a")
    assert again.sets(0.9).told == f"by {held_out} held-out images: at least 90 % on average"
    trust = RunRecord.load(tmp_path / "a").trust
    assert (trust.sets_by, trust.sets_from) == ("held-out", held_out)
    found = again.predict(list(images["test"]["image"]), coverage=0.9)
    labels = [NAMES[label] for label in images["test"]["label"]]
    right = [label in p.plausible for label, p in zip(labels, found, strict=True)]
    assert trust.covered == pytest.approx(sum(right) / len(right))
    page = fitted.report(tmp_path / "page.html").read_text()
    assert f"by {held_out} held-out images that nothing was fitted to" in page
    assert "It is at least what was asked" in page
    if method != "gains":
        return
    # a new person's images are not like those of these persons
    table = Path(data).parent / "grouped.csv"
    options |= {"validation": 0.3, "group_column": "person"}
    grouped = fit(table, out=tmp_path / "a", method=method, sets="held-out", **options)
    assert any("of new groups nothing is promised" in f for f in grouped.summary.findings)
    told = ZeroShotClassifier.from_pretrained(tmp_path / "a").sets(0.8).told
    assert told.endswith("near 80 % of images of their groups, nothing is promised of new ones")
    assert RunRecord.load(tmp_path / "a").trust.sets_grouped
    page = grouped.report(tmp_path / "page.html").read_text()
    assert "It is near what was asked for images of the groups that these are of" in page


def test_jackknife_plus_is_kept_where_it_was_asked_for(given, tmp_path, monkeypatch) -> None:
    data, options = given
    fitted = fit(data, out=tmp_path / "a", method="ridge-heads", sets="jackknife+", **options)
    count = len(fitted.images["train"]) + len(fitted.images["validation"])
    assert any(ROWS in finding for finding in fitted.summary.findings)
    made, again = fitted.classifier, ZeroShotClassifier.from_pretrained(tmp_path / "a")
    new = list(fitted.images["test"]["image"])
    found = again.predict(new, coverage=0.9)
    assert [p.plausible for p in found] == [p.plausible for p in made.predict(new, coverage=0.9)]
    trust = RunRecord.load(tmp_path / "a").trust
    assert (trust.sets_by, trust.sets_from) == ("jackknife+", count)
    assert trust.set_size == pytest.approx(sum(len(p.plausible) for p in found) / len(found))
    assert len(again.without.scores) == count
    size = (tmp_path / "a" / ROWS).stat().st_size
    monkeypatch.setattr(beside, "MOST_BYTES", size // 2)  # before they are worked out
    monkeypatch.setattr(RidgeWithout, "of", None)
    large = fit(data, method="ridge-heads", sets="jackknife+", **options)
    assert any(
        "rows were kept for jackknife+: 0.0 GB are more" in f for f in large.summary.findings
    )
    fit(data, out=tmp_path / "a", method="gains", **options)
    assert not (tmp_path / "a" / ROWS).exists()


WRONG = {
    "no validation images": ({"sets": "held-out", "validation": 0}, "there are none: bring some"),
    "few": ({"sets": "held-out", "few": 5}, "which few leaves none of"),
    "the Trainer": ({"sets": "held-out", "trainer": True}, "stops by the validation images"),
    "no ridge": ({"sets": "jackknife+", "method": "logistic"}, "of a ridge .*, got logistic"),
    "another word": ({"sets": "split"}, "the option sets"),
    "not one coverage": ({"sets": math.inf}, "the option sets"),
}


@table("wrong", WRONG)
def test_what_cannot_be_kept_is_said_before_any_work(given, wrong, tmp_path) -> None:
    data, options = given
    asked, message = WRONG[wrong]
    with pytest.raises(ResiDualError, match=message):
        fit(data, out=tmp_path / "a", **(options | asked))
    assert not (tmp_path / "a").exists()
