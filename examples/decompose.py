"""One forward pass -> what every head and MLP added to the image embedding.

    python examples/decompose.py
    python examples/decompose.py --model openai/clip-vit-base-patch16 photo.png

Shows that the contributions of all units sum to the model's own embedding, which units contribute
most, and how much of the embedding's direction each of them carries.
"""

import argparse
from pathlib import Path

from PIL import Image
from transformers.utils.logging import disable_progress_bar

from residual_peft import decompose
from residual_peft.classifiers.backbones import load_backbone
from residual_peft.data.images import to_rgb
from residual_peft.data.processors import pixel_values
from residual_peft.demo.tasks import handwriting
from residual_peft.hub import DEMO_MODEL


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path, nargs="*", help="image files; digits when left out")
    parser.add_argument("--model", default=DEMO_MODEL, help="a CLIP: a directory or a Hub id")
    parser.add_argument("--top", type=int, default=8, help="how many units to show")
    options = parser.parse_args()
    disable_progress_bar()
    images: list[Path] | list[Image.Image] = options.images
    images = images or [row["image"] for row in handwriting()["test"].select(range(32))]
    clip = load_backbone(options.model)
    pixels = pixel_values(clip.image_processor, [to_rgb(image) for image in images])

    found = decompose(clip.model, pixels)
    count, units, width = found.contributions.shape
    print(f"{count} images, {units} units, embeddings of width {width}")
    error = (found.contributions.sum(1) + found.bias - found.readout).norm(dim=-1)
    print(f"largest relative error of the sum: {(error / found.readout.norm(dim=-1)).max():.1e}")

    sizes = found.contributions.norm(dim=-1).mean(0)  # (units,)
    towards = found.readout / found.readout.norm(dim=-1, keepdim=True)
    lengths = found.readout.norm(dim=-1)[:, None]
    shares = ((found.contributions * towards[:, None]).sum(-1) / lengths).mean(0)
    for index in sizes.argsort(descending=True)[: options.top].tolist():
        print(f"{found.units[index]!s:>14}  size {sizes[index]:6.2f}  share {shares[index]:6.1%}")


if __name__ == "__main__":
    main()
