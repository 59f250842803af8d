"""How long a fit takes beside programs that keep every core busy, with threads that spin and not.

    python benchmarks/busy.py

`residual-peft fit` of 400 handwritten digits with the bundled model, alone and beside as many idle
loops as there are cores. The commands set `GOMP_SPINCOUNT` to 1,000 where nobody has set it, which
GNU's OpenMP in torch's builds for Linux reads; 300,000 is what it takes by itself. Writes busy.json
beside itself.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from residual_peft.demo.tasks import handwriting
from residual_peft.hub.machine import machine

SPINS = {"as the commands set it": None, "as OpenMP takes it": "300000"}


def photos(folder: Path, count: int = 400) -> Path:
    """A folder of class folders."""
    digits = handwriting()["train"].select(range(count))
    names = digits.features["label"].names
    for number, row in enumerate(digits):
        place = folder / names[row["label"]]
        place.mkdir(parents=True, exist_ok=True)
        row["image"].save(place / f"{number}.png")
    return folder


@contextmanager
def busy(count: int) -> Iterator[None]:
    """So many processes that do nothing, as fast as they can."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def seconds(data: Path, out: Path, spins: str | None) -> float:
    """Of one fit, from the first import to the end."""
    environment = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS",)}
    environment |= {} if spins is None else {"GOMP_SPINCOUNT": spins}
    command = [sys.executable, "-m", "residual_peft.cli", "fit", "--data", data, "--out", out]
    started = time.perf_counter()
    subprocess.run(
        [*map(str, command), "--no-report"], env=environment, check=True, capture_output=True
    )
    return round(time.perf_counter() - started, 1)


def main() -> None:
    rows = []
    with TemporaryDirectory() as folder:
        data = photos(Path(folder) / "photos")
        for others in (0, os.cpu_count() or 1):
            for how, spins in SPINS.items():
                with busy(others):
                    took = seconds(data, Path(folder) / f"{others}{spins}", spins)
                rows.append({"busy programs": others, "threads spin": how, "seconds": took})
                print(rows[-1], flush=True)
    found = {"machine": machine(), "rows": rows}
    Path(__file__).with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
