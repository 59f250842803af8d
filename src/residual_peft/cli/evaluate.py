"""`residual-peft eval`."""

import json
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from .commands import begin, check_file, example
from .options import MEASURING, Adapter, Data, with_options


@example("""residual-peft eval my-adapter --data photos --mistakes mistakes.csv
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
}""")
@with_options(MEASURING)
def evaluate(
    adapter: Adapter,
    data: Data,
    confusion: Annotated[
        Path | None, typer.Option(help="A CSV file for what is taken for what, by class.")
    ] = None,
    mistakes: Annotated[
        Path | None, typer.Option(help="A CSV file for the images that are mistaken, by name.")
    ] = None,
    *,
    options: dict[str, Any],
) -> None:
    """Measure an adapter on labelled images; prints JSON."""
    check_file(confusion)
    check_file(mistakes)
    begin(f"Measuring {adapter} on {data}.")
    from ..app.fitting import evaluate_adapter

    scores = evaluate_adapter(adapter, data, confusion=confusion, mistakes=mistakes, **options)
    print(_shown(scores))


def _shown(scores: dict[str, Any]) -> str:
    """JSON with a line per class."""
    classes = scores.pop("classes")
    in_line = partial(json.dumps, ensure_ascii=False)
    rows = [f"    {in_line(name)}: {in_line(row)}" for name, row in classes.items()]
    head = json.dumps(scores, indent=2, ensure_ascii=False).removesuffix("\n}")
    return head + ',\n  "classes": {\n' + ",\n".join(rows) + "\n  }\n}"
