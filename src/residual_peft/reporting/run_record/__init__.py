"""What a fit leaves for its report: numbers and small pictures on disk, no model.

`OUT/run/` holds `run.json`, `run.safetensors` and `examples/`. The pictures are the user's, so that
`push_directory` leaves all of it at home.
"""

from ...analysis.describing import Words
from .parts import ClassReasons, Example, GainRecord, HeadShares, NamedImage, TrustRecord
from .record import RunRecord

__all__ = [
    "ClassReasons",
    "Example",
    "GainRecord",
    "HeadShares",
    "NamedImage",
    "RunRecord",
    "TrustRecord",
    "Words",
]
