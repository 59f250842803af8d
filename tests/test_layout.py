"""The one-way import rule: a room imports only from rooms above it in the list."""

import ast
import re
from pathlib import Path

import residual_peft

ROOT = Path(residual_peft.__file__).parent

ROOMS = [
    "registration",
    "terminal",
    "errors",
    "modes",
    "aside",
    "places",
    "messages",
    "class_names",
    "provenance",
    "blas",
    "rows",
    "files",
    "hub",
    "model_files",
    "cards",
    "pooling",
    "fused_attention",
    "anatomy",
    "architectures",
    "open_clip_towers",
    "figures",
    "taps",
    "decomposition",
    "reading",
    "processes",
    "moments",
    "fingerprint",
    "spectra",
    "bases",
    "tuner.patterns",
    "tuner.saved",
    "tuner.snapshot",
    "tuner.config",
    "tuner.values",
    "tuner.doors",
    "tuner.choice",
    "tuner.gains",
    "tuner.head_space",
    "tuner.mixing",
    "tuner.loading",
    "tuner.layer",
    "tuner.sharing",
    "tuner.readout",
    "tuner.placement",
    "tuner.linears",
    "tuner.stream_basis",
    "tuner.stream_tensors",
    "tuner.stream_state",
    "tuner.stream",
    "tuner.stream_reference",
    "tuner.stream_placement",
    "tuner.stream_fitting",
    "tuner.images_only",
    "tuner.model",
    "tuner.adapters",
    "tuner.hotswap",
    "tuner",
    "conversion",
    "metrics",
    "images",
    "backbones",
    "prompts",
    "predictions",
    "class_means",
    "classifier_adapters",
    "classifier_files",
    "zero_shot",
    "many_tasks",
    "data",
    "trainer_settings",
    "training",
    "coordinates",
    "store",
    "objectives",
    "solvers",
    "evaluation",
    "analysis",
    "describing",
    "run_record",
    "recording",
    "fitting",
    "experiments",
    "reporting",
    "studies",
    "demo",
    "cli",
]


def room_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts[0] == "tuner" and parts[-1] != "__init__":
        return "tuner." + parts[1]
    return parts[0]


def imported(path: Path) -> set[str]:
    package = ("residual_peft", *path.relative_to(ROOT).parent.parts)
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *(node.module.split(".") if node.module else [])])
            names |= {module} | {f"{module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name for name in names if name.startswith("residual_peft.")}


def rooms_imported(path: Path) -> set[str]:
    rooms = set()
    for name in imported(path):
        tail = name.removeprefix("residual_peft.")
        matches = [room for room in ROOMS if tail == room or tail.startswith(room + ".")]
        if matches:
            rooms.add(max(matches, key=len))
    return rooms


FILES = sorted(p for p in ROOT.rglob("*.py") if "metric_modules" not in p.parts)


def test_imports_only_from_above() -> None:
    files = [path for path in FILES if path != ROOT / "__init__.py"]
    assert not {room_of(path) for path in files} - set(ROOMS), "they have no place in the list"
    upward = {
        f"{path.relative_to(ROOT)} imports from {other}, which stands below it"
        for path in files
        for other in rooms_imported(path)
        if ROOMS.index(other) > ROOMS.index(room_of(path))
    }
    assert not upward


def test_contributing_names_the_rooms_in_their_order() -> None:
    text = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    named = [name.rstrip("/") for row in rows for name in re.findall(r"`([\w/]+)`", row)]
    assert named == [room for room in ROOMS if not room.startswith("tuner.")]


def test_the_rule_sees_relative_imports(tmp_path: Path) -> None:
    demo = ROOT / "demo" / "drawing.py"
    assert "demo" in rooms_imported(demo)
    assert {"files", "demo"} <= rooms_imported(ROOT / "demo" / "pretraining.py")
