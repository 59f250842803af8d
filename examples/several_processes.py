"""Bases and coordinates from several processes, then the gains from one.

    python examples/several_processes.py                                 # one process
    accelerate launch --num_processes 8 examples/several_processes.py    # one for each GPU

Each process reads its own shards of the images; the moments of their units are summed. Killed and
started again, it goes on at the first shard that is missing. `--out` has to be a directory that all
processes see.
"""

import argparse
import warnings

from accelerate import Accelerator
from peft import get_peft_model
from transformers.utils.logging import disable_progress_bar

from residual_peft import (
    Objective,
    ResiDualConfig,
    ZeroShotClassifier,
    evaluate,
    load_data,
    solve_gains,
    write_coordinates,
)
from residual_peft.classifiers.backbones import load_backbone
from residual_peft.data import ProcessedImages
from residual_peft.demo.tasks import HANDWRITING_TEMPLATES, handwriting


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="coordinates", help="directory that all processes see")
    parser.add_argument("--images", type=int, default=400, help="training images to use")
    options = parser.parse_args()
    disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)  # transformers' own
    accelerator = Accelerator()
    digits = handwriting()
    digits["train"] = digits["train"].select(range(options.images))
    digits["test"] = digits["test"].select(range(200))
    data = load_data(digits)
    clip = load_backbone()
    model = get_peft_model(clip.model.to(accelerator.device), ResiDualConfig())
    classifier = ZeroShotClassifier.from_text(
        model,
        clip.tokenizer,
        data.class_names,
        HANDWRITING_TEMPLATES,
        image_processor=clip.image_processor,
    )

    train = write_coordinates(
        model,
        ProcessedImages(data.train, clip.image_processor, "the training images"),
        options.out,
        fit_basis=True,
        dtype="bfloat16",
        shard_size=100,
        across_processes=accelerator.num_processes > 1,
    )
    if accelerator.is_main_process:
        print(f"processes: {accelerator.num_processes}")
        print(f"{len(train)} images in {len(train.parts)} shards")
        solve_gains(classifier, train, objective=Objective(normalized=False, strength=1e-4))
        after = evaluate(classifier, data.test).metrics["accuracy"]
        print(f"test accuracy: {after:.3f}")
    accelerator.end_training()


if __name__ == "__main__":
    main()
