"""Image processors: the PIL ones, and what they use of an image."""

import numpy as np
import pytest
from PIL import Image
from transformers import CLIPImageProcessorPil, Siglip2ImageProcessorPil

from residual_peft.data.processors import least_side, load_image_processor, pixel_values
from residual_peft.errors import ResiDualError


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
