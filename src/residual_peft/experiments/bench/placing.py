"""Where a model runs."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def on_accelerator(model: torch.nn.Module) -> Iterator[None]:
    """The model on this process's accelerator, where there is one, for as long as it reads."""
    if not torch.cuda.is_available():
        yield
        return
    model.to(f"cuda:{int(os.environ.get('LOCAL_RANK', 0))}")
    try:
        yield
    finally:
        model.to("cpu")
