"""Test images made worse: four corruptions of ImageNet-C, each at five severities.

Source: D. Hendrycks and T. Dietterich, Benchmarking Neural Network Robustness to Common Corruptions
and Perturbations (ICLR 2019), with the strengths of its published code for ImageNet. There an image
has 224 pixels each way; here its shorter side is brought to at most that before, and blur is by as
many pixels of 224, so that a smaller image is blurred as much as it looks.
"""

import hashlib
import io
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

SIDE = 224
"""Pixels of the shorter side at most: noise of a larger image would be averaged away again."""
NOISE = (0.08, 0.12, 0.18, 0.26, 0.38)
BLUR = (1.0, 2.0, 3.0, 4.0, 6.0)
CONTRAST = (0.4, 0.3, 0.2, 0.1, 0.05)
JPEG = (25, 18, 15, 10, 7)
Corruption = Callable[[Image.Image, int, np.random.Generator], Image.Image]


def gaussian_noise(image: Image.Image, severity: int, random: np.random.Generator) -> Image.Image:
    """x + σ n with normal n for each number, σ = 0.08 ... 0.38 of the range."""
    pixels = np.asarray(image) / 255
    return _image(pixels + NOISE[severity - 1] * random.standard_normal(pixels.shape))


def gaussian_blur(image: Image.Image, severity: int, _: np.random.Generator) -> Image.Image:
    """Convolved with a Gaussian whose σ is 1 ... 6 pixels where the shorter side has 224."""
    return image.filter(ImageFilter.GaussianBlur(BLUR[severity - 1] * min(image.size) / SIDE))


def contrast(image: Image.Image, severity: int, _: np.random.Generator) -> Image.Image:
    """(x − m) c + m, m the image's mean of each channel, c = 0.4 ... 0.05."""
    pixels = np.asarray(image) / 255
    mean = pixels.mean((0, 1), keepdims=True)
    return _image((pixels - mean) * CONTRAST[severity - 1] + mean)


def jpeg(image: Image.Image, severity: int, _: np.random.Generator) -> Image.Image:
    """Saved as JPEG of quality 25 ... 7, and read again."""
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=JPEG[severity - 1])
    return Image.open(stream).convert("RGB")


CORRUPTIONS: dict[str, Corruption] = {
    "gaussian-noise": gaussian_noise,
    "gaussian-blur": gaussian_blur,
    "contrast": contrast,
    "jpeg": jpeg,
}


class CorruptingProcessor:
    """An image processor that corrupts what it is given before.

    The noise of an image is drawn from its pixels: the same in every run, whatever the order.

    Attributes:
        inner: the model's processor.
        corruption: of `CORRUPTIONS`.
        severity: 1 to 5.
        size: what `inner` resizes to, for readers that need no more pixels than that.
        do_resize: whether it does.
    """

    def __init__(self, inner: Any, corruption: str, severity: int) -> None:
        self.inner, self.corruption, self.severity = inner, corruption, severity
        self.size = getattr(inner, "size", None)
        self.do_resize = bool(getattr(inner, "do_resize", False))

    def __call__(self, images: Iterable[Image.Image], **options: Any) -> Any:
        """What the model takes of the corrupted images."""
        return self.inner(images=[self.corrupted(image) for image in images], **options)

    def to_dict(self) -> dict[str, Any]:
        """Settings, by which coordinates on disk are told apart."""
        own = {"corruption": self.corruption, "severity": self.severity}
        return {**self.inner.to_dict(), **own}

    def corrupted(self, image: Image.Image) -> Image.Image:
        """One RGB image, its shorter side at most `SIDE`."""
        short = min(image.size)
        if short > SIDE:
            size = (round(side * SIDE / short) for side in image.size)
            image = image.resize((next(size), next(size)), Image.Resampling.BICUBIC)
        seed = int.from_bytes(hashlib.sha256(image.tobytes()).digest()[:8], "big")
        return CORRUPTIONS[self.corruption](image, self.severity, np.random.default_rng(seed))


def _image(shares: npt.NDArray[np.float64]) -> Image.Image:
    """Pixels from 0 to 1 -> an image; what is beyond is cut off."""
    return Image.fromarray(np.rint(255 * shares.clip(0, 1)).astype(np.uint8))
