import pytest
import torch

from residual_peft.demo.drawing import IMAGE_SIZE, draw
from residual_peft.demo.tasks import handwriting, world_images, world_task
from residual_peft.demo.world import ATTRIBUTES, sample_scenes
from residual_peft.errors import ResiDualError
from tests.pairs import table


def drawn(size=200, seed=0, **fixed):
    generator = torch.Generator().manual_seed(seed)
    scene = sample_scenes(size, generator, only="position")
    for name, value in fixed.items():
        scene.values[name].fill_(ATTRIBUTES[name].index(value))
    return draw(scene, generator).float(), scene


def redness(images):
    return (images[:, 0] - images[:, 1]).clamp(min=0)


def test_the_same_seed_draws_the_same_images():
    first, _ = drawn(20, seed=3)
    again, _ = drawn(20, seed=3)
    other, _ = drawn(20, seed=4)
    assert first.shape == (20, 3, IMAGE_SIZE, IMAGE_SIZE)
    assert first.equal(again)
    assert not first.equal(other)


def test_color_position_and_size_are_where_they_should_be():
    images, scene = drawn(color="red", background="black")
    ink = redness(images) / redness(images).sum((1, 2), keepdim=True)
    line = torch.arange(IMAGE_SIZE) + 0.5
    x, y = (ink.sum(1) * line).sum(1) - 20, (ink.sum(2) * line).sum(1) - 20
    for name, coordinate, sign in (
        ("left", x, -1), ("right", x, 1), ("top", y, -1), ("bottom", y, 1),
    ):  # fmt: skip
        rows = scene.values["position"] == ATTRIBUTES["position"].index(name)
        # a large crescent at the left has its mass nearly in the middle
        assert (sign * coordinate[rows] > 1).float().mean() > 0.93, name
    spread = (redness(images) > 60).flatten(1).sum(1).float()
    size = scene.values["size"]
    assert spread[size == 1].mean() > 1.8 * spread[size == 0].mean()


def test_objects_stay_inside_the_frame():
    images, _ = drawn(color="red", background="black", texture="plain")
    edge = torch.ones(IMAGE_SIZE, IMAGE_SIZE, dtype=torch.bool)
    edge[1:-1, 1:-1] = False
    inside = redness(images).sum((1, 2))
    outside = redness(images)[:, edge].sum(1) / inside
    assert (outside < 0.06).float().mean() > 0.95  # shear pushes a corner of some letters out
    assert outside.max() < 0.25


def test_textures_keep_two_tones_and_plain_has_one():
    generator = torch.Generator().manual_seed(0)
    scene = sample_scenes(120, generator, only="texture")
    scene.values["color"].fill_(ATTRIBUTES["color"].index("red"))
    scene.values["background"].fill_(ATTRIBUTES["background"].index("black"))
    red = draw(scene, generator)[:, 0].float()
    dark = ((red > 70) & (red < 110)).flatten(1).sum(1) / (red > 60).flatten(1).sum(1)
    plain = scene.values["texture"] == 0
    assert dark[plain].mean() < 0.1
    assert dark[~plain].mean() > 0.2


@table("name", ATTRIBUTES)
def test_world_tasks_are_labelled_datasets(name):
    task = world_task(name, 40, seed=1)
    assert task.features["label"].names == list(ATTRIBUTES[name])
    assert task[0]["image"].size == (IMAGE_SIZE, IMAGE_SIZE)
    assert task["label"] == world_task(name, 40, seed=1)["label"]


def test_world_task_refuses_what_it_cannot_make():
    with pytest.raises(ResiDualError, match="wanted one of the attributes"):
        world_task("mood")
    with pytest.raises(ResiDualError, match="wanted at least one image, got size=0"):
        world_task("color", 0)


def test_world_images_have_no_label():
    assert world_images(5).column_names == ["image"]


def test_handwriting_is_split_without_overlap():
    splits = handwriting()
    sizes = {name: len(split) for name, split in splits.items()}
    assert sizes == {"train": 1077, "validation": 360, "test": 360}
    seen = {name: {image.tobytes() for image in split["image"]} for name, split in splits.items()}
    assert not seen["train"] & seen["test"]
    assert not seen["validation"] & seen["test"]
    assert splits["test"].features["label"].names == [str(digit) for digit in range(10)]
