"""Two methods on the same images: their difference, and whether it is one."""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import mean, stdev

from ..experiments.bench.results import Result
from .html import number, with_sign


@dataclass(frozen=True)
class Difference:
    """A method less another, on the same images."""

    mean: float  # of the scores' differences
    error: float | None  # its standard error; None for a single run
    # that the two are alike, by a paired t-test over runs, or by McNemar's over images; None where
    # neither can tell
    p: float | None
    runs: int  # how many were compared

    @property
    def text(self) -> str:
        """In percentage points, for people."""
        error = "" if self.error is None else f" ± {number(100 * self.error, 1)}"
        found = f"{with_sign(100 * self.mean, 1)}{error}"
        if self.p is None:
            return found
        return f"{found} (p {'< 0.001' if self.p < 0.001 else f'{self.p:.3f}'})"


def score(result: Result) -> float:
    """What a run is told by."""
    return result.accuracy if result.harmonic_mean is None else result.harmonic_mean


def difference(first: Iterable[Result], second: Iterable[Result]) -> Difference | None:
    """How two methods differ on the runs that both have, of the same entries and images.

    None where there are none.
    """
    from scipy.stats import ttest_rel

    others = {_place(result): result for result in second}
    pairs = [(one, others[_place(one)]) for one in first if _place(one) in others]
    gaps = [score(one) - score(other) for one, other in pairs]
    if not gaps:
        return None
    error = stdev(gaps) / sqrt(len(gaps)) if len(gaps) > 1 else None
    if max(gaps) - min(gaps) > 1e-12:  # else a t-test has nothing to divide by
        first_scores, second_scores = zip(*((score(a), score(b)) for a, b in pairs), strict=True)
        p: float | None = float(ttest_rel(first_scores, second_scores).pvalue)
    else:
        p = _over_images(pairs)
    return Difference(mean(gaps), error, p, len(gaps))


def _over_images(pairs: Sequence[tuple[Result, Result]]) -> float | None:
    """McNemar's exact test (Q. McNemar, 1947) over the images of all pairs of runs.

    None of harmonic means: hits are those of the classes that were trained on, half of what is
    compared.
    """
    from scipy.stats import binomtest

    if any(one.harmonic_mean is not None for pair in pairs for one in pair):
        return None
    hits = [(one.hits, other.hits) for one, other in pairs]
    better = sum(int((one & ~other).sum()) for one, other in hits)
    worse = sum(int((other & ~one).sum()) for one, other in hits)
    return float(binomtest(better, better + worse).pvalue) if better + worse else 1.0


def _place(result: Result) -> tuple[Hashable, ...]:
    return *result.task, result.seed, *result.made_of, result.images["test"]
