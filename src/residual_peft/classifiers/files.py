"""What a saved classifier consists of, and the base model that it names."""

import filecmp
import os
import re
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from torch import Tensor

from ..data.pictures import PICTURE_SUFFIXES
from ..data.provenance import SplitRecord
from ..errors import ResiDualError
from ..hub.directories import (
    ADAPTER_CONFIG,
    EXAMPLES,
    MISTAKES,
    RECORD_JSON,
    RECORD_TENSORS,
    REPORT,
    RUN_DIRECTORY,
    RUN_YAML,
    SUSPICIOUS,
    local_directory,
)
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
from .adapters import ADAPTER_TENSORS
from .heads.conformal import checked_scores
from .trained_head import HeadRecord, TrainedHead, head_from

CLASSIFIER_JSON = "residual_classifier.json"
CLASSIFIER_TENSORS = "residual_classifier.safetensors"
HELD_OUT = "held_out_scores"
FILES = [CLASSIFIER_JSON, CLASSIFIER_TENSORS, ADAPTER_CONFIG, ADAPTER_TENSORS]
FILES += ["*processor_config.json"]
FITTED_ON = f"{RUN_DIRECTORY}/fitted_on.txt"
STATISTICS = f"{RUN_DIRECTORY}/statistics.safetensors"
ROWS = f"{RUN_DIRECTORY}/jackknife.safetensors"
MAX_FITTED_ON = 2**29  # bytes: 16 million images
FIGURE = "gains.png"


@dataclass(frozen=True)
class ClassifierRecord:
    """What residual_classifier.json says."""

    class_names: Annotated[tuple[str, ...], Within(2, 10**6)]  # C names
    templates: tuple[str, ...]  # prompt templates; empty when unknown
    logit_scale: float  # the factor of the cosine
    base_model: str | None  # name of the base model, None when it has none
    base_class: str  # its class
    dtype: str  # of its weights
    adapted: bool  # whether there is an adapter
    multi_label: bool = False  # whether an image may have several labels
    logit_bias: float = 0.0  # what is added to every logit
    split: SplitRecord | None = None  # how the images of a fit were shared out
    # name -> folder of every adapter; None in files of before there could be several
    adapters: dict[str, str] | None = None
    active: tuple[str, ...] = ()  # names of those that count
    head: HeadRecord | None = None  # of a class head; None without one


def write_classes(
    folder: Path,
    record: ClassifierRecord,
    embeddings: Tensor,
    head: TrainedHead | None = None,
    held_out: Tensor | None = None,
) -> None:
    """Write class names, templates, embeddings, head and scores; what is as usual is left out."""
    own = {} if head is None else head.tensors()
    own |= {} if held_out is None else {HELD_OUT: held_out}
    write_tensors(folder / CLASSIFIER_TENSORS, {"class_embeddings": embeddings, **own})
    plain = asdict(record)
    usual = {f.name: f.default for f in fields(record) if f.default is not MISSING}
    described = {k: v for k, v in plain.items() if k not in usual or v not in (usual[k], [])}
    if record.adapters is not None:
        described["active"] = record.active
    write_json(folder / CLASSIFIER_JSON, described)


def read_classes(
    directory: Path, name: object
) -> tuple[ClassifierRecord, Tensor, TrainedHead | None, Tensor | None]:
    """Read what `write_classes` wrote, where the user calls the directory `name`."""
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
    head = None
    if record.head is not None:
        head = head_from(record.head, tensors, embeddings.shape[1], quoted(path))
    held_out = checked_scores(tensors.get(HELD_OUT), quoted(path))
    # and not mapped to a file that may be written anew
    return record, embeddings.clone(), head, held_out


def read_described(directory: Path, name: object) -> ClassifierRecord:
    """The record alone, of a directory that the user calls `name`."""
    path = directory / CLASSIFIER_JSON
    if not path.is_file() and not (directory / ADAPTER_CONFIG).is_file():
        raise ResiDualError(
            f"'{name}' holds no adapter: it has neither {CLASSIFIER_JSON} nor {ADAPTER_CONFIG}. "
            "Name what fit or save_pretrained wrote."
        )
    if not path.is_file():
        raise ResiDualError(
            f"'{name}' has no {CLASSIFIER_JSON}: it holds no classes. Load the adapter with "
            "PeftModel.from_pretrained and name the classes with ZeroShotClassifier.from_text."
        )
    return read_record(path, ClassifierRecord)


def local_classifier(
    name_or_path: str | os.PathLike[str], revision: str | None = None, token: str | None = None
) -> Path:
    """The local directory of a classifier, downloaded with all adapters that its record names."""
    options: dict[str, Any] = {"what": "adapter", "revision": revision, "token": token}
    directory = local_directory(name_or_path, allow_patterns=FILES, **options)
    if Path(name_or_path).expanduser().is_dir() or not (directory / CLASSIFIER_JSON).is_file():
        return directory
    record = read_described(directory, name_or_path)
    if not (more := _in_folders(record)):
        return directory
    return local_directory(name_or_path, allow_patterns=FILES + more, **options)


def _in_folders(record: ClassifierRecord) -> list[str]:
    """Files of adapters that do not lie in the directory itself."""
    places = [folder for folder in (record.adapters or {}).values() if folder]
    return [f"{place}/{file}" for place in places for file in (ADAPTER_CONFIG, ADAPTER_TENSORS)]


def of_the_old(target: Path, *, record: bool = True) -> list[str]:
    """What in `target` belongs to the classifier that is replaced, with the `record` of its fit."""
    try:
        described = read_described(target, target)
    except ResiDualError:  # whatever it was, it is none of ours
        return []
    names = _in_folders(described)
    if record:
        run = Path(RUN_DIRECTORY)
        kinds = ("[0-9]*", "mistake-[0-9]*", "suspicious-[0-9]*")
        found = sorted(path for kind in kinds for path in (target / run / EXAMPLES).glob(kind))
        pictures = [path.name for path in found if path.suffix in PICTURE_SUFFIXES.values()]
        files = (RECORD_JSON, RECORD_TENSORS, MISTAKES, SUSPICIOUS, RUN_YAML)
        names += [*(str(run / file) for file in files), FITTED_ON, STATISTICS, ROWS, REPORT, FIGURE]
        names += [str(run / EXAMPLES / name) for name in pictures]
    return names


def same_adapter(folder: Path, other: Path) -> bool:
    """Whether two folders hold the same adapter and classes, bit for bit."""
    for name in (ADAPTER_TENSORS, CLASSIFIER_TENSORS):
        one, two = folder / name, other / name
        both = one.is_file() and two.is_file()
        if not (filecmp.cmp(one, two, shallow=False) if both else one.exists() == two.exists()):
            return False
    return True


def write_fitted_on(folder: Path, target: Path, digests: Sequence[str]) -> None:
    """Write the digests of a fit's images into what takes the place of `target`'s files."""
    if digests or (target / FITTED_ON).exists():
        (folder / FITTED_ON).parent.mkdir(exist_ok=True)
        (folder / FITTED_ON).write_text("".join(f"{digest}\n" for digest in digests), "utf-8")


def read_fitted_on(directory: Path) -> tuple[str, ...]:
    """The digests that `write_fitted_on` wrote; none where there is no such file."""
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
