"""A folder of class folders -> the Hugging Face Trainer -> an adapter on disk -> predictions.

    python examples/fit_folder_with_trainer.py
    python examples/fit_folder_with_trainer.py --data photos --template "a photo of a {}." \
        --model openai/clip-vit-base-patch16

Without --data, a small folder of handwritten digits is made; without --model, the CLIP that comes
with the package is taken. Nothing but the gains is trained.
"""

import argparse
import tempfile
import warnings
from pathlib import Path

from peft import get_peft_model
from transformers import PrinterCallback, Trainer
from transformers.utils.logging import disable_progress_bar

from residual_peft import (
    ResiDualConfig,
    ZeroShotClassifier,
    evaluate,
    fit_bases,
    load_data,
    trainer_kwargs,
    training_arguments,
)
from residual_peft.classifiers.backbones import load_backbone
from residual_peft.data import batches
from residual_peft.demo.tasks import handwriting
from residual_peft.hub import DEMO_MODEL


def make_folder(folder: Path, count: int = 500) -> Path:
    """Write digits as PNG files, one folder per class: zero, one, ... nine."""
    digits = handwriting()["train"].select(range(count))
    names = digits.features["label"].names
    for index, row in enumerate(digits):
        path = folder / names[row["label"]] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        row["image"].save(path)
    return folder


def fit(classifier: ZeroShotClassifier, data, folder: Path, epochs: int) -> None:
    """Put an adapter in, fit its bases to the training images, and train its gains."""
    classifier.model = get_peft_model(classifier.model, ResiDualConfig())
    fit_bases(classifier.model, batches(data.train, classifier.image_processor))
    arguments = training_arguments(folder, num_train_epochs=epochs, disable_tqdm=True)
    trainer = Trainer(**trainer_kwargs(classifier, data, arguments))
    trainer.remove_callback(PrinterCallback)
    trainer.train()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="a folder of class folders, or a dataset id on the Hub")
    parser.add_argument("--model", default=DEMO_MODEL, help="a CLIP: a directory or a Hub id")
    parser.add_argument("--template", default="the digit {}", help="a prompt for a class name")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--out", type=Path, help="where to keep the adapter")
    options = parser.parse_args()
    disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)  # transformers' own
    warnings.filterwarnings("ignore", message="Could not find a config file")  # PEFT, offline
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        data = load_data(options.data or make_folder(work / "digits"), test=0.2)
        clip = load_backbone(options.model)
        classifier = ZeroShotClassifier.from_text(
            clip.model,
            clip.tokenizer,
            data.class_names,
            options.template,
            image_processor=clip.image_processor,
        )
        before = evaluate(classifier, data.test).metrics["accuracy"]
        fit(classifier, data, work / "checkpoints", options.epochs)
        adapter = classifier.save_pretrained(options.out or work / "adapter")

        classifier = ZeroShotClassifier.from_pretrained(adapter)  # as another process would
        after = evaluate(classifier, data.test).metrics["accuracy"]
        print(f"test accuracy: zero-shot {before:.3f} -> adapted {after:.3f}")
        first = classifier.predict(data.test[0]["image"])
        print(f"the first test image: {first.label} ({first.score:.2f})")


if __name__ == "__main__":
    main()
