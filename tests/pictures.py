"""Pictures of noise, what prepares them, and when two predictions of them are the same."""

import io

import numpy as np
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image
from transformers import CLIPImageProcessorPil

from residual_peft.classifiers.zero_shot import Prediction


def image_processor(size=16):
    crop = {"height": size, "width": size}
    return CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size=crop)


def photographs(count=5, seed=0):
    generator = np.random.default_rng(seed)
    return [
        Image.fromarray(generator.integers(0, 256, (20, 24 + i, 3), np.uint8)) for i in range(count)
    ]


def agree(predictions, expected):
    """Equal but for the last bits, which depend on how the weights lie in memory."""
    predictions, expected = (
        [p] if isinstance(p, Prediction) else p for p in (predictions, expected)
    )
    return [p.label for p in predictions] == [e.label for e in expected] and np.allclose(
        [p.probabilities for p in predictions], [e.probabilities for e in expected], atol=1e-5
    )


PROCESSOR = CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})


def png(mode="RGB", seed=0):
    array = np.random.default_rng(seed).integers(0, 256, (8, 8, 4), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(array).convert(mode).save(stream, "PNG")
    return stream.getvalue()


def stored(contents):
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["a", "b"])})
    return Dataset.from_dict(
        {
            "image": [c if c is None else {"bytes": c, "path": None} for c in contents],
            "label": [i % 2 for i in range(len(contents))],
        },
        features=features,
    )
