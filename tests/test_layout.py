"""The house: thirteen rooms, imports from rooms above only, through the doors a room offers."""

import ast
import importlib.util
import re
from pathlib import Path

from tests.house import FILES, ROOMS, ROOT, room_of

TOP = Path(__file__).parents[1]


def imports(path: Path, text: str) -> set[tuple[str, str]]:
    """Module and name of everything that a file takes from this package by `from`."""
    package = ("residual_peft", *path.relative_to(ROOT).parent.parts)
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *(node.module.split(".") if node.module else [])])
            found |= {(module, alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {(alias.name, "") for alias in node.names}
    return {
        (module.removeprefix("residual_peft").lstrip("."), name)
        for module, name in found
        if module.partition(".")[0] == "residual_peft"
    }


def offered(room: str) -> set[str]:
    """What the `__all__` of a room names: names, or modules that others may import from."""
    for node in ast.parse((ROOT / room / "__init__.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return set(ast.literal_eval(node.value))
    return set()


def faults(path: Path, text: str | None = None) -> set[str]:
    """How a file breaks the rules of the house."""
    here, found = room_of(path), set()
    for module, name in imports(path, path.read_text() if text is None else text):
        room, _, inside = f"{module}.{name}".strip(".").partition(".")
        if room == here:
            continue
        if ROOMS.index(room) > ROOMS.index(here):
            found.add(f"{here} takes {module}.{name} from below")
        door = inside.partition(".")[0]
        if (ROOT / room).is_dir() and door not in offered(room):
            found.add(f"{room} does not offer {door}")
        if re.search(r"(^|\.)_[^_]", f"{module}.{name}"):
            found.add(f"{module}.{name} is private")
    return found


def test_the_rooms_are_those_of_the_list() -> None:
    places = {room_of(path) for path in FILES} - {"__init__"}
    assert places == set(ROOMS)
    loose = {path.stem for path in ROOT.glob("*.py")}
    assert loose == {"__init__", "errors", "registration"}


def test_rooms_take_from_above_and_through_doors() -> None:
    found = {
        f"{path.relative_to(ROOT)}: {fault}"
        for path in FILES
        if path.parent != ROOT
        for fault in faults(path)
    }
    assert not found


def test_what_rooms_offer_and_scripts_ask_for_is_there() -> None:
    for room in ROOMS[2:]:
        text = (ROOT / room / "__init__.py").read_text()
        for name in offered(room):
            place = ROOT / room / name
            defined = re.search(rf"\b{name}\b", text.partition("__all__ =")[0])
            assert place.is_dir() or place.with_suffix(".py").is_file() or defined, (room, name)
    for path in (
        file for name in ("benchmarks", "examples") for file in TOP.glob(f"{name}/**/*.py")
    ):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("residual_peft"):
                for alias in node.names:
                    found = importlib.import_module(str(node.module))
                    there = hasattr(found, alias.name) or importlib.util.find_spec(
                        f"{node.module}.{alias.name}"
                    )
                    assert there, (path.name, node.module, alias.name)


def test_contributing_names_the_rooms_in_their_order() -> None:
    text = (TOP / "CONTRIBUTING.md").read_text()
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    named = [name.rstrip("/") for row in rows for name in re.findall(r"`([\w/]+)`", row)]
    assert named == list(ROOMS)


def test_the_rule_sees_what_it_forbids() -> None:
    path = ROOT / "bases" / "not_there.py"
    text = "from ..app.recording import x\nfrom ..towers.taps import _y\nfrom . import basis"
    assert faults(path, text) == {
        "bases takes app.recording.x from below",
        "app does not offer recording",
        "towers.taps._y is private",
    }


TESTS = Path(__file__).parent


def taken_from_tests(text: str) -> set[str]:
    """The modules of tests that a text takes something from, at its top or within functions."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            names = {f"{node.module or ''}.{alias.name}" for alias in node.names}
            found |= names | {node.module or ""}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if re.fullmatch(r"(tests\.)?(\w+\.)*test_\w+", name)}


def test_no_test_module_is_taken_from() -> None:
    """What several need is in a module of its own, or a fixture of a conftest.py."""
    for path in TESTS.rglob("*.py"):
        assert not taken_from_tests(path.read_text()), path
    assert taken_from_tests("def f():\n    from tests.cli.test_cli import stop") == {
        "tests.cli.test_cli"
    }
    assert taken_from_tests("from .test_cli import stop\nfrom tests import test_cli") != set()
    assert not taken_from_tests("from tests.commands import stop\nimport testing.test")
