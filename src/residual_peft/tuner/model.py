"""`ResiDualModel`: the tuner that PEFT drives, and the checks that PEFT leaves out."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from peft.tuners.tuners_utils import BaseTuner, check_target_module_exists
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn

from ..errors import ResiDualError
from .config import ResiDualConfig
from .gains import GAINS, PREFIX
from .images_only import accept_images_alone, restore_forward
from .layer import AdapterLayer, adapter_layers
from .loading import check_fits, unchanged_if_refused
from .mixing import add_weighted, check_name, check_names, check_weighted, giving_names
from .modes import mode_of
from .patterns import fullmatch
from .places import config_to_come, wanted_of
from .saved import PEFT_PREFIX, SavedWeights
from .state import ordinary_tensors
from .stream.linears import tower_or_none


class ResiDualModel(BaseTuner):
    """ResiDual as a PEFT tuner (arXiv 2411.00246): gains on the units of an image tower.

    `peft.get_peft_model(model, ResiDualConfig())` makes one; works with every model whose
    architecture `find_tower` knows, and in stream mode with every Linear that is named. All
    adapters of a model have the same mode.
    """

    prefix = PREFIX
    tuner_layer_cls = AdapterLayer
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
        try:
            check_name(adapter_name)
            config = self.peft_config[adapter_name]
            if not config.inference_mode:
                self.peft_config[adapter_name] = copy.copy(config)
            with unchanged_if_refused(self):
                super().inject_adapter(model, adapter_name, *args, **kwargs)
        except BaseException:
            if next(adapter_layers(model, adapter_name), None) is None:
                self.peft_config.pop(adapter_name, None)
            raise
        accept_images_alone(model)

    def _prepare_adapter_config(
        self, peft_config: ResiDualConfig, model_config: dict[str, Any]
    ) -> ResiDualConfig:
        """Write down where this model computes its readout, or which Linears it adapts.

        A second mode is refused: readout mode's bases are those of unchanged weights.
        """
        for layer in adapter_layers(self.model):  # the model may be wrapped twice
            if layer.mode != peft_config.mode and layer.adapter_settings:
                name = next(iter(layer.adapter_settings))
                raise ResiDualError(
                    f"wanted an adapter with mode={layer.mode!r} like {name!r}, which the model "
                    f"has, got mode={peft_config.mode!r}: one model cannot have both. Load the "
                    "base model once more for it, or delete the other adapters first."
                )
        mode_of(peft_config).prepare(peft_config, self.model, self._fingerprints(peft_config))
        return peft_config

    def _fingerprints(self, peft_config: ResiDualConfig) -> list[dict[str, Any]]:
        """Of what this tower was found to match before."""
        tower = tower_or_none(self.model)
        usual = None if tower is None else tower.side
        return [
            other.fitted.fingerprint
            for other in self.peft_config.values()
            if isinstance(other, ResiDualConfig)  # transformers' models may have LoRA as well
            and other is not peft_config
            and other.fitted.fingerprint is not None
            and (other.side or usual) == (peft_config.side or usual)
        ]

    @staticmethod
    def _check_target_module_exists(config: ResiDualConfig, key: str) -> Any:
        if config._awaits_weights:  # a saved adapter knows its modules, whatever its patterns say
            return key in (config.target_modules or ())
        # PEFT's knows what else is left out
        found = check_target_module_exists(_resolved(config, key), key)
        return mode_of(config).adapts(config, key, found)

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
        mode = mode_of(peft_config)
        layer = mode.place(peft_config, self.model, adapter_name, target, current_key)
        if layer is not target:
            self._replace_module(parent, target_name, layer, target)

    def _post_injection_hook(
        self, model: nn.Module, config: ResiDualConfig, adapter_name: str
    ) -> None:
        config._saved_basis = None  # the layers have it

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """Keep gains in float32 or better; without PEFT's autocast, as precise as their layer."""
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        for layer in () if autocast_adapter_dtype else adapter_layers(self.model, adapter_name):
            gains = layer.residual_peft_gains[adapter_name]
            gains.data = gains.data.to(layer.reference.dtype)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Give the layers `adapter_names`, one adapter per sample, for one call of the model."""
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
        add_weighted(list(adapter_layers(self.model)), adapters, weights, adapter_name)
        self.peft_config[adapter_name] = copy.deepcopy(self.peft_config[adapters[0]])

    def _replace_module(
        self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module
    ) -> None:
        """Put a module in place of another; PEFT's own wants a weight, which a pooler has not."""
        saved = isinstance(child, ModulesToSaveWrapper)  # which may have none either
        if saved or getattr(child, "base_layer", None) is new_module:
            setattr(parent, child_name, new_module)
        elif isinstance(new_module, AdapterLayer) and not hasattr(child, "weight"):
            setattr(parent, child_name, new_module.train(child.training))
        else:
            super()._replace_module(parent, child_name, new_module, child)

    def _check_merge_allowed(self) -> None:
        for layer in adapter_layers(self.model):
            layer.check_merge_allowed()
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
        cls, model: nn.Module, config: ResiDualConfig, adapter_name: str, *args: Any, **kwargs: Any
    ) -> dict[str, Tensor]:
        """Refuse to save gains without the basis that they belong to."""
        for layer in adapter_layers(model, adapter_name):
            layer.state(adapter_name)
        fitted = config.needs_basis and config.fitted.from_data
        if fitted and config.basis is None and not config.save_basis:
            raise ResiDualError(
                f"the adapter {adapter_name!r} has save_basis=False, and its basis was fitted from "
                "data: without it the gains mean nothing. Set save_basis=True, or save the basis "
                "(SpectralBasis.save_pretrained; in stream mode an adapter with save_basis=True) "
                "and make the adapter with basis=<that directory>."
            )
        return super()._get_adapter_state_dict(model, config, adapter_name, *args, **kwargs)

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
        wanted, path = wanted_of(model, adapter_name)
        what = f"the weights for the adapter {adapter_name!r}"
        weights = SavedWeights.of(state_dict, what)
        weights.check(wanted, path)
        # over an adapter that is there, PEFT loads the tensors and leaves its config as it was
        come = None if config._awaits_weights else config_to_come()
        if come is not None:
            check_fits(config, come, adapter_name)
        if path is not None:
            prefix = PEFT_PREFIX if any(key.startswith(PEFT_PREFIX) for key in state_dict) else ""
            state_dict = {f"{prefix}{name}": part for name, part in weights.values(path).items()}
        mapped = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        for name, layer in model.named_modules():
            if isinstance(layer, AdapterLayer) and layer.has(adapter_name):
                kinds = (GAINS, *layer.kinds)
                keys = {kind: f"{name}.{kind}.{adapter_name}" for kind in kinds}
                found = {kind: mapped[key] for kind, key in keys.items() if key in mapped}
                layer.check_values(adapter_name, **found)
        config._awaits_weights = False
        if come is not None:
            config.fitted, config.basis = come.fitted, come.basis
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
