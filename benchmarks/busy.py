"""How long a fit takes beside programs that keep every core busy, with threads that spin and not.

    python benchmarks/busy.py

`residual-peft fit` of 400 handwritten digits with the bundled model, from its first import to its
end, alone and beside as many idle loops as there are cores, three times in turn. How often a thread
looks for work before it sleeps is `GOMP_SPINCOUNT`, which GNU's OpenMP reads as torch is loaded.
The commands set it where nobody has; where torch was loaded before, OpenMP's own counts. Writes
busy.json beside itself.
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

TIMES = 3
SPINS = ("1000", "10000", "OpenMP's own")
MAIN = "import sys; sys.argv[0] = 'residual-peft'; from residual_peft.cli import main; main()"


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


def seconds(data: Path, out: Path, spins: str) -> float:
    """Of one fit, from the first import to the end."""
    unset = ("OMP_NUM_THREADS", "GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    program = f"import torch; {MAIN}"
    if spins.isdigit():
        program, environment["GOMP_SPINCOUNT"] = MAIN, spins
    given = ["fit", "--data", str(data), "--out", str(out), "--no-report"]
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", program, *given],
        env=environment,
        check=True,
        capture_output=True,
    )
    return round(time.perf_counter() - started, 1)


def main() -> None:
    """Print and write the rows."""
    took: dict[tuple[int, str], list[float]] = {}
    with TemporaryDirectory() as folder:
        data = photos(Path(folder) / "photos")
        for _ in range(TIMES):
            for others in (0, os.cpu_count() or 1):
                for spins in SPINS:
                    with busy(others):
                        new = seconds(data, Path(folder) / "adapter", spins)
                    took.setdefault((others, spins), []).append(new)
                    print(others, spins, new, flush=True)
    rows = [{"busy programs": n, "spins": how, "seconds": own} for (n, how), own in took.items()]
    found = {"machine": machine(), "rows": rows}
    Path(__file__).with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
