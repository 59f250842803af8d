"""How many images a second this machine reads with a model whose weights lie here."""

import time

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from peft import PeftModel
from PIL import Image

from ...classifiers.backbones import Backbone
from ...data import batches
from ...solvers.coordinates import collect_coordinates
from .placing import on_accelerator

SECONDS = 1.0  # that are measured at least
SIDE = 256  # pixels of the pictures that are read


def reading_rate(backbone: Backbone, model: PeftModel, batch_size: int) -> float:
    """Images per second: prepared, through the model, and to coordinates; decoding comes on top.

    `batch_size` images per pass on an accelerator; four on a processor, where more would only take
    longer.
    """
    count = batch_size if torch.cuda.is_available() else 4
    pixels = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["a", "b"])})
    values = {"image": [Image.fromarray(pixels)] * count, "label": [0] * count}
    images = Dataset.from_dict(values, features=features)
    one = batches(images, backbone.image_processor, batch_size=count, num_workers=0)
    read = 0
    with on_accelerator(model):
        collect_coordinates(model, one)  # the first takes longer
        started = time.perf_counter()
        while (passed := time.perf_counter() - started) < SECONDS:
            collect_coordinates(model, one)
            read += count
    return read / passed
