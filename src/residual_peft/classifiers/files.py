"""What a saved classifier consists of, and the base model that it names."""

import filecmp
import importlib.util
import os
import re
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import transformers
from huggingface_hub import ModelCard, ModelCardData
from torch import Tensor, nn

from ..data.images import PICTURE_SUFFIXES
from ..data.provenance import SplitRecord
from ..errors import ResiDualError
from ..hub.cards import MARK, adapter_card
from ..hub.directories import (
    ADAPTER_CONFIG,
    CARD,
    DEMO_MODEL,
    EXAMPLES,
    MISTAKES,
    RECORD_JSON,
    RECORD_TENSORS,
    REPORT,
    RUN_DIRECTORY,
    RUN_YAML,
    SUSPICIOUS,
    known_name,
    local_directory,
    model_directory,
)
from ..hub.facts import Facts
from ..hub.files import (
    Within,
    quoted,
    read_bytes,
    read_header,
    read_record,
    read_tensors,
    write_json,
    write_tensors,
)
from ..hub.model_files import load_model
from ..towers.registry import base_model
from ..towers.units import Unit
from ..tuner import ResiDualConfig, adapter_basis, gains_by_unit
from .adapters import ADAPTER_TENSORS, Adapters, configs_of
from .figures import gains_figure
from .trained_head import HeadRecord, TrainedHead, head_from

CLASSIFIER_JSON = "residual_classifier.json"
CLASSIFIER_TENSORS = "residual_classifier.safetensors"
FILES = [CLASSIFIER_JSON, CLASSIFIER_TENSORS, ADAPTER_CONFIG, ADAPTER_TENSORS]
FILES += ["*processor_config.json"]
FITTED_ON = f"{RUN_DIRECTORY}/fitted_on.txt"
STATISTICS = f"{RUN_DIRECTORY}/statistics.safetensors"
MAX_FITTED_ON = 2**29  # bytes: 16 million images
_DTYPES = {name: getattr(torch, name) for name in ("float16", "bfloat16", "float32", "float64")}
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


@dataclass(frozen=True)
class ClassifierRecord:
    """What residual_classifier.json says.

    Attributes:
        class_names: C names.
        templates: prompt templates; empty when unknown.
        logit_scale: the factor of the cosine.
        base_model: name of the base model, None when it has none.
        base_class: its class.
        dtype: of its weights.
        adapted: whether there is an adapter.
        multi_label: whether an image may have several labels.
        logit_bias: what is added to every logit.
        split: how the images of a fit were shared out.
        adapters: name -> folder of every adapter; None in files of before there could be several.
        active: names of those that count.
        head: of a class head; None without one.
    """

    class_names: Annotated[tuple[str, ...], Within(2, 10**6)]
    templates: tuple[str, ...]
    logit_scale: float
    base_model: str | None
    base_class: str
    dtype: str
    adapted: bool
    multi_label: bool = False
    logit_bias: float = 0.0
    split: SplitRecord | None = None
    adapters: dict[str, str] | None = None
    active: tuple[str, ...] = ()
    head: HeadRecord | None = None


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


def write_classes(
    folder: Path,
    record: ClassifierRecord,
    embeddings: Tensor,
    head: TrainedHead | None = None,
) -> None:
    """Write class names, templates, embeddings and head; what is as usual is left out."""
    own = {} if head is None else head.tensors()
    write_tensors(folder / CLASSIFIER_TENSORS, {"class_embeddings": embeddings, **own})
    plain = asdict(record)
    usual = {f.name: f.default for f in fields(record) if f.default is not MISSING}
    described = {k: v for k, v in plain.items() if k not in usual or v not in (usual[k], [])}
    if record.adapters is not None:
        described["active"] = record.active
    write_json(folder / CLASSIFIER_JSON, described)


def read_classes(
    directory: Path, name: object
) -> tuple[ClassifierRecord, Tensor, TrainedHead | None]:
    """Read what `write_classes` wrote.

    Args:
        directory: where it lies.
        name: what the user calls it.

    Raises:
        ResiDualError: a file is missing, cut short or of another kind.
    """
    record = read_described(directory, name)
    path = directory / CLASSIFIER_TENSORS
    facts = read_header(path).get("class_embeddings")
    if facts is None:
        raise ResiDualError(f"{quoted(path)} holds no class_embeddings.")
    if len(facts.shape) != 2 or facts.shape[0] != len(record.class_names):
        raise ResiDualError(
            f"{quoted(path)} holds class_embeddings of shape {facts.shape} for "
            f"{len(record.class_names)} classes: the files do not belong together. Save or "
            "download the classifier again."
        )
    tensors, _ = read_tensors(path)
    embeddings = tensors["class_embeddings"]
    if not embeddings.is_floating_point():
        raise ResiDualError(f"{quoted(path)} holds class_embeddings of {embeddings.dtype}.")
    head = None if record.head is None else head_from(record.head, tensors, quoted(path))
    return record, embeddings.clone(), head  # and not mapped to a file that may be written anew


def read_described(directory: Path, name: object) -> ClassifierRecord:
    """The record alone, of a directory that the user calls `name`.

    Raises:
        ResiDualError: it is missing or of another kind.
    """
    path = directory / CLASSIFIER_JSON
    if not path.is_file():
        raise ResiDualError(
            f"'{name}' has no {CLASSIFIER_JSON}: it holds no classes. Load the adapter with "
            "PeftModel.from_pretrained and name the classes with ZeroShotClassifier.from_text."
        )
    return read_record(path, ClassifierRecord)


def local_classifier(
    name_or_path: str | os.PathLike[str], revision: str | None = None, token: str | None = None
) -> Path:
    """The local directory of a classifier, downloaded with all adapters that its record names.

    Raises:
        ResiDualError: it is not to be had; says why.
    """
    options: dict[str, Any] = {"what": "adapter", "revision": revision, "token": token}
    directory = local_directory(name_or_path, allow_patterns=FILES, **options)
    if Path(name_or_path).expanduser().is_dir() or not (directory / CLASSIFIER_JSON).is_file():
        return directory
    record = read_described(directory, name_or_path)
    places = [folder for folder in (record.adapters or {}).values() if folder]
    if not places:
        return directory
    more = [f"{place}/{file}" for place in places for file in (ADAPTER_CONFIG, ADAPTER_TENSORS)]
    return local_directory(name_or_path, allow_patterns=FILES + more, **options)


def of_the_old(target: Path, *, record: bool = True) -> list[str]:
    """What in `target` belongs to the classifier that is about to be replaced; nobody else's files.

    Args:
        target: where the classifier is saved.
        record: the record of its fit and what was drawn from it, too, beside its adapters' folders.
    """
    try:
        described = read_described(target, target)
    except ResiDualError:  # whatever it was, it is none of ours
        return []
    places = [place for place in (described.adapters or {}).values() if place]
    names = [f"{place}/{file}" for place in places for file in (ADAPTER_CONFIG, ADAPTER_TENSORS)]
    if record:
        run = Path(RUN_DIRECTORY)
        kinds = ("[0-9]*", "mistake-[0-9]*", "suspicious-[0-9]*")
        found = sorted(path for kind in kinds for path in (target / run / EXAMPLES).glob(kind))
        pictures = [path.name for path in found if path.suffix in PICTURE_SUFFIXES.values()]
        files = (RECORD_JSON, RECORD_TENSORS, MISTAKES, SUSPICIOUS, RUN_YAML)
        names += [*(str(run / file) for file in files), FITTED_ON, STATISTICS, REPORT, FIGURE]
        names += [str(run / EXAMPLES / name) for name in pictures]
    return names


def same_adapter(folder: Path, other: Path) -> bool:
    """Whether two folders hold the same adapter and classes, bit for bit."""
    names = (ADAPTER_TENSORS, CLASSIFIER_TENSORS)
    return all(_same_content(folder / name, other / name) for name in names)


def _same_content(one: Path, other: Path) -> bool:
    if one.is_file() and other.is_file():
        return filecmp.cmp(one, other, shallow=False)
    return one.exists() == other.exists()


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
    digests = read_bytes(path, MAX_FITTED_ON).split()
    if not all(re.fullmatch(b"[0-9a-f]{32}", digest) for digest in digests):
        raise ResiDualError(
            f"'{path}' holds something other than the digests of images, one a line; delete it, "
            "or save the classifier again."
        )
    return tuple(digest.decode() for digest in digests)


def settings_of(record: ClassifierRecord) -> dict[str, Any]:
    """A saved classifier's scale, templates and labels, as its constructor takes them."""
    names = ("logit_scale", "templates", "multi_label", "logit_bias")
    return {name: getattr(record, name) for name in names}


def write_card(model: nn.Module, folder: Path, facts: Facts) -> None:
    """Write README.md and, for gains that lie in layers, the picture of them beside it.

    Args:
        model: the model, adapted or not.
        folder: where to.
        facts: of `adapter_facts`.
    """
    name, config = _main_adapter(model)
    ours = config if isinstance(config, ResiDualConfig) else None
    placed = ours is not None and ours.mode == "readout" and {"head", "mlp"} & set(ours.units)
    if ours is not None and placed and importlib.util.find_spec("matplotlib") is not None:
        values = {unit: part.tolist() for unit, part in gains_by_unit(model, name).items()}
        if any(gain != 1 for part in values.values() for gain in part):  # a head leaves them alone
            gains_figure(values, folder / FIGURE, variance=_variance(model, name, ours))
            facts = replace(facts, figure=FIGURE)
    (folder / CARD).write_text(adapter_card(facts), encoding="utf-8")


def adapter_facts(model: nn.Module, described: Any, facts: Facts, location: str) -> Facts:
    """Facts, and beside them what the adapter and its classes know by themselves.

    Args:
        model: the model, adapted or not.
        described: class names, templates and labels, as a classifier or its record has them.
        facts: what is known beyond that.
        location: directory or Hub id that it is loaded from.
    """
    (name, kind), (own, config) = origin_of(model), _main_adapter(model)
    adapter: dict[str, Any] = {}
    if config is not None:
        adapter = {"peft_type": getattr(config.peft_type, "value", config.peft_type)}
    if isinstance(config, ResiDualConfig):
        adapter |= _described(model, own, config)
        adapter["trained"] = adapter["gains"] if facts.trained is None else facts.trained
    return replace(
        facts,
        adapter=location,
        base_model=Path(name).name if name and Path(name).is_dir() else name,
        base_class=kind,
        class_names=described.class_names,
        templates=described.templates,
        multi_label=described.multi_label,
        logit_bias=described.logit_bias,
        **adapter,
    )


def _main_adapter(model: nn.Module) -> tuple[str, Any]:
    """Name and config of the adapter in the directory itself; no config where there is none."""
    adapters = Adapters.of(model)
    return (adapters.main, configs_of(model)[adapters.main]) if adapters.folders else ("", None)


def _described(model: nn.Module, name: str, config: ResiDualConfig) -> dict[str, Any]:
    """What an adapter of ours adapts, for people."""
    suffix = f"residual_peft_gains.{name}"
    kept = config.components
    share = f"the fewest with {kept:.0%} of the variance" if isinstance(kept, float) else ""
    return {
        "gains": sum(p.numel() for path, p in model.named_parameters() if path.endswith(suffix)),
        "effect": _effect_of(config),
        "basis": config.fitted.described,
        "settings": {
            "mode": config.mode,
            "units": ", ".join(config.units),
            "components": "all" if kept is None else share or f"the first {kept}",
            "gains": f"one per {config.granularity}",
            "remainder": config.remainder,
            "means": "restored" if config.restore_mean else "dropped",
        },
    }


def _variance(
    model: nn.Module, name: str, config: ResiDualConfig
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


def load_base(record: ClassifierRecord, token: str | None, *, is_local: bool = True) -> nn.Module:
    """Load the base model that a record names, in the dtype that it names.

    Args:
        record: may come from anybody.
        token: for private repositories.
        is_local: whether the record lies on this machine, where a path may mean something; one
            from the Hub can only name a model there.

    Raises:
        ResiDualError: it names none, or none that is there.
    """
    name, kind = record.base_model, record.base_class
    cls = getattr(transformers, kind, None) if kind.isidentifier() else None
    known = isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)
    if not name or not known or record.dtype not in _DTYPES:
        raise ResiDualError(
            f"the adapter does not say which base model to load (name {name!r}, class {kind!r}, "
            f"dtype {record.dtype!r}); pass it: from_pretrained(directory, model=...)."
        )
    if not _is_named(name, is_local):
        raise ResiDualError(
            f"the adapter names its base model by {name!r}, a place on the machine where it was "
            "made; load the model from wherever you have it, and pass it: "
            "from_pretrained(directory, model=...)."
        )
    directory = model_directory(name, what="base model", token=token)
    try:
        model, _ = load_model(cls, directory, _DTYPES[record.dtype])
    except ResiDualError as error:
        raise ResiDualError(
            f"could not load the base model '{name}' as {kind} ({str(error).rstrip('.')})."
        ) from error
    if name != DEMO_MODEL:  # as in `load_backbone`
        model.name_or_path = model.config._name_or_path = name
    return model


def _is_named(name: str, is_local: bool) -> bool:
    """Whether a base model is named in a way that leads where its author meant it to.

    `save_pretrained` writes ids of the Hub and whole paths; "../x" means another place in every
    working directory.
    """
    if os.path.isabs(name):
        return is_local
    return re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name) is not None
