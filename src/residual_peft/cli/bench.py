"""`residual-peft bench`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from ..errors import printable
from .commands import begin, example, tell

_NAMES = "; names with commas between them, all of them if left out."


@example("""\
residual-peft bench fusionbench --dry-run --data dtd --protocol full --images-per-second 300
model            data set                 images  coordinates    hours   runs
clip-b16         dtd                       5,640      0.36 GB     0.01     21
clip-b32         dtd                       5,640      0.36 GB     0.01     21
clip-l14         dtd                       5,640      1.00 GB     0.01     21
16,920 images to read, 63 runs; the largest pair takes 1.00 GB of disk, and of memory.
0.02 hours of reading (3 models as stated); downloads, decoding and fits come on top.""")
def bench(
    registry: Annotated[
        Path | None,
        typer.Argument(
            metavar="REGISTRY.toml",
            help="What to run: a file, or one that comes with this package (experiments/bench/): "
            "paper, the paper's seven models and ten data sets, if left out; fusionbench, eight "
            "tasks with all images; coop, eleven at 1 to 16 images per class.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="The folder of results and summaries.")] = Path("bench"),
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it takes, and stop; downloads nothing.")
    ] = False,
    images_per_second: Annotated[
        float | None,
        typer.Option(
            min=1e-3,
            help="For --dry-run, of models whose weights are not here; others are timed for a "
            "second.",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where a run into this folder stopped.")
    ] = False,
    models: Annotated[str | None, typer.Option(help="Of the registry" + _NAMES)] = None,
    data: Annotated[str | None, typer.Option(help="Of the registry" + _NAMES)] = None,
    methods: Annotated[str | None, typer.Option(help="Of the registry" + _NAMES)] = None,
    protocol: Annotated[str | None, typer.Option(help="Of the registry" + _NAMES)] = None,
) -> None:
    """Run models x data sets x methods, a line of JSON for each, and summarise them."""
    begin("The paper's models and data sets." if registry is None else f"What {registry} says.")
    from ..app.benching import run_bench
    from ..experiments.bench.plan import lines, plan
    from ..experiments.bench.registry import PAPER, read_registry

    parts = map(_split, (models, data, methods, protocol))
    found = read_registry(registry or PAPER).only(*parts)
    if dry_run:
        tell(lines(plan(found, images_per_second)))
        return

    def say(line: str) -> None:
        print(printable(line), file=sys.stderr, flush=True)

    results, summaries = run_bench(found, out, resume=resume, say=say)
    print(printable(f"{len(results)} results in {out}, and {', '.join(summaries)}"))


def _split(names: str | None) -> list[str] | None:
    return None if names is None else [name.strip() for name in names.split(",") if name.strip()]
