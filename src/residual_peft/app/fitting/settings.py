"""What torch is set to while a fit runs, whatever a notebook has set."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch


@contextmanager
def usual_settings() -> Iterator[None]:
    """Gradients on, new tensors in float32 and on the CPU; as it was, afterwards."""
    dtype = torch.get_default_dtype()
    elsewhere = torch.get_default_device().type != "cpu"
    torch.set_default_dtype(torch.float32)
    try:  # leaving inference mode turns gradients on
        with torch.inference_mode(False), torch.device("cpu") if elsewhere else nullcontext():
            yield
    finally:
        torch.set_default_dtype(dtype)
