"""Corruptions against their formulas, one number at a time; and what a processor does with them."""

import io
import math

import numpy as np
import pytest
from PIL import Image

from residual_peft.data.processors import least_side, load_image_processor
from residual_peft.experiments.bench.corruptions import (
    BLUR,
    CONTRAST,
    CORRUPTIONS,
    JPEG,
    NOISE,
    CorruptingProcessor,
)
from tests.pairs import table
from tests.training_case import save_clip


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def random() -> np.random.Generator:
    return np.random.default_rng(7)


def apart(image: Image.Image, expected: np.ndarray) -> float:
    """The largest difference from numbers from 0 to 255."""
    return float(np.abs(np.asarray(image, float) - expected).max())


def test_numbers_are_those_of_the_formulas() -> None:
    image = picture(9, 13)
    pixels = np.asarray(image, float) / 255
    normal = random().standard_normal(pixels.shape)
    for severity in range(1, 6):
        noisy, flat = np.empty_like(pixels), np.empty_like(pixels)
        for row, column, channel in np.ndindex(pixels.shape):
            x, n = pixels[row, column, channel], normal[row, column, channel]
            noisy[row, column, channel] = min(max(x + NOISE[severity - 1] * n, 0), 1)
            mean = math.fsum(pixels[:, :, channel].flat) / (9 * 13)
            flat[row, column, channel] = (x - mean) * CONTRAST[severity - 1] + mean
        for name, expected in (("gaussian-noise", noisy), ("contrast", flat)):
            found = CORRUPTIONS[name](image, severity, random())
            assert apart(found, 255 * expected) <= 0.5 + 1e-9, (name, severity)
        stream = io.BytesIO()
        image.save(stream, format="JPEG", quality=JPEG[severity - 1])
        again = np.asarray(Image.open(stream), float)
        assert apart(CORRUPTIONS["jpeg"](image, severity, random()), again) == 0


@table("severity", [1, 5])
def test_a_blur_is_a_gaussian_of_so_many_pixels_of_224(severity: int) -> None:
    """A line of light spreads with the deviation that the formula says, within PIL's boxes."""
    for side in (112, 224):
        values = np.zeros((side, side, 3), np.uint8)
        values[:, side // 2] = 255
        found = CORRUPTIONS["gaussian-blur"](Image.fromarray(values), severity, random())
        row = np.asarray(found, float)[side // 2, :, 0]
        spread = math.sqrt((row * (np.arange(side) - side // 2) ** 2).sum() / row.sum())
        assert spread == pytest.approx(BLUR[severity - 1] * side / 224, rel=0.2, abs=0.1)


def test_a_processor_corrupts_before_and_says_so(tmp_path) -> None:
    save_clip(tmp_path)
    inner = load_image_processor(tmp_path)
    for name in CORRUPTIONS:
        processor = CorruptingProcessor(inner, name, 2)
        image = picture(20, 30)
        first, other = processor.corrupted(image), processor.corrupted(picture(20, 30, 1))
        assert first.tobytes() == processor.corrupted(image).tobytes()  # whatever came between
        assert first.size == image.size
        assert first.tobytes() not in (image.tobytes(), other.tobytes())
        expected = inner(images=[first], return_tensors="pt")["pixel_values"]
        assert processor(images=[image], return_tensors="pt")["pixel_values"].equal(expected)
        assert processor.corrupted(picture(300, 450)).size == (336, 224)
        assert least_side(processor) == least_side(inner)
        others = [inner.to_dict(), CorruptingProcessor(inner, name, 3).to_dict()]
        assert processor.to_dict() not in others
