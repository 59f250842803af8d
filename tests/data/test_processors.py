"""Image processors: the PIL ones, what they use of an image, and recipes that give the same."""

import numpy as np
import pytest
import transformers
from PIL import Image
from transformers import CLIPImageProcessorPil, Siglip2ImageProcessorPil

from residual_peft.data.processors import (
    Preparation,
    least_side,
    load_image_processor,
    pixel_values,
)
from residual_peft.errors import ResiDualError
from tests.pairs import table


def noise(seed):
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)


def test_the_processor_is_saved_loaded_and_applied(tmp_path):
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8}
    )
    processor.save_pretrained(tmp_path)
    images = [Image.fromarray(noise(s)) for s in range(2)]
    values = pixel_values(load_image_processor(tmp_path), images)
    expected = (np.stack(images) / 255 - processor.image_mean) / processor.image_std
    np.testing.assert_allclose(values.numpy(), expected.transpose(0, 3, 1, 2), atol=1e-5)
    with pytest.raises(ResiDualError, match="wanted an image processor in"):
        load_image_processor(tmp_path.joinpath("empty").mkdir() or tmp_path / "empty")


def test_the_side_that_is_enough_is_twice_what_the_processor_resizes_to():
    wide = {"height": 64, "width": 96}
    assert least_side(CLIPImageProcessorPil(size={"shortest_edge": 64})) == 128
    assert least_side(CLIPImageProcessorPil(size=wide)) == 192
    assert least_side(CLIPImageProcessorPil(do_resize=False)) is None
    assert least_side(Siglip2ImageProcessorPil()) is None  # as many patches as fit
    assert least_side(None) is None


SMALL = {"height": 20, "width": 20}
PROCESSORS = {
    "edge and crop": ("CLIP", {"size": {"shortest_edge": 20}, "crop_size": SMALL}),
    "an edge below the crop": ("CLIP", {"size": {"shortest_edge": 13}, "crop_size": SMALL}),
    "both sides": ("Siglip", {"size": {"height": 18, "width": 26}}),
    "both sides and crop": ("DeiT", {"size": {"height": 24, "width": 23}, "crop_size": SMALL}),
    "no normalising": ("ViT", {"size": SMALL, "do_normalize": False, "resample": 0}),
    "bytes": ("Blip", {"size": SMALL, "do_rescale": False}),
    "another edge than crop": ("Bit", {"size": {"shortest_edge": 33}, "crop_size": SMALL}),
}


@table("name", PROCESSORS)
def test_the_recipe_makes_the_processors_pixels(name: str) -> None:
    kind, options = PROCESSORS[name]
    processor = getattr(transformers, f"{kind}ImageProcessorPil")(**options)
    recipe = Preparation.of(processor)
    generator = np.random.default_rng(len(name))
    for _ in range(8):
        height, width = generator.integers(1, 90, 2)
        image = Image.fromarray(generator.integers(0, 256, (height, width, 3), np.uint8))
        wanted = pixel_values(processor, [image])[0].numpy()
        np.testing.assert_allclose(recipe(image), wanted, atol=1e-4)


def test_a_processor_that_does_more_is_refused() -> None:
    cut = {"size": {"shortest_edge": 20, "longest_edge": 30}, "do_center_crop": False}
    with pytest.raises(ResiDualError, match=r"resizes, crops the middle.*CLIPImageProcessorPil"):
        Preparation.of(transformers.CLIPImageProcessorPil(**cut))

    class Grey(transformers.ViTImageProcessorPil):
        def rescale(self, image, scale, **options):
            return super().rescale(image.mean(0, keepdims=True).repeat(3, 0), scale, **options)

    with pytest.raises(ResiDualError, match="got a Grey that makes other pixels"):
        Preparation.of(Grey(size=SMALL))


@table(
    ("processor", "said"),
    [
        (lambda images, **options: None, "got a function .*AttributeError"),
        ({"crop_size": {"shortest_edge": 32}}, "got a CLIPImageProcessorPil .*KeyError: 'height'"),
        ({"image_mean": [0.5] * 4, "image_std": [0.5] * 4}, "got a CLIPImageProcessorPil .*Value"),
        ({"image_mean": None}, "got a CLIPImageProcessorPil .*ValueError: `image_mean`"),
    ],
)
def test_a_processor_that_no_recipe_can_be_read_from_is_one_line(processor, said) -> None:
    if isinstance(processor, dict):
        processor = transformers.CLIPImageProcessorPil(**processor)
    with pytest.raises(ResiDualError, match=said) as caught:
        Preparation.of(processor)
    assert str(caught.value).endswith("as the classifier's image_processor.")
