"""Images that a model sees as nearly the same: copies that were resized, cropped or saved anew."""

import numpy as np
import numpy.typing as npt
import torch
from sklearn.cluster import DBSCAN
from torch import Tensor


def near_copies(embeddings: Tensor, alike: float) -> npt.NDArray[np.int64]:
    """A number for each image; those that are nearly the same, also by way of others, share it.

    Embeddings (N, d) of a model lie in a narrow cone, where all cosines are high: less their mean,
    those of unrelated images are around 0. Two are the same from a cosine of `alike` on.
    """
    centred = embeddings.double() - embeddings.double().mean(0)
    unit = torch.nn.functional.normalize(centred, dim=-1).numpy()
    # on the unit sphere, |a - b|² = 2 - 2 cos; rounding makes less than 1e-12 of the 0 of copies
    radius = float(np.sqrt(max(1e-12, 2 - 2 * alike)))
    # brute force works in blocks of bounded memory (scikit-learn's working_memory)
    labels = DBSCAN(radius, min_samples=1, algorithm="brute").fit_predict(unit)
    return labels.astype(np.int64)
