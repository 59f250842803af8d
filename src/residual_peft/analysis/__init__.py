"""What units know, and what gains did: reads contributions, bases and coordinates, trains nothing.

Functions take `Contributions` (one pass over some images) or a `SpectralBasis`, and return typed
results; `reporting` draws them.
"""

from .contributions import Contributions, UnitContribution, collect_contributions

__all__ = [
    "Contributions",
    "UnitContribution",
    "collect_contributions",
]
