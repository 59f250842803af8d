"""Tiny models of the package open_clip; it wants torchvision, which no CPU build of torch has.

A stand-in is there while `import open_clip` runs, and no longer: towers and tokenizers work with
it, open_clip's own image transforms do not.
"""

import importlib.machinery
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Any

import torch
import transformers.utils

from tests.models import Size, randomize


class InterpolationMode(Enum):
    """One of its transforms takes a member as a default argument."""

    BICUBIC = "bicubic"


NAMES = {
    "torchvision": (),
    "torchvision.ops": (),
    "torchvision.ops.misc": ("FrozenBatchNorm2d",),
    "torchvision.transforms": (
        *("Normalize", "Compose", "RandomResizedCrop", "ToTensor", "Resize"),
        *("CenterCrop", "ColorJitter", "Grayscale"),
    ),
    "torchvision.transforms.functional": (),
}


@contextmanager
def without_torchvision() -> Iterator[None]:
    """Stand in for torchvision while the block runs, unless something has imported it."""
    if "torchvision" in sys.modules:
        yield
        return
    transformers.utils.is_torchvision_available()  # it remembers: it must not see the stand-in
    for name, classes in NAMES.items():
        module: Any = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
        module.__path__ = []
        for kind in classes:
            setattr(module, kind, type(kind, (), {}))
        sys.modules[name] = module
        parent, _, leaf = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], leaf, module)
    transforms: Any = sys.modules["torchvision.transforms"]
    transforms.InterpolationMode = InterpolationMode
    try:
        yield
    finally:
        for name in NAMES:
            del sys.modules[name]


with without_torchvision():
    import open_clip

CLASSES = ("CLIP", "CustomTextCLIP")


def open_clip_model(
    kind: str = "CLIP",
    size: Size | None = None,
    *,
    seed: int = 0,
    layer_scale: float | None = None,
    batch_first: bool = True,
    vision: dict[str, Any] | None = None,
    text: dict[str, Any] | None = None,
    **options: Any,
) -> Any:
    """A dual encoder whose every weight is random, its layer scale too where it has one."""
    size = size or Size()
    model = getattr(open_clip, kind)(
        size.readout,
        {
            "layers": size.layers,
            "width": size.width,
            "head_width": size.width // size.heads,
            "patch_size": size.patch,
            "image_size": size.image,
            "ls_init_value": layer_scale,
            **(vision or {}),
        },
        {
            "context_length": 16,
            "vocab_size": 64,
            "width": 16,
            "heads": 2,
            "layers": 1,
            "ls_init_value": layer_scale,
            **(text or {}),
        },
        **options,
    )
    if not batch_first:  # as open_clip 2 built them
        for tower in (model.visual.transformer, getattr(model, "text", model).transformer):
            tower.batch_first = False
            for block in tower.resblocks:
                block.attn.batch_first = False
    return randomize(model, seed)


def tokens(count: int = 4) -> torch.Tensor:
    """Random token ids (count, 16), each row with its end, the highest token, somewhere else."""
    ids = torch.randint(1, 62, (count, 16), generator=torch.Generator().manual_seed(3))
    for row in range(count):
        ids[row, 15 - row], ids[row, 16 - row :] = 63, 0
    return ids
