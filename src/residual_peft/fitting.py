"""From names to an adapter on disk, and from an adapter on disk to its scores."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peft import get_peft_model

from .backbones import load_backbone
from .cards import CardFacts
from .coordinates import collect_coordinates
from .data import ImageData, batches, load_data
from .errors import ResiDualError
from .evaluation import evaluate
from .prompts import DEFAULT_TEMPLATES
from .solvers import fit_gains
from .tuner import ResiDualConfig, fit_bases
from .zero_shot import ZeroShotClassifier


def fit_adapter(
    model: str,
    data: Any,
    out: str | os.PathLike[str],
    *,
    templates: Sequence[str] | None = None,
    config: ResiDualConfig | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    seed: int = 0,
    license: str | None = None,
) -> dict[str, float]:
    """Fit an adapter to labelled images and save it with its classes and a model card.

    Args:
        model: a CLIP's directory or Hub id.
        data: what `load_data` takes.
        out: where to save.
        templates: prompts with `{}`; the default ones when None.
        config: the adapter's; the default when None.
        image_column: of the data, found when None.
        label_column: likewise.
        seed: of the splits and the order of the images.
        license: of the adapter, for its card.

    Returns:
        Test accuracy `zero_shot` and `adapted`.

    Raises:
        ResiDualError: bad data, or a model that is not there.
    """
    images = load_data(data, image_column=image_column, label_column=label_column, seed=seed)
    backbone = load_backbone(model)
    plain = ZeroShotClassifier.from_text(
        backbone.model,
        backbone.tokenizer,
        images.class_names,
        templates or DEFAULT_TEMPLATES,
        image_processor=backbone.image_processor,
    )
    before = evaluate(plain, images.test, name="the test split", progress=True)
    plain.model = get_peft_model(backbone.model, config or ResiDualConfig(seed=seed))
    train = batches(images.train, backbone.image_processor, name="the training split")
    held_out = batches(images.validation, backbone.image_processor, name="the validation split")
    fit_bases(plain.model, train, progress=True)
    fit_gains(
        plain,
        collect_coordinates(plain.model, train, progress=True),
        collect_coordinates(plain.model, held_out, progress=True),
        seed=seed,
        progress=True,
    )
    after = evaluate(plain, images.test, name="the test split", progress=True)
    facts = _facts_of(data, images, before.metrics, after.metrics, seed, license)
    plain.save_pretrained(out, card=facts)
    return {"zero_shot": before.metrics["accuracy"], "adapted": after.metrics["accuracy"]}


def _facts_of(
    data: Any,
    images: ImageData,
    before: dict[str, float],
    after: dict[str, float],
    seed: int,
    license: str | None,
) -> CardFacts:
    """What the card says of a fit; of a path only the end, which is all that others can use."""
    on_disk = not isinstance(data, str) or Path(data).expanduser().is_dir()
    of_five = len(images.class_names) <= 5  # then every class is among the top five
    return CardFacts(
        dataset=Path(images.source).name if on_disk else images.source,
        dataset_id=None if on_disk else data,
        metrics={k: value for k, value in after.items() if not (of_five and k == "top5_accuracy")},
        metrics_before=before,
        test_images=len(images.test),
        training_data=f"{len(images.train):,} images, {len(images.validation):,} to choose by",
        seed=seed,
        license=license,
    )


def evaluate_adapter(
    adapter: str | os.PathLike[str],
    data: Any,
    *,
    split: str = "test",
    image_column: str | None = None,
    label_column: str | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """Accuracy, top-5 accuracy and mean per-class recall of a saved adapter.

    Arguments are those of `fit_adapter`; `split` names the images to measure on.

    Raises:
        ResiDualError: bad data, other classes, or an adapter that is not there.
    """
    classifier = ZeroShotClassifier.from_pretrained(adapter)
    images = load_data(data, image_column=image_column, label_column=label_column, seed=seed)
    if images.class_names != classifier.class_names:
        raise ResiDualError(
            f"wanted data with the adapter's classes ({', '.join(classifier.class_names)}), got "
            f"{', '.join(images.class_names)}; use the data that it was fitted for."
        )
    return evaluate(classifier, images[split], name=split, progress=True).metrics
