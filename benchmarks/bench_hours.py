"""How long `make bench` takes from nothing, and whether its rows come out as they are committed.

    python benchmarks/bench_hours.py bench_small bench_vit
    python benchmarks/bench_hours.py bench_vit_backwards --methods full --data handwriting

Runs draw 0 of each registry anew, on the pictures that `make bench` has made, with nothing beside
it on the machine if seconds are to mean anything. What is not run is reckoned: a method takes as
long on one draw as on another; where methods or data were chosen, what goes back through the
backbone takes as long as the longest that was run, and the rest what its committed row says; all
else, images to read and what is forgotten, is counted once for each draw, which is too much. A
registry that is not named takes what its committed rows say, which others on the machine slowed.
Writes bench_hours.json beside itself, by registry.
"""

import argparse
import json
import os
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench_small import PLACE

from residual_peft.experiments.bench.backbones import BACKBONES
from residual_peft.experiments.bench.registry import Registry, read_registry
from residual_peft.experiments.bench.results import Result, read_results
from residual_peft.experiments.bench.run import run_registry, runs_of
from residual_peft.hub.machine import machine

HERE, OUT = Path(__file__).parent, Path(__file__).with_suffix(".json")
NAMES = ("bench_small", "bench_shift", "bench_clips", "bench_vit", "bench_vit_backwards")


def first_draw(registry: Registry, **chosen: list[str] | None) -> Registry:
    """A registry of one draw."""
    protocols = {name: replace(one, seeds=(0,)) for name, one in registry.protocols.items()}
    return replace(registry.only(**chosen), protocols=protocols)


def committed(name: str) -> dict[tuple[object, ...], Result]:
    """Rows beside the registry, by what they are of."""
    with TemporaryDirectory() as folder:
        (Path(folder) / "results.jsonl").write_bytes((HERE / f"{name}.jsonl").read_bytes())
        return {result.key: result for result in read_results(Path(folder))}


def as_committed(name: str) -> dict[str, Any]:
    """What the rows of a registry say of how long they took."""
    rows = committed(name).values()
    draws = {(r.model, r.data, r.protocol, r.seed): r.encoding_seconds for r in rows}
    seconds = sum(r.fitting_seconds for r in rows) + sum(draws.values())
    return {"runs": 0, "runs_of_all": len(rows), "hours_of_all": seconds / 3600}


def reckoned(
    whole: Registry, results: list[Result], before: Iterable[Result], seconds: float, part: bool
) -> float:
    """Hours of a registry, by some of its runs, which took so many seconds with all else."""
    fits = {(r.model, r.data, r.protocol, r.method): r.fitting_seconds for r in results}
    rest = {(r.model, r.data, r.protocol, r.method): r.fitting_seconds for r in before}
    if part:
        rest |= {run: max(fits.values()) for run in rest if run[3] in BACKBONES}
    known = rest | fits
    all_fits = sum(known.get((*run[:3], run[4]), 0.0) for run in runs_of(whole))
    draws = max(len(protocol.seeds) for protocol in whole.protocols.values())
    return (all_fits + (seconds - sum(fits.values())) * draws) / 3600


def measured(name: str, methods: list[str] | None, data: list[str] | None) -> dict[str, Any]:
    """One registry."""
    whole, before = read_registry(HERE / f"{name}.toml"), committed(name)
    with TemporaryDirectory() as folder:
        started = time.perf_counter()
        results = run_registry(first_draw(whole, methods=methods, data=data), folder)
        seconds = time.perf_counter() - started
    known = [result for result in results if result.key in before]
    other = [r for r in known if (r.right, r.split) != (before[r.key].right, before[r.key].split)]
    part = bool(methods or data)
    return {
        "runs": len(results),
        "seconds": seconds,
        "runs_of_all": len(runs_of(whole)),
        "hours_of_all": reckoned(whole, results, before.values(), seconds, part),
        "committed": len(known),
        "told_as_committed": len(known) - len(other),
        "others": [
            {
                "run": [r.model, r.data, r.protocol, r.method],
                "same_images": r.split == before[r.key].split,
                "accuracy": r.accuracy,
                "committed": before[r.key].accuracy,
            }
            for r in other
        ],
        "machine": machine(),
    }


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="+", choices=NAMES)
    for option in ("--methods", "--data"):
        parser.add_argument(option, type=lambda text: text.split(","))
    asked = parser.parse_args()
    os.chdir(PLACE)
    found = json.loads(OUT.read_text()) if OUT.exists() else {}
    found = {name: found.get(name) or as_committed(name) for name in NAMES}
    for name in asked.names:
        found[name] = measured(name, asked.methods, asked.data)
        OUT.write_text(json.dumps(found, indent=2) + "\n")
    print("all:", round(sum(one["hours_of_all"] for one in found.values()), 2), "hours")


if __name__ == "__main__":
    main()
