import json
from pathlib import Path

import pytest
from peft import PeftConfig

from residual_peft.errors import ResiDualError
from residual_peft.tuner import ResiDualConfig, ResiDualType
from tests.pairs import table


@table(
    ("options", "message"),
    [
        ({"units": ("head", "neuron")}, r"units: wanted a tuple of .*got \['neuron'\]"),
        ({"units": ()}, "units: .*got none"),
        ({"units": 3}, "units: wanted a tuple .*got 3"),
        ({"mode": "weights"}, "mode: wanted 'readout' or 'stream', got 'weights'"),
        ({"mode": "stream", "remainder": "drop"}, "remainder='drop' with mode='stream'"),
        ({"mode": "stream", "restore_mean": False}, "restore_mean=False with mode='stream'"),
        ({"mode": "stream", "units": ("embed",)}, "units=.*wanted 'head' and 'mlp'"),
        ({"mode": "stream", "units": ("output",)}, "units=.*wanted 'head' and 'mlp'"),
        ({"init_weights": "no"}, "init_weights: wanted True or False"),
        ({"remainder": "maybe"}, "remainder: wanted 'keep' or 'drop', got 'maybe'"),
        ({"granularity": "head"}, "granularity: wanted 'component' or 'unit'"),
        ({"gain_init": "zeros"}, "gain_init: wanted 'ones' or 'normal', got 'zeros'"),
        ({"restore_mean": "yes"}, "restore_mean: wanted True or False"),
        ({"save_basis": 1}, "save_basis: wanted True or False"),
        ({"seed": -1}, "seed: wanted a whole number from 0 up, got -1"),
        ({"components": 0}, "components=0: wanted None"),
        ({"components": 1.5}, "components=1.5: wanted None"),
        ({"components": True}, "components=True: wanted None"),
        ({"components": "all"}, "components='all': wanted None"),
        ({"layers_to_transform": []}, r"layers_to_transform: wanted .* got \[\]"),
        ({"layers_to_transform": [-1, 2]}, r"layers_to_transform: wanted .* got \[-1, 2\]"),
        ({"units": ("head", "output")}, "'output' is the sum of all the others"),
        ({"units": ("output",), "layers_to_transform": [0]}, "which lie in no layer"),
        ({"units": ("embed",), "layers_to_transform": [0]}, "which lie in no layer"),
        ({"granularity": "unit"}, "restore_mean=True with granularity='unit' and no basis"),
        (
            {"granularity": "unit", "restore_mean": False, "components": 3},
            "components=3 with granularity='unit'",
        ),
        (
            {"granularity": "unit", "restore_mean": False, "basis": "here"},
            "basis='here' with granularity='unit' and restore_mean=False",
        ),
    ],
)
def test_refuses(options: dict, message: str) -> None:
    with pytest.raises(ResiDualError, match=message):
        ResiDualConfig(**options)


def test_default_is_the_identity_over_all_components() -> None:
    config = ResiDualConfig()
    assert config.peft_type == "RESIDUAL_PEFT"
    assert (config.components, config.remainder, config.restore_mean) == (None, "keep", True)
    assert (config.gain_init, config.granularity) == ("ones", "component")


@table(
    ("name", "units", "components", "remainder", "granularity"),
    [  # the table of method.md, section 3
        ("residual", ("head", "mlp"), None, "keep", "component"),
        ("residual_star", ("head",), 0.9, "drop", "component"),
        ("coarse", ("head",), None, "drop", "unit"),
        ("rd_y", ("output",), None, "keep", "component"),
    ],
)
def test_presets(name, units, components, remainder, granularity) -> None:
    config = ResiDualConfig.paper(name, seed=3)
    assert config.units == units
    assert config.components == components
    assert config.remainder == remainder
    assert config.granularity == granularity
    assert config.restore_mean is False
    assert config.gain_init == "normal"
    assert config.seed == 3


def test_preset_of_another_name_is_refused() -> None:
    with pytest.raises(ResiDualError, match="unknown method 'rdy'; wanted one of residual, "):
        ResiDualConfig.paper("rdy")


def test_accepts_one_kind_one_layer_and_a_path() -> None:
    config = ResiDualConfig(units="head", layers_to_transform=2, basis=Path("a/b"))
    assert config.units == ("head",)
    assert config.layers == [2]
    assert config.basis == "a/b"


def test_units_and_layers_are_put_in_order() -> None:
    config = ResiDualConfig(units=["mlp", "head", "embed"], layers_to_transform=(3, 1, 1))
    assert config.units == ("embed", "head", "mlp")
    assert config.layers_to_transform == [1, 3]


@table("components", [None, 3, 0.9, 1.0])
def test_json_round_trip(tmp_path: Path, components: int | float | None) -> None:
    named = {"unit_pattern": ("head0", "embed"), "exclude_modules": {"b.proj", "a.proj"}}
    config = ResiDualConfig(units=("head", "embed"), components=components, seed=4, **named)
    config.save_pretrained(str(tmp_path))
    for loader in (ResiDualConfig, PeftConfig):
        loaded = loader.from_pretrained(str(tmp_path))
        assert loaded == config
        assert isinstance(loaded, ResiDualConfig)
        assert loaded.peft_type is ResiDualType.RESIDUAL_PEFT
        assert type(loaded.components) is type(components)


def test_what_was_saved_is_checked_when_it_is_read(tmp_path: Path) -> None:
    ResiDualConfig().save_pretrained(str(tmp_path))
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "units": ["heads"]}))
    with pytest.raises(ResiDualError, match=r"got \['heads'\]"):
        PeftConfig.from_pretrained(str(tmp_path))


def test_fresh_forgets_what_was_written_back() -> None:
    config = ResiDualConfig(
        units=("head",), component_counts=[1], fingerprint={"name": "x"}, num_samples=5
    )
    fresh = config.fresh()
    assert config._awaits_weights
    assert not fresh._awaits_weights
    assert fresh == ResiDualConfig(units=("head",))


def test_what_peft_itself_refuses_is_one_line_too() -> None:
    with pytest.raises(ResiDualError, match="Invalid task type: 'ones'"):
        ResiDualConfig(task_type="ones")


@table("layers", [0, [0], [1, 0], None])
def test_layers_come_back_as_they_were_given(layers: object, tmp_path: Path) -> None:
    for mode in ("readout", "stream"):
        ResiDualConfig(mode=mode, layers_to_transform=layers).save_pretrained(tmp_path)
        found = PeftConfig.from_pretrained(tmp_path).layers_to_transform
        assert found == (sorted(layers) if isinstance(layers, list) else layers)
        assert type(found) is type(layers)


@table("layers", [-1, [], [0, -1], 1.5, "1", ["1"], [0, "1"], True, [1.0]])
def test_layers_that_are_none_are_refused(layers: object) -> None:
    with pytest.raises(ResiDualError, match=r"layers_to_transform: wanted None or layers counted"):
        ResiDualConfig(layers_to_transform=layers)
