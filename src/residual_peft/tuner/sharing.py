"""Tensors that adapters over one basis share, in a file that may hold each of them once.

A whole model's state names the tensors of every adapter. safetensors (and with it accelerate and
the Trainer) writes shared ones under one name only, so that a file says of some adapters their
gains alone. Which adapter's tensors they have is noted beside them, one small tensor per layer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import ResiDualError
from .gains import GAINS

if TYPE_CHECKING:
    from .layer import AdapterLayer

SHARED = "shared_bases"
"""(adapters, kinds): in whose place among the sorted adapters each tensor was found first."""


@dataclass
class Loading:
    """What a `load_state_dict` that is under way changes in one layer."""

    gains: set[str] = field(default_factory=set)  # adapters whose gains are in the file
    bases: set[str] = field(default_factory=set)  # adapters whose basis changes
    # kind, adapter, and the one whose tensor it is to have as well
    followers: list[tuple[str, str, str]] = field(default_factory=list)


def note_sharing(layer: "AdapterLayer", destination: dict[str, Any], prefix: str) -> None:
    """Write into a layer's state which adapters share which tensors, if any do."""
    names = sorted(layer.adapter_settings)
    held = [getattr(layer, kind)._buffers for kind in layer.kinds]

    def first(tensors: dict[str, Tensor], name: str) -> int:
        return next(row for row, other in enumerate(names) if tensors[other] is tensors[name])

    found = [[first(tensors, name) for tensors in held] for name in names]
    if any(first != row for row, firsts in enumerate(found) for first in firsts):
        destination[prefix + SHARED] = torch.tensor(found, device="cpu")


def begin_loading(layer: "AdapterLayer", state_dict: dict[str, Any], prefix: str) -> Loading:
    """Part the tensors that are about to be loaded, and find those that the file has once for many.

    Loading is in place, so an adapter whose tensors are in the file gets its own; once it is done,
    `followers` have those of the adapter that shared them, and equal ones may be shared again. An
    adapter of which only the gains are there has its tensors elsewhere in a whole model's file; in
    an adapter's own file, others' gains are missing as well. The note is taken out of `state_dict`,
    and tensors are put in where torch and safetensors would miss them.
    """
    note = state_dict.pop(prefix + SHARED, None)
    whole = [
        name for name in sorted(layer.adapter_settings) if f"{prefix}{GAINS}.{name}" in state_dict
    ]
    loading = Loading(set(whole))
    donors = _donors(note, layer.kinds, state_dict, prefix)
    for kind in layer.kinds:
        buffers = getattr(layer, kind)
        tensors: dict[str, Tensor] = buffers._buffers
        before = dict(tensors)
        given = {name for name in tensors if f"{prefix}{kind}.{name}" in state_dict}
        loading.bases |= given
        for name in given:
            tensors[name] = tensors[name].clone()
        for name in whole:
            if name in given or name in buffers._non_persistent_buffers_set:
                continue
            donor = donors.get((kind, name))
            if donor is None and note is None:
                donor = _only_donor(state_dict, f"{prefix}{kind}.", name, given, before)
            if donor is None or donor not in given:
                continue
            loading.followers.append((kind, name, donor))
            loading.bases.add(name)
            group = [other for other, tensor in before.items() if tensor is before[name]]
            # safetensors lets all but one of the tensors be missing that the model itself shares
            if not given & set(group) and name == min(group):
                state_dict[f"{prefix}{kind}.{name}"] = state_dict[f"{prefix}{kind}.{donor}"]
                tensors[name] = tensors[name].clone()
    return loading


def _donors(
    note: Tensor | None, kinds: Sequence[str], state_dict: Mapping[str, Any], prefix: str
) -> dict[tuple[str, str], str]:
    """By kind and adapter, the adapter under whose name the file has the tensor."""
    if note is None:
        return {}
    start = f"{prefix}{GAINS}."
    names = sorted(key.removeprefix(start) for key in state_dict if key.startswith(start))
    fits = tuple(note.shape) == (len(names), len(kinds)) and not note.is_floating_point()
    if not fits or not all(0 <= row < len(names) for row in note.flatten().tolist()):
        raise ResiDualError(
            f"{prefix}{SHARED} does not say whose bases the {len(names)} adapters in the file "
            "share: the file was changed, or adapters were taken out of it. Save the model again, "
            "or load each adapter by itself with load_adapter."
        )
    found: dict[tuple[str, str], str] = {}
    for column, kind in enumerate(kinds):
        groups: dict[int, list[str]] = {}
        for name, first in zip(names, note[:, column].tolist(), strict=True):
            groups.setdefault(first, []).append(name)
        for group in groups.values():
            there = [name for name in group if f"{prefix}{kind}.{name}" in state_dict]
            found |= {(kind, name): there[0] for name in group if there}
    return found


def _only_donor(
    state_dict: Mapping[str, Any],
    start: str,
    name: str,
    donors: set[str],
    before: Mapping[str, Tensor],
) -> str | None:
    """The adapter whose tensor is meant where nobody noted it: all that could be hold the same."""
    fitting = sorted(g for g in donors if state_dict[start + g].shape == before[name].shape)
    values = [state_dict[start + other] for other in fitting]
    if any(not torch.equal(values[0], value) for value in values[1:]):
        raise ResiDualError(
            f"the file has gains for the adapter {name!r} and no {start}{name}: it does not say "
            f"which of the bases of {', '.join(map(repr, fitting))} they belong to. Save the model "
            "again, or load each adapter by itself with load_adapter."
        )
    return fitting[0] if fitting else None
