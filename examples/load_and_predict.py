"""One call loads base model, adapter and classes; then image files are classified.

    python examples/load_and_predict.py --adapter my-adapter photo.png another.jpg

Without --adapter, one is fitted to handwritten digits first; without image files, ten digits that
it was not fitted to are written as files and classified.
"""

import argparse
import contextlib
import io
import tempfile
import warnings
from pathlib import Path

from transformers.utils.logging import disable_progress_bar

from residual_peft import ZeroShotClassifier
from residual_peft.app.fitting import fit_adapter
from residual_peft.demo.tasks import HANDWRITING_TEMPLATES, handwriting
from residual_peft.hub import DEMO_MODEL


def make_adapter(folder: Path, count: int = 400) -> Path:
    """Fit an adapter from names to files, as `residual-peft fit` does."""
    digits = handwriting()
    digits["train"] = digits["train"].select(range(count))
    digits["validation"] = digits["validation"].select(range(100))
    digits["test"] = digits["test"].select(range(100))
    with contextlib.redirect_stderr(io.StringIO()):  # its progress bars
        fit_adapter(DEMO_MODEL, digits, folder, templates=HANDWRITING_TEMPLATES)
    return folder


def make_images(folder: Path, count: int = 10) -> list[Path]:
    """Write test digits as files that are named after their class."""
    test = handwriting()["test"]
    digits = test.select(range(len(test) - count, len(test)))
    names = digits.features["label"].names
    folder.mkdir()
    paths = [folder / f"{i:02}-{names[label]}.png" for i, label in enumerate(digits["label"])]
    for path, row in zip(paths, digits, strict=True):
        row["image"].save(path)
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path, nargs="*", help="image files")
    parser.add_argument("--adapter", help="a directory or a Hub id")
    options = parser.parse_args()
    disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)  # transformers' own
    with tempfile.TemporaryDirectory() as temporary:
        adapter = options.adapter or make_adapter(Path(temporary, "adapter"))
        images = options.images or make_images(Path(temporary, "images"))
        classifier = ZeroShotClassifier.from_pretrained(adapter)
        for path, prediction in zip(images, classifier.predict(images), strict=True):
            print(f"{path.name}: {prediction.label} ({prediction.score:.2f})")


if __name__ == "__main__":
    main()
