"""`ResiDualModel`: the tuner that PEFT drives, and the checks that PEFT leaves out."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from peft.tuners.tuners_utils import BaseTuner, _ExcludedModule, check_target_module_exists
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from ..bases.fingerprint import Fingerprint
from ..errors import ResiDualError
from ..towers.anatomy import TowerAnatomy
from ..towers.registry import find_tower
from .choice import check_nothing_inside
from .config import ResiDualConfig
from .images_only import accept_images_alone, restore_forward
from .layer import GAINS, ResiDualLayer
from .mixing import check_names, check_weighted, giving_names, layers_with
from .modes import ordinary_tensors
from .patterns import fullmatch
from .readout.layer import BASIS, MERGE_REFUSED, ResiDualReadout, readouts
from .readout.placement import place
from .saved import PEFT_PREFIX, SavedWeights, Shape
from .snapshot import Snapshot
from .stream.layer import ResiDualStreamLinear
from .stream.linears import in_chosen_layers, tower_or_none, tower_targets
from .stream.placement import place_stream, prepare
from .stream.tensors import STREAM_BASIS

PREFIX = "residual_peft_"


class ResiDualModel(BaseTuner):
    """ResiDual as a PEFT tuner (arXiv 2411.00246): gains on the units of an image tower.

    `peft.get_peft_model(model, ResiDualConfig())` makes one; works with every model whose
    architecture `find_tower` knows, and in stream mode with every Linear that is named. All
    adapters of a model have the same mode.
    """

    prefix = PREFIX
    tuner_layer_cls = ResiDualLayer
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012  as PEFT's own tuners have it

    def __init__(self, model: nn.Module, *args: Any, **kwargs: Any) -> None:
        known: Any = getattr(model, "peft_config", None)
        before = dict(known or {})
        try:
            super().__init__(model, *args, **kwargs)
        except Exception:
            if isinstance(known, dict):  # PEFT has entered the refused adapter there already
                known.clear()
                known.update(before)
            elif getattr(model, "_hf_peft_config_loaded", False):  # and transformers a flag
                cast(Any, model)._hf_peft_config_loaded = False
            raise

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the base model; PEFT's classes for a task pass None for all that was not given."""
        given = {name: value for name, value in kwargs.items() if value is not None}
        return self.model(*args, **given)

    @ordinary_tensors()
    def inject_adapter(
        self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any
    ) -> None:
        """Put an adapter in; what is written back goes to a copy, never to the user's config.

        But a config that was given to `PeftModel.from_pretrained` is used itself, as PEFT promises.
        """
        if "." in adapter_name:  # torch takes no such name for a tensor
            self.peft_config.pop(adapter_name, None)
            raise ResiDualError(
                f"wanted an adapter's name without a dot, got {adapter_name!r}: call it "
                f"{adapter_name.replace('.', '_')!r}."
            )
        config = self.peft_config[adapter_name]
        if not config.inference_mode:
            self.peft_config[adapter_name] = copy.copy(config)
        before = Snapshot(self)
        try:
            super().inject_adapter(model, adapter_name, *args, **kwargs)
        except BaseException:
            before.restore()
            if adapter_name not in _adapters_of(model):
                self.peft_config.pop(adapter_name, None)
            raise
        accept_images_alone(model)

    def _prepare_adapter_config(
        self, peft_config: ResiDualConfig, model_config: dict[str, Any]
    ) -> ResiDualConfig:
        """Write down where this model computes its readout, or which Linears it adapts."""
        self._check_mode(peft_config)
        if peft_config.mode == "stream":
            if peft_config.target_modules is None:
                peft_config.target_modules = tower_targets(peft_config, self.model)
            prepare(peft_config, self.model, self._fingerprints(peft_config))
            return peft_config
        try:
            anatomy = find_tower(self.model, peft_config.side, peft_config.readout or "own")
        except ResiDualError as error:
            if peft_config.target_modules is None:
                raise
            raise ResiDualError(
                f"target_modules={peft_config.target_modules} with mode='readout', which needs an "
                f"image tower that it knows: {error} To put gains into any Linears, set "
                "mode='stream'."
            ) from None
        path, given = anatomy.projection_path, peft_config.target_modules
        if peft_config._awaits_weights:
            if given not in (None, [path]):  # another class may hold the same tower elsewhere
                Fingerprint.from_dict(peft_config.fingerprint or {}).check(anatomy, "the adapter")
        elif given not in (None, [path]):
            raise ResiDualError(
                f"target_modules={given}: readout mode adapts the readout of "
                f"{anatomy.architecture}, which is computed at {path!r}; leave it out, or set "
                "mode='stream' to put gains into those modules."
            )
        self._check_readout(anatomy)
        check_nothing_inside(peft_config, anatomy, self.model)
        peft_config.target_modules = [path]
        return peft_config

    def _check_mode(self, peft_config: ResiDualConfig) -> None:
        """Refuse a second mode: readout mode's bases are those of unchanged weights."""
        wrong = ResiDualStreamLinear if peft_config.mode == "readout" else ResiDualReadout
        for layer in self.model.modules():  # whoever put them in: the model may be wrapped twice
            if isinstance(layer, wrong) and layer.adapter_settings:
                name = next(iter(layer.adapter_settings))
                has = "stream" if wrong is ResiDualStreamLinear else "readout"
                raise ResiDualError(
                    f"wanted an adapter with mode={has!r} like {name!r}, which the model has, got "
                    f"mode={peft_config.mode!r}: one model cannot have both. Load the base model "
                    "once more for it, or delete the other adapters first."
                )

    def _check_readout(self, anatomy: TowerAnatomy) -> None:
        """Refuse a second readout of one tower: one would change what the other reads."""
        wanted = anatomy.readout.name
        for layer in readouts(self.model):
            there = layer.anatomy.readout.name
            if layer.anatomy.side == anatomy.side and there != wanted:
                raise ResiDualError(
                    f"wanted an adapter with readout={there!r} like those that the {anatomy.side} "
                    f"tower has, got readout={wanted!r}: one tower cannot have both. Load the base "
                    "model once more for it."
                )

    def _fingerprints(self, peft_config: ResiDualConfig) -> list[dict[str, Any]]:
        """Of what this tower was found to match before."""
        tower = tower_or_none(self.model)
        usual = None if tower is None else tower.side
        return [
            other.fingerprint
            for other in self.peft_config.values()
            if isinstance(other, ResiDualConfig)  # transformers' models may have LoRA as well
            and other is not peft_config
            and other.fingerprint is not None
            and (other.side or usual) == (peft_config.side or usual)
        ]

    @staticmethod
    def _check_target_module_exists(config: ResiDualConfig, key: str) -> Any:
        if config._awaits_weights:  # a saved adapter knows its modules, whatever its patterns say
            saved = config.target_modules if config.mode == "readout" else config.component_counts
            return key in (saved or [])
        # PEFT's knows what else is left out
        found: Any = check_target_module_exists(_resolved(config, key), key)
        if config.mode == "stream":
            return found if not found or in_chosen_layers(config, key) else False
        if isinstance(found, _ExcludedModule):
            return found
        return key in (config.target_modules or [])

    def _create_and_replace(
        self,
        peft_config: ResiDualConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        if peft_config.mode == "stream":
            layer = place_stream(peft_config, self.model, adapter_name, target, current_key)
            if layer is not target:
                self._replace_module(parent, target_name, layer, target)
            return
        anatomy = find_tower(self.model, peft_config.side, peft_config.readout or "own")
        trusted = self._fingerprints(peft_config)
        # may refuse, so it comes before the first change to the model
        placement = place(peft_config, anatomy, trusted)
        if not isinstance(target, ResiDualReadout):
            layer = ResiDualReadout(target, anatomy)
            self._replace_module(parent, target_name, layer, target)
            target = layer
        placement.put(target, adapter_name)

    def _post_injection_hook(
        self, model: nn.Module, config: ResiDualConfig, adapter_name: str
    ) -> None:
        config._saved_basis = None  # the layers have it

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Give the layers `adapter_names`, one adapter per sample, for one call of the model.

        Raises:
            ResiDualError: the names are no list, some have no adapter, or the model is in training
                mode.
        """
        names = kwargs.get("adapter_names")
        if names is None:
            yield
            return
        check_names(self, names, self.peft_config)
        with giving_names(self.model, names):
            yield

    @ordinary_tensors()
    def add_weighted_adapter(
        self, adapters: list[str], weights: list[float], adapter_name: str
    ) -> None:
        """Add an adapter that changes what others change, weighted and summed.

        With y' = base + (c ⊙ (λ − n)) Φ, n = 1 for `remainder="keep"` and 0 for "drop"
        (`method.md`, section 3), adapters over one basis share base, c and Φ, so that

            λ = n + Σ_i w_i (λ_i − n)   gives   y' − base = Σ_i w_i (y'_i − base)

        exactly: deviations from the identity are summed for "keep" (1 + Σ w_i (λ_i − 1)), the gains
        themselves for "drop" (Σ w_i λ_i). Weights need not add up to one; a single adapter of
        weight 1 is that adapter, of weight 0 what it leaves alone. The new one is not active.

        Args:
            adapters: names of adapters over one basis, with equal settings.
            weights: a number for each.
            adapter_name: the new adapter's name.

        Raises:
            ResiDualError: lengths that differ, unknown names, a name that is taken, different
                bases or settings, or `modules_to_save`.
        """
        check_weighted(self.peft_config, adapters, weights, adapter_name)
        layers = layers_with(self.model, "combine")
        for layer in layers:  # all are asked before the first is changed
            layer.check_one_basis(list(adapters))
        for layer in layers:
            layer.combine(list(adapters), list(weights), adapter_name)
        self.peft_config[adapter_name] = copy.deepcopy(self.peft_config[adapters[0]])

    def _replace_module(
        self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module
    ) -> None:
        """Put a module in place of another; PEFT's own wants a weight, which a pooler has not."""
        if getattr(child, "base_layer", None) is new_module:
            setattr(parent, child_name, new_module)
        elif isinstance(new_module, ResiDualReadout) and not hasattr(child, "weight"):
            setattr(parent, child_name, new_module.train(child.training))
        else:
            super()._replace_module(parent, child_name, new_module, child)

    def _check_merge_allowed(self) -> None:
        if any(True for _ in readouts(self.model)):
            raise ResiDualError(MERGE_REFUSED)
        super()._check_merge_allowed()

    def _unload_and_optionally_merge(self, merge: bool = True, *args: Any, **kwargs: Any) -> Any:
        unloaded = super()._unload_and_optionally_merge(merge, *args, **kwargs)
        restore_forward(self.model)
        return unloaded

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter; with the last one, the base model's own forward is back."""
        super().delete_adapter(adapter_name)
        restore_forward(self.model)

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: ResiDualConfig,
        adapter_name: str,
        state_dict: dict[str, Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, Tensor]:
        """Refuse to save gains without the basis that they belong to."""
        for layer in model.modules():
            if isinstance(layer, ResiDualReadout) and adapter_name in layer.adapter_settings:
                layer.state(adapter_name)
            elif isinstance(layer, ResiDualStreamLinear) and layer.has(adapter_name):
                layer.check_ready(adapter_name)
        fitted = config.needs_basis and config.basis_source == "data"
        if fitted and config.basis is None and not config.save_basis:
            raise ResiDualError(
                f"the adapter {adapter_name!r} has save_basis=False, and its basis was fitted from "
                "data: without it the gains mean nothing. Set save_basis=True, or save the basis "
                "(SpectralBasis.save_pretrained; in stream mode an adapter with save_basis=True) "
                "and make the adapter with basis=<that directory>."
            )
        return super()._get_adapter_state_dict(
            model, config, adapter_name, state_dict, unwanted_adapter_names
        )

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls,
        model: nn.Module,
        config: ResiDualConfig,
        adapter_name: str,
        state_dict: dict[str, Tensor],
    ) -> dict[str, Tensor]:
        """Check an adapter's weights before PEFT loads them: it copies whatever has a place.

        They may come from another class with the same tower, which has its readout elsewhere.
        """
        wanted, path = _wanted(model, adapter_name)
        what = f"the weights for the adapter {adapter_name!r}"
        SavedWeights.of(state_dict, what).check(wanted, path)
        if path is not None:
            prefix = PEFT_PREFIX if any(key.startswith(PEFT_PREFIX) for key in state_dict) else ""
            state_dict = at_path(state_dict, f"{prefix}{path}")
        mapped = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        for name, layer in model.named_modules():
            known = isinstance(layer, ResiDualReadout | ResiDualStreamLinear)
            if known and adapter_name in layer.adapter_settings:
                kinds = (GAINS, *BASIS, *STREAM_BASIS)
                keys = {kind: f"{name}.{kind}.{adapter_name}" for kind in kinds}
                found = {kind: mapped[key] for kind, key in keys.items() if key in mapped}
                layer.check_values(adapter_name, **found)
        config._awaits_weights = False
        return mapped


def _resolved(config: ResiDualConfig, key: str) -> ResiDualConfig:
    """A config in which the patterns say of one module what they say of it: PEFT's would hang."""
    asked = copy.copy(config)
    if isinstance(config.exclude_modules, str):
        asked.exclude_modules = [key] if fullmatch(config.exclude_modules, key) else None
    if isinstance(config.target_modules, str):
        asked.target_modules = [key] if fullmatch(config.target_modules, key) else []
    asked.layers_to_transform = asked.layers_pattern = None  # `in_chosen_layers` asks for them
    return asked


def at_path(tensors: dict[str, Tensor], path: str) -> dict[str, Tensor]:
    """Name the tensors of a readout's layer, of which an adapter has one, after where it is."""
    marked = {key: key.rpartition(f".{PREFIX}") for key in tensors}
    return {
        f"{path}{dot}{rest}" if dot else key: tensors[key] for key, (_, dot, rest) in marked.items()
    }


def _adapters_of(model: nn.Module) -> set[str]:
    layers = (m for m in model.modules() if isinstance(m, ResiDualReadout | ResiDualStreamLinear))
    return {name for layer in layers for name in layer.adapter_settings}


def _wanted(model: nn.Module, adapter_name: str) -> tuple[dict[str, Shape], str | None]:
    """Name -> shape of all that belongs to an adapter of a model, and where its readout is."""
    wanted: dict[str, Shape] = {}
    path = None
    for full, module in model.named_modules():
        name, layer = full.removeprefix(PEFT_PREFIX), cast(Any, module)
        if isinstance(module, AuxiliaryTrainingWrapper):
            for key in module.adapter_state_dict_load_map(adapter_name).values():
                wanted[f"{name}.{key}"] = tuple(layer.state_dict()[key].shape)
        if not isinstance(module, ResiDualReadout | ResiDualStreamLinear):
            continue
        if adapter_name not in layer.adapter_settings:
            continue
        readout = isinstance(module, ResiDualReadout)
        path = name if readout else path
        wanted[f"{name}.{GAINS}"] = tuple(getattr(layer, GAINS)[adapter_name].shape)
        for kind in BASIS if readout else STREAM_BASIS:
            buffers = getattr(layer, kind)
            if adapter_name not in buffers._non_persistent_buffers_set:
                wanted[f"{name}.{kind}"] = tuple(buffers[adapter_name].shape)
    return wanted, path
