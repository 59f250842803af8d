"""Sets of classes behind a classifier's doors, against their definition in float64."""

import copy
from dataclasses import replace

import pytest
import torch
from datasets import Dataset
from datasets import Image as Picture
from peft import get_peft_model

from residual_peft.classifiers.changeable import Read
from residual_peft.classifiers.files import ROWS
from residual_peft.classifiers.heads import fit_ridge
from residual_peft.classifiers.heads.conformal import scores_of
from residual_peft.classifiers.heads.head import spread
from residual_peft.classifiers.heads.jackknife_plus import RidgeWithout
from residual_peft.classifiers.outputs import pixel_batches
from residual_peft.classifiers.trained_head import TrainedHead
from residual_peft.classifiers.zero_shot import ZeroShotClassifier
from residual_peft.data.provenance import file_digests
from residual_peft.errors import ResiDualError
from residual_peft.hub.files import read_tensors, write_tensors
from residual_peft.tuner import ResiDualConfig, fit_bases, gains_of
from tests.models import clip_model, pixels
from tests.pictures import image_processor, photographs

NAMES = ["class 0", "class 1", "class 2"]


def gains_alone(**options):
    model = get_peft_model(clip_model(), ResiDualConfig())
    fit_bases(model, [pixels(60, seed=5)])
    rows = torch.randn(3, 16, generator=torch.Generator().manual_seed(1))
    options |= {"logit_scale": 7.0, "image_processor": image_processor()}
    return ZeroShotClassifier(model.eval(), NAMES, rows, **options)


def reading(made, images):
    """What a head on coordinates reads of images (N, K), and their zero-shot logits."""
    if made.head is None:
        blank = fit_ridge(torch.randn(6, len(gains_of(made.model))), torch.arange(6) % 3, 3)
        made.head = TrainedHead(blank.head)
    read = Read.of(made, pixel_batches(images, made.image_processor, 8))
    return read.features, 7.0 * read.readout @ made.class_embeddings.T


@pytest.fixture(scope="module")
def headed():
    """A classifier with a ridge on every other coordinate and its rows; the fit and its images."""
    made, images, labels = gains_alone(), photographs(30), torch.arange(30) % 3
    features, zero_shot = reading(made, images)
    columns = torch.arange(1, features.shape[1], 2)
    fit = fit_ridge(features[:, columns], labels, 3, zero_shot=zero_shot)
    head = spread(fit.head, columns, features.shape[1]).to(torch.float32)
    made.head = TrainedHead(head, "coordinates", "ridge", scores_of(fit.left_out))
    made.without = RidgeWithout.of(
        fit, features[:, columns], labels, 3, zero_shot=zero_shot, columns=columns
    )
    return made, fit, features[:, columns].double(), zero_shot.double(), labels


def by_definition(scores, logits, coverage):
    """Sets by split conformal: a class is in while fewer than (n + 1) coverage scores are below."""
    found = []
    for row in -logits.double().log_softmax(1):
        below = [sum(float(s) < float(value) for s in scores) for value in row]
        found.append(
            tuple(n for n, b in zip(NAMES, below, strict=True) if b < coverage * (len(scores) + 1))
        )
    return found


def test_held_out_images_calibrate_gains_alone(tmp_path):
    made, images, labels = (
        gains_alone(),
        photographs(12, seed=3),
        [f"class {n % 3}" for n in range(12)],
    )
    new = photographs(9, seed=4)
    with pytest.raises(ResiDualError, match="calibrate it with held-out images"):
        made.predict(new, coverage=0.8)
    assert made.calibrate(images, labels) == 12
    logits = made.predict_logits(images).double()
    scores = [-float(row.log_softmax(0)[n % 3]) for n, row in enumerate(logits)]
    expected = by_definition(scores, made.predict_logits(new), 0.8)
    found = made.predict(new, coverage=0.8)
    assert [p.plausible for p in found] == expected
    assert len(set(map(len, expected))) > 1
    assert {p.as_dict()["plausible_by"] for p in found} == {"held-out"}
    made.save_pretrained(tmp_path / "a")
    loaded = ZeroShotClassifier.from_pretrained(tmp_path / "a", model=clip_model())
    assert [p.plausible for p in loaded.predict(new, coverage=0.8, sets="held-out")] == expected
    with pytest.raises(
        ResiDualError, match=r"wanted 19 images .*, got 12 held-out images: bring more"
    ):
        loaded.predict(new, coverage=0.95)


def test_whatever_changes_the_answers_asks_for_calibration_anew(headed, tmp_path):
    made = copy.copy(headed[0])
    images, labels = photographs(12, seed=3), torch.arange(12) % 3

    def others():
        with torch.no_grad():
            gains_of(made.model)[3] += 0.5

    def embeddings():
        made.class_embeddings = made.class_embeddings.flip(0)

    def head():
        made.head = replace(made.head, head=replace(made.head.head, temperature=2.0))

    for change in (others, embeddings, head):
        made.calibrate(images, labels)
        assert len(made.held_out) == 12
        change()
        assert made.held_out is None
        with pytest.raises(ResiDualError, match="this one has changed since: calibrate"):
            made.sets(0.8, "held-out")
    with torch.no_grad():
        gains_of(made.model)[3] -= 0.5  # the fixture's own
    made.calibrate(images, labels)
    for given in ("20", float("nan"), 1.5):
        with pytest.raises(ResiDualError, match="wanted head_bytes as a whole number, or None"):
            made.save_pretrained(tmp_path / "a", head_bytes=given)
    alone = gains_alone()
    alone.calibrate(images, labels)
    fit_bases(alone.model, [pixels(60, seed=6)])  # leaves gains of 1 as they are
    assert alone.held_out is None
    small = made.save_pretrained(tmp_path / "a", head_bytes=made.head.bytes - 1)
    assert ZeroShotClassifier.from_pretrained(small, model=clip_model()).held_out is None
    made = copy.copy(headed[0])  # with rows, which those of a lower rank are not of
    columns = len(made.head.head.mean)
    made.save_pretrained(tmp_path / "a")
    assert (small / ROWS).exists()
    made.save_pretrained(small, head_bytes=4 * (2 * columns + 5) + columns + 6)
    lower = ZeroShotClassifier.from_pretrained(small, model=clip_model())
    assert not (small / ROWS).exists()
    for by in (None, "jackknife", "jackknife+"):
        with pytest.raises(ResiDualError, match="rank 1 for 3 classes, and answers otherwise"):
            lower.sets(0.8, by)
    lower.multi_label = True  # which nothing calibrates
    numbers = torch.arange(12) % 3
    with pytest.raises(ResiDualError, match="sets of classes hold the one right label"):
        lower.calibrate_by(torch.randn(12, 3), numbers)
    with pytest.raises(ResiDualError, match="fit it on one label per image"):
        lower.sets(0.8)
    lower.multi_label = False
    with pytest.raises(ResiDualError, match="wanted images with one label each"):
        lower.calibrate_by(torch.randn(12, 3), numbers > 0)
    lower.calibrate(images, labels)
    assert lower.sets(0.8).by == "held-out"


def test_the_surest_that_there_is_comes_first(headed):
    made = copy.copy(headed[0])
    new = photographs(2, seed=4)
    assert made.sets(0.9).told == "by jackknife+ of 30 training images"
    made.held_out = torch.linspace(0.1, 2, 5)
    assert made.sets(0.8).by == "held-out"
    assert made.sets(0.9).by == "jackknife+"
    wider = copy.copy(made)
    wider.class_names, wider.class_embeddings = [*NAMES, "more"], torch.eye(16)[:4]
    wider.held_out = torch.linspace(0.1, 2, 5)
    with pytest.raises(ResiDualError, match="got 5 held-out images: bring more"):
        wider.sets(0.9)  # nothing else is of all its classes
    made.without = None
    assert {p.plausible_by for p in made.predict(new, coverage=0.9)} == {"jackknife"}
    assert made.sets(0.9).told == "by the jackknife of 30 training images"
    assert {p.plausible_by for p in made.predict(new)} == {None}
    with pytest.raises(
        ResiDualError, match=r"jackknife\+ needs what the head read .* was not kept"
    ):
        made.sets(0.9, "jackknife+")
    with pytest.raises(ResiDualError, match=r"wanted sets by held-out, .*, got 'split'"):
        made.sets(0.9, "split")
    with pytest.raises(ResiDualError, match=r"a coverage for sets by jackknife, such as 0\.9"):
        made.predict(new, sets="jackknife")
    with pytest.raises(ResiDualError, match=r"between 0 and 1, got 1\.5"):
        made.predict(new, coverage=1.5)


def test_images_that_cannot_calibrate_are_refused(tmp_path):
    made = gains_alone()
    paths = []
    for number, image in enumerate(photographs(3)):
        paths.append(tmp_path / f"{number}.png")
        image.save(paths[-1])
    made.fitted_on = tuple(file_digests(paths[:2]))
    stored = Dataset.from_dict({"image": list(map(str, paths))}).cast_column("image", Picture())
    for images in (paths, stored, [{"path": str(path), "bytes": None} for path in paths]):
        with pytest.raises(ResiDualError, match="2 images of 3 to calibrate with are among those"):
            made.calibrate(images, NAMES)
    with pytest.raises(ResiDualError, match=r"nope\.png.* no such file"):
        made.calibrate([tmp_path / "nope.png"], NAMES[:1])
    logits, labels = torch.randn(5, 3), torch.arange(5) % 3
    wrong = {
        r"logits \(5, 3\) for 5 labels .* got \(5, 2\)": (logits[:, :2], labels),
        r"logits \(4, 3\) for 4 labels .* got \(5, 3\)": (logits, labels[:4]),
        "labels from 0 to 2, got others": (logits, labels + 1),
        "with one label each to calibrate with": (logits, labels / 2),
        "got NaN or infinite ones": (logits / 0, labels),
    }
    for said, given in wrong.items():
        with pytest.raises(ResiDualError, match=said):
            made.calibrate_by(*given)
    with pytest.raises(ResiDualError, match="these 3 classes, got 'dog'"):
        made.calibrate(paths, ["dog"] * 3)
    with pytest.raises(ResiDualError, match="wanted one label per image, got several"):
        gains_alone(multi_label=True).calibrate(paths, NAMES)


def test_jackknife_plus_after_loading_is_that_of_fits_anew(headed, ridge_anew, tmp_path):
    made, fit, features, zero_shot, labels = headed
    made.save_pretrained(tmp_path / "a")
    loaded = ZeroShotClassifier.from_pretrained(tmp_path / "a", model=clip_model())
    new = photographs(20, seed=9)
    found = [p.plausible for p in loaded.predict(new, coverage=0.8)]
    x, z = reading(loaded, new)
    x, z = x[:, loaded.without.columns].double(), z.double()
    above = torch.zeros(20, 3)
    targets = torch.eye(3).double()[labels]
    if fit.prior:
        targets = targets - (fit.prior * zero_shot).softmax(1)
    for part in loaded.without.part.unique():
        inside = loaded.without.part != part
        scores = ridge_anew(features[inside], targets[inside], fit)
        for row in (~inside).nonzero().flatten().tolist():
            own = final(scores, fit, features[row : row + 1], zero_shot[row : row + 1])
            above += own[0, labels[row]] < final(scores, fit, x, z)
    expected = above < 0.8 * 31
    assert found == [tuple(n for n, i in zip(NAMES, row, strict=True) if i) for row in expected]
    assert len({len(names) for names in found}) > 1


def final(scores, fit, features, zero_shot):
    """−log p (M, C)."""
    logits = fit.head.temperature * scores(features) + fit.head.text_weight * zero_shot
    return -logits.log_softmax(1)


@pytest.fixture
def ridge_anew():
    """A ridge on some rows by its normal equations, at a fit's mean, scale and strength."""

    def anew(features, targets, fit):
        def standard(rows):
            ones = torch.ones(len(rows), 1).double()
            return torch.cat([(rows - fit.head.mean) / fit.head.scale, ones], 1)

        x = standard(features)
        penalty = torch.full((x.shape[1],), float(fit.alpha[0])).double()
        penalty[-1] = 0
        solution = torch.linalg.solve(x.mT @ x + penalty.diag(), x.mT @ targets)
        return lambda rows: standard(rows) @ solution

    return anew


def test_rows_of_another_head_are_refused_and_go_with_theirs(headed, tmp_path):
    made = copy.copy(headed[0])
    made.save_pretrained(tmp_path / "a")
    path = tmp_path / "a" / ROWS
    state, metadata = read_tensors(path)
    state = {name: tensor.clone() for name, tensor in state.items()}

    def said(tensors, head):
        write_tensors(path, tensors, {"head": head})
        loaded = ZeroShotClassifier.from_pretrained(tmp_path / "a", model=clip_model())
        loaded.sets(0.9, "jackknife")  # which does not read them
        with pytest.raises(ResiDualError) as error:
            loaded.sets(0.9)
        return str(error.value)

    assert "belongs to another class head than lies beside it" in said(state, "another")
    damaged = state | {"errors": state["errors"] * torch.nan}
    assert "jackknife.safetensors': wanted finite errors" in said(damaged, metadata["head"])
    far = state | {"columns": state["columns"] + 10**6}
    assert "is of other features or classes" in said(far, metadata["head"])
    made.head = made.head
    assert made.without is None
    made.save_pretrained(tmp_path / "a")
    assert not path.exists()
