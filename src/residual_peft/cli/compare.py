"""`residual-peft compare`."""

import json
from dataclasses import asdict
from typing import Any

from ..errors import printable_lines
from .commands import begin
from .options import DEMO_MODEL_SHOWN, AsJson, Data, Model, with_recipe

EXAMPLE = """residual-peft compare --data photos
method               loss  left-out   test         95 %  numbers  seconds
zero-shot           2.038     0.342  0.300  0.181-0.454        0      0.0
gains               0.273     0.933  0.975  0.871-0.996    1,578      5.8
ridge *             0.028     0.989  1.000  0.912-1.000   15,792      1.1
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
        print(printable_lines("\n".join(done.table())))
