"""Small real pictures: handwritten digits of scikit-learn in files."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from sklearn.datasets import load_digits

WORDS = ("zero", "one", "two")


@pytest.fixture(scope="session")
def draw_digits() -> Callable[..., list[tuple[str, str]]]:
    """(folder, count, by class or beside each other) -> (path below the folder, word) of each."""
    digits = load_digits(n_class=len(WORDS))

    def draw(root: Path, count: int = 24, *, by_class: bool = False) -> list[tuple[str, str]]:
        rows = []
        for number, (pixels, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
            if number == count:
                break
            word = WORDS[digit]
            path = Path(word if by_class else ".") / f"d{number:03}.png"
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((pixels * 15).astype("uint8")).save(root / path)
            rows.append((str(path), word))
        return rows

    return draw
