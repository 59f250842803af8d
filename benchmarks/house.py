"""What the package is made of, counted: rooms, lines, functions, branches, imports, dependencies.

    python benchmarks/house.py            # writes benchmarks/house.json
    python benchmarks/house.py --quick    # keeps the times of imports that it has

Counts come from the syntax tree, so that comments and strings do not; the time of an import is
that of several processes, in turn with that of `peft` and `transformers`.
"""

import ast
import json
import re
import resource
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tomllib

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.house import ROOMS  # noqa: E402

PACKAGE = ROOT / "src" / "residual_peft"
FAMILIES = re.compile(
    r"blip|siglip|metaclip|altclip|chineseclip|clipseg|dinov|deit|ijepa|pixio|vitmsn|vitmae", re.I
)
MODES = ("modes.py", "readout", "stream")
FLAGS_OF_LABELS = {
    *("multi_label", "has_lists", "several_labels", "many_labels"),
    *("ONE_LABEL", "MANY_LABELS", "OneLabel", "ManyLabels"),
}
POOLINGS = {"Readout", "Mean", "EndToken", "AttentionPooling", "SecondNorm"}


def trees() -> dict[Path, ast.Module]:
    """Path within the package -> its syntax tree."""
    files = sorted(p for p in PACKAGE.rglob("*.py") if "metric_modules" not in p.parts)
    return {p.relative_to(PACKAGE): ast.parse(p.read_text("utf-8")) for p in files}


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function and method of a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function's body, without its docstring."""
    body = function.body
    if isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
        body = body[1:]
    return 0 if not body else (body[-1].end_lineno or 0) - body[0].lineno + 1


def conditions(tree: ast.AST) -> Iterator[ast.expr]:
    """What is asked: by if, while, a conditional expression, a comprehension's if or an assert.

    So is every comparison, `and`, `or` and `not` outside of these: an answer that is kept in a
    variable, or given back, is asked for all the same.
    """
    asked: dict[int, ast.expr] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.If | ast.While | ast.IfExp | ast.Assert):
            asked[id(node.test)] = node.test
        elif isinstance(node, ast.comprehension):
            asked |= {id(test): test for test in node.ifs}
        elif isinstance(node, ast.BoolOp | ast.Compare) or (
            isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)
        ):
            asked[id(node)] = node
    within = {id(x) for test in asked.values() for x in ast.walk(test) if x is not test}
    yield from (test for key, test in asked.items() if key not in within)


def names_in(node: ast.AST) -> set[str]:
    """All names and attributes that an expression mentions."""
    found = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
    return found | {n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute)}


def literals_in(node: ast.AST) -> set[str]:
    """All strings that an expression holds."""
    values = (n.value for n in ast.walk(node) if isinstance(n, ast.Constant))
    return {value for value in values if isinstance(value, str)}


def isinstance_on_poolings(tree: ast.AST) -> int:
    """Questions of what kind a pooling is."""
    calls = (n for n in ast.walk(tree) if isinstance(n, ast.Call))
    asked = (c for c in calls if isinstance(c.func, ast.Name) and c.func.id == "isinstance")
    return sum(bool(names_in(call.args[1]) & POOLINGS) for call in asked)


def family_names(tree: ast.Module) -> int:
    """Identifiers and strings, docstrings apart, that name a family of models."""
    docs = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    found = 0
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            found += bool(FAMILIES.search(node.value))
        elif isinstance(node, ast.Name):
            found += bool(FAMILIES.search(node.id))
    return found


def on_the_mode(test: ast.expr) -> bool:
    """Whether a condition asks for the mode of an adapter: by its name, or by the layer's type."""
    names = names_in(test)
    if "isinstance" in names and names & {"ResiDualReadout", "ResiDualStreamLinear"}:
        return True
    return any(
        isinstance(node, ast.Compare)
        and any(
            isinstance(side, ast.Name | ast.Attribute) and ast.unparse(side).endswith("mode")
            for side in (node.left, *node.comparators)
        )
        and not names & {"training", "inference_mode"}
        for node in ast.walk(test)
    )


def on_several_labels(test: ast.expr, module: ast.Module) -> bool:
    """Whether a condition asks if an image may have several labels.

    By a flag, by the type or a constant of `data.labels`, or by whether labels have one dimension
    or two. What a labelling answers itself (`labelling.leaves_blocks(...)`) is no such question.
    """
    words = FLAGS_OF_LABELS
    if names_in(module) & (FLAGS_OF_LABELS | {"labelling", "labelling_of"}):
        words = words | {"several"}  # elsewhere of shapes or options
    if names_in(test) & words:
        return True
    return any(
        isinstance(node, ast.Compare)
        and isinstance(node.left, ast.Attribute)
        and node.left.attr == "ndim"
        and ast.unparse(node.left.value).rpartition(".")[2] in ("labels", "label_ids")
        and isinstance(node.comparators[0], ast.Constant)
        and node.comparators[0].value in (1, 2)
        for node in ast.walk(test)
    )


def upward_imports(found: dict[Path, ast.Module]) -> int:
    """Imports of a room from one below it."""
    count = 0
    for path, tree in found.items():
        mine = path.parts[0].removesuffix(".py")
        if mine not in ROOMS:
            continue
        package = path.parts[:-1]
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level:
                base = package[: len(package) - node.level + 1]
                parts = [*base, *(node.module or "").split(".")]
                rooms = [parts[0]] if parts[0] else [alias.name for alias in node.names]
                count += sum(r in ROOMS and ROOMS.index(r) > ROOMS.index(mine) for r in rooms)
    return count


def import_seconds(pairs: int = 7) -> dict[str, Any]:
    """Processor time of fresh interpreters, ours and theirs in turn, so that they share the noise.

    Both use a name of what they import, since PEFT and this package import most of it lazily.
    """
    theirs = "import peft, transformers; from peft import PeftModel"
    statements = {
        "ours": f"{theirs}; import residual_peft; from residual_peft import ResiDualConfig",
        "theirs": theirs,
    }
    taken: dict[str, list[float]] = {name: [] for name in statements}
    for _ in range(pairs):
        for name, statement in statements.items():
            taken[name].append(_processor_seconds(statement))
    least = {name: min(values) for name, values in taken.items()}
    middle = {name: statistics.median(values) for name, values in taken.items()}
    return {
        "pairs": pairs,
        "statements": statements,
        "min": {name: round(value, 2) for name, value in least.items()},
        "median": {name: round(value, 2) for name, value in middle.items()},
        "ratio_of_min": round(least["ours"] / least["theirs"], 3),
        "ratio_of_median": round(middle["ours"] / middle["theirs"], 3),
    }


def _processor_seconds(statement: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", statement], check=True, cwd=ROOT)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def loaded_by_an_adapter() -> list[str]:
    """Heavy modules that are imported once an adapter has been loaded and used."""
    program = """
import sys, tempfile
from peft import PeftModel, get_peft_model
import residual_peft
from residual_peft import ResiDualConfig
from residual_peft.hub import DEMO_MODEL, local_directory
from transformers import CLIPModel
base = lambda: CLIPModel.from_pretrained(local_directory(DEMO_MODEL))
with tempfile.TemporaryDirectory() as folder:
    get_peft_model(base(), ResiDualConfig()).save_pretrained(folder, save_embedding_layers=False)
    PeftModel.from_pretrained(base(), folder)
print(*(name for name in ("datasets", "matplotlib", "sklearn", "pandas") if name in sys.modules))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, cwd=ROOT, capture_output=True, text=True
    )
    return done.stdout.split()


def collected_tests() -> int:
    """How many tests pytest collects."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    return int(re.findall(r"(\d+) tests collected", done.stdout)[-1])


def counted(imports: dict[str, Any] | None) -> dict[str, Any]:
    """All of it; times of imports are taken where there are none."""
    found = trees()
    lengths = sorted(body_lines(f) for tree in found.values() for f in functions(tree))
    lines = {path: len((PACKAGE / path).read_text("utf-8").splitlines()) for path in found}
    per_room: Counter[str] = Counter()
    for path, count in lines.items():
        per_room[path.parts[0]] += count
    outside = {p: t for p, t in found.items() if p.parts[0] != "towers"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return {
        "top_level": sorted(p.name for p in PACKAGE.iterdir() if p.name not in ("__pycache__",)),
        "files": len(found),
        "lines": sum(lines.values()),
        "lines_of_rooms": dict(sorted(per_room.items())),
        "files_past_300_lines": {str(p): n for p, n in lines.items() if n > 300},
        "functions": {
            "number": len(lengths),
            "median": statistics.median(lengths),
            "p95": lengths[int(0.95 * len(lengths))],
            "longest": lengths[-1],
        },
        "isinstance_on_poolings_outside_towers": sum(map(isinstance_on_poolings, outside.values())),
        "modules_that_name_families": sorted(str(p) for p, t in found.items() if family_names(t)),
        "conditions_on_the_mode_in_tuner_outside_modes": sum(
            on_the_mode(test)
            for path, tree in found.items()
            if path.parts[0] == "tuner" and path.parts[1] not in MODES
            for test in conditions(tree)
        ),
        "conditions_on_several_labels_outside_data_labels": sum(
            on_several_labels(test, tree)
            for path, tree in found.items()
            if path.parts[:2] != ("data", "labels")
            for test in conditions(tree)
        ),
        "upward_imports": upward_imports(found),
        "hard_dependencies": len(project["dependencies"]),
        "import_seconds": imports or import_seconds(),
        "imported_by_loading_an_adapter": loaded_by_an_adapter(),
        "collected_tests": collected_tests(),
    }


def main() -> None:
    """Count, print and write."""
    out = Path(__file__).with_suffix(".json")
    old = json.loads(out.read_text("utf-8")) if "--quick" in sys.argv[1:] else {}
    found = counted(old.get("import_seconds"))
    text = json.dumps(found, indent=2)
    out.write_text(text + "\n", "utf-8")
    print(text)


if __name__ == "__main__":
    main()
