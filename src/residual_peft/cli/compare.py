"""`residual-peft compare`."""

import json
from dataclasses import asdict
from typing import Any

from ..errors import printable_lines
from .commands import begin
from .options import DEMO_MODEL_SHOWN, AsJson, Data, Model, with_recipe

EXAMPLE = """residual-peft compare --data photos
method               loss  left-out   test         95 %  numbers    bytes  seconds
zero-shot           2.141     0.300  0.275  0.161-0.428        0        –      0.0
gains               0.153     0.942  0.925  0.801-0.974    1,578  11.4 kB      2.5
ridge-heads *       0.076     0.978  1.000  0.912-1.000    8,172  75.8 kB      0.6
..."""


@with_recipe
def compare(
    data: Data,
    model: Model = None,
    as_json: AsJson = False,
    *,
    recipe: dict[str, Any],
) -> None:
    """Compare what may be fitted to labelled images, and save nothing."""
    begin(f"Comparing methods on {data} with {model or DEMO_MODEL_SHOWN}.")
    from ..app.fitting import compare_methods
    from ..hub.directories import DEMO_MODEL

    done = compare_methods(model or DEMO_MODEL, data, **recipe)
    if as_json:
        print(json.dumps([asdict(row) for row in done.methods], indent=2))
    else:
        print(printable_lines("\n".join([*done.table(), *done.notes()])))
