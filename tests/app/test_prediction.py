"""Files through a saved adapter: in order, as they come, the unreadable among them."""

import itertools
import json
import os
from collections import Counter
from pathlib import Path

import pytest

from residual_peft import ZeroShotClassifier
from residual_peft.app import prediction
from residual_peft.app.prediction import FilePredictor
from residual_peft.errors import ResiDualError


def test_the_answers_are_those_of_the_classifier(saved_adapter, shapes, tmp_path) -> None:
    """In batches, with bad files between, as each image by itself."""
    bad, missing = tmp_path / "bad.png", str(tmp_path / "missing.png")
    bad.write_bytes(b"no image")
    names = [*shapes[:3], str(bad), *shapes[3:8], missing, *shapes[8:], str(tmp_path / "*.gif")]
    found = list(FilePredictor(saved_adapter, batch_size=4).answers(names))
    assert [answer.file for answer in found] == names
    reasons = {a.file: a.reason for a in found if a.prediction is None}
    assert reasons == {
        str(bad): "not an image that PIL knows",
        missing: "no such file",
        names[-1]: "no file is called so",
    }
    classifier = ZeroShotClassifier.from_pretrained(saved_adapter)
    for answer in found:
        if answer.prediction is None:
            assert json.loads(json.dumps(answer.as_dict(2)))["error"] == answer.reason
            continue
        alone = classifier.predict(answer.file)
        assert answer.prediction.label == alone.label
        assert answer.prediction.file == alone.file == answer.file
        assert answer.prediction.probabilities == pytest.approx(alone.probabilities, abs=1e-5)
        shown = json.loads(json.dumps(answer.as_dict(2)))
        assert [each["label"] for each in shown["top"]] == [n for n, _ in alone.top(2)]


def test_names_that_come_one_by_one_are_answered_before_the_last(
    saved_adapter, shapes, monkeypatch
) -> None:
    monkeypatch.setattr(prediction, "AT_ONCE", 4)
    taken = itertools.count()
    names = (name for name in itertools.cycle(shapes) if next(taken) < 10**9)
    answers = FilePredictor(saved_adapter).answers(names)
    assert [next(answers).file for _ in range(6)] == shapes[:6]
    assert next(taken) == 8


def test_python_takes_folders_and_patterns(saved_adapter, shapes, tmp_path) -> None:
    classifier = ZeroShotClassifier.from_pretrained(saved_adapter)
    folder = os.path.dirname(shapes[0])
    by_folder = classifier.predict(folder)
    assert [found.file for found in by_folder] == sorted(shapes)
    by_pattern = classifier.predict(f"{folder}/*.png", batch_size=3)
    assert [p.label for p in by_pattern] == [p.label for p in by_folder]
    content = Path(shapes[0]).read_bytes()
    assert classifier.predict(content).label == classifier.predict(shapes[0]).label
    assert classifier.predict(content).file is None


def test_images_are_copied_by_class_and_unsure_ones_apart(saved_adapter, shapes, tmp_path) -> None:
    out = tmp_path / "shapes" / "sorted"  # within the folder that is read
    before = {path: Path(path).read_bytes() for path in shapes}
    scores = sorted(
        p.score for p in ZeroShotClassifier.from_pretrained(saved_adapter).predict(shapes)
    )
    sure = (scores[2] + scores[3]) / 2
    predictor = FilePredictor(saved_adapter, sort_into=out, sure=sure)
    found = list(predictor.answers([str(tmp_path / "shapes")]))
    assert len(found) == 10
    for answer in found:
        assert answer.prediction is not None
        label = answer.prediction.label if answer.prediction.score >= sure else "unsure"
        assert answer.copied_to == (str(out / label / os.path.basename(answer.file)),)
        assert Path(answer.copied_to[0]).read_bytes() == before[answer.file]
    assert {path: Path(path).read_bytes() for path in shapes} == before
    kinds = Counter(Path(answer.copied_to[0]).parent.name for answer in found)
    assert kinds["unsure"] == 3
    assert predictor.sorting is not None
    assert (predictor.sorting.copied, predictor.sorting.present) == (10, 0)
    again = FilePredictor(saved_adapter, sort_into=out, sure=sure)
    assert len(list(again.answers([str(tmp_path / "shapes")]))) == 10
    assert again.sorting is not None
    assert (again.sorting.copied, again.sorting.present) == (0, 10)


def test_an_image_with_several_labels_is_copied_for_each(saved_adapter, shapes, tmp_path) -> None:
    classifier = ZeroShotClassifier.from_pretrained(saved_adapter)
    classifier.multi_label, classifier.logit_bias = True, -20.0
    classifier.save_pretrained(tmp_path / "several")
    least = min(min(p.probabilities) for p in classifier.predict(shapes))
    predictor = FilePredictor(tmp_path / "several", sort_into=tmp_path / "out", sure=least / 2)
    for answer in predictor.answers(shapes):
        names = {Path(copy).parent.name for copy in answer.copied_to}
        assert names == set(classifier.class_names)
    strict = FilePredictor(tmp_path / "several", sort_into=tmp_path / "none", sure=1.0)
    for answer in strict.answers(shapes):
        assert [Path(copy).parent.name for copy in answer.copied_to] == ["unsure"]


def test_what_cannot_be_is_told_before_any_model_is_loaded(saved_adapter, tmp_path) -> None:
    with pytest.raises(ResiDualError, match=r"sure: wanted a probability from 0 to 1, got 1\.5"):
        FilePredictor(tmp_path / "nothing", sure=1.5)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ResiDualError, match="wanted a directory to write to, got the file"):
        FilePredictor(saved_adapter, sort_into=tmp_path / "file")
