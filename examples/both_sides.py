"""ResiDual on both sides of CLIP at once: gains for the image tower and for the text tower.

    python examples/both_sides.py

One adapter for each side, both active. The Trainer shows CLIP images beside the prompts of all
classes, and the cross-entropy of `logits_per_image` trains the gains of whatever is active.
"""

import argparse
import tempfile
import warnings
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model
from torch.nn import functional
from transformers import PrinterCallback, Trainer
from transformers.utils.logging import disable_progress_bar

from residual_peft import ResiDualConfig, fit_bases, training_arguments
from residual_peft.classifiers.backbones import load_backbone
from residual_peft.data import ProcessedImages, batches, collate
from residual_peft.demo.tasks import handwriting

TEMPLATE = "the digit {}"


def loss(outputs, labels, num_items_in_batch=None):
    """Compare every image with all classes."""
    return functional.cross_entropy(outputs.logits_per_image, labels)


def read(dataset, image_processor) -> list[dict]:
    """Images as the model takes them; too many for memory are better read anew in each run."""
    images = ProcessedImages(dataset, image_processor)
    return [images[index] for index in range(len(images))]


@torch.no_grad()
def accuracy(model, rows, collator) -> float:
    """The share of images whose own prompt is the nearest."""
    model.eval()
    batch = collator(rows)
    labels = batch.pop("labels")
    return float((model(**batch).logits_per_image.argmax(1) == labels).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=300, help="images to train on")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--out", type=Path, help="where to keep the two adapters")
    options = parser.parse_args()
    disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)  # transformers' own
    warnings.filterwarnings("ignore", message="Could not find a config file")  # PEFT, offline
    digits = handwriting()
    clip = load_backbone()
    names = digits["train"].features["label"].names
    prompts = clip.tokenizer(
        [TEMPLATE.format(name) for name in names], padding=True, return_tensors="pt"
    )
    images = digits["train"].select(range(options.images))
    train = read(images, clip.image_processor)
    test = read(digits["test"].select(range(300)), clip.image_processor)

    def collator(rows):
        return {**collate(rows), **prompts}

    model = get_peft_model(clip.model, ResiDualConfig(side="image"), adapter_name="image")
    fit_bases(model, batches(images, clip.image_processor), adapter_name="image")
    model.add_adapter("text", ResiDualConfig(side="text"))  # ten prompts are no data for a basis

    with model.disable_adapter():
        print(f"zero-shot: {accuracy(model, test, collator):.3f}")
    for sides in (["text"], ["image"], ["image", "text"]):
        model.base_model.set_adapter(sides)  # PeftModel's own takes one name
        gains = [parameter for parameter in model.parameters() if parameter.requires_grad]
        for parameter in gains:
            parameter.data.fill_(1.0)  # every run starts from the model as it is
        with tempfile.TemporaryDirectory() as checkpoints:
            arguments = training_arguments(
                checkpoints,
                num_train_epochs=options.epochs,
                learning_rate=0.1,
                eval_strategy="no",
                save_strategy="no",
                load_best_model_at_end=False,
                disable_tqdm=True,
            )
            trainer = Trainer(
                model,
                arguments,
                data_collator=collator,
                train_dataset=train,
                compute_loss_func=loss,
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        trained, count = accuracy(model, test, collator), sum(g.numel() for g in gains)
        print(f"gains of {' and '.join(sides)}: {trained:.3f} ({count:,} gains)")

    with tempfile.TemporaryDirectory() as temporary:
        folder = options.out or Path(temporary)
        model.save_pretrained(folder)  # each adapter into a folder of its name
        loaded = PeftModel.from_pretrained(load_backbone().model, folder / "image", "image")
        loaded.load_adapter(folder / "text", "text")
        loaded.base_model.set_adapter(["image", "text"])
        print(f"saved and loaded: {accuracy(loaded, test, collator):.3f}")


if __name__ == "__main__":
    main()
