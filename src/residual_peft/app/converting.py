"""A saved adapter by name -> the base model with it in its weights, or the adapter for a copy."""

import os
from pathlib import Path
from typing import Any

from peft import PeftModel

from ..classifiers.backbones import backbone_of, load_backbone
from ..classifiers.files import CLASSIFIER_JSON, read_described
from ..classifiers.zero_shot import ZeroShotClassifier
from ..errors import ResiDualError, first_line
from ..hub.directories import local_directory
from ..hub.files import atomic_directory, path_of
from ..tuner.conversion import convert_adapter

OPEN_CLIP = "open_clip:"
"""Before the name of a model of open_clip, and `/` and its weights after it."""
_PLACES = ("local-dir:", "hf-hub:")  # before what open_clip finds with weights and all


def merge_adapter(adapter: str | os.PathLike[str], out: str | os.PathLike[str]) -> Path:
    """Write a saved adapter's base model with the gains in its weights, and the classes beside it.

    What comes out needs neither this package nor PEFT: a plain model of transformers with its
    tokenizer and image processor. `ZeroShotClassifier.from_pretrained` and `residual-peft predict`
    take it as well, since the classes lie there, too. It is written whole or not at all.

    Raises:
        ResiDualError: no adapter, one in readout mode, which no weights could stand for, or one
            with a class head, which reads coordinates; a base model that is not there.
    """
    classifier = ZeroShotClassifier.from_pretrained(adapter)
    if not isinstance(classifier.model, PeftModel):
        raise ResiDualError(
            f"wanted an adapter to merge, got '{adapter}', a classifier without one: its model is "
            "the base model as it is."
        )
    if classifier.head is not None:
        raise ResiDualError(
            "the adapter has a class head beside its gains, which is no part of the model's "
            "weights: fit gains alone in stream mode (--set mode=stream --trainer) to merge them."
        )
    target = path_of(out).absolute()
    backbone = backbone_of(classifier.model.get_base_model())
    model: Any = classifier.model.merge_and_unload(safe_merge=True)
    with atomic_directory(target) as folder:
        model.save_pretrained(folder)
        for part in (backbone.tokenizer, backbone.image_processor):
            if part is not None:
                part.save_pretrained(folder)
        model.name_or_path = model.config._name_or_path = str(target)
        classifier.model = model
        classifier.save_pretrained(folder, location=target.name)
    return target


def adapter_for(adapter: str | os.PathLike[str], model: str, out: str | os.PathLike[str]) -> Path:
    """Write a saved adapter for another library's copy of its base model: `convert_adapter`.

    Its gains alone: the classes beside it stay behind, since texts are another model's to make. The
    copy is a directory or Hub id of transformers, or "open_clip:NAME/PRETRAINED" as
    `open_clip.create_model` has them, PRETRAINED a name or a file, or
    "open_clip:local-dir:DIRECTORY" and "open_clip:hf-hub:OWNER/NAME" as it has those.

    Raises:
        ResiDualError: as `convert_adapter`; a class head; no such model, or open_clip is not
            installed.
    """
    directory = local_directory(adapter, what="adapter")
    if (directory / CLASSIFIER_JSON).is_file() and read_described(directory, adapter).head:
        raise ResiDualError(
            f"'{adapter}' has a class head beside its gains, which an adapter for another copy of "
            "the model cannot carry: fit gains alone (--method gains) to convert them."
        )
    return convert_adapter(directory, _copy(model), out)


def _copy(name: str) -> Any:
    if not name.startswith(OPEN_CLIP):
        return load_backbone(name).model
    try:
        import open_clip
    except ModuleNotFoundError:
        raise ResiDualError(
            f"'{name}' needs open_clip: pip install 'residual-peft[open_clip]'."
        ) from None
    architecture, weights = name.removeprefix(OPEN_CLIP), ""
    if not architecture.startswith(_PLACES):
        architecture, _, weights = architecture.partition("/")
    try:
        return open_clip.create_model(architecture, pretrained=weights or None).eval()
    except Exception as error:  # of many kinds, from its registry, the network and the weights
        raise ResiDualError(f"open_clip did not give '{name}' ({first_line(error)}).") from error
