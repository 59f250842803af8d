"""Tensors that may be trained with, whatever mode PyTorch is in where they are made.

What is made under `torch.inference_mode` can never be saved for a backward pass: prepared there, an
adapter would fail when it is trained, far from the cause.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def ordinary_tensors() -> Iterator[None]:
    """Leave inference mode while the block runs; gradients are off there, as they were."""
    if not torch.is_inference_mode_enabled():
        yield
        return
    with torch.inference_mode(False), torch.no_grad():
        yield


def ordinary(tensor: Tensor) -> Tensor:
    """The tensor, or a copy where it was made in inference mode."""
    if not tensor.is_inference():
        return tensor
    with torch.inference_mode(False), torch.no_grad():
        return tensor.clone()
