"""How far from what was asked for split conformal sets cover, by chance alone."""

import math

import numpy as np
from scipy.stats import betabinom


def coverage_interval(
    calibration: int, test: int, coverage: float, *, draws: int = 1, level: float = 0.95
) -> tuple[float, float]:
    """Where the observed coverage lies with split conformal, pooled over draws.

    Given n calibration images, the number covered of m new ones is beta-binomial with a =
    ⌈(n + 1) (1 − α)⌉ and b = n + 1 − a (V. Vovk, 2012); over draws its distribution is convolved.

    Args:
        calibration: n, in each draw.
        test: m, in each draw.
        coverage: 1 − α.
        draws: independent ones, each with images of its own.
        level: of the interval, two-sided.

    Returns:
        Lowest and highest share covered.
    """
    rank = min(math.ceil((calibration + 1) * coverage - 1e-9), calibration + 1)
    if rank > calibration:
        return 1.0, 1.0
    one = betabinom.pmf(np.arange(test + 1), test, rank, calibration + 1 - rank)
    whole = np.ones(1)
    for _ in range(draws):
        whole = np.convolve(whole, one)
    below = whole.cumsum()
    low = int(np.searchsorted(below, (1 - level) / 2))
    high = int(np.searchsorted(below, (1 + level) / 2))
    return low / (draws * test), high / (draws * test)
