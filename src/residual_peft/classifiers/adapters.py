"""The adapters of a classifier's model: written with their names, and put back as they were.

PEFT writes the adapter "default" into the directory itself and any other into a folder of its name,
and loads the first alone. So the record beside them says which there are, where, and which were
active.
"""

import copy
import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ..errors import ResiDualError, short
from ..hub.directories import ADAPTER_CONFIG
from ..hub.files import quoted, read_object, read_tensors, record_of, write_tensors
from ..towers.registry import base_model
from ..tuner.loading import check_directory, one_line, unchanged_if_refused
from ..tuner.saved import PEFT_PREFIX, check_values

ADAPTER_TENSORS = "adapter_model.safetensors"
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}")
_WORDS = re.compile(r"[\w.]*")
_TAKEN = {"run"}  # folders of a classifier's directory that hold something else
_LORA_TENSOR = re.compile(
    r"base_model\.model\.[\w.]+\.lora_(A\.weight|B\.weight|magnitude_vector(\.weight)?)"
)


@dataclasses.dataclass(frozen=True)
class Adapters:
    """Which adapters a model has, and which of them count."""

    # name -> the folder of its files within the classifier's, "" for that itself
    folders: Mapping[str, str]
    # names of those that change what the model says; none where all are off
    active: tuple[str, ...]

    def __post_init__(self) -> None:
        folders = list(self.folders.values())
        lower = [folder.lower() for folder in folders]  # some disks do not tell them apart
        plain = all(not f or (_PLAIN.fullmatch(f) and f.lower() not in _TAKEN) for f in folders)
        if not plain or len(set(lower)) < len(lower):
            raise ResiDualError(
                f"wanted plain folders of adapters, got {short(', '.join(folders))}"
            )
        for name in self.folders:
            if not name or "." in name:
                raise ResiDualError(f"wanted names of adapters without dots, got {short(name)}")
        if unknown := [name for name in self.active if name not in self.folders]:
            raise ResiDualError(f"the active adapter {short(unknown[0])} is none of those saved")

    @classmethod
    def of(cls, model: nn.Module) -> "Adapters":
        """Those of a model, put in by PEFT or by transformers' own `add_adapter`.

        Raises:
            ResiDualError: some layers have other adapters active than others.
        """
        configs = configs_of(model)
        if not configs:
            return cls({}, ())
        active = _active(model, list(configs))
        main = "default" if "default" in configs else next(iter(active or configs))
        folders, taken = {main: ""}, {""}
        for number, name in enumerate(configs):
            if name == main:
                continue
            folder = name if _PLAIN.fullmatch(name) else f"adapter-{number}"
            while folder.lower() in taken | _TAKEN:
                folder += "_"
            folders[name] = folder
            taken.add(folder.lower())
        return cls({name: folders[name] for name in configs}, active)

    @property
    def main(self) -> str:
        """The one in the directory itself, which PEFT loads."""
        return next(name for name, folder in self.folders.items() if not folder)


def configs_of(model: nn.Module) -> dict[str, Any]:
    """Name -> config of a model's adapters, whoever put them in; none where they were taken out."""
    if not any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        return {}
    found: Any = getattr(model, "peft_config", None)
    return dict(found if found is not None else getattr(base_model(model), "peft_config", {}))


def _active(model: nn.Module, names: list[str]) -> tuple[str, ...]:
    """Which adapters a forward pass uses, in their order there."""
    found: dict[tuple[str, ...], None] = {}
    merged: dict[str, None] = {}
    for layer in model.modules():
        if not isinstance(layer, BaseTunerLayer):
            continue
        chosen: Any = () if layer.disable_adapters else layer.active_adapters
        if layer.merged and not layer.disable_adapters:
            merged |= dict.fromkeys(layer.merged_adapters)
        found[tuple(name for name in chosen if name in names)] = None
    if merged:  # into the weights, whichever are active
        return tuple(merged)
    if len(found) > 1:
        said = " here and ".join(", ".join(map(repr, chosen)) or "none" for chosen in found)
        raise ResiDualError(
            f"wanted the same adapters active in all layers, got {said} there: a classifier is "
            "saved with one choice. Call set_adapter, or enable all of them."
        )
    return next(iter(found))


def write_adapters(model: nn.Module, adapters: Adapters, folder: Path) -> None:
    """Write config and tensors of each adapter, as PEFT does, and refuse what none would load."""
    base: Any = base_model(model)
    mapping = {"base_model_class": type(base).__name__, "parent_library": type(base).__module__}
    configs = configs_of(model)
    for name, folder_name in adapters.folders.items():
        place, config = folder / folder_name, copy.copy(configs[name])
        place.mkdir(exist_ok=True)
        config.inference_mode = True
        if config.base_model_name_or_path is None:
            config.base_model_name_or_path = base.__dict__.get("name_or_path") or None
        # no vocabulary is adapted, and looking for one asks the Hub
        tensors = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
        prefixed = {f"{PEFT_PREFIX}{k.removeprefix(PEFT_PREFIX)}": t for k, t in tensors.items()}
        write_tensors(place / ADAPTER_TENSORS, prefixed, {"format": "pt"})
        own = None if config.task_type is not None else mapping
        config.save_pretrained(str(place), auto_mapping_dict=own)
        check_adapter(place, values=True)


def check_adapter(folder: Path, *, values: bool = False) -> None:
    """Refuse all but a whole adapter of ours, or of LoRA as the experiments make it."""
    config = read_object(folder / ADAPTER_CONFIG)
    if config.get("peft_type") == "LORA":
        _check_lora(config, folder)
        return
    check_directory(folder)
    if values:
        tensors, _ = read_tensors(folder / ADAPTER_TENSORS)
        for name, tensor in tensors.items():
            check_values(tensor, name.rpartition(".")[2], f"the adapter in {quoted(folder)}")


@dataclasses.dataclass(frozen=True)
class _PlainLora:
    """What a LoRA config may say; all else must be as PEFT has it by default."""

    peft_type: str
    task_type: str | None = None
    auto_mapping: dict[str, str | None] | None = None
    peft_version: str | None = None
    base_model_name_or_path: str | None = None
    revision: str | None = None
    inference_mode: bool = True
    r: int = 8
    lora_alpha: float = 8
    lora_dropout: float = 0
    target_modules: tuple[str, ...] | None = None
    layers_to_transform: tuple[int, ...] | int | None = None
    fan_in_fan_out: bool = False
    use_rslora: bool = False
    use_dora: bool = False
    init_lora_weights: bool | Literal["gaussian"] = True
    rank_pattern: dict[str, int] = dataclasses.field(default_factory=dict)
    alpha_pattern: dict[str, float] = dataclasses.field(default_factory=dict)


def _check_lora(config: dict[str, Any], folder: Path) -> None:
    """Refuse what makes PEFT import modules, run regular expressions or write into the model."""
    path = folder / ADAPTER_CONFIG
    plain = {field.name for field in dataclasses.fields(_PlainLora)}
    usual = LoraConfig(target_modules=[]).to_dict()
    for name, value in config.items():
        odd = name not in plain and value and value != usual.get(name)
        if name in ("rank_pattern", "alpha_pattern"):  # of plain names alone
            odd = not isinstance(value, dict) or not all(_WORDS.fullmatch(str(k)) for k in value)
        if odd:
            raise ResiDualError(
                f"{quoted(path)} is of type LORA with {short(name)}={short(value)}, which this "
                "package does not load. Load it with PEFT, where you trust it."
            )
    record_of({k: v for k, v in config.items() if k in plain}, _PlainLora, quoted(path))
    tensors, _ = read_tensors(folder / ADAPTER_TENSORS)
    for name, tensor in tensors.items():
        if not _LORA_TENSOR.fullmatch(name):
            raise ResiDualError(
                f"{quoted(folder / ADAPTER_TENSORS)} holds {short(name)}, which is no part of a "
                "LoRA: it would change the model itself. Save or download it again."
            )
        if not tensor.is_floating_point() or not bool(tensor.isfinite().all()):
            raise ResiDualError(
                f"{quoted(folder / ADAPTER_TENSORS)} holds NaN, infinite or whole numbers in "
                f"{short(name)}: save it again."
            )


def load_adapters(
    model: nn.Module, adapters: Adapters, directory: Path, *, is_trainable: bool = False
) -> PeftModel:
    """Put saved adapters into a bare model, which stays as it was where one is refused."""
    for place in adapters.folders.values():  # all are looked at before the first is put in
        check_adapter(directory / place)
    if isinstance(model, PeftModel) or configs_of(model):
        raise ResiDualError(
            f"wanted a model without adapters to load those in {quoted(directory)}, got one with "
            f"{', '.join(map(repr, configs_of(model)))}: take them out with unload(), load the "
            "base model afresh, or put several classifiers over one model with TaskSet."
        )
    loaded: Any = None
    with unchanged_if_refused(model), one_line(directory):
        for name, place in adapters.folders.items():
            source = directory / place
            if loaded is None:
                loaded = PeftModel.from_pretrained(model, source, name, is_trainable=is_trainable)
            else:
                loaded.load_adapter(source, name, is_trainable=is_trainable)
        chosen = list(adapters.active)
        if len(chosen) == 1:
            loaded.set_adapter(chosen[0], inference_mode=not is_trainable)
        elif chosen:  # PeftModel's own takes one name
            loaded.base_model.set_adapter(chosen, inference_mode=not is_trainable)
        else:
            loaded.base_model.disable_adapter_layers()
    return loaded


def saved_adapters(record: Any, directory: Path) -> Adapters:
    """What a classifier's record says of its adapters; of older ones, what lies there."""
    if record.adapters is not None:
        return Adapters(record.adapters, record.active)
    if not record.adapted:
        return Adapters({}, ())
    if (directory / ADAPTER_CONFIG).is_file():
        return Adapters({"default": ""}, ("default",))
    # an only adapter of another name, as PEFT puts it
    found = [path.parent.name for path in directory.glob(f"*/{ADAPTER_CONFIG}")]
    if len(found) != 1 or not _PLAIN.fullmatch(found[0]):
        raise ResiDualError(
            f"wanted the adapter's {ADAPTER_CONFIG} in {quoted(directory)}, which is missing: save "
            "or download the classifier again."
        )
    return Adapters({found[0]: found[0]}, (found[0],))
