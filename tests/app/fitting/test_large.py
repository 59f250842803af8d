"""A fit whose coordinates do not fit into memory is the fit of those that do."""

import pytest
import torch

from residual_peft.app.fitting import evaluate_adapter, fit_adapter, ways
from residual_peft.classifiers.files import ROWS
from residual_peft.classifiers.zero_shot import ZeroShotClassifier
from residual_peft.errors import ResiDualError
from residual_peft.solvers import large
from residual_peft.solvers.choice import choose
from residual_peft.tuner import gains_of
from tests.app.fitting.photos import photos
from tests.training_case import save_clip


@pytest.mark.parametrize("method", ["ridge", "gains", "auto"])
def test_both_ways_agree(method, tmp_path, monkeypatch) -> None:
    save_clip(tmp_path / "model")
    data = photos(tmp_path / "photos", count=48)
    options = {"method": method, "templates": ["a {}."]}
    if method == "auto":
        options["keep_statistics"] = True

    def fit(name: str):
        report = fit_adapter(str(tmp_path / "model"), str(data), tmp_path / name, **options)
        return report, ZeroShotClassifier.from_pretrained(tmp_path / name)

    report, expected = fit("a")
    size = 4 * len(gains_of(expected.model)) * len(expected.fitted_on)
    monkeypatch.setattr(large, "IN_MEMORY", size - 1)
    other, found = fit("b")
    assert [row.name for row in other.methods] == [row.name for row in report.methods]
    if method == "gains":
        torch.testing.assert_close(
            gains_of(found.model), gains_of(expected.model), rtol=1e-3, atol=1e-3
        )
        return
    # one left out at a time in place of one of every class: another strength may be next to it
    torch.testing.assert_close(
        found.head.head.weights, expected.head.head.weights, rtol=0.1, atol=2e-2
    )
    assert any("from their sums" in finding for finding in other.findings)
    if method == "auto":
        assert found.statistics.sums.statistics.rows == len(found.fitted_on)


def test_the_table_says_by_what_methods_were_compared(tmp_path, monkeypatch) -> None:
    """The one that was chosen is fitted once more, on all images, and says then something else."""
    save_clip(tmp_path / "model")
    data, made = photos(tmp_path / "photos", count=48), []

    def few(*arguments, **options):
        made.append(choose(*arguments, at_most=24, **options))
        return made[-1]

    monkeypatch.setattr(ways, "choose", few)
    report = fit_adapter(str(tmp_path / "model"), str(data), tmp_path / "a", templates=["a {}."])
    (choice,) = made
    assert [row.name for row in report.methods] == [one.method for one in choice.outcomes]
    for row, one in zip(report.methods, choice.outcomes, strict=True):
        assert (row.log_loss, row.left_out) == (one.left_out.log_loss, one.left_out.accuracy)
        assert row.chosen == (one.method == choice.chosen.method)
    again = choice.chosen.left_out.log_loss
    assert again not in [one.left_out.log_loss for one in choice.outcomes]
    (said,) = [finding for finding in report.findings if "methods were compared on" in finding]
    assert f"on {choice.images} of " in said


def test_a_head_that_takes_too_much_is_saved_in_less(tmp_path, monkeypatch) -> None:
    save_clip(tmp_path / "model")
    data = photos(tmp_path / "photos", count=20)
    monkeypatch.setattr(ways, "HEAD_BYTES", 1300)
    options = {"method": "ridge", "templates": ["a {}."], "keep_statistics": True}
    report = fit_adapter(str(tmp_path / "model"), str(data), tmp_path / "a", **options)
    (note,) = [finding for finding in report.findings if "is saved in" in finding]
    assert "half precision" in note
    assert "accuracy on test images" in note
    loaded = ZeroShotClassifier.from_pretrained(tmp_path / "a")
    assert loaded.head.bytes <= 1300
    assert loaded.statistics.sums.statistics.rows == len(loaded.fitted_on)
    found = evaluate_adapter(tmp_path / "a", str(data))
    assert found["accuracy"] == report.adapted["accuracy"]
    columns = len(loaded.head.head.mean)
    monkeypatch.setattr(ways, "HEAD_BYTES", 4 * (2 * columns + 5) + columns + 6)
    options["sets"] = "jackknife+"  # which need rows and scores of the head that is saved
    report = fit_adapter(str(tmp_path / "model"), str(data), tmp_path / "b", **options)
    (note,) = [finding for finding in report.findings if "is saved in" in finding]
    assert "rank 1 for 3 classes" in note
    assert "sets of classes are by held-out images alone" in note
    assert any("before its low rank" in finding for finding in report.findings)
    assert not (tmp_path / "b" / ROWS).exists()
    with pytest.raises(ResiDualError, match="calibrate it with held-out images"):
        ZeroShotClassifier.from_pretrained(tmp_path / "b").sets(0.9)
