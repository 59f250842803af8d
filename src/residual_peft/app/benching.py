"""From the name of a registry to results and their summaries."""

import os
from collections.abc import Callable

from ..errors import ResiDualError, counted
from ..experiments.bench.registry import Registry
from ..experiments.bench.results import Result, latest
from ..experiments.bench.run import is_of, run_registry
from ..reporting.bench import write_summaries


def run_bench(
    registry: Registry,
    out: str | os.PathLike[str],
    *,
    resume: bool = False,
    say: Callable[[str], object] = print,
) -> tuple[list[Result], list[str]]:
    """Run what is not finished yet, and summarise what is.

    Gives the results in the folder that can be compared (`latest`), and the names of the summaries
    of these. `say` is called with a line for what is done and for what is left out.

    Raises:
        ResiDualError: as `run_registry`; no run came to an end.
    """
    found = run_registry(registry, out, resume=resume, say=say)
    found.sort(key=lambda result: is_of(registry, result))  # what it has now comes last
    results = latest(found)
    if left := len(found) - len(results):
        say(f"{counted(left, 'result')} of earlier entries or images stay out of the summaries.")
    if not results:
        raise ResiDualError(
            "wanted at least one run that comes to its end, got none: the lines above say why each "
            "was left out."
        )
    return results, write_summaries(results, out, registry.title, registry.published)
