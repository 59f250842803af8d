"""What units know, and what gains did: reads contributions, bases and coordinates, trains nothing.

Functions take `Contributions` (one pass over some images), `Coordinates` or a `SpectralBasis`, and
return typed results; `reporting` draws them.
"""

from .adaptation import AdapterExplanation, ComponentEffect, UnitEffect, explain_adapter
from .attributes import GainSense, gain_sense, variance_explained
from .contributions import Contributions, UnitContribution, collect_contributions
from .dictionary import TextDictionary, read_texts
from .explanation import Explanation, explain_components, explain_units
from .one_image import ImageExplanation, explain_image, explain_row
from .pursuit import Pursuit, omp, somp, text_span

__all__ = [
    "AdapterExplanation",
    "ComponentEffect",
    "Contributions",
    "Explanation",
    "GainSense",
    "ImageExplanation",
    "Pursuit",
    "TextDictionary",
    "UnitContribution",
    "UnitEffect",
    "collect_contributions",
    "explain_adapter",
    "explain_components",
    "explain_image",
    "explain_row",
    "explain_units",
    "gain_sense",
    "omp",
    "read_texts",
    "somp",
    "text_span",
    "variance_explained",
]
