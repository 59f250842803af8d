"""`residual-peft fit`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import ResiDualError
from ..hub.places import check_place
from .commands import begin, example, tell
from .options import (
    DEMO_MODEL_SHOWN,
    RECIPE,
    AsJson,
    Config,
    Data,
    Model,
    Words,
    recipe_of,
    with_options,
)


@example("""residual-peft fit --data photos --out my-adapter
zero-shot 0.667 -> adapted 0.889 (test images)
90 images of 3 classes: 72 train, 9 validation, 9 test
...
The adapter is in my-adapter.
The report is my-adapter/report.html""")
@with_options(RECIPE)
def fit(
    data: Data,
    out: Annotated[Path, typer.Option(help="The folder to write the adapter to.")],
    config: Config = None,
    model: Model = None,
    method: Annotated[
        str,
        typer.Option(help="What to fit: ridge, gains, ... (compare lists them); auto tries all."),
    ] = "auto",
    trainer: Annotated[
        bool, typer.Option("--trainer", help="Train gains with the HF Trainer instead: slower.")
    ] = False,
    units: Annotated[
        str | None,
        typer.Option(help="What gets gains: head, mlp, embed, or output, with commas between."),
    ] = None,
    components: Annotated[
        str | None,
        typer.Option(help="Directions per unit: so many, or the share of variance they keep."),
    ] = None,
    basis: Annotated[
        str | None,
        typer.Option(help="A saved SpectralBasis, a folder or Hub id, in place of one of DATA."),
    ] = None,
    readout: Annotated[
        str | None,
        typer.Option(
            help="mean or patches: the mean of the tower's tokens; classes are means, too."
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Another setting of ResiDualConfig, such as granularity=unit; repeatable.",
        ),
    ] = None,
    keep_statistics: Annotated[
        bool,
        typer.Option(
            "--keep-statistics",
            help="Keep sums in run/ that update changes a ridge head by; they are data.",
        ),
    ] = False,
    keep_statistics_per_class: Annotated[
        bool,
        typer.Option(
            "--keep-statistics-per-class",
            help="Those of each class, too, so that one can be removed without its images.",
        ),
    ] = False,
    sets: Annotated[
        str,
        typer.Option(
            help="What predict --coverage comes from: jackknife (images left out by turns), "
            "held-out (validation images, then not learned from) or jackknife+ (keeps what a ridge "
            "reads of every image in run/; data)."
        ),
    ] = "jackknife",
    license: Annotated[
        str | None, typer.Option(help="Of the adapter, such as apache-2.0, for its card.")
    ] = None,
    words: Words = None,
    report: Annotated[
        bool, typer.Option(help="Write report.html beside the adapter; it shows test images.")
    ] = True,
    as_json: AsJson = False,
    *,
    options: dict[str, Any],
) -> None:
    """Fit an adapter to labelled images: one pass over them, then seconds.

    An interrupted fit goes on where it stopped when the same command is given again. What was asked
    for is kept in OUT/run/run.yaml; --config repeats it.
    """
    check_place(out)
    given = {"units": units, "components": components, "basis": basis, "readout": readout}
    begin(f"Fitting an adapter to {data} with {model or DEMO_MODEL_SHOWN}.")
    from ..app.fitting import fit as fit_to
    from ..hub.directories import DEMO_MODEL, REPORT
    from ..reporting import write_report
    from ..reporting.run_record import RunRecord

    fitted = fit_to(
        data,
        model=model or DEMO_MODEL,
        out=out,
        config=_settings(given, settings or []) or None,
        method=method,
        trainer=trainer,
        keep_statistics="per class" if keep_statistics_per_class else keep_statistics,
        sets=sets,
        license=license,
        words=words,
        **recipe_of(options),
    )
    lines = [*fitted.summary.lines(), f"The adapter is in {out}."]
    if report:
        write_report(RunRecord.load(out), out / REPORT)
        lines.append(f"The report is {out / REPORT}")
    tell(lines, asdict(fitted.summary) if as_json else None)


def _settings(given: dict[str, Any], more: list[str]) -> dict[str, Any]:
    """Settings of the adapter's config, as Python has them."""
    import yaml

    found = {name: value for name, value in given.items() if value is not None}
    if "units" in found:
        found["units"] = tuple(unit.strip() for unit in found["units"].split(","))
    if (text := found.get("components")) is not None:
        try:
            found["components"] = int(text) if text.isdecimal() else float(text)
        except ValueError:
            raise ResiDualError(
                f"wanted --components as a number or a share of variance such as 0.9, got '{text}'."
            ) from None
    for setting in more:
        name, equals, value = setting.partition("=")
        if not equals:
            raise ResiDualError(f"wanted --set NAME=VALUE, got '{setting}'.")
        try:
            found[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ResiDualError(f"--set {name}: could not read the value '{value}'.") from None
    return found
