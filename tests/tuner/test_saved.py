"""An adapter's files from anybody, through every door: refused before the model is touched."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import nn

from residual_peft.errors import ResiDualError
from residual_peft.hub.directories import push_directory
from residual_peft.towers.running import run_tower
from residual_peft.tuner import ResiDualConfig, hotswap_adapter, load_adapter
from residual_peft.tuner.conversion import convert_adapter
from residual_peft.tuner.saved import LARGEST_GAIN
from tests.hub_client import hub  # noqa: F401
from tests.models import Size, clip_model, pixels, transformers_admits_peft
from tests.pairs import pairwise, table
from tests.portrait import portrait
from tests.tuner.stream_twin import adapted_stream
from tests.tuner.twin import adapted

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MODES = {"readout": adapted, "stream": lambda: adapted_stream("CLIPModel")}

# --- what may be wrong with the two files


def tensors_with(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def edit(directory: Path) -> None:
        tensors = load_file(directory / WEIGHTS)
        change(tensors)
        save_file(tensors, directory / WEIGHTS)

    return edit


def config_with(**changes: Any) -> Callable[[Path], None]:
    def edit(directory: Path) -> None:
        path = directory / CONFIG
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return edit


def gains_key(tensors: dict[str, torch.Tensor]) -> str:
    return next(key for key in tensors if key.endswith("residual_peft_gains"))


def set_gains(value: float) -> Callable[[dict[str, torch.Tensor]], None]:
    return lambda tensors: tensors[gains_key(tensors)].fill_(value)


def add(name: str, tensor: torch.Tensor) -> Callable[[dict[str, torch.Tensor]], None]:
    return lambda tensors: tensors.update({name: tensor})


def replaced(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[dict], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        key = gains_key(tensors)
        tensors[key] = function(tensors[key])

    return change


def others_gains(tensors: dict[str, torch.Tensor]) -> None:
    key = gains_key(tensors)
    tensors[f"{key}.default"] = torch.zeros_like(tensors[key])


def large_directions(tensors: dict[str, torch.Tensor]) -> None:
    name = next(key for key in tensors if key.endswith(("_components", "_directions")))
    tensors[name] = torch.full_like(tensors[name], 3e38)


def negative_variance(tensors: dict[str, torch.Tensor]) -> None:
    name = next(key for key in tensors if key.endswith("_eigenvalues"))
    tensors[name] = -1 - tensors[name].abs()


def cut(directory: Path) -> None:
    content = (directory / WEIGHTS).read_bytes()
    (directory / WEIGHTS).write_bytes(content[: len(content) // 2])


FOREIGN = "no part of th"
FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "backbone": (
        tensors_with(add("base_model.model.visual_projection.weight", torch.zeros(16, 12))),
        FOREIGN,
    ),
    "backbone without prefix": (tensors_with(add("logit_scale", torch.zeros(()))), FOREIGN),
    "another adapter's gains": (tensors_with(others_gains), FOREIGN),
    "gains of NaN": (tensors_with(set_gains(float("nan"))), "NaN or infinite"),
    "infinite gains": (tensors_with(set_gains(float("inf"))), "NaN or infinite"),
    "absurd gains": (tensors_with(set_gains(3e38)), "diverged in training"),
    "wrong shape": (tensors_with(replaced(lambda t: t[1:].clone())), "shape"),
    "wrong type": (tensors_with(replaced(lambda t: t.to(torch.int64))), "int64|I64"),
    "missing": (tensors_with(lambda tensors: tensors.pop(gains_key(tensors))), "lack|got none"),
    "cut short": (cut, "not a whole safetensors file"),
    "no weights": (lambda directory: (directory / WEIGHTS).unlink(), "missing"),
    "unknown field": (config_with(megatron_core="megatron.core"), "megatron_core.*not known here"),
    "field of another type": (config_with(seed="x"), "field seed: wanted a whole number"),
    "unknown task": (config_with(task_type="../.."), "[Ii]nvalid task type"),
    "huge counts": (config_with(component_counts=[10**18] * 6), "component_counts"),
    "edited counts": (config_with(component_counts=[0]), "component_counts|another basis"),
}
BASIS_FAULTS = {
    "large directions": (tensors_with(large_directions), "diverged in training"),
    "negative variance": (tensors_with(negative_variance), "diverged in training"),
}


# --- the doors


def bare(directory: Path, mode: str) -> tuple[nn.Module, Callable[[], Any]]:
    model = clip_model()
    return model, lambda: load_adapter(model, directory)


def beside(directory: Path, mode: str) -> tuple[nn.Module, Callable[[], Any]]:
    model = MODES[mode]()
    return model, lambda: load_adapter(model, directory, "other")


def over(directory: Path, mode: str) -> tuple[nn.Module, Callable[[], Any]]:
    model = MODES[mode]()
    return model, lambda: load_adapter(model, directory, "default")


def by_peft(directory: Path, mode: str) -> tuple[nn.Module, Callable[[], Any]]:
    model = clip_model()
    return model, lambda: PeftModel.from_pretrained(model, directory)


def by_peft_with_config(directory: Path, mode: str) -> tuple[nn.Module, Callable[[], Any]]:
    model = clip_model()

    def load() -> None:
        config = PeftConfig.from_pretrained(directory)
        PeftModel.from_pretrained(model, directory, config=config)

    return model, load


def beside_by_peft(directory: Path, mode: str) -> tuple[nn.Module, Callable[[], Any]]:
    model = MODES[mode]().train()
    return model, lambda: model.load_adapter(directory, "other")


def over_by_peft(directory: Path, mode: str) -> tuple[nn.Module, Callable[[], Any]]:
    model = MODES[mode]()
    return model, lambda: model.load_adapter(directory, "default")


def by_transformers(directory: Path, mode: str) -> tuple[nn.Module, Callable[[], Any]]:
    model = clip_model()
    return model, lambda: model.load_adapter(str(directory))


def beside_by_transformers(directory: Path, mode: str) -> tuple[nn.Module, Callable[[], Any]]:
    model = clip_model()
    model.add_adapter(ResiDualConfig(mode=mode), "first")
    return model, lambda: model.load_adapter(str(directory), "second")


def swapped(directory: Path, mode: str) -> tuple[nn.Module, Callable[[], Any]]:
    model = MODES[mode]()
    return model, lambda: hotswap_adapter(model, directory)


OURS = (bare, beside, over, swapped)
PEFTS = (by_peft, by_peft_with_config, beside_by_peft, over_by_peft)
TRANSFORMERS = (by_transformers, beside_by_transformers)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {mode: tmp_path_factory.mktemp(mode) for mode in MODES}
    for mode, folder in folders.items():
        MODES[mode]().save_pretrained(folder)
    return folders


@pytest.fixture
def spoiled(good: dict[str, Path], tmp_path: Path) -> Callable[[str, str], Path]:
    def spoil(mode: str, fault: str) -> Path:
        folder = tmp_path / f"adapter{len(list(tmp_path.iterdir()))}"
        shutil.copytree(good[mode], folder)
        (FAULTS | BASIS_FAULTS)[fault][0](folder)
        return folder

    return spoil


def refused_as_it_was(door: Any, directory: Path, mode: str, fault: str) -> None:
    model, load = door(directory, mode)
    before = portrait(model)
    message = (FAULTS | BASIS_FAULTS)[fault][1]
    with pytest.raises(Exception, match=message) as refusal:
        load()
    # PEFT and transformers look for some of it before they ask this package
    if door in OURS or fault not in ("no weights", "cut short", "unknown field"):
        assert isinstance(refusal.value, ResiDualError)
    after = portrait(model)
    assert [key for key in {**before, **after} if before.get(key) != after.get(key)] == []


@pytest.mark.parametrize("door", [*OURS, *PEFTS[:2]])
@table(("fault", "mode"), pairwise(FAULTS, MODES))
def test_refused_and_as_it_was(spoiled: Any, fault: str, door: Any, mode: str) -> None:
    if fault == "unknown field" and door is by_peft_with_config:
        return  # PEFT drops unknown fields, with a warning
    refused_as_it_was(door, spoiled(mode, fault), mode, fault)


# over an adapter that is there, PEFT reads no config
OF_CONFIG = ("unknown field", "field of another type", "unknown task")
FOR_PEFT = [fault for fault in FAULTS if fault not in OF_CONFIG]
BESIDE = [fault for fault in FOR_PEFT if "counts" not in fault and fault != "no weights"]


@pytest.mark.parametrize("door", PEFTS[2:])
@table(("fault", "mode"), pairwise(BESIDE, MODES))
def test_refused_beside_an_adapter(spoiled: Any, fault: str, door: Any, mode: str) -> None:
    if fault == "cut short" and door is over_by_peft:
        return  # safetensors' own error
    refused_as_it_was(door, spoiled(mode, fault), mode, fault)


@transformers_admits_peft
@pytest.mark.parametrize("door", TRANSFORMERS)
@table(("fault", "mode"), pairwise(FOR_PEFT, MODES))
def test_refused_by_transformers(spoiled: Any, fault: str, door: Any, mode: str) -> None:
    refused_as_it_was(door, spoiled(mode, fault), mode, fault)


@table(("fault", "door", "mode"), pairwise(BASIS_FAULTS, (bare, by_peft), MODES))
def test_bases_of_no_sense_are_refused(spoiled: Any, fault: str, door: Any, mode: str) -> None:
    refused_as_it_was(door, spoiled(mode, fault), mode, fault)


@pytest.mark.parametrize("mode", MODES)
def test_a_state_dict_is_checked_too(mode: str) -> None:
    model = MODES[mode]()
    before = portrait(model)
    state = {
        key.removeprefix("base_model.model."): value for key, value in model.state_dict().items()
    }
    with pytest.raises(ResiDualError, match=FOREIGN):  # the whole model's, not the adapter's
        set_peft_model_state_dict(model, state)
    assert portrait(model) == before


@pytest.mark.parametrize("change", ["foreign", "absurd"])
def test_a_pickled_file_is_checked_too(tmp_path: Path, change: str) -> None:
    adapted().save_pretrained(tmp_path, safe_serialization=False)
    path = tmp_path / "adapter_model.bin"
    tensors = torch.load(path, weights_only=True)
    if change == "foreign":
        tensors["base_model.model.visual_projection.weight"] = torch.zeros(16, 12)
    else:
        set_gains(2 * LARGEST_GAIN)(tensors)
    torch.save(tensors, path)
    model = clip_model()
    before = portrait(model)
    with pytest.raises(ResiDualError, match=f"{FOREIGN}|diverged"):
        load_adapter(model, tmp_path)
    assert portrait(model) == before


def test_two_layers_in_a_file_for_one_are_refused(tmp_path: Path) -> None:
    adapted().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    elsewhere = {key: key.replace("visual", "text") for key in tensors}
    twice = {elsewhere[key]: tensor.clone() for key, tensor in tensors.items()}
    save_file({**tensors, **twice}, tmp_path / WEIGHTS)
    with pytest.raises(ResiDualError, match="those of several layers"):
        load_adapter(clip_model(), tmp_path)


def test_modules_to_save_may_come_and_nothing_else(tmp_path: Path) -> None:
    config = ResiDualConfig(modules_to_save=["text_projection"])
    model = get_peft_model(clip_model(), config)
    model.save_pretrained(tmp_path)
    key = "base_model.model.text_projection.weight"
    tensors = load_file(tmp_path / WEIGHTS)
    tensors[key] = tensors[key] * 2
    save_file(tensors, tmp_path / WEIGHTS)
    loaded = load_adapter(clip_model(), tmp_path)
    wrapper = loaded.base_model.model.text_projection
    assert torch.equal(wrapper.modules_to_save["default"].weight, tensors[key])
    loaded.load_adapter(tmp_path, "second")  # beside another that has the same module
    for name, tensor in (("text_projection.bias", 1), (key.split(".", 2)[2], 2)):
        changed = dict(tensors)
        del changed[key]
        changed[f"base_model.model.{name}"] = torch.zeros(3) if tensor == 1 else torch.zeros(3, 3)
        save_file(changed, tmp_path / WEIGHTS)
        base = clip_model()
        before = portrait(base)
        with pytest.raises(ResiDualError, match=f"{FOREIGN}|shape|lack"):
            load_adapter(base, tmp_path)
        assert portrait(base) == before


def test_a_config_of_another_method_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LoRA's names a module that PEFT imports: nothing of it may be made."""
    get_peft_model(clip_model(), LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path)
    (tmp_path / "planted.py").write_text("raise SystemExit('imported')")
    config_with(megatron_config={"a": 1}, megatron_core="planted")(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    doors: list[Callable[[], Any]] = [
        lambda: load_adapter(clip_model(), tmp_path),
        lambda: ResiDualConfig.from_pretrained(str(tmp_path)),
        lambda: hotswap_adapter(adapted(), tmp_path),
        lambda: convert_adapter(tmp_path, clip_model(), tmp_path / "out"),
    ]
    for door in doors:
        with pytest.raises(ResiDualError, match="of type 'LORA'; wanted 'RESIDUAL_PEFT'"):
            door()


def test_foreign_tensors_are_not_converted(
    good: dict[str, Path], spoiled: Any, tmp_path: Path
) -> None:
    with pytest.raises(ResiDualError, match=FOREIGN):
        convert_adapter(spoiled("readout", "backbone"), clip_model(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@table("mode", MODES)
@table("field", ["exclude_modules", "unit_pattern", "target_modules"])
def test_patterns_of_strangers_do_not_hang(
    good: dict[str, Path], tmp_path: Path, mode: str, field: str
) -> None:
    shutil.copytree(good[mode], tmp_path / "a")
    hard = r"((\w|\.)+)+" if field == "unit_pattern" else r"((\w|\.)+)+X"
    value: Any = [hard] if field == "target_modules" and mode == "readout" else hard
    config_with(**{field: value})(tmp_path / "a")
    wanted = run_tower(MODES[mode](), pixels())
    if field == "target_modules" and mode == "readout":
        assert torch.equal(run_tower(load_adapter(clip_model(), tmp_path / "a"), pixels()), wanted)
        return
    loaded = load_adapter(clip_model(), tmp_path / "a")
    assert torch.equal(run_tower(loaded, pixels()), wanted)
    loaded.save_pretrained(tmp_path / "again")
    if field != "target_modules":  # nor for an adapter that is made from the same config
        get_peft_model(clip_model(seed=1), loaded.peft_config["default"].fresh())


def test_another_model_is_left_as_it_was(good: dict[str, Path]) -> None:
    for mode, folder in good.items():
        for model in (clip_model(seed=3), clip_model(Size(width=20, readout=16, layers=3))):
            before = portrait(model)
            with pytest.raises(ResiDualError):
                load_adapter(model, folder)
            assert portrait(model) == before, mode


def test_an_interrupted_save_is_finished_before_peft_reads_it(
    good: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(good["readout"], tmp_path / "a")
    model = adapted(ResiDualConfig.paper("coarse"))
    model.save_pretrained(tmp_path / "a" / ".residual-peft-save-00000000000000000001-aa")
    loaded = PeftModel.from_pretrained(clip_model(), tmp_path / "a")
    assert torch.equal(run_tower(loaded, pixels()), run_tower(model, pixels()))


def test_a_file_from_the_hub_is_looked_at_before_pefts_doors_open(
    hub: Any,  # noqa: F811
    good: dict[str, Path],
    spoiled: Any,
    tmp_path: Path,
) -> None:
    for number, fault in enumerate(("backbone", "absurd gains", "wrong shape")):
        bad = spoiled("readout", fault)
        (bad / "README.md").unlink()
        push_directory(bad, f"me/bad{number}")
        doors: list[Callable[[nn.Module], Any]] = [
            lambda model, name=f"me/bad{number}": load_adapter(model, name),
            lambda model, name=f"me/bad{number}": PeftModel.from_pretrained(model, name),
        ]
        for door in doors:
            model = clip_model()
            before = portrait(model)
            with pytest.raises(ResiDualError, match=FAULTS[fault][1]):
                door(model)
            assert portrait(model) == before
        shutil.rmtree(bad)
    shutil.copytree(good["readout"], tmp_path / "good")
    (tmp_path / "good" / "README.md").unlink()
    push_directory(tmp_path / "good", "me/good")
    loaded = PeftModel.from_pretrained(clip_model(), "me/good")
    assert torch.equal(run_tower(loaded, pixels()), run_tower(adapted(), pixels()))
