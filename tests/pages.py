"""README and the pages in docs/, their blocks, and what the benchmarks wrote, for several tests."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
# the pages as they are read after README, in the folder that its blocks leave
PAGES = ("README", "commands", "peft", "coordinates", "analysis", "sharing", "results", "bench")
# pages whose blocks need more than that folder -> where they are run
ELSEWHERE = {"large_runs": "solvers/test_large_runs.py", "towers": "towers/test_towers.py"}


def page(name: str) -> str:
    return (README if name == "README" else ROOT / "docs" / f"{name}.md").read_text()


def blocks_of(text: str) -> list[tuple[str, str]]:
    return re.findall(r"```(\w*)\n(.*?)```", text, re.DOTALL)


def results(name: str) -> dict:
    return json.loads((ROOT / "benchmarks" / f"{name}.json").read_text())
