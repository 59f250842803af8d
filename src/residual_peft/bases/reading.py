"""Images through a model once: the one loop that reads them, whatever is made of what was seen.

Everything that reads images by batches (bases, coordinates, contributions, class means, scores)
takes them from `reading`, which owns what such a pass must see to: eval mode, no gradients,
adapters on or off, taps, the check that the units add up, progress, and that the memory of a pass
grows by what its caller keeps and by nothing else.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..data.progress import Progress, with_progress
from ..errors import ResiDualError
from ..towers.anatomy import TowerAnatomy
from ..towers.captures import Capture
from ..towers.registry import find_tower
from ..towers.running import batch_size, checked_inputs, evaluating, run_tower, unadapted
from ..towers.taps import is_tapped, tapped
from .exactness import check_exact
from .rows import Rows, give_back_large_tensors

Check = Literal["first", "all"] | Callable[[Tensor | None], bool]
"""Which batches' units are checked to add up; a function is asked with the images' rows."""

Place = tuple[str, int | None, str, tuple[int, ...]]
"""A field of a capture, its layer or None, its dtype and its shape per image."""
HELD = {"cpu": 2**28}
"""Bytes that all tokens of all layers may take, where a readout is pooled, by kind of device."""
HELD_ELSEWHERE = 2**31
SMALL = (torch.uint8, torch.int8, torch.int16, torch.int32)  # class numbers in fewer bytes
FIRST = 4  # images that are run first, to see how many tokens there are


@dataclass(frozen=True)
class ReadBatch:
    """What a pass saw of one batch; nothing in it holds on to more memory than its own."""

    readout: Tensor  # (B, d), where the model is
    capture: Capture | None  # what the units wrote, where it was asked for
    labels: Tensor | None  # (B,), or with several per image (B, C), on the CPU
    index: Tensor | None  # the images' rows (B,), where the batches know them


def reading(
    model: nn.Module,
    anatomy: TowerAnatomy | None,
    batches: Iterable[Any],
    *,
    taps: bool = False,
    check: Check = "all",
    adapters: bool = False,
    labelled: bool = False,
    progress: Progress = False,
    description: str = "Reading images",
) -> Iterator[ReadBatch]:
    """Run the model once over batches of images, or texts, and give what was seen of each.

    In eval mode and without gradients, for as long as each forward pass takes: between two, the
    model is as it was. Where a readout is pooled, all tokens of all layers are held until a pass
    ends, and a batch may come in several parts so that they take at most `HELD`.

    Args:
        model: adapted or not.
        anatomy: which of its towers and readouts; None what its adapter adapts, or the image tower.
        batches: of what the tower takes: tensors, mappings that hold it and perhaps `labels` and
            `index`, or pairs of one of these and labels.
        taps: whether to see what every unit writes; then the adapters are off.
        check: with `taps`, which batches' units are checked to add up.
        adapters: whether adapters stay as they are; they are off otherwise.
        labelled: whether labels are a must.
        progress: True for a bar, or what to call after each batch with its number of images.
        description: what the bar says.
    """
    if taps and adapters:
        raise ValueError("the units of an adapted model do not add up to its readout")
    anatomy = find_tower(model) if anatomy is None else anatomy
    give_back_large_tensors()
    forward = _Forward(model, anatomy, taps, adapters)
    for number, batch in enumerate(with_progress(batches, description, progress)):
        given, labels, index = parts_of(batch)
        if labelled and labels is None:
            raise ResiDualError(
                "wanted batches with pixel_values and labels as tensors, as dicts ('pixel_values', "
                f"'labels') or as pairs, got no labels ({type(batch).__name__})."
            )
        inputs = checked_inputs(anatomy, given)
        checking = taps and (check(index) if callable(check) else check == "all" or number == 0)
        del batch, given
        start, count = 0, batch_size(inputs)
        if labels is not None and (labels.ndim == 0 or len(labels) != count):
            raise ResiDualError(
                f"wanted a label for each of {count} images of a batch, got labels of shape "
                f"{tuple(labels.shape)}."
            )
        while start < count:
            rows = slice(start, start + forward.room(count))
            part = {
                name: value[rows] if isinstance(value, Tensor) and len(value) == count else value
                for name, value in inputs.items()
            }
            readout, capture = forward(part, checking)
            checking = checking and check == "all"  # else the first part stands for its batch
            start += len(readout)
            own = [None if given is None else given[rows] for given in (labels, index)]
            yield ReadBatch(readout, capture, *own)
            del readout, capture, part


@dataclass
class _Forward:
    """One forward pass after the other, and how many images each may be of."""

    model: nn.Module
    anatomy: TowerAnatomy
    taps: bool
    adapters: bool
    tokens: int | None = None  # T, once one pass has run

    def __call__(self, inputs: dict[str, Any], checked: bool) -> tuple[Tensor, Capture | None]:
        with ExitStack() as stack:
            stack.enter_context(running(self.model, adapters=self.adapters))
            if self.tokens is None:
                hook = self.anatomy.embedding.register_forward_hook(self._count)
                stack.callback(hook.remove)
            if not self.taps:
                return _finite(self._read(inputs)), None
            tap = stack.enter_context(tapped(self.anatomy, layers=checked))
            readout, capture = self._read(inputs), tap.take()
        if checked or capture.foreign:  # hooks may do something else each time
            check_exact(self.anatomy, capture, readout)
            capture.layers = [None] * len(capture.layers)
        return _finite(readout), capture

    def _read(self, inputs: dict[str, Any]) -> Tensor:
        # a copy: a readout may be a view of all tokens, which would stay as long as it does
        return run_tower(self.model, inputs, anatomy=self.anatomy).detach().clone()

    def _count(self, module: nn.Module, args: Any, output: Any) -> None:
        tensor = output[0] if isinstance(output, tuple | list) else output
        self.tokens = int(tensor.shape[-2]) if tensor.ndim == 3 else 1

    def room(self, images: int) -> int:
        """How many images to run next, of so many wanted."""
        tower = self.anatomy
        if not (tower.readout.all_tokens and (self.taps or is_tapped(tower))):
            return images
        if self.tokens is None:
            return min(FIRST, images)
        weight = tower.layers[0].output_projection.weight
        # per layer heads, MLP and, where it is checked, the block; embed and stream
        each = (3 * len(tower.layers) + 2) * self.tokens * tower.width * weight.element_size()
        return max(1, HELD.get(weight.device.type, HELD_ELSEWHERE) // each)


def _finite(readout: Tensor) -> Tensor:
    if not bool(readout.isfinite().all()):
        raise ResiDualError(
            "the model's embedding of an image is NaN or infinite: load it in float32 or bfloat16, "
            "and look at its weights and at the numbers of its image processor (rescale_factor, "
            "image_mean, image_std)."
        )
    return readout


@contextmanager
def running(model: nn.Module, *, adapters: bool = False) -> Iterator[None]:
    """How a pass runs a model: dropout off, no gradients, and its adapters off or as they are.

    What it computes are ordinary tensors even where the caller is in inference mode: what is kept
    of them may be trained on later.
    """
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        evaluating(model) if adapters else unadapted(model),
    ):
        yield


def parts_of(batch: Any) -> tuple[Any, Tensor | None, Tensor | None]:
    """What a tower takes of a batch, its labels and its rows, on the CPU, as far as it has them."""
    given, labels, index = batch, None, None
    if isinstance(batch, Mapping):
        labels, index = batch.get("labels"), batch.get("index")
    elif isinstance(batch, tuple | list) and len(batch) == 2 and isinstance(batch[1], Tensor):
        given, labels = batch
    labels, index = (None if v is None else torch.as_tensor(v).cpu() for v in (labels, index))
    if labels is not None and labels.dtype in SMALL:
        labels = labels.long()  # uint8 would pick rows as a mask does, where numbers index them
    return given, labels, index


class Captures:
    """Captures of many batches, until what is made of them is known: one matrix per dtype.

    Args:
        names: which fields of a capture to keep.
        expected: the number of images, where they are wanted in one piece.
    """

    def __init__(self, names: Iterable[str], expected: int | None = None) -> None:
        self.names = tuple(names)
        self.expected = expected
        self.rows: dict[str, Rows] = {}  # by dtype
        self.places: list[Place] = []
        self.depth = 0

    def add(self, capture: Capture) -> None:
        """Copy what a batch left to the CPU."""
        self.depth, self.places = len(capture.heads), []
        by_dtype: dict[str, list[Tensor]] = {}
        for name in self.names:
            value = getattr(capture, name)
            layered = isinstance(value, list)
            for number, tensor in enumerate(value if layered else [value]):
                if tensor is None:
                    continue
                dtype = str(tensor.dtype).removeprefix("torch.")
                place = (name, number if layered else None, dtype, tuple(tensor.shape[1:]))
                self.places.append(place)
                by_dtype.setdefault(dtype, []).append(tensor.reshape(len(tensor), -1))
        for dtype, tensors in by_dtype.items():
            self.rows.setdefault(dtype, Rows(self.expected)).add(torch.cat(tensors, dim=1))

    def drained(self) -> Iterator[Capture]:
        """Each batch's capture again, on the CPU; memory that has been passed is given back."""
        parts = [rows.drained() for rows in self.rows.values()]
        for tensors in zip(*parts, strict=True):
            packed = dict(zip(self.rows, tensors, strict=True))
            yield capture_from(packed, self.places, self.depth)

    def joined(self) -> tuple[dict[str, Tensor], list[Place]]:
        """All that was kept, taken out: dtype -> (N, width), and what lies where in it."""
        return {dtype: rows.joined() for dtype, rows in self.rows.items()}, self.places


def capture_from(packed: Mapping[str, Tensor], places: Iterable[Place], depth: int) -> Capture:
    """A capture of so many layers whose tensors are views of `packed`; see `Captures.joined`."""
    found = Capture([None] * depth, [None] * depth, [None] * depth)
    starts = dict.fromkeys(packed, 0)
    for name, layer, dtype, shape in places:
        width = math.prod(shape)
        tensor = packed[dtype][:, starts[dtype] : starts[dtype] + width]
        tensor = tensor.reshape(len(tensor), *shape)
        starts[dtype] += width
        if layer is None:
            setattr(found, name, tensor)
        else:
            getattr(found, name)[layer] = tensor
    return found
