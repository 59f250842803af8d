"""Rows of a results table, and what they say over seeds."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev


@dataclass(frozen=True)
class Row:
    """One method with one seed."""

    method: str
    seed: int
    test_accuracy: float
    trainable_parameters: int
    fit_seconds: float
    adapter_bytes: int


@dataclass(frozen=True)
class Summary:
    """One method over its seeds."""

    method: str
    accuracy: float
    spread: float
    parameters: int
    seconds: float
    bytes: int


def summarize(rows: Sequence[Row]) -> list[Summary]:
    """Mean accuracy and its sample standard deviation per method, in the order of appearance."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.method, []).append(row)
    return [
        Summary(
            method=name,
            accuracy=mean(row.test_accuracy for row in group),
            spread=stdev(row.test_accuracy for row in group) if len(group) > 1 else 0.0,
            parameters=round(mean(row.trainable_parameters for row in group)),
            seconds=mean(row.fit_seconds for row in group),
            bytes=round(mean(row.adapter_bytes for row in group)),
        )
        for name, group in groups.items()
    ]
