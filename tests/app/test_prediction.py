"""Files through a saved adapter, and copies of them in folders of their classes."""

import csv
import io
import itertools
import json
import os
from collections import Counter
from pathlib import Path

import pytest
import torch

from residual_peft import ZeroShotClassifier
from residual_peft.app import prediction
from residual_peft.app.prediction import FilePredictor, Sorting, folder_name
from residual_peft.classifiers.heads import fit_ridge
from residual_peft.classifiers.none_of_these import known_images
from residual_peft.classifiers.outputs import pixel_batches
from residual_peft.classifiers.trained_head import TrainedHead, embedding_features
from residual_peft.data.inputs import images_of
from residual_peft.errors import ResiDualError
from tests.commands import stop


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


def test_what_is_none_of_the_classes_is_said_and_copied_apart(
    saved_adapter, shapes, tmp_path, monkeypatch, capsys
) -> None:
    classifier = ZeroShotClassifier.from_pretrained(saved_adapter)
    with pytest.raises(ResiDualError, match="this classifier knows of none: fit a head"):
        FilePredictor(saved_adapter, none_of_these=0.2)
    batches = pixel_batches(images_of(shapes)[0], classifier.image_processor, 4)
    embedding = torch.cat(
        [embedding_features(seen.readout) for seen, _ in classifier.classified(batches)]
    )  # gains of 1 change nothing
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(3, embedding.shape[1], generator=generator)
    centres = torch.nn.functional.normalize(centres, dim=1)
    labels = torch.arange(60) % 3
    rows = centres[labels] + 0.1 * torch.randn(60, len(centres.T), generator=generator)
    rows = torch.cat([rows, embedding[:4] + 0.01 * torch.randn(4, len(centres.T))])
    known = known_images(rows, torch.cat([labels, labels[:4]]), 3)
    head = fit_ridge(rows[:60], labels, 3).head.to(torch.float32)
    classifier.head = TrainedHead(head, "embedding", "ridge", known=known)
    classifier.save_pretrained(tmp_path / "headed")
    expected = known.p_values(embedding).tolist()
    share = sorted(expected)[5]
    out = tmp_path / "sorted"
    given = {"sort_into": out, "none_of_these": share, "sure": 0.0, "batch_size": 4}
    answers = list(FilePredictor(tmp_path / "headed", **given).answers(shapes))
    assert [a.prediction.alike for a in answers] == pytest.approx(expected, abs=0.02)
    assert {a.prediction.none_of_these for a in answers} == {True, False}
    for answer in answers:
        apart = answer.prediction.alike <= share
        assert answer.prediction.none_of_these is apart
        assert ("none of these" in str(answer.prediction)) is apart
        assert (Path(answer.copied_to[0]).parent.name == "none of these") is apart
    python = ZeroShotClassifier.from_pretrained(tmp_path / "headed").predict(
        shapes, none_of_these=share
    )
    assert [p.none_of_these for p in python] == [a.prediction.none_of_these for a in answers]
    options = ("--csv", "--none-of-these", str(share))
    assert stop(monkeypatch, "predict", str(tmp_path / "headed"), *shapes, *options) == 0
    table = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["none_of_these"] for row in table] == [str(p.none_of_these).lower() for p in python]


def test_a_class_of_its_text_alone_leaves_none_of_these_unsaid(saved_adapter, shapes) -> None:
    """Images of it would be unlike all that the head was fitted on."""
    classifier = ZeroShotClassifier.from_pretrained(saved_adapter)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(40, classifier.class_embeddings.shape[1], generator=generator)
    labels = torch.arange(40) % 2  # of three classes
    head = fit_ridge(rows, labels, 2).head.to(torch.float32)
    known = known_images(rows, labels, 2)
    classifier.head = TrainedHead(head, "embedding", "ridge", known=known)
    assert {said.alike for said in classifier.predict(shapes)} == {None}
    with pytest.raises(ResiDualError, match="knows 2 of 3 classes"):
        classifier.predict(shapes, none_of_these=0.1)


def test_what_cannot_be_is_told_before_any_model_is_loaded(saved_adapter, tmp_path) -> None:
    with pytest.raises(ResiDualError, match=r"sure: wanted a probability from 0 to 1, got 1\.5"):
        FilePredictor(tmp_path / "nothing", sure=1.5)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ResiDualError, match="wanted a directory to write to, got the file"):
        FilePredictor(saved_adapter, sort_into=tmp_path / "file")


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
