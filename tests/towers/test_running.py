"""What a tower takes of a batch, and what is refused."""

import pytest

from residual_peft.bases.decomposition import decompose
from residual_peft.errors import ResiDualError
from tests.models import (
    clip_model,
    pixels,
)
from tests.pairs import table


@table("value", [float("nan"), float("inf"), -float("inf")])
def test_pixels_that_are_not_finite_are_refused_with_their_image(value: float) -> None:
    images = pixels(6)
    images[3, 1, 2, 2] = value
    images[5, 0, 0, 0] = value
    with pytest.raises(
        ResiDualError, match=r"NaN or infinite values in 2 of 6 images .* \(first: image 3\)"
    ):
        decompose(clip_model(), images)


@table(
    ("images", "got"),
    [
        (pixels()[0], r"torch.float32 of shape \(3, 16, 16\)"),
        (pixels()[:0], r"torch.float32 of shape \(0, 3, 16, 16\)"),
        (pixels().byte(), r"torch.uint8 of shape \(5, 3, 16, 16\)"),
        ([[0.0]], "got a list"),
    ],
)
def test_what_is_no_batch_of_pixels_is_refused(images: object, got: str) -> None:
    with pytest.raises(ResiDualError, match=f"wanted pixel_values as .*{got}"):
        decompose(clip_model(), images)  # type: ignore[arg-type]
