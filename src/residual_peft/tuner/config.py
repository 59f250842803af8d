"""What a user says about an adapter, checked when it is said; the paper's presets."""

import dataclasses
import functools
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, make_dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from peft import PeftConfig

from ..errors import ResiDualError, short
from ..hub.files import Within, quoted, read_object, record_of, whole_directory
from ..towers.units import UNIT_KINDS
from .fitted import Fitted
from .gains import KINDS
from .modes import mode_of
from .options import check_combinations, check_fields, check_patterns


class ResiDualType(str, Enum):
    """The adapter's `peft_type`.

    Member name and value are equal, so that members and plain strings find the same entry in PEFT's
    tables. The value names the package: PEFT answers an unknown type with a bare
    `KeyError: 'RESIDUAL_PEFT'`, which then says what to import.
    """

    RESIDUAL_PEFT = "RESIDUAL_PEFT"


PRESETS: dict[str, dict[str, Any]] = {
    "residual": {"units": ("head", "mlp")},
    "residual_star": {"units": ("head",), "components": 0.9, "remainder": "drop"},
    "coarse": {"units": ("head",), "granularity": "unit", "remainder": "drop"},
    "rd_y": {"units": ("output",)},  # scaling all d directions leaves no remainder
}
"""The table of `method.md`, section 3; all start at N(1, 1) and restore no mean."""

Count = Annotated[int, Within(0, 2**20)]
Names = Annotated[list[str], Within(0, 10**5)]
IN_FILE: dict[str, Any] = {
    "peft_type": str,
    "task_type": str | None,
    "auto_mapping": dict[str, str | None] | None,
    "peft_version": str | None,
    "base_model_name_or_path": str | None,
    "revision": str | None,
    "inference_mode": bool,
    "units": list[str] | str,
    "component_counts": list[Count] | dict[str, list[Count]] | None,
}
"""The types in adapter_config.json of PEFT's own fields, and of those that are wider there."""


@dataclass
class ResiDualConfig(PeftConfig):
    """Which units of an image tower get gains, in which basis, and what becomes of the rest.

    `y' = Σ_{u adapted} T_u(x_u) + remainder` with
    `T_u(x) = Φ_uᵀ diag(λ_u) Φ_u (x − μ_u) (+ μ_u)` (ResiDual, arXiv 2411.00246; `method.md`,
    section 3). The default is the identity until the gains are trained.

    Args:
        mode: "readout" puts the gains on each unit's direct contribution to the readout; "stream"
            writes them into the weights of the attention output projections and of the MLPs' last
            Linears, so that all tokens change, gradients flow and the adapter merges.
        units: kinds of adapted units, of "head", "mlp", "embed", "pooler" (the MLP after an
            attention pooling), or "output" alone; stream mode knows heads and MLPs, and with
            `target_modules` adapts those modules instead.
        side: the tower that is adapted, "image" or "text"; None the image tower where there is one.
            An adapter for each, both active, adapts both sides at once.
        readout: readout mode: None (or "own") the model's own, "mean" the mean of all tokens after
            the final norm, "patches" of those that stand for patches.
        components: directions kept per unit: None all, an int the first so many, a float in (0, 1]
            the fewest that explain this share of the variance.
        remainder: "keep" adds all that is not scaled as it is, "drop" leaves it out.
        restore_mean: whether each adapted unit's mean is added again after scaling.
        granularity: "component", one gain per direction; "unit", one per unit, on the whole of what
            the unit contributes (no basis is needed unless `restore_mean`).
        gain_init: "ones", or "normal": drawn from N(1, 1).
        seed: of the draw.
        basis: a directory or Hub id of a saved `SpectralBasis`, in stream mode of a saved adapter
            that holds its basis; None takes one from the weights alone, until `fit_bases` fits one
            from data.
        save_basis: whether the adapter's file holds its basis, or only its gains.
        layers_to_transform: layers whose heads and MLPs are adapted; None all.
        unit_pattern: units to adapt among those, by name ("layer3.head5", "layer3.mlp", "embed"): a
            regex for the whole name, or a list of names or their endings ("head5"); None all.
        component_pattern: regex -> `components` for the units it matches, like PEFT's
            `rank_pattern`: {"layer11.head\\d+": 8, "mlp": 0.5}; the first match counts.
        exclude_modules: PEFT's: units whose module has such a path are left out (a head's is its
            attention's output projection, an MLP's itself or its last Linear): a regex for the
            whole path, or a list of paths or their endings. With `target_modules`, modules.
        modules_to_save: PEFT's, other modules to train and save in full.
        target_modules: stream mode: the Linears to adapt in any model, named as for LoRA (names, a
            regex or "all-linear"); None the image tower's. Readout mode writes its path back.
        layers_pattern: stream mode: PEFT's, the name of the list that `layers_to_transform` counts.
        init_weights: False draws the first gains from N(1, 1) with torch's own generator, as PEFT's
            methods do to start away from the identity; `gain_init` and `seed` then play no part.
        component_counts, fingerprint, basis_digest, basis_source, num_samples: written back, as one
            value: see `fitted`.

    Raises:
        ResiDualError: unknown or contradictory options.
    """

    mode: str = "readout"
    units: tuple[str, ...] = ("head", "mlp")
    side: str | None = None
    readout: str | None = None
    components: int | float | None = None
    remainder: str = "keep"
    restore_mean: bool = True
    granularity: str = "component"
    gain_init: str = "ones"
    seed: Annotated[int, Within(0, 2**63 - 1)] = 0
    basis: str | None = None
    save_basis: bool = True
    layers_to_transform: list[Count] | Count | None = None
    unit_pattern: Names | str | None = None
    component_pattern: dict[str, int | float] | None = None
    exclude_modules: Names | str | None = None
    modules_to_save: Names | None = None
    target_modules: Names | str | None = field(default=None)
    layers_pattern: Names | str | None = None
    init_weights: bool = True
    component_counts: Any = None  # list[Count] | dict[str, list[Count]] | None
    fingerprint: dict[str, Any] | None = None
    basis_digest: str | None = None
    basis_source: str | None = None
    num_samples: Annotated[int, Within(1)] | None = None

    def __post_init__(self) -> None:
        try:
            super().__post_init__()
        except ValueError as error:  # PEFT's own checks
            raise ResiDualError(error) from None
        self.peft_type = ResiDualType.RESIDUAL_PEFT
        # only a saved adapter's config comes with these; its weights are about to follow
        self._awaits_weights = self.component_counts is not None
        self._directory: str | None = None
        self._saved_basis: Any = None  # what `basis` leads to, while an adapter is being put in
        if self._awaits_weights:
            _check_types({name: getattr(self, name) for name in _file().__annotations__})
        self._normalize()
        check_fields(self)
        check_patterns(self)
        check_combinations(self)
        mode_of(self).check_options(self)

    @classmethod
    def paper(cls, name: str, **options: Any) -> "ResiDualConfig":
        """Give one of the paper's methods: "residual", "residual_star", "coarse" or "rd_y".

        `options` (seed, basis, save_basis ...) are passed on and override the preset.

        >>> ResiDualConfig.paper("residual_star").components
        0.9

        Raises:
            ResiDualError: the name is unknown.
        """
        if name not in PRESETS:
            raise ResiDualError(f"unknown method {name!r}; wanted one of {', '.join(PRESETS)}.")
        paper = {"restore_mean": False, "gain_init": "normal"}
        return cls(**{**paper, **PRESETS[name], **options})

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str, subfolder: str | None = None, **kwargs: Any
    ) -> "ResiDualConfig":
        """Read `adapter_config.json`, as PEFT does before it loads the weights beside it.

        An adapter that is made from the result waits for those weights, instead of computing a
        basis that they would replace.
        """
        place = os.path.join(pretrained_model_name_or_path, subfolder or "")
        if os.path.isdir(place) and (whole := whole_directory(place)) != Path(place):
            raise ResiDualError(
                f"a save into {quoted(place)} was interrupted, and what it wrote may not be put in "
                f"its place here: load the adapter from {quoted(whole)}."
            )
        config = super().from_pretrained(
            pretrained_model_name_or_path, subfolder=subfolder, **kwargs
        )
        if isinstance(config, ResiDualConfig) and config._awaits_weights:
            config._directory = place
        return config

    @classmethod
    def from_json_file(cls, path_json_file: str, **kwargs: Any) -> dict[str, Any]:
        """Read and check adapter_config.json, before PEFT makes a config of it.

        Nothing is made of it before its `peft_type` is known: others' configs name modules that
        PEFT imports.

        Raises:
            ResiDualError: it is of another method, or a field is unknown or of another type.
        """
        config, wanted = read_object(path_json_file), ResiDualType.RESIDUAL_PEFT.value
        kind = config.get("peft_type")
        if kind != wanted:
            raise ResiDualError(
                f"{quoted(Path(path_json_file).parent)} holds an adapter of type {short(kind)}; "
                f"wanted {wanted!r}. Load others with PeftModel.from_pretrained."
            )
        known = {name: value for name, value in config.items() if name in _file().__annotations__}
        # what later releases add, and leaves all as it was where it is not asked for
        others = [name for name, value in config.items() if name not in known and value]
        if others:
            raise ResiDualError(
                f"{quoted(path_json_file)} has the field {short(others[0])}, which is not known "
                "here: it was written by a newer release, or by hand. Update residual-peft, or "
                "save it again."
            )
        _check_types(known, quoted(path_json_file))
        return known

    def fresh(self) -> "ResiDualConfig":
        """Copy the user's settings without what a fitted or saved adapter wrote back."""
        changes = {**vars(Fitted()), "inference_mode": False}
        if mode_of(self).one_place:  # else the user may have named them
            changes["target_modules"] = None
        return dataclasses.replace(self, **changes)

    @property
    def fitted(self) -> Fitted:
        """What is known of the basis; the file has its parts side by side."""
        return Fitted(*(getattr(self, part.name) for part in dataclasses.fields(Fitted)))

    @fitted.setter
    def fitted(self, fitted: Fitted) -> None:
        for part in dataclasses.fields(Fitted):
            setattr(self, part.name, getattr(fitted, part.name))

    @property
    def needs_basis(self) -> bool:
        """Whether directions or means have to be known; whole contributions need neither."""
        return not KINDS[self.granularity].whole or self.restore_mean

    @property
    def most_components(self) -> int | float | None:
        """What no unit is given more of, as far as one number says it: images must carry as many.

        What each unit keeps is decided where a basis is put into the adapter (`choice.fitted_to`).
        """
        return None if self.component_pattern else self.components

    @property
    def layers(self) -> list[int] | None:
        """`layers_to_transform` as a list, one layer by itself too; None all."""
        layers = self.layers_to_transform
        return [layers] if isinstance(layers, int) else layers

    def _normalize(self) -> None:
        """Accept what JSON makes of tuples and paths, and one kind by itself."""
        if isinstance(self.units, str):
            self.units = (self.units,)
        if not isinstance(self.units, Iterable):
            raise ResiDualError(f"units: wanted a tuple of {UNIT_KINDS}, got {self.units!r}.")
        self.units = tuple(self.units)
        layers = self.layers_to_transform
        if isinstance(layers, Iterable) and all(isinstance(layer, int) for layer in layers):
            self.layers_to_transform = sorted(set(layers))  # one by itself stays as it was given
        if self.target_modules is not None and not isinstance(self.target_modules, str):
            self.target_modules = sorted(self.target_modules)
        for name in ("unit_pattern", "exclude_modules"):  # as the file will have them
            value = getattr(self, name)
            if isinstance(value, set | frozenset):
                value = sorted(value, key=str)
            setattr(self, name, list(value) if isinstance(value, tuple) else value)
        if self.basis is not None:
            self.basis = os.fspath(self.basis)


@functools.cache
def _file() -> type:
    """A record of what adapter_config.json holds; of lists one item by itself may do."""
    own = get_type_hints(ResiDualConfig, include_extras=True)
    kinds = {name: own[name] for name in ResiDualConfig.__annotations__} | IN_FILE
    fields = [(name, kind, field(default=None)) for name, kind in kinds.items()]
    return make_dataclass("AdapterConfig", fields)


def _check_types(values: Mapping[str, Any], what: str = "the adapter's config") -> None:
    """Refuse values of other types than a saved config's; tuples and sets are as JSON's lists."""
    record_of({name: _as_json(value) for name, value in values.items()}, _file(), what)


def _as_json(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    return list(value) if isinstance(value, tuple | set | frozenset) else value
