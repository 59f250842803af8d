"""What units know, and what gains did: reads contributions, bases and coordinates, trains nothing.

Functions take `Contributions` (one pass over some images), `Coordinates` or a `SpectralBasis`, and
return typed results; `reporting` draws them.
"""

from .ablation import AblationCurve, AblationPoint, layer_ablation, unit_ablation
from .adaptation import AdapterExplanation, ComponentEffect, UnitEffect, explain_adapter
from .agreement import correlation, image_cosine, mean_cosine, relative_similarity
from .attributes import GainSense, gain_sense, variance_explained
from .coarse import CoarseOptimum, coarse_optimum
from .collecting import collect_contributions
from .contributions import Contributions, UnitContribution
from .curves import DEFAULT_BUDGETS, CurvePoint, Margin, SelectionCurve, selection_curve
from .dictionary import TextDictionary, read_texts
from .dimension import (
    DimensionProfile,
    LayerDimension,
    dimension_profile,
    linear_dimension,
    participation_ratio,
)
from .explanation import Explanation, explain_components, explain_units
from .head import ComponentShare, HeadExplanation, Reason, explain_head, explained_head
from .matching import spectral_cosine
from .neighbours import TwoNN, two_nn
from .one_image import (
    HeadImageExplanation,
    ImageExplanation,
    explain_head_image,
    explain_head_row,
    explain_image,
    explain_row,
)
from .pursuit import Pursuit, omp, somp, text_span
from .rankings import OverlapMatrix, Ranking, overlap, random_rankings, rank_units
from .selection import ReferenceLine, SelectionStudy, compare_selections
from .similarity import (
    LayerSimilarity,
    SameUnitSimilarity,
    SimilarityMatrix,
    same_unit_similarity,
    spectral_similarity,
)

__all__ = [
    "DEFAULT_BUDGETS",
    "AblationCurve",
    "AblationPoint",
    "AdapterExplanation",
    "CoarseOptimum",
    "ComponentEffect",
    "ComponentShare",
    "Contributions",
    "CurvePoint",
    "DimensionProfile",
    "Explanation",
    "GainSense",
    "HeadExplanation",
    "HeadImageExplanation",
    "ImageExplanation",
    "LayerDimension",
    "LayerSimilarity",
    "Margin",
    "OverlapMatrix",
    "Pursuit",
    "Ranking",
    "Reason",
    "ReferenceLine",
    "SameUnitSimilarity",
    "SelectionCurve",
    "SelectionStudy",
    "SimilarityMatrix",
    "TextDictionary",
    "TwoNN",
    "UnitContribution",
    "UnitEffect",
    "coarse_optimum",
    "collect_contributions",
    "compare_selections",
    "correlation",
    "describing",
    "dimension_profile",
    "explain_adapter",
    "explain_components",
    "explain_head",
    "explain_head_image",
    "explain_head_row",
    "explain_image",
    "explain_row",
    "explain_units",
    "explained_head",
    "gain_sense",
    "image_cosine",
    "layer_ablation",
    "linear_dimension",
    "mean_cosine",
    "movement",
    "near_copies",
    "omp",
    "overlap",
    "participation_ratio",
    "random_rankings",
    "rank_units",
    "read_texts",
    "relative_similarity",
    "same_unit_similarity",
    "selection_curve",
    "somp",
    "spectral_cosine",
    "spectral_similarity",
    "text_span",
    "two_nn",
    "unit_ablation",
    "variance_explained",
]
