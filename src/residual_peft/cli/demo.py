"""`residual-peft demo`."""

from pathlib import Path
from typing import Annotated

import typer

from ..hub.places import check_place
from .commands import begin, example, print_table


@example("""residual-peft demo
...
│ zero-shot             │         0.564 │       0 │       – │        – │
│ ResiDual, our default │ 0.952 ± 0.004 │   1,578 │     4.1 │ 465.7 kB │
...
The adapter, results.json, gains.png and a card are in demo-output.
The report is demo-output/report.html""")
def demo(
    out: Annotated[Path, typer.Option(help="The folder to write to.")] = Path("demo-output"),
) -> None:
    """Real handwriting, classified by the bundled CLIP before and after adapting it; offline."""
    check_place(out)
    begin("Loading the bundled model.")
    from ..app.demonstration import run_demo
    from ..experiments import METHODS, Row
    from ..hub.directories import REPORT
    from ..reporting import HEADERS, table_cells

    results = run_demo(out)
    labels = {name: method.label for name, method in METHODS.items()}
    cells = table_cells([Row(**row) for row in results["rows"]], labels)
    print_table(HEADERS, cells)
    print(f"The adapter, results.json, gains.png and a card are in {out}.")
    if (out / REPORT).is_file():
        print(f"The report is {out / REPORT}")
