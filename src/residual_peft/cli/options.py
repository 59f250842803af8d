"""Options and arguments that several commands have, one word for one thing; a file of them."""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from ..data.defaults import SHARE
from ..errors import ResiDualError, check_names

DEMO_MODEL_SHOWN = "the bundled small CLIP"

Adapter = Annotated[
    str, typer.Argument(metavar="ADAPTER", help="The adapter's directory or Hub id.")
]
DATA_HELP = (
    "A folder of class folders, a table of files and labels (CSV, TSV, JSON lines, parquet), a zip "
    "or tar of these, or a dataset id on the Hub."
)
Data = Annotated[str, typer.Option(help=DATA_HELP)]
Model = Annotated[
    str | None,
    typer.Option(
        help="A model with a known image tower, such as a CLIP: a directory or a Hub id.",
        show_default=DEMO_MODEL_SHOWN,
    ),
]
Template = Annotated[
    list[str] | None, typer.Option(help="A prompt with {} for the class name; repeatable.")
]
Words = Annotated[
    Path | None, typer.Option(help="Texts to explain with, one a line; a bundled list if left out.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead.")]

Group = dict[str, tuple[Any, Any]]
"""Option -> its kind and default."""


def _option(kind: Any, text: str, *names: str, default: Any = None, **more: Any) -> tuple[Any, Any]:
    return Annotated[kind, typer.Option(*names, help=text, **more)], default


PASSES: Group = {
    "batch_size": _option(int, "Images per forward pass.", default=64, min=1),
    "num_workers": _option(
        int | None, "Processes that decode images; if left out, as suits the machine.", min=0
    ),
}
DEVICE: Group = {
    "device": _option(str | None, "Where the model runs, such as cuda.", show_default="cpu")
}
_COLUMNS: Group = {
    "image_column": _option(str | None, "The column of images; found by itself when left out."),
    "label_column": _option(str | None, "The column of labels; found by itself when left out."),
}
LOOKING: Group = _COLUMNS | PASSES
"""What commands have that take images as they are, unreadable ones among them."""
READING: Group = {
    **_COLUMNS,
    "max_bad": _option(
        float, "The share of unreadable images at which to stop.", default=0.05, min=0, max=1
    ),
    "strict": _option(bool, "Stop at the first unreadable image.", "--strict", default=False),
    **PASSES,
}
"""What all commands have that read labelled images."""
MEASURING: Group = {
    "split": _option(
        str | None,
        "train, validation, test or all; if left out, test of the data that the adapter was "
        "fitted on, and all of other data.",
    ),
    "seed": _option(int | None, "Of the splits; the adapter's own if left out."),
    **READING,
    **DEVICE,
}
"""What all commands have that measure an adapter on them."""
RECIPE: Group = {
    "template": (Template, None),
    **READING,
    "group_column": _option(
        str | None,
        "A column of the table: images of one value, such as one person's, stay in one split.",
    ),
    "few": _option(
        int | None,
        "Learn from so many images of each class, drawn at random, and test on the others.",
        min=1,
    ),
    "validation": _option(
        str,
        "Images to validate on where the data have none set apart: a share of them, or data "
        "of their own, as DATA.",
        default=str(SHARE),
        metavar="SHARE|DATA",
    ),
    "test": _option(
        str, "Images to test on: as --validation.", default=str(SHARE), metavar="SHARE|DATA"
    ),
    "balanced": _option(
        bool, "Every class counts alike, however few its images.", "--balanced", default=False
    ),
    "seed": _option(int, "Of the splits, and of the order of the images.", default=0),
    **DEVICE,
    "dtype": _option(
        str | None,
        "What the model computes in: float32, bfloat16 or float16.",
        show_default="float32",
    ),
}
"""What all commands have that fit something to them."""


def with_options(group: Group) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A command that has the options of a group in place of its parameter `options`, their dict."""

    def wrapped(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(**given: Any) -> None:
            options = {name: given.pop(name) for name in group}
            command(**given, options=options)

        own = inspect.signature(command, eval_str=True)
        parameters = [p for p in own.parameters.values() if p.name != "options"]
        parameters += [
            inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
            for n, (kind, default) in group.items()
        ]
        run.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters} | {"return": None}
        return run

    return wrapped


def recipe_of(options: dict[str, Any]) -> dict[str, Any]:
    """The options of `RECIPE` as `app.fitting` takes them."""
    parts = {name: share_or_data(options[name]) for name in ("validation", "test")}
    rest = {name: value for name, value in options.items() if name != "template"}
    return {**rest, **parts, "templates": options["template"]}


def share_or_data(text: str) -> float | str:
    """A share of the images where it is a number, and else the name of data.

    >>> share_or_data("0.2"), share_or_data("20%"), share_or_data("more-photos")
    (0.2, 0.2, 'more-photos')
    """
    number = text.removesuffix("%")
    try:
        return float(number) / (100 if number != text else 1)
    except ValueError:
        return text


def _read(ctx: typer.Context, path: Path | None) -> Path | None:
    """Take the file's values for the options that are not typed, as click has it."""
    if path is None:
        return None
    import yaml

    from ..hub.files import quoted, read_bytes

    try:
        found = yaml.safe_load(read_bytes(path, 2**20))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        first = " ".join(str(error).split())
        raise ResiDualError(f"could not read {quoted(path)} as YAML ({first}).") from None
    if not isinstance(found, dict):
        raise ResiDualError(
            f"wanted options in {quoted(path)}, a line each such as 'data: photos', got "
            f"{type(found).__name__}."
        )
    ctx.default_map = _options(ctx, found, quoted(path))
    return path


def _options(ctx: typer.Context, settings: dict[Any, Any], file: str) -> dict[str, Any]:
    """The values by the names of the command's parameters."""
    known = {
        option.lstrip("-").replace("-", "_"): parameter
        for parameter in ctx.command.params
        for option in parameter.opts
        if parameter.name not in ("config", "help")
    }
    named = {str(name).replace("-", "_"): value for name, value in settings.items()}
    check_names(named, known, f"an option that {file} may have")
    values: dict[str, Any] = {}
    for name, value in named.items():
        parameter = known[name]
        several = getattr(parameter, "multiple", False)
        if isinstance(value, list) and not several:
            value = ",".join(map(str, value))
        elif several and value is not None and not isinstance(value, list):
            value = [str(value)]
        if isinstance(value, dict):
            raise ResiDualError(f"{file}: wanted one value for {name}, got {value}.")
        if value is not None and parameter.name is not None:
            values[parameter.name] = value
    return values


Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="A YAML file with any of these options, such as OUT/run/run.yaml of an earlier fit; "
        "what is typed counts more.",
        callback=_read,
        is_eager=True,
    ),
]
