"""A YAML file for the options of a command; what is typed as well counts more."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import ResiDualError, check_names


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


def _options(ctx: typer.Context, found: dict[Any, Any], file: str) -> dict[str, Any]:
    """The values by the names of the command's parameters."""
    known = {
        option.lstrip("-").replace("-", "_"): parameter
        for parameter in ctx.command.params
        for option in parameter.opts
        if parameter.name not in ("config", "help")
    }
    named = {str(name).replace("-", "_"): value for name, value in found.items()}
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
