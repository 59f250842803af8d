"""Point PEFT's own tests for custom models at stream mode.

    pip download --no-binary :all: --no-deps peft==0.21.2     # the sdist carries the tests
    python tests/peft_suite/run.py peft-0.21.2.tar.gz [pytest's arguments]

A copy of PEFT's tests gets these cases in place of its own; nothing else in it is changed. With
PEFT 0.21.2: 539 pass, none fails, 41 skip themselves (weighted adapters, several modules to save).
"""

import os
import re
import subprocess
import sys
import tarfile
import tempfile
from importlib.util import find_spec
from pathlib import Path

CASES = """

from dataclasses import dataclass as _dataclass
import residual_peft as _residual_peft


@_dataclass
class ResiDualStreamConfig(_residual_peft.ResiDualConfig):
    # PEFT's tests call `config_cls(target_modules=...)` and say nothing else
    mode: str = "stream"


TEST_CASES = [
    ("MLP 1 ResiDual", "MLP", ResiDualStreamConfig, {"target_modules": "lin0"}),
    ("MLP 2 ResiDual", "MLP", ResiDualStreamConfig, {"target_modules": ["lin0"]}),
    ("MLP 3 ResiDual", "MLP", ResiDualStreamConfig, {"target_modules": ["lin1"]}),
    ("MLP 4 ResiDual", "MLP", ResiDualStreamConfig, {"target_modules": ["lin0", "lin1"]}),
    (
        "MLP 5 ResiDual",
        "MLP",
        ResiDualStreamConfig,
        {"target_modules": ["lin0"], "modules_to_save": ["lin1"]},
    ),
    (
        "MLP 6 ResiDual",
        "MLP",
        ResiDualStreamConfig,
        {"target_modules": ["lin0"], "granularity": "unit"},
    ),
    (
        "MLP 7 ResiDual",
        "MLP",
        ResiDualStreamConfig,
        {"target_modules": ["lin0", "lin1"], "components": 2},
    ),
    ("LayerNorm ResiDual", "MLP_LayerNorm", ResiDualStreamConfig, {"target_modules": ["lin1"]}),
    ("Conv1D ResiDual", "EmbConv1D", ResiDualStreamConfig, {"target_modules": ["conv1d"]}),
    ("Conv1D 2 ResiDual", "EmbConv1D", ResiDualStreamConfig, {"target_modules": ["lin0"]}),
]
"""
ACTIVE = """

MULTIPLE_ACTIVE_ADAPTERS_TEST_CASES = [
    (
        "ResiDual Same",
        "residual_peft",
        ResiDualStreamConfig,
        {"target_modules": ["lin0"], "init_weights": False},
        {"target_modules": ["lin0"], "init_weights": False},
    ),
    (
        "ResiDual Different",
        "residual_peft",
        ResiDualStreamConfig,
        {"target_modules": ["lin0"], "init_weights": False},
        {"target_modules": ["lin1"], "init_weights": False},
    ),
]
"""


def with_cases(source: str) -> str:
    """Put our cases behind PEFT's own, which they replace."""
    source, found = re.subn(r"\n(?=ALL_PEFT_CONFIG_CLASSES = )", lambda _: CASES + "\n", source)
    end = r"(?s)(?<=\nMULTIPLE_ACTIVE_ADAPTERS_TEST_CASES = \[\n)(.*?\n\]\n)"
    source, more = re.subn(end, lambda match: match[0] + ACTIVE, source, count=1)
    if (found, more) != (1, 1):
        sys.exit("PEFT's tests are not what they were in 0.21.2: look at test_custom_models.py")
    return source


def main(sdist: str, *arguments: str) -> int:
    """Unpack, put the cases in and run pytest on what they stand in."""
    with tempfile.TemporaryDirectory() as folder, tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
        (root,) = Path(folder).iterdir()
        tests = root / "tests"
        custom = tests / "test_custom_models.py"
        custom.write_text(with_cases(custom.read_text()))
        (tests / "__init__.py").touch()
        if find_spec("diffusers") is None:  # imported for a model that none of our cases has
            (root / "diffusers.py").write_text("class StableDiffusionPipeline: ...\n")
        command = [sys.executable, "-m", "pytest", str(custom), "-k", "ResiDual", "-q", *arguments]
        isolated = ["-c", os.devnull, "--rootdir", str(root), "-p", "no:cacheprovider"]
        return subprocess.run([*command, *isolated], cwd=root, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
