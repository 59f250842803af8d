"""Every script in examples/ runs offline as it stands, says what it promises, and nothing else."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pairs import table

FOLDER = Path(__file__).parents[1] / "examples"

# one process per script, forked from one that has done the imports, which take longer than a script
RUN = """
import gc, os, runpy, sys
import residual_peft.app.demonstration
gc.freeze()
out, *scripts = sys.argv[1:]
for script in scripts:
    name = os.path.join(out, os.path.basename(script))
    if os.fork() == 0:
        os.dup2(os.open(name + ".out", os.O_CREAT | os.O_WRONLY), 1)
        os.dup2(os.open(name + ".err", os.O_CREAT | os.O_WRONLY), 2)
        sys.argv = [script]
        runpy.run_path(script, run_name="__main__")
        sys.exit()
    os.wait()
"""


def numbers(text: str) -> list[float]:
    return [float(found) for found in re.findall(r"\b\d+\.\d+(?:e-\d+)?\b", text)]


def check_trainer(lines: list[str]) -> None:
    zero_shot, adapted = numbers(lines[0])
    assert adapted > max(zero_shot + 0.15, 0.8)
    assert re.fullmatch(r"the first test image: \d \(\d\.\d\d\)", lines[1])
    assert len(lines) == 2


def check_coordinates(lines: list[str]) -> None:
    assert lines[0].startswith("images read in")
    ridges = [numbers(line) for line in lines[1:-2]]
    assert len(ridges) == 9
    assert ridges[0][-1] < max(accuracy for *_, accuracy in ridges) > 0.9
    assert lines[-2].startswith("gains in")
    before, after = numbers(lines[-1])
    assert after > before + 0.3


def check_prediction(lines: list[str]) -> None:
    found = [re.fullmatch(r"\d\d-(\w+)\.png: (\w+) \(\d\.\d\d\)", line) for line in lines]
    assert len(found) == 10
    assert sum(match[1] == match[2] for match in found) >= 8


def check_decomposition(lines: list[str]) -> None:
    assert lines[0] == "32 images, 55 units, embeddings of width 128"
    assert numbers(lines[1])[0] < 1e-5
    rows = [re.fullmatch(r" *(\S+)  size +(\S+)  share +(\S+)%", line) for line in lines[2:]]
    sizes = [float(row[2]) for row in rows]
    assert len(rows) == 8
    assert sizes == sorted(sizes, reverse=True)
    assert len({row[1] for row in rows}) == 8


def check_two_adapters(lines: list[str]) -> None:
    none, upright, turned = numbers(lines[0])
    assert lines[0].startswith("digits upright: no adapter")
    assert upright > max(none, turned) + 0.2
    none, upright, turned = numbers(lines[1])
    assert lines[1].startswith("digits upside down: no adapter")
    assert turned > max(none, upright) + 0.2
    assert len(lines) == 2


def check_many_tasks(lines: list[str]) -> None:
    assert [line.split(":")[0] for line in lines[:3]] == ["color", "shape", "count"]
    assert min(number for line in lines[:3] for number in numbers(line)) > 0.8
    answers = lines[3].removeprefix("one image, 3 tasks: ")
    assert len(answers.split(", ")) == 3
    assert lines[4] == f"one batch, a task for each image: {answers}"
    assert len(lines) == 5


def check_several_processes(lines: list[str]) -> None:
    assert lines[:2] == ["processes: 1", "400 images in 4 shards"]
    assert numbers(lines[2])[0] > 0.85  # zero-shot 0.55
    assert len(lines) == 3


def check_analysis(lines: list[str]) -> None:
    whole = numbers(lines[0])[0]
    assert lines[0].startswith("shape: whole model")
    kept = {line.split(":")[0]: numbers(line) for line in lines[1:4]}
    assert list(kept) == ["S", "U|T", "R"]
    assert kept["S"][1] > kept["R"][1] + 0.1  # the heads that were chosen carry the task
    assert max(max(scores) for scores in kept.values()) <= whole
    rows = [re.match(r"layer\d\.head\d: \d+ linear dimensions, TwoNN", line) for line in lines[4:]]
    assert len(rows) == 3
    assert all(rows)


def check_explanation(lines: list[str]) -> None:
    assert lines[0].startswith("360 images, 1,578 gains")
    shares = [float(re.search(r"(-?\d+\.\d)% of the change", line)[1]) for line in lines[1:6]]
    assert [abs(s) for s in shares] == sorted((abs(s) for s in shares), reverse=True)
    assert lines[6].endswith("= 1.000000")
    moved, parts = numbers(lines[7])
    assert moved == parts > 0
    assert len(lines) == 11


def check_several_labels(lines: list[str]) -> None:
    assert lines[0] == "20 classes, 598 images to learn from"
    scores = {line.split(":")[0]: numbers(line) for line in lines[1:4]}
    assert list(scores) == ["mean_average_precision", "micro_f1", "exact_match"]
    assert scores["exact_match"][1] > scores["exact_match"][0] + 0.1
    assert min(after for _, after in scores.values()) > 0.9
    assert re.fullmatch(r"the first test image: \w+(, \w+)?", lines[4])
    assert len(lines) == 5


def check_both_sides(lines: list[str]) -> None:
    start, text, image, both, loaded = (numbers(line)[0] for line in lines)
    assert start < min(text, image)
    assert max(text, image) < both == loaded


CHECKS = {
    "both_sides.py": check_both_sides,
    "analyse_heads.py": check_analysis,
    "explain_adapter.py": check_explanation,
    "decompose.py": check_decomposition,
    "fit_folder_with_trainer.py": check_trainer,
    "fit_from_coordinates.py": check_coordinates,
    "load_and_predict.py": check_prediction,
    "many_tasks.py": check_many_tasks,
    "several_labels.py": check_several_labels,
    "several_processes.py": check_several_processes,
    "two_adapters.py": check_two_adapters,
}

# what takes arguments -> where it is run
ELSEWHERE = {"onnx_without_torch.py": "app/test_exporting.py"}


@pytest.fixture(scope="module")
def output(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("examples")
    scripts = [str(FOLDER / name) for name in CHECKS]
    # transformers speaks of the file system that it runs on, too, where it finds it unusual
    quiet = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    environment = {**os.environ, **quiet}
    command = [sys.executable, "-c", RUN, str(folder), *scripts]
    subprocess.run(command, env=environment, cwd=folder, check=True, timeout=600)
    return folder


def test_every_example_is_checked() -> None:
    assert set(CHECKS) | set(ELSEWHERE) == {path.name for path in FOLDER.glob("*.py")}
    for name, test in ELSEWHERE.items():
        assert name in (Path(__file__).parent / test).read_text()


@pytest.mark.parametrize("name", CHECKS)
def test_an_example_says_what_it_promises_and_nothing_else(output: Path, name: str) -> None:
    assert (output / f"{name}.err").read_text() == ""
    CHECKS[name]((output / f"{name}.out").read_text().splitlines())


@table("name", [*CHECKS, *ELSEWHERE])
def test_a_docstring_shows_how_to_run_it_and_the_list_names_it(name: str) -> None:
    assert f"    python examples/{name}" in (FOLDER / name).read_text().split('"""')[1]
    assert f"`examples/{name}`: " in (FOLDER / "README.md").read_text()
