"""Every method on real handwriting with the bundled model: what `residual-peft demo` runs.

python benchmarks/handwriting.py        # writes handwriting.json beside itself
"""

import shutil
import tempfile
from pathlib import Path

from residual_peft.app.demonstration import run_demo


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        run_demo(Path(folder) / "out")
        shutil.copy(Path(folder) / "out" / "results.json", Path(__file__).with_suffix(".json"))


if __name__ == "__main__":
    main()
