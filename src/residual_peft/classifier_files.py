"""What a saved classifier consists of, and the base model that it names."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import ModelCard, ModelCardData
from peft import PeftModel
from torch import Tensor, nn

from .anatomy import Unit, base_model
from .cards import MARK, CardFacts, SavedAdapter, adapter_card
from .errors import ResiDualError
from .figures import gains_figure
from .files import read_json, read_tensors, write_json, write_tensors
from .hub import ADAPTER_CONFIG, CARD, DEMO_MODEL, RUN_DIRECTORY, known_name, model_directory
from .model_files import load_model
from .provenance import SplitRecord
from .tuner import ResiDualConfig, adapter_basis, gains_by_unit

CLASSIFIER_JSON = "residual_classifier.json"
CLASSIFIER_TENSORS = "residual_classifier.safetensors"
ADAPTER_TENSORS = "adapter_model.safetensors"
FILES = [CLASSIFIER_JSON, CLASSIFIER_TENSORS, ADAPTER_CONFIG, ADAPTER_TENSORS]
FILES += ["*processor_config.json"]
FITTED_ON = f"{RUN_DIRECTORY}/fitted_on.txt"
FIGURE = "gains.png"
_WRITERS = {
    "embed": "the patch embedding",
    "head": "one attention head",
    "mlp": "one MLP",
    "pooler": "the MLP after the attention pooling",
}


def origin_of(model: nn.Module) -> tuple[str | None, str]:
    """Name and class of the base model, as other machines know them."""
    base: Any = base_model(model)
    name = getattr(getattr(base, "config", None), "_name_or_path", "") or None
    return name and known_name(name), type(base).__name__


def write_adapter(model: PeftModel, folder: Path, card_there: Path) -> None:
    """Let PEFT write its files; a card that a user wrote is kept, and PEFT adds to it."""
    if card_there.is_file() and not is_ours(card_there):
        (folder / CARD).write_bytes(card_there.read_bytes())
    # no vocabulary is adapted, and looking for one asks the Hub
    model.save_pretrained(folder, save_embedding_layers=False)


def is_ours(card: Path) -> bool:
    """Whether a card may be written again: it bears this package's mark, or nobody filled it in.

    PEFT's own `save_pretrained` leaves a form behind, which names the base model by its directory.
    """
    text = card.read_text(encoding="utf-8", errors="replace")
    return MARK in text or _is_blank(text)


def _is_blank(card: str) -> bool:
    """Whether all that a card says is the Hub's form for one, with PEFT's version at its end."""
    try:
        filled, form = ModelCard(card).text, ModelCard.from_template(ModelCardData()).text
    except (ValueError, TypeError):
        return False
    added = ("### Framework versions", "- PEFT ")
    left = [line for line in filled.splitlines() if line and not line.startswith(added)]
    return left == [line for line in form.splitlines() if line]


def write_classes(folder: Path, record: dict[str, Any], embeddings: Tensor) -> None:
    """Write class names, templates and embeddings."""
    write_tensors(folder / CLASSIFIER_TENSORS, {"class_embeddings": embeddings})
    write_json(folder / CLASSIFIER_JSON, record)


def read_classes(directory: Path, name: object) -> tuple[dict[str, Any], Tensor]:
    """Read what `write_classes` wrote.

    Args:
        directory: where it lies.
        name: what the user calls it.

    Raises:
        ResiDualError: a file is missing, cut short or of another kind.
    """
    path = directory / CLASSIFIER_JSON
    if not path.is_file():
        raise ResiDualError(
            f"'{name}' has no {CLASSIFIER_JSON}: it holds no classes. Load the adapter with "
            "PeftModel.from_pretrained and name the classes with ZeroShotClassifier.from_text."
        )
    record = read_json(path)
    wanted = {"class_names", "templates", "logit_scale", "base_model", "base_class", "dtype"}
    if not isinstance(record, dict) or not wanted | {"adapted"} <= record.keys():
        raise ResiDualError(f"'{path}' is not a classifier that save_pretrained wrote.")
    tensors, _ = read_tensors(directory / CLASSIFIER_TENSORS)
    if "class_embeddings" not in tensors:
        raise ResiDualError(f"'{directory / CLASSIFIER_TENSORS}' holds no class_embeddings.")
    return record, tensors["class_embeddings"]


def split_of(record: dict[str, Any]) -> SplitRecord | None:
    """How a saved classifier's images were shared out; of older files, and without a fit, None.

    Raises:
        ResiDualError: the record is of another kind.
    """
    found = record.get("split")
    if found is None:
        return None
    try:
        split = SplitRecord(**found)
        shares = {str(part): float(share) for part, share in split.shares.items()}
        images = {str(part): int(count) for part, count in split.images.items()}
        return SplitRecord(str(split.digest), int(split.seed), shares, images)
    except (AttributeError, TypeError, ValueError) as error:
        raise ResiDualError(
            f"the classifier's record of its split is of another kind ({error}); save the "
            "classifier again."
        ) from None


def write_fitted_on(folder: Path, target: Path, digests: Sequence[str]) -> None:
    """Write the digests of the images of a fit; those of an adapter that was there before go.

    Args:
        folder: what takes the place of `target`'s files.
        target: where the classifier is saved.
        digests: one for each image.
    """
    if digests or (target / FITTED_ON).exists():
        (folder / FITTED_ON).parent.mkdir(exist_ok=True)
        (folder / FITTED_ON).write_text("".join(f"{digest}\n" for digest in digests), "utf-8")


def read_fitted_on(directory: Path) -> tuple[str, ...]:
    """The digests that `write_fitted_on` wrote; none where there is no such file.

    Raises:
        ResiDualError: the file holds something else.
    """
    path = directory / FITTED_ON
    if not path.is_file():
        return ()
    digests = path.read_bytes().split()
    if not all(re.fullmatch(b"[0-9a-f]{32}", digest) for digest in digests):
        raise ResiDualError(
            f"'{path}' holds something other than the digests of images, one a line; delete it, "
            "or save the classifier again."
        )
    return tuple(digest.decode() for digest in digests)


def label_settings(record: dict[str, Any]) -> dict[str, Any]:
    """How a saved classifier takes labels, as its constructor does; of older files, one each."""
    return {key: record[key] for key in ("multi_label", "logit_bias") if key in record}


def write_card(
    model: nn.Module, folder: Path, record: dict[str, Any], facts: CardFacts, location: str
) -> None:
    """Write README.md and, for gains that lie in layers, the picture of them beside it.

    Args:
        model: the model, adapted or not.
        folder: where to.
        record: as `write_classes` takes it.
        facts: what the user knows of the adapter.
        location: directory or Hub id that the card's example loads from.
    """
    adapter: dict[str, Any] = {"method": None}
    if isinstance(model, PeftModel):
        saved = "default" if "default" in model.peft_config else next(iter(model.peft_config))
        config = model.peft_config[saved]
        adapter = {"method": getattr(config.peft_type, "value", config.peft_type)}
        if isinstance(config, ResiDualConfig):
            adapter |= _describe(model, saved, config, folder)
    card = adapter_card(
        SavedAdapter(
            location=location,
            base_model=record["base_model"],
            base_class=record["base_class"],
            class_names=record["class_names"],
            templates=record["templates"],
            **label_settings(record),
            **adapter,
        ),
        facts,
    )
    (folder / CARD).write_text(card, encoding="utf-8")


def _describe(model: PeftModel, name: str, config: ResiDualConfig, folder: Path) -> dict[str, Any]:
    """What a card says of an adapter of ours; its gains are drawn where they have places."""
    suffix = f"residual_peft_gains.{name}"
    gains = sum(p.numel() for path, p in model.named_parameters() if path.endswith(suffix))
    figure = None
    if config.mode == "readout" and {"head", "mlp"} & set(config.units):
        values = {unit: part.tolist() for unit, part in gains_by_unit(model, name).items()}
        gains_figure(values, folder / FIGURE, variance=_variance(model, name, config))
        figure = FIGURE
    images = "" if config.num_samples is None else f"{config.num_samples:,} images"
    return {
        "gains": gains,
        "effect": _effect_of(config),
        "basis": images or ("the weights alone" if config.basis_source else None),
        "figure": figure,
    }


def _variance(
    model: PeftModel, name: str, config: ResiDualConfig
) -> dict[Unit, list[float]] | None:
    """What each gain of an adapter scales; None with one gain per unit."""
    if config.granularity == "unit":
        return None
    basis = adapter_basis(model, name)
    return {u: part.tolist() for u, part in zip(basis.units, basis.eigenvalues, strict=True)}


def _effect_of(config: ResiDualConfig) -> str:
    part = "one principal component of " if config.granularity == "component" else ""
    if config.mode == "stream":
        return f"{part}what one head of an adapted Linear writes to the residual stream"
    if "output" in config.units:
        return f"{part}the image embedding"
    writers = " or ".join(_WRITERS[kind] for kind in config.units)
    return f"{part}what {writers} writes to the image embedding"


def load_base(record: dict[str, Any], token: str | None) -> nn.Module:
    """Load the base model that a record names, in the dtype that it names.

    Raises:
        ResiDualError: it names none, or none that is there.
    """
    name, kind = record["base_model"], record["base_class"]
    cls = getattr(transformers, str(kind), None)
    if not name or not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise ResiDualError(
            f"the adapter does not say which base model to load (name {name!r}, class {kind!r}); "
            "pass it: from_pretrained(directory, model=...)."
        )
    directory = model_directory(name, what="base model", token=token)
    try:
        model, _ = load_model(cls, directory, getattr(torch, record["dtype"]))
    except ResiDualError as error:
        raise ResiDualError(
            f"could not load the base model '{name}' as {kind} ({str(error).rstrip('.')})."
        ) from error
    if name != DEMO_MODEL:  # as in `load_backbone`
        model.name_or_path = model.config._name_or_path = name
    return model
