"""`residual-peft compare`."""

from dataclasses import asdict
from typing import Any

from .commands import begin, example, tell
from .options import DEMO_MODEL_SHOWN, RECIPE, AsJson, Data, Model, recipe_of, with_options


@example("""residual-peft compare --data photos
method               loss  left-out   test         95 %  numbers    bytes  seconds
zero-shot           2.141     0.300  0.275  0.161-0.428        0        –      0.0
gains               0.153     0.942  0.925  0.801-0.974    1,578  11.4 kB      2.5
ridge-heads *       0.076     0.978  1.000  0.912-1.000    8,172  75.8 kB      0.6
...""")
@with_options(RECIPE)
def compare(
    data: Data, model: Model = None, as_json: AsJson = False, *, options: dict[str, Any]
) -> None:
    """Compare what may be fitted to labelled images, and save nothing."""
    begin(f"Comparing methods on {data} with {model or DEMO_MODEL_SHOWN}.")
    from ..app.fitting import compare_methods
    from ..hub.directories import DEMO_MODEL

    done = compare_methods(model or DEMO_MODEL, data, **recipe_of(options))
    found = [asdict(row) for row in done.methods] if as_json else None
    tell([*done.table(), *done.notes()], found)
