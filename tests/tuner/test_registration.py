import subprocess
import sys
from pathlib import Path

import pytest
from peft import mapping

from residual_peft import tuner
from residual_peft.errors import ResiDualError
from residual_peft.tuner import ResiDualConfig, ResiDualModel, ResiDualType
from tests.launch import ENVIRONMENT
from tests.models import clip_model
from tests.pairs import table
from tests.tuner.twin import adapted

TABLES = {
    "PEFT_TYPE_TO_CONFIG_MAPPING": ResiDualConfig,
    "PEFT_TYPE_TO_TUNER_MAPPING": ResiDualModel,
    "PEFT_TYPE_TO_PREFIX_MAPPING": "residual_peft_",
}


def run(code: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *arguments],
        env={**ENVIRONMENT, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@table("table", TABLES)
def test_found_by_plain_string_and_by_member(table: str) -> None:
    entries = getattr(mapping, table)
    assert entries["RESIDUAL_PEFT"] is entries[ResiDualType.RESIDUAL_PEFT]
    assert entries["RESIDUAL_PEFT"] == TABLES[table]


def test_transformers_takes_the_prefix_from_the_type() -> None:
    assert ResiDualType.RESIDUAL_PEFT.value.lower() + "_" == ResiDualModel.prefix
    assert ResiDualType.RESIDUAL_PEFT.name == ResiDualType.RESIDUAL_PEFT.value


def test_registering_again_changes_nothing() -> None:
    before = {table: dict(getattr(mapping, table)) for table in TABLES}
    tuner._register()
    assert {table: dict(getattr(mapping, table)) for table in TABLES} == before


@table("table", TABLES)
def test_another_method_of_that_name_is_not_replaced(
    table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Other:
        pass

    monkeypatch.setitem(getattr(mapping, table), "RESIDUAL_PEFT", Other)
    with pytest.raises(ResiDualError, match=r"already knows a method 'RESIDUAL_PEFT', .*Other"):
        tuner._register()
    assert getattr(mapping, table)["RESIDUAL_PEFT"] is Other


LOAD = """
import sys
from peft import PeftModel
from tests.models import clip_model, pixels
{}
model = PeftModel.from_pretrained(clip_model(), sys.argv[1])
print(model(pixel_values=pixels()).image_embeds.double().sum().item())
"""


def test_another_process_needs_nothing_but_the_import(tmp_path: Path) -> None:
    from residual_peft.towers.running import run_tower
    from tests.models import pixels

    model = adapted()
    model.save_pretrained(tmp_path)
    found = run(LOAD.format("import residual_peft"), str(tmp_path))
    assert found.returncode == 0, found.stderr
    assert float(found.stdout) == run_tower(model, pixels()).double().sum().item()


def test_without_the_import_the_message_names_the_package(tmp_path: Path) -> None:
    """PEFT 0.21.2 looks an unknown type up in its tables, and the key is all that it says."""
    adapted().save_pretrained(tmp_path)
    found = run(LOAD.format(""), str(tmp_path))
    assert found.returncode == 1
    assert found.stderr.strip().splitlines()[-1] == "KeyError: 'RESIDUAL_PEFT'"


IMPORT = """
import logging, sys, warnings
import peft, transformers, torch, datasets
from peft import mapping
from peft.tuners import tuners_utils
from peft.utils import other, save_and_load
modules = [peft, mapping, tuners_utils, other, save_and_load, peft.peft_model, transformers,
           torch, torch.nn, torch.nn.Module, torch.Tensor, peft.PeftModel, peft.PeftConfig,
           tuners_utils.BaseTuner, tuners_utils.BaseTunerLayer, logging.Logger, warnings]
def look():
    seen = [{k: id(v) for k, v in vars(m).items() if k != "__dict__"} for m in modules]
    loggers = [(h.name, h.level, len(h.handlers)) for n in ("", "transformers", "peft", "datasets")
               for h in [logging.getLogger(n)]]
    return seen, loggers, torch.get_default_dtype(), len(warnings.filters)
tables = [n for n in vars(mapping) if n.startswith("PEFT_TYPE_TO")]
sizes = {n: len(getattr(mapping, n)) for n in tables}
before = look()
import residual_peft, residual_peft.tuner
after = look()
for m, old, new in zip(modules, before[0], after[0]):
    changed = {k for k in old.keys() | new.keys() if old.get(k) != new.get(k)}
    # transformers looks its own names up when they are first asked for
    changed = {k for k in changed if m is not transformers or k in old}
    # importing a submodule makes it an attribute of its package: Python's own doing
    changed = {k for k in changed if f"{getattr(m, '__name__', '')}.{k}" not in sys.modules}
    assert not changed, (m, changed)
assert before[1:] == after[1:], (before[1:], after[1:])
grown = {n: len(getattr(mapping, n)) - sizes[n] for n in tables}
print(sorted(n for n, more in grown.items() if more), set(grown.values()))
"""


def test_importing_changes_nothing_but_the_three_tables() -> None:
    found = run(IMPORT)
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip() == f"{sorted(TABLES)} {{0, 1}}"


def test_peft_knows_the_model() -> None:
    from peft import get_peft_model
    from peft.helpers import check_if_peft_model

    model = get_peft_model(clip_model(), ResiDualConfig())
    assert isinstance(model.base_model, ResiDualModel)
    assert not check_if_peft_model("nowhere/at-all")


def test_transformers_finds_the_adapter(tmp_path: Path) -> None:
    from peft.helpers import check_if_peft_model

    adapted().save_pretrained(tmp_path)
    assert check_if_peft_model(str(tmp_path))
