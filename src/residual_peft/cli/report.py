"""`residual-peft report`."""

from pathlib import Path
from typing import Annotated

import typer

from ..errors import ResiDualError
from .commands import begin, example


@example("""residual-peft report my-adapter
The report is my-adapter/report.html""")
def report(
    adapter: Annotated[
        Path, typer.Argument(metavar="ADAPTER", help="The adapter's directory, as fit left it.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="The file to write; report.html in ADAPTER if left out.")
    ] = None,
) -> None:
    """Write what a fit did as one page to show: an HTML file that needs no other."""
    begin(f"Writing the report of {adapter}.")
    from ..hub.directories import REPORT
    from ..reporting import write_report
    from ..reporting.run_record import RunRecord

    record = RunRecord.load(adapter)
    path = out or adapter / REPORT
    if path.is_dir():
        raise ResiDualError(f"wanted a file to write the report to, got the directory '{path}'.")
    write_report(record, path)
    print(f"The report is {path}")
