"""Classify images with an exported adapter: onnxruntime, PIL and numpy, on a machine without torch.

Export where torch is, classify where it is not:

    residual-peft export my-adapter --out my-adapter.onnx
    python examples/onnx_without_torch.py my-adapter.onnx photo.png
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def prepare(file, recipe):
    image = ImageOps.exif_transpose(Image.open(file)).convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    if size := recipe["resize"]:
        edge, short = size.get("shortest_edge"), min(image.size)
        by_edge = edge and tuple(edge * side // short for side in image.size)
        image = image.resize(by_edge or (size["width"], size["height"]), recipe["resample"])
    if recipe["crop"]:
        height, width = recipe["crop"]
        left, top = (image.width - width) // 2, (image.height - height) // 2
        image = image.crop((left, top, left + width, top + height))
    pixels = np.asarray(image) * np.float32(recipe["scale"])
    return ((pixels - recipe["mean"]) / recipe["std"]).astype(np.float32).transpose(2, 0, 1)


if len(sys.argv) < 3:
    sys.exit(__doc__)
model, *files = sys.argv[1:]
session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
said = {k: json.loads(v) for k, v in session.get_modelmeta().custom_metadata_map.items()}
pixels = np.stack([prepare(file, said["preprocessing"]) for file in files])
for file, row in zip(files, session.run(["probabilities"], {"pixels": pixels})[0], strict=True):
    best = [f"{said['class_names'][k]} {row[k]:.3f}" for k in row.argsort()[::-1][:3]]
    print(f"{file}: {', '.join(best)}")
