"""README's first table: `residual-peft compare` on 400 handwritten digits.

    python benchmarks/compare_digits.py        # writes compare_digits.txt beside itself

The first 40 training images of each digit, as class folders, and the bundled CLIP.
"""

import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from residual_peft.demo.tasks import handwriting

EACH = 40


def main() -> None:
    """Draw the folder, run the command, keep what it prints."""
    digits = handwriting()["train"]
    names, drawn = digits.features["label"].names, Counter[str]()
    with tempfile.TemporaryDirectory() as place:
        for row, digit in enumerate(digits):
            name = names[digit["label"]]
            if drawn[name] < EACH:
                drawn[name] += 1
                folder = Path(place) / "photos" / name
                folder.mkdir(parents=True, exist_ok=True)
                digit["image"].save(folder / f"{row}.png")
        command = [sys.executable, "-m", "residual_peft.cli", "compare", "--data", "photos"]
        done = subprocess.run(command, cwd=place, check=True, stdout=subprocess.PIPE, text=True)
    Path(__file__).with_suffix(".txt").write_text(done.stdout, encoding="utf-8")
    print(done.stdout)


if __name__ == "__main__":
    main()
