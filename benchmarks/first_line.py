"""How long somebody waits after typing: to the first line of output, the second, and the end.

    python benchmarks/first_line.py          # minutes; writes first_line.json beside itself

Each command is started three times as a process of its own, in turn with the others, in a folder of
90 handwritten digits of three classes; times are medians, in seconds from the start of the process,
beside those that importing torch, transformers and peft takes a plain Python on the same machine.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from residual_peft.demo.tasks import handwriting
from residual_peft.hub.files import write_json

RESULTS = Path(__file__).with_suffix(".json")
TIMES = 3
PROGRAM = "import sys; sys.argv[0] = 'residual-peft'; from residual_peft.cli import main; main()"
IMPORT = "import torch, transformers, peft; print('done')"
COMMANDS: dict[str, tuple[str, ...]] = {
    IMPORT: (),
    "--help": (),
    "look": ("photos",),
    "fit": ("--data", "photos", "--out", "again"),
    "predict": ("my-adapter", "photos/one"),
    "eval": ("my-adapter", "--data", "photos"),
    "explain": ("my-adapter",),
    "report": ("my-adapter",),
}


def draw(root: Path) -> None:
    """30 digits of each of three classes."""
    digits = handwriting()["train"]
    labels = digits["label"]
    for number, name in enumerate(("zero", "one", "two")):
        (root / "photos" / name).mkdir(parents=True)
        for row in [i for i, label in enumerate(labels) if label == number][:30]:
            digits[row]["image"].save(root / "photos" / name / f"{row}.png")


def once(command: str, given: tuple[str, ...], root: Path) -> dict[str, float]:
    """Seconds to the first line on either stream, to the second, and to the end."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-c", *([IMPORT] if command == IMPORT else [PROGRAM, command, *given])],
        cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    found: list[float] = []
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip():
            found.append(time.perf_counter() - started)
    if process.wait():
        raise SystemExit(f"{command} {' '.join(given)} ended with {process.returncode}")
    second = found[1] if len(found) > 1 else found[0]
    return {"first": found[0], "second": second, "end": time.perf_counter() - started}


def main() -> None:
    """All commands in turn, three times."""
    times: dict[str, list[dict[str, float]]] = {command: [] for command in COMMANDS}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        draw(root)
        once("fit", ("--data", "photos", "--out", "my-adapter", "--method", "ridge"), root)
        for _ in range(TIMES):
            for command, given in COMMANDS.items():
                times[command].append(once(command, given, root))
    found: dict[str, Any] = {
        "importing torch, transformers, peft" if command == IMPORT else command: {
            name: round(statistics.median(each[name] for each in runs), 2) for name in runs[0]
        }
        for command, runs in times.items()
    }
    write_json(RESULTS, {"seconds": found, "times": TIMES, "cores": os.cpu_count()})
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
