"""Three questions about each image, three adapters, one forward pass of the backbone.

    python examples/many_tasks.py

Adapters for colour, shape and number are fitted to the bundled model's own world over one basis;
then a TaskSet answers all three from one pass, or each image a question of its own.
"""

import argparse
import tempfile
import warnings

import torch
from datasets import disable_progress_bars
from peft import get_peft_model
from transformers.utils.logging import disable_progress_bar

from residual_peft import (
    ResiDualConfig,
    SpectralBasis,
    TaskSet,
    ZeroShotClassifier,
    collect_coordinates,
    fit_gains,
)
from residual_peft.classifiers.backbones import load_backbone
from residual_peft.data import batches
from residual_peft.data.metrics import accuracy
from residual_peft.demo.tasks import world_images, world_task
from residual_peft.demo.world import TEMPLATES

ATTRIBUTES = ("color", "shape", "count")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=200, help="images to fit each adapter to")
    options = parser.parse_args()
    disable_progress_bar()
    disable_progress_bars()
    warnings.filterwarnings("ignore", category=FutureWarning)  # transformers' own
    clip = load_backbone()
    model, tasks = clip.model, TaskSet(clip.model)
    with tempfile.TemporaryDirectory() as basis:
        images = batches(world_images(options.images), clip.image_processor)
        SpectralBasis.fit(clip.model, images).save_pretrained(basis)
        for name in ATTRIBUTES:
            config = ResiDualConfig(basis=basis)
            if name == ATTRIBUTES[0]:
                model = get_peft_model(model, config, adapter_name=name)
            else:
                model.add_adapter(name, config)
    for name in ATTRIBUTES:
        train = world_task(name, options.images)
        model.set_adapter(name)
        classifier = ZeroShotClassifier.from_text(
            model,
            clip.tokenizer,
            train.features["label"].names,
            TEMPLATES[name],
            image_processor=clip.image_processor,
        )
        fit_gains(classifier, collect_coordinates(model, batches(train, clip.image_processor)))
        tasks.add(name, classifier, adapter_name=name)

    tests = {name: world_task(name, 100, seed=1) for name in ATTRIBUTES}
    for name, test in tests.items():
        logits = tasks.predict_logits(test["image"])  # of every task
        print(f"{name}: {accuracy(logits[name], torch.tensor(test['label'])):.3f}")

    image = tests["shape"][0]["image"]
    answers = [prediction.label for prediction in tasks.predict(image).values()]
    print(f"one image, {len(tasks)} tasks: {', '.join(answers)}")
    mixed = tasks.predict_mixed([image] * len(tasks), list(tasks))
    print(f"one batch, a task for each image: {', '.join(p.label for p in mixed)}")


if __name__ == "__main__":
    main()
