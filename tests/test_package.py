"""Names come when they are used, and PEFT knows the method in every order of imports."""

import ast
import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import residual_peft
from residual_peft.errors import EXTRAS
from tests.house import FILES, ROOMS, room_of
from tests.launch import ENVIRONMENT, ROOT
from tests.tuner.twin import adapted

HEAVY = (
    *("torch", "transformers", "peft", "datasets", "matplotlib", "sklearn"),
    *("gradio", "onnxruntime"),
)
LOADED = "print([name for name in {} if name in sys.modules])"


def run(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *arguments],
        env={**ENVIRONMENT, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("saved")
    adapted().save_pretrained(path)
    return str(path)


def test_the_import_alone_imports_nothing_heavy() -> None:
    assert run("import sys, residual_peft;" + LOADED.format(HEAVY)) == "[]"


def test_all_public_names_are_there() -> None:
    assert set(residual_peft.__all__) == set(residual_peft._HOME)
    for name in residual_peft.__all__:
        home = importlib.import_module(f"residual_peft.{residual_peft._HOME[name]}")
        assert getattr(residual_peft, name) is getattr(home, name)
    assert set(residual_peft.__all__) <= set(dir(residual_peft))


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(Path(residual_peft.__file__).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == residual_peft._HOME


def test_modules_are_attributes_and_nothing_else_is() -> None:
    out = run("import residual_peft; print(residual_peft.tuner.PRESETS['rd_y'] is not None)")
    assert out == "True"
    with pytest.raises(AttributeError, match="module 'residual_peft' has no attribute 'nonsense'"):
        _ = residual_peft.nonsense
    assert not hasattr(residual_peft, "__wrapped__")


KNOWN = """
from peft import PeftModel, mapping
assert "RESIDUAL_PEFT" in mapping.PEFT_TYPE_TO_CONFIG_MAPPING
assert not [f for f in sys.meta_path if type(f).__module__.startswith("residual_peft")]
import peft, inspect
assert "PeftModel" in inspect.getsource(peft) and peft.__spec__.loader.name == "peft"
from tests.models import clip_model
print(type(PeftModel.from_pretrained(clip_model(), sys.argv[1]).base_model).__name__)
"""
BEFORE = [
    pytest.param("from peft import PeftModel; import residual_peft", id="last"),
    # to ask whether PEFT is there imports nothing, and must not use the hook up
    pytest.param(
        "import residual_peft, importlib.util\n"
        "importlib.reload(residual_peft)\n"
        "assert importlib.util.find_spec('peft').origin\n"
        "from transformers.utils import is_peft_available; assert is_peft_available()\n"
        "assert 'peft' not in sys.modules",
        id="first",
    ),
]


@pytest.mark.parametrize("before", BEFORE)
def test_peft_knows_the_method_in_every_order(before: str, saved: str) -> None:
    assert run(f"import sys\n{before}\n{KNOWN}", saved) == "ResiDualModel"


# transformers imports it by itself in some releases
NOT_BY_TRANSFORMERS = """
import sys
import transformers.models.auto.auto_factory
own = {"sklearn"} - {*sys.modules}
"""

BY_TRANSFORMERS = """
import residual_peft
from tests.models import clip_model
model = clip_model()
assert "peft" not in sys.modules
model.load_adapter(sys.argv[1])
unwanted = ("datasets", "matplotlib", *own)
print(model.active_adapters(), [name for name in unwanted if name in sys.modules])
"""


def test_transformers_own_loading_needs_the_import_alone(saved: str) -> None:
    assert run(NOT_BY_TRANSFORMERS + BY_TRANSFORMERS, saved) == "['default'] []"


CLASSIFIER = """
from residual_peft import ZeroShotClassifier
ZeroShotClassifier.from_pretrained(sys.argv[1])
unwanted = ("datasets", "matplotlib", "gradio", "onnxruntime", *own)
print([name for name in unwanted if name in sys.modules])
"""


@pytest.fixture(scope="module")
def saved_classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classifier")
    from peft import get_peft_model

    from residual_peft import ResiDualConfig, ZeroShotClassifier
    from residual_peft.classifiers.backbones import load_backbone
    from residual_peft.hub.directories import DEMO_MODEL

    backbone = load_backbone(DEMO_MODEL)
    model = get_peft_model(backbone.model, ResiDualConfig(components=2))
    ZeroShotClassifier.from_text(
        model, backbone.tokenizer, ["one", "two"], image_processor=backbone.image_processor
    ).save_pretrained(folder)
    return folder


def test_loading_a_classifier_imports_no_data_plots_or_scores(saved_classifier: Path) -> None:
    assert run(NOT_BY_TRANSFORMERS + CLASSIFIER, str(saved_classifier)) == "[]"


# a file, as multiprocessing imports the main module again in its workers
WORKERS = """
import multiprocessing, sys
import residual_peft

def known(config):
    from peft import PeftModel, mapping
    return mapping.PEFT_TYPE_TO_CONFIG_MAPPING["RESIDUAL_PEFT"] is type(config)

if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(pool.map(known, [residual_peft.ResiDualConfig()]))
"""


@pytest.mark.slow
def test_spawned_workers_know_it(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(WORKERS)
    code = "import runpy, sys; runpy.run_path(sys.argv[1], run_name='__main__')"
    assert run(code, str(script)) == "[True]"


def test_what_the_method_is_made_of_imports_no_peft_at_its_top() -> None:
    """The method is imported at the end of PEFT's import, which must not be inside one of these."""
    above = [path for path in FILES if path != Path(residual_peft.__file__)]
    own = next(index for index, room in enumerate(ROOMS) if room.startswith("tuner"))
    above = [path for path in above if ROOMS.index(room_of(path)) < own]
    assert {"anatomy.py", "decomposition.py", "basis.py"} <= {path.name for path in above}
    for path in above:
        for node in ast.parse(path.read_text()).body:
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not [name for name in names if name.split(".")[0] == "peft"], path


# forked from one that has the slow imports that are not ours
EACH = """
import os, sys
import residual_peft
import torch, datasets, sklearn.metrics, transformers
from transformers import CLIPModel
assert "peft" not in sys.modules
failed = []
for name in sys.argv[1:]:
    if os.fork() == 0:
        code = 1
        try:
            __import__(name)
            from peft import mapping
            code = "RESIDUAL_PEFT" not in mapping.PEFT_TYPE_TO_CONFIG_MAPPING
        finally:
            os._exit(int(code))
    if os.wait()[1]:
        failed.append(name)
print(failed)
"""


@pytest.mark.slow
def test_each_module_may_be_the_first_that_is_imported() -> None:
    found = pkgutil.walk_packages(residual_peft.__path__, "residual_peft.")
    names = [item.name for item in found if not item.name.endswith("__main__")]
    assert len(names) > 100
    assert run(EACH, *names) == "[]"


WITHOUT_EXTRAS = """
import sys
from residual_peft.errors import EXTRAS, ResiDualError

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in EXTRAS:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hidden())
import importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name in EXTRAS else real(name, *rest)
import residual_peft
from PIL import Image
classifier = residual_peft.ZeroShotClassifier.from_pretrained(sys.argv[1])
said = [classifier.predict(Image.new("RGB", (40, 40))).label in classifier.class_names]
classifier.save_pretrained(sys.argv[2])
for name in ("load_data", "solve_gains"):
    try:
        getattr(residual_peft, name)
    except ResiDualError as error:
        said.append(str(error).partition(":")[2].split("'")[1])
from residual_peft import cli
try:
    cli.main()
except SystemExit as done:
    said.append(done.code)
print(said)
"""


def test_an_adapter_loads_predicts_and_saves_without_any_extra(saved_classifier, tmp_path) -> None:
    out = run(WITHOUT_EXTRAS, str(saved_classifier), str(tmp_path / "again"))
    assert out == "[True, 'residual-peft[train]', 'residual-peft[train]', 2]"
    assert (tmp_path / "again" / "residual_classifier.json").is_file()


def test_extras_are_those_of_the_project() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    for package, extra in EXTRAS.items():
        name = {"sklearn": "scikit-learn"}.get(package, package)
        listed = re.search(rf"^{extra} = \[(.*?)\]$", project, re.DOTALL | re.MULTILINE)[1]
        assert f'"{name}>=' in listed, package
