"""An adapter's directory, checked before PEFT reads it: PEFT only warns of what is missing.

Where it is refused after all, the model is put back as it was.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft import PeftModel
from peft.utils import CONFIG_NAME
from torch import nn

from ..errors import ResiDualError, short
from ..hub.directories import local_directory
from ..hub.files import PathLike, quoted
from .config import ResiDualConfig
from .saved import SavedWeights

SETTINGS = (
    "mode",
    "units",
    "layers_to_transform",
    "unit_pattern",
    "exclude_modules",
    "remainder",
    "restore_mean",
    "granularity",
)
"""What, with the basis, says which gain belongs to which direction and what it does there."""


def load_adapter(
    model: nn.Module,
    name_or_path: PathLike,
    adapter_name: str = "default",
    *,
    is_trainable: bool = False,
    revision: str | None = None,
    token: str | None = None,
    **options: Any,
) -> PeftModel:
    """Load a saved adapter onto a model, or beside the adapters that it already has.

    Args:
        model: the base model, or a `PeftModel` around it.
        name_or_path: a directory that `save_pretrained` wrote, or a Hub id.
        adapter_name: its name in the model.
        is_trainable: whether its gains can be trained on.
        revision: a branch, tag or commit on the Hub.
        token: for private repositories.
        options: passed on to PEFT (`low_cpu_mem_usage`, `autocast_adapter_dtype` ...).

    Raises:
        ResiDualError: not found, not one whole adapter of ours, or it belongs to other weights.
    """
    directory = local_adapter(name_or_path, revision=revision, token=token)
    there = model.peft_config.get(adapter_name) if isinstance(model, PeftModel) else None
    if isinstance(there, ResiDualConfig):  # PEFT loads the tensors, and keeps its settings
        check_fits(there, ResiDualConfig.from_pretrained(str(directory)), adapter_name)
    with unchanged_if_refused(model), one_line(directory):
        if isinstance(model, PeftModel):
            model.load_adapter(directory, adapter_name, is_trainable=is_trainable, **options)
            return model
        return PeftModel.from_pretrained(
            model, directory, adapter_name, is_trainable=is_trainable, **options
        )


def local_adapter(name_or_path: PathLike, **hub_options: Any) -> Path:
    """The local directory of one whole ResiDual adapter; `hub_options`: revision, token."""
    files = [CONFIG_NAME, "adapter_model.*"]
    options = {"what": "adapter", "marker": CONFIG_NAME, "allow_patterns": files, **hub_options}
    directory = local_directory(name_or_path, **options)
    check_directory(directory)
    return directory


def setting(config: ResiDualConfig, name: str) -> Any:
    """What a config says of one of `SETTINGS`: one layer by itself is a list of one."""
    return config.layers if name == "layers_to_transform" else getattr(config, name)


def check_fits(there: ResiDualConfig, saved: ResiDualConfig, adapter_name: str) -> None:
    """Refuse a saved adapter in place of one that is there and means something else by it."""
    what = f"the adapter in '{saved._directory}'"
    mend = f"the adapter {adapter_name!r}, which is there already"
    for name in (*SETTINGS, "component_counts"):
        if setting(there, name) != setting(saved, name):
            raise ResiDualError(
                f"{what} has another {name} than {mend}: load it under another name."
            )
    if not there.fitted.same_weights(saved.fitted):
        raise ResiDualError(
            f"{what} belongs to other weights, another side or another readout than {mend}: load "
            "it onto the model that it was made with."
        )
    alone = saved.needs_basis and not saved.save_basis
    if alone and not there.fitted.same_basis(saved.fitted):
        raise ResiDualError(
            f"{what} holds its gains alone, and they belong to another basis than {mend}: load it "
            "under another name."
        )


@contextmanager
def one_line(directory: object) -> Iterator[None]:
    """What PEFT does not make of an adapter, in one line of this package's."""
    try:
        yield
    except ResiDualError:
        raise
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ResiDualError(
            f"PEFT could not load the adapter '{directory}' ({type(error).__name__}: "
            f"{short(str(error))}); it may be of another release, or made for another kind of "
            "model."
        ) from error


def check_directory(directory: PathLike) -> None:
    """Refuse a directory that does not hold one whole ResiDual adapter."""
    check_config(directory)
    SavedWeights.in_directory(directory)


def check_config(directory: PathLike) -> dict[str, Any]:
    """Its adapter_config.json, as `ResiDualConfig` reads it; refused where no model was saved."""
    path = Path(directory) / CONFIG_NAME
    config = ResiDualConfig.from_json_file(str(path))
    if config.get("component_counts") is None:
        raise ResiDualError(
            f"{quoted(path)} has no component_counts: it was not written by save_pretrained of a "
            "model. Save the adapter again."
        )
    return config


@contextmanager
def unchanged_if_refused(model: nn.Module) -> Iterator[None]:
    """Put a model back as it was if the block fails, and let the error go on.

    Its modules' parts, attributes and hooks, that is; what was put in since is forgotten. The
    values of tensors are not kept: whoever loads checks before the first value is written.
    """
    modules = list(model.modules())
    states = [(module, type(module), dict(vars(module))) for module in modules]
    contents: dict[int, tuple[Any, Any]] = {}
    for value in (value for module in modules for value in vars(module).values()):
        if isinstance(value, dict | set | list) and id(value) not in contents:
            contents[id(value)] = value, value.copy()
    tensors = (*model.parameters(), *model.buffers())
    trainable = [(tensor, tensor.requires_grad) for tensor in tensors if tensor.is_leaf]
    try:
        yield
    except BaseException:
        for module, kind, state in states:
            module.__class__ = kind
            vars(module).clear()
            vars(module).update(state)
        for held, content in contents.values():  # in place: handles of hooks refer to them
            held.clear()
            if isinstance(held, list):
                held.extend(content)
            else:
                held.update(content)
        for tensor, grad in trainable:
            tensor.requires_grad_(grad)
        raise
