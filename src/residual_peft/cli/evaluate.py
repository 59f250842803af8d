"""`residual-peft eval`."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from .commands import begin, check_file, given
from .options import (
    Adapter,
    AdapterOption,
    BatchSize,
    Data,
    Device,
    ImageColumn,
    LabelColumn,
    MaxBad,
    NumWorkers,
    Split,
    SplitSeed,
    Strict,
)

EXAMPLE = """residual-peft eval my-adapter --data photos --mistakes mistakes.csv
{
  "accuracy": 0.8888888888888888,
...
  "images": 9,
  "split": "test",
  "data": "the data of its fit",
...
  "classes": {
    "one": {"images": 3, "recall": 1.0, "recall_interval": [0.4385, 1.0]},
...
}"""


def evaluate(
    data: Data,
    adapter: Adapter = None,
    adapter_option: AdapterOption = None,
    split: Split = None,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    seed: SplitSeed = None,
    max_bad: MaxBad = 0.05,
    strict: Strict = False,
    batch_size: BatchSize = 64,
    num_workers: NumWorkers = None,
    device: Device = None,
    confusion: Annotated[
        Path | None, typer.Option(help="A CSV file for what is taken for what, by class.")
    ] = None,
    mistakes: Annotated[
        Path | None, typer.Option(help="A CSV file for the images that are mistaken, by name.")
    ] = None,
) -> None:
    """Measure an adapter on labelled images; prints JSON."""
    for path in (confusion, mistakes):
        if path is not None:
            check_file(path)
    how = "residual-peft eval ADAPTER --data DATA"
    chosen = given(adapter, adapter_option, "an adapter", how)
    begin(f"Measuring {chosen} on {data}.")
    from ..app.fitting import evaluate_adapter

    scores = evaluate_adapter(
        chosen,
        data,
        split=split,
        image_column=image_column,
        label_column=label_column,
        seed=seed,
        max_bad=max_bad,
        strict=strict,
        batch_size=batch_size,
        num_workers=num_workers,
        device=device,
        confusion=confusion,
        mistakes=mistakes,
    )
    print(_shown(scores))


def _shown(scores: dict[str, Any]) -> str:
    """JSON with a line per class."""
    classes = scores.pop("classes")
    rows = [f"    {_json(name)}: {_json(row)}" for name, row in classes.items()]
    head = json.dumps(scores, indent=2, ensure_ascii=False).removesuffix("\n}")
    return head + ',\n  "classes": {\n' + ",\n".join(rows) + "\n  }\n}"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
