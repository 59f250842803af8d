"""None of these: what is saved says what a discriminant analysis does, and what it may not."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from residual_peft.classifiers.heads import strangers
from residual_peft.classifiers.heads.discriminant import fit_discriminant
from residual_peft.classifiers.none_of_these import (
    PREFIX,
    KnownImages,
    known_images,
    known_images_from,
)
from residual_peft.classifiers.trained_head import embedding_features
from residual_peft.errors import ResiDualError
from tests.pairs import table

CLASSES, WIDTH = 4, 12


def embeddings(count, seed=0, away=0.0, apart=1.0):
    """Of readouts about one mean of each class, far from zero, all lengths."""
    generator = torch.Generator().manual_seed(seed)
    means = 3 + apart * torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(9))
    labels = torch.arange(count) % CLASSES
    spread = torch.linspace(0.05, 0.6, WIDTH)
    rows = means[labels] + spread * torch.randn(count, WIDTH, generator=generator)
    rows[:, 0] += away
    return embedding_features(rows * (1 + torch.rand(count, 1, generator=generator))), labels


def coordinates_of(labels, seed=0):
    """Coordinates (N, 30) that tell classes apart where embeddings overlap."""
    generator = torch.Generator().manual_seed(seed)
    means = 5 + torch.randn(CLASSES, 30, generator=torch.Generator().manual_seed(8))
    return means[labels] + 0.3 * torch.randn(len(labels), 30, generator=generator)


def slow(rows, labels, coordinates, others):
    """Distances in embedding and coordinates: of images without themselves, and of others."""
    classes = labels.unique().tolist()
    fit = fit_discriminant(rows, labels, len(classes)).model
    variance = coordinates.double().var(0).numpy()
    scale = np.sqrt(variance + 1e-3 * variance.mean())
    c, away = (part.double().numpy() / scale for part in (coordinates, others[1]))
    means = [c[labels.numpy() == k].mean(0) for k in classes]
    apart = [min(((row - mean) ** 2).sum() for mean in means) for row in away]
    own = []
    for image, label in enumerate(labels.tolist()):
        share = 1 - 1 / int((labels == label).sum()) ** 2  # a mean of one image more is nearer
        share = np.where(np.arange(len(classes)) == label, share, 1)
        rest = np.delete(np.arange(len(rows)), image)
        without = [c[rest][labels[rest].numpy() == k].mean(0) for k in classes]
        squared = [((c[image] - mean) ** 2).sum() for mean in without]
        own.append([min(fit.squared[image].numpy() * share), min(squared * share)])
    return np.array(own), np.stack([fit.distances(others[0]).amin(1).numpy(), apart], 1)


def combined(pair, exponent):
    return np.prod(pair ** [exponent, 1 - exponent], axis=1)


def test_of_few_images_it_says_what_refits_do():
    """The exponent by classes that are strangers in turn; the tail is Student's, of cube roots."""
    rows, labels = embeddings(24, apart=0.2)
    others, _ = embeddings(50, seed=1, away=0.3, apart=0.2)
    c, d = coordinates_of(labels), coordinates_of(torch.arange(50) % CLASSES, seed=1)
    areas = dict.fromkeys((1.0, 0.5, 0.25), 0.0)
    for k in range(CLASSES):
        out = labels == k
        kept = labels[~out].unique(return_inverse=True)[1]
        near, far = slow(rows[~out], kept, c[~out], (rows[out], c[out]))
        for exponent in areas:
            areas[exponent] += (combined(far, exponent)[:, None] > combined(near, exponent)).mean()
    exponent = max(areas, key=areas.get)
    assert exponent < 1
    known = known_images(rows, labels, CLASSES, coordinates=c)
    loaded = known_images_from(known.tensors(), WIDTH, 30, CLASSES, "a file")
    near, far = slow(rows, labels, c, (others, d))
    roots = np.cbrt(combined(near, exponent))
    t = (np.cbrt(combined(far, exponent)) - roots.mean()) / roots.std(ddof=1) / (1 + 1 / 24) ** 0.5
    for own in (known, loaded):
        assert own.exponent == exponent
        np.testing.assert_allclose(own.distances(others, d), combined(far, exponent), rtol=1e-4)
        np.testing.assert_allclose(own.left_out, np.sort(combined(near, exponent)), rtol=1e-4)
        np.testing.assert_allclose(own.p_values(others, d), stats.t.sf(t, 23), atol=2e-3)


def test_it_says_what_the_fit_says_and_is_saved_whole():
    rows, labels = embeddings(count := 200)
    others, _ = embeddings(50, seed=1, away=0.7)
    known = known_images(rows, labels, CLASSES, coordinates=coordinates_of(labels))
    assert known.coordinates is None  # of so many images the embedding says enough
    fit = fit_discriminant(rows, labels, CLASSES).model
    expected = fit.distances(others).amin(1)
    left_out = fit.squared.clone()
    per_class = count // CLASSES
    for image, label in enumerate(labels.tolist()):  # a mean of one image more is nearer to it
        left_out[image, label] *= (1 + 1 / per_class) / (1 + 1 / (per_class - 1))
    farther = (left_out.amin(1) >= expected[:, None]).sum(1)
    loaded = known_images_from(known.tensors(), WIDTH, None, CLASSES, "a file")
    for own in (known, loaded):
        torch.testing.assert_close(own.distances(others), expected, rtol=1e-4, atol=1e-4)
        p = (1 + farther.double()) / (count + 1)
        torch.testing.assert_close(own.p_values(others), p, rtol=0, atol=1.5 / count)
        kept = left_out.amin(1).sort().values
        torch.testing.assert_close(own.left_out.double(), kept, rtol=1e-5, atol=1e-6)
    assert known_images_from({"class_embeddings": rows}, WIDTH, None, CLASSES, "a file") is None


def test_known_images_get_even_values_and_strangers_small_ones():
    known = known_images(*embeddings(400), CLASSES)
    alike = known.p_values(embeddings(2000, seed=2)[0])
    for share in (0.05, 0.2, 0.5):
        assert float((alike <= share).double().mean()) == pytest.approx(share, abs=0.05)
    strange = known.p_values(embeddings(100, seed=3, away=3.0)[0])
    assert float((strange <= 0.05).double().mean()) > 0.9


def test_distances_that_images_have_to_their_own_means_would_cry_far_more_often():
    (rows, labels), (others, _) = embeddings(40), embeddings(1000, seed=2)
    known = known_images(rows, labels, CLASSES)
    alarms = float((known.p_values(others) <= 0.1).double().mean())
    assert alarms < 0.2
    naive = known.distances(others) > known.distances(rows).quantile(0.9)
    assert float(naive.double().mean()) > 2 * alarms + 0.1


def test_the_furthest_image_counts_itself_alone_and_the_nearest_all():
    known = known_images(*embeddings(240), CLASSES)
    far, near = 100 * torch.ones(1, WIDTH), known.whitening.double().inverse()
    near = (near @ known.centres[:1].double().T).T  # W c = m: a distance of zero
    assert known.p_values(torch.cat([far.double(), near])).tolist() == [1 / 241, 1.0]


def test_what_belongs_together_is_left_out_together():
    """Frames of one video: each has a twin, but images of a new one are farther away."""
    generator = torch.Generator().manual_seed(0)
    means = 0.6 * torch.randn(3, 32, generator=generator)

    def videos(count):
        labels = torch.arange(count) % 3
        centres = means[labels] + torch.randn(count, 32, generator=generator)
        frames = centres.repeat_interleave(8, 0)
        frames = frames + 0.05 * torch.randn(frames.shape, generator=generator)
        return embedding_features(frames), labels.repeat_interleave(8)

    rows, labels = videos(24)
    groups = torch.arange(24).repeat_interleave(8)
    new, of = videos(100)
    singly, together = (known_images(rows, labels, 3, groups=g) for g in (None, groups))
    assert float((singly.p_values(new) <= 0.05).double().mean()) > 0.9
    assert float((together.p_values(new) <= 0.05).double().mean()) < 0.1
    # beside copies of theirs all images are near, and no measure seems to tell strangers better
    c = coordinates_of(labels[::8]).repeat_interleave(8, 0)
    singly, together = (
        known_images(rows, labels, 3, coordinates=c, groups=g) for g in (None, groups)
    )
    assert together.exponent < singly.exponent == 1
    known, strange = coordinates_of(of, seed=1), coordinates_of(torch.full_like(of, 3), seed=1)
    assert float((together.p_values(new, known) <= 0.05).double().mean()) < 0.1
    assert float((together.p_values(new, strange) <= 0.05).double().mean()) > 0.9
    one = groups.where(labels > 0, 0)  # the centre of whose class would be that image
    assert known_images(rows, labels, 3, coordinates=c, groups=one).coordinates is None
    for seed in (3, 15, 21):  # with 15 frames of some videos and one of others
        told = long_and_short_videos(seed)
        assert strangers.best_exponent(told) == best_by_videos(told)


def long_and_short_videos(seed):
    generator = torch.Generator().manual_seed(seed)
    groups = torch.arange(18).repeat_interleave(torch.tensor([15] * 3 + [1] * 15))
    rows, c = (
        (apart * torch.randn(3, width, generator=generator)).repeat(6, 1)
        + torch.randn(18, width, generator=generator)
        for apart, width in ((0.5, 12), (0.9, 20))
    )
    frames = rows[groups] + 0.05 * torch.randn(len(groups), 12, generator=generator)
    return strangers.Images(embedding_features(frames), c[groups], groups % 3, groups)


def best_by_videos(images):
    """The same by the mean over pairs of videos of the mean over their frames."""
    areas = dict.fromkeys(strangers.EXPONENTS, 0.0)
    for k in range(3):
        kept, out = images.rows(images.labels != k), images.rows(images.labels == k)
        anew = replace(kept, labels=kept.labels.unique(return_inverse=True)[1])
        model, beside, near = strangers.measures_of(anew)
        far = [model.distances(out.embedding).amin(1), beside.distances(out.coordinates)]
        far = torch.stack(far, 1)
        for exponent in areas:
            farther = combined(far.numpy(), exponent)[:, None] > combined(near.numpy(), exponent)
            cells = [
                farther[(out.groups == i).numpy()][:, (kept.groups == j).numpy()].mean()
                for i in out.groups.unique()
                for j in kept.groups.unique()
            ]
            areas[exponent] += np.mean(cells)
    return max(areas, key=areas.get)


def test_images_all_but_equal_within_their_classes_say_nothing():
    """What could be saved of them could not be loaded."""
    rows = torch.eye(3).repeat_interleave(15, 0)
    rows[0, 0] += 1e-7
    known = known_images(rows, torch.arange(3).repeat_interleave(15), 3)
    assert known is None or known_images_from(known.tensors(), 3, None, 3, "a file") is not None
    noise = 1e-6 * torch.randn(45, 3, generator=torch.Generator().manual_seed(0))
    known = known_images((rows + noise).double(), torch.arange(3).repeat_interleave(15), 3)
    assert known is None or known_images_from(known.tensors(), 3, None, 3, "a file") is not None


def test_too_few_images_say_nothing():
    rows, labels = embeddings(19)
    assert known_images(rows, labels, CLASSES) is None
    rows, labels = embeddings(20)
    assert known_images(rows, labels, CLASSES + 1) is None  # a class without images
    assert known_images(rows, torch.arange(20), 20) is None  # no second image of any
    assert known_images(torch.ones(20, WIDTH), labels, CLASSES) is None
    known = known_images(rows, labels, CLASSES)
    many, of = embeddings(40, apart=0.2)
    c = coordinates_of(of)
    for image_rows, own, useless in (
        (rows, labels, torch.ones(20, 5)),
        (many, of, torch.full_like(c, 3.3)),  # whose differences are rounding alone
        (many, of, 1e18 * c),
    ):
        told = known_images(image_rows, own, CLASSES, coordinates=useless)
        alone = known_images(image_rows, own, CLASSES)
        assert told.coordinates is None
        torch.testing.assert_close(told.left_out, alone.left_out)
    known.check_share(1 / 21)
    with pytest.raises(ResiDualError, match=r"20 images cannot tell 4.00% .* at least 4.76%"):
        known.check_share(0.04)
    with pytest.raises(ResiDualError, match=r"between 0 and 1, got 1\.5"):
        known.check_share(1.5)


@table(
    ("change", "said"),
    [
        (lambda t: t.pop("whitening"), "other tensors"),
        (lambda t: t["centres"].fill_(float("nan")), "out of range in .*centres"),
        (lambda t: t.update(whitening=torch.ones(3, 3)), r"whitening \(12, 12\)"),
        (lambda t: t.update(left_out=t["left_out"].flip(0)), "ascending"),
        (lambda t: t.update(left_out=t["left_out"][:1]), "two or more ascending"),
        (lambda t: t.update(left_out=torch.zeros(0)), "two or more ascending"),
        (lambda t: t["whitening"].fill_(3e38), "out of range in .*whitening"),
        (lambda t: t.update(centres=torch.ones(4, 13)), r"centres \(4, 12\) in a file"),
        (lambda t: t["coordinates.scale"].fill_(0), "scales above 0 and a share"),
        (lambda t: t["coordinates.share"].fill_(1.5), "scales above 0 and a share"),
        (lambda t: t.pop("coordinates.share"), "other tensors"),
        (lambda t: t.update({"coordinates.centres": torch.ones(4, 31)}), r"centres \(4, 30\)"),
    ],
)
def test_what_is_not_so_is_refused(change, said):
    rows, labels = embeddings(40, apart=0.2)
    made = known_images(rows, labels, CLASSES, coordinates=coordinates_of(labels)).tensors()
    assert len(made) == 6
    tensors = {name.removeprefix(PREFIX): tensor.clone() for name, tensor in made.items()}
    change(tensors)
    named = {PREFIX + name: tensor for name, tensor in tensors.items()}
    with pytest.raises(ResiDualError, match=said):
        known_images_from(named, WIDTH, 30, CLASSES, "a file")


def test_many_distances_are_kept_as_quantiles(monkeypatch):
    monkeypatch.setattr("residual_peft.classifiers.none_of_these.MOST", 100)
    rows, labels = embeddings(1000)
    model = fit_discriminant(rows, labels, CLASSES).model
    thin = KnownImages.of(model, model.squared.amin(1))
    assert thin.left_out.shape == (100,)
    others, _ = embeddings(300, seed=4, away=0.3)
    farther = (model.squared.amin(1) >= thin.distances(others)[:, None]).sum(1)
    apart = thin.p_values(others) - (1 + farther.double()) / 1001
    assert float(apart.abs().max()) < 0.03
