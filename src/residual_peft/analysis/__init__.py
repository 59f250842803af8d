"""What units know, and what gains did: reads contributions, bases and coordinates, trains nothing.

Functions take `Contributions` (one pass over some images), `Coordinates` or a `SpectralBasis`, and
return typed results; `reporting` draws them.
"""

from .adaptation import AdapterExplanation, ComponentEffect, UnitEffect, explain_adapter
from .attributes import GainSense, gain_sense, variance_explained
from .contributions import Contributions, UnitContribution, collect_contributions
from .one_image import ImageExplanation, explain_image, explain_row

__all__ = [
    "AdapterExplanation",
    "ComponentEffect",
    "Contributions",
    "GainSense",
    "ImageExplanation",
    "UnitContribution",
    "UnitEffect",
    "collect_contributions",
    "explain_adapter",
    "explain_image",
    "explain_row",
    "gain_sense",
    "variance_explained",
]
