"""What units know, and what gains did: reads contributions, bases and coordinates, trains nothing.

Functions take `Contributions` (one pass over some images), `Coordinates` or a `SpectralBasis`, and
return typed results; `reporting` draws them.
"""

from .adaptation import AdapterExplanation, ComponentEffect, UnitEffect, explain_adapter
from .agreement import correlation, image_cosine, mean_cosine, relative_similarity
from .attributes import GainSense, gain_sense, variance_explained
from .contributions import Contributions, UnitContribution, collect_contributions
from .dictionary import TextDictionary, read_texts
from .dimension import (
    DimensionProfile,
    LayerDimension,
    dimension_profile,
    linear_dimension,
    participation_ratio,
)
from .explanation import Explanation, explain_components, explain_units
from .matching import spectral_cosine
from .neighbours import TwoNN, two_nn
from .one_image import ImageExplanation, explain_image, explain_row
from .pursuit import Pursuit, omp, somp, text_span
from .similarity import (
    LayerSimilarity,
    SameUnitSimilarity,
    SimilarityMatrix,
    same_unit_similarity,
    spectral_similarity,
)

__all__ = [
    "AdapterExplanation",
    "ComponentEffect",
    "Contributions",
    "DimensionProfile",
    "Explanation",
    "GainSense",
    "ImageExplanation",
    "LayerDimension",
    "LayerSimilarity",
    "Pursuit",
    "SameUnitSimilarity",
    "SimilarityMatrix",
    "TextDictionary",
    "TwoNN",
    "UnitContribution",
    "UnitEffect",
    "collect_contributions",
    "correlation",
    "dimension_profile",
    "explain_adapter",
    "explain_components",
    "explain_image",
    "explain_row",
    "explain_units",
    "gain_sense",
    "image_cosine",
    "linear_dimension",
    "mean_cosine",
    "omp",
    "participation_ratio",
    "read_texts",
    "relative_similarity",
    "same_unit_similarity",
    "somp",
    "spectral_cosine",
    "spectral_similarity",
    "text_span",
    "two_nn",
    "variance_explained",
]
