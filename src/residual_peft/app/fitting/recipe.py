"""All that a fit is asked for, in one value: checked by name, and written so that it repeats."""

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ...classifiers.backbones import Backbone, device_of, load_backbone
from ...data import ImageData, load_data
from ...errors import check_names, printable
from ...hub.files import path_of
from ...solvers.choice import AUTO, check_methods
from ...towers.registry import find_tower
from ...tuner import ResiDualConfig
from .task import check_statistics, check_way

OWN_OPTIONS = ("units", "components", "basis", "readout")
"""Settings of an adapter's config that the command line has options of their own for."""
_LISTS = ("template", "set")
_PLACES = ("basis", "validation", "test", "words")


@dataclass(frozen=True)
class Recipe:
    """What a fit is asked for beside its data and its model.

    Attributes:
        templates: prompts with `{}`; the default ones when None.
        config: the adapter's, or some of its settings by name; the default when None, with as many
            components as a head has dimensions under an attention pooling.
        method: a name of `METHODS`; "auto" tries all of them, and takes the one that does best on
            training images it did not see (never on test images).
        balanced: every class counts alike, however few its images.
        trainer: fit gains with the HF Trainer instead, forward and backward for every batch and
            epoch, on the normalized loss.
        keep_statistics: keep the sums of a ridge head's images in `run/statistics.safetensors`, so
            that `ZeroShotClassifier.update` can add images to it, or take some out, without the
            others. They are data: class means and a covariance (`KeptStatistics` says what that
            reveals, and how much it takes: 1 GB for 15,504 coordinates), and are never pushed. The
            ridge is then fitted to labels alone, not to what the texts leave of them, which costs
            up to some points where the texts are good and images few.
            "per class" keeps the covariance of each class, too, so that one can be removed without
            its images.
        image_column: of the data, found when None.
        label_column: likewise.
        group_column: images of one value of it, such as one patient's, stay in one split and are
            left out together.
        few: so many images of each class are learned from, drawn at random, and the others are test
            images, where the data have none of their own; there are no validation images then.
        validation: share of the training images to validate on where the data have no such split, 0
            for none; or data of their own, as `data`. Both are learned from: methods are compared
            on images left out by turns.
        test: the same for the images to test on.
        seed: of the splits; with `trainer` of the order of the images, too.
        license: of the adapter, for its card.
        words: texts to describe the strongest components with, a file or a list; as for
            `dictionary_for` when None, nothing is described when empty.
        max_bad: the share of the images that may be unreadable; three always may. They are left
            out, named in the report and listed in `skipped.csv` beside the adapter.
        strict: an unreadable image is an error.
        batch_size: images per forward pass.
        num_workers: processes that decode images; None for as many as suit the machine.
        device: where the model reads the images, such as "cuda"; what is fitted of them is on the
            CPU, where all of it is when None.
        dtype: what it computes in: "float32", which None stands for, "bfloat16" or "float16".
    """

    templates: Sequence[str] | None = None
    config: ResiDualConfig | Mapping[str, Any] | None = None
    method: str = AUTO
    balanced: bool = False
    trainer: bool = False
    keep_statistics: bool | str = False
    image_column: str | None = None
    label_column: str | None = None
    group_column: str | None = None
    few: int | None = None
    validation: Any = 0.1
    test: Any = 0.1
    seed: int = 0
    license: str | None = None
    words: str | os.PathLike[str] | Iterable[str] | None = None
    max_bad: float = 0.05
    strict: bool = False
    batch_size: int = 64
    num_workers: int | None = None
    device: str | None = None
    dtype: str | None = None

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> "Recipe":
        """The recipe of some options, before any work.

        Raises:
            ResiDualError: an option or a setting that there is not, one that does not suit another.
        """
        check_names(options, [field.name for field in dataclasses.fields(cls)], "an option of fit")
        recipe = cls(**options)
        config = recipe.asked
        check_way(config, recipe.trainer)
        check_methods([] if recipe.method == AUTO else [recipe.method])
        device_of(recipe.device)
        check_statistics(recipe.keep_statistics, recipe.method, recipe.trainer)
        return recipe

    @property
    def asked(self) -> ResiDualConfig | None:
        """The adapter's config as far as it was asked for."""
        if self.config is None or isinstance(self.config, ResiDualConfig):
            return self.config
        known = [field.name for field in dataclasses.fields(ResiDualConfig)]
        check_names(self.config, known, "a setting of the adapter's config")
        return ResiDualConfig(**self._given(self.config))

    def _given(self, config: Mapping[str, Any] | None) -> dict[str, Any]:
        """Settings; whole units have no means to restore where no basis has them."""
        found = {"seed": self.seed, **(config or {})}
        if found.get("granularity") == "unit" and found.get("basis") is None:
            found.setdefault("restore_mean", False)
        return found

    def settled(self, backbone: Backbone) -> ResiDualConfig:
        """The adapter's config, for a model.

        Under an attention pooling a unit has as many directions as the readout is wide, of which
        the default keeps as many as a head has dimensions.
        """
        if isinstance(self.config, ResiDualConfig):
            return self.config
        tower, given = find_tower(backbone.model), self._given(self.config)
        if tower.pools > 1 and not {"readout", "granularity"} & set(given):
            given.setdefault("components", tower.head_dim)
        return ResiDualConfig(**given)

    def images(self, data: Any) -> ImageData:
        """The images of some data, shared out."""
        return load_data(
            data,
            image_column=self.image_column,
            label_column=self.label_column,
            group_column=self.group_column,
            few=self.few,
            validation=self.validation,
            test=self.test,
            seed=self.seed,
            max_bad=self.max_bad,
            strict=self.strict,
            progress=True,
        )

    def backbone(self, model: str | Backbone) -> Backbone:
        """The model, loaded where it is a name."""
        if isinstance(model, Backbone):
            return model
        return load_backbone(model, dtype=self.dtype)

    def as_file(self, data: Any, model: str | Backbone) -> str:
        """YAML that `residual-peft fit --config` repeats the fit from.

        The names are those of the command line's options, and paths are absolute. What came from
        Python and has no name, such as a DataFrame, is named in a comment.
        """
        found: dict[str, Any] = {"data": _place(data)}
        found["model"] = _place(model.name if isinstance(model, Backbone) else model)
        for field in dataclasses.fields(self):
            found[field.name] = getattr(self, field.name)
        found["template"] = None if found["templates"] is None else list(found.pop("templates"))
        found.pop("templates", None)
        found |= _settings(found.pop("config"), self.seed)
        found |= {name: _place(found[name]) for name in _PLACES if name in found}
        plain = (str, int, float)
        known = {n: v for n, v in found.items() if isinstance(v, plain) or (n in _LISTS and v)}
        lines = ["# residual-peft fit --config run.yaml --out OUT"]
        lines += [
            f"# {name} came from Python and is not here: {printable(type(value).__name__)}"
            for name, value in found.items()
            if value is not None and name not in known
        ]
        text = yaml.safe_dump(known, sort_keys=False, allow_unicode=True)
        return "\n".join([*lines, text])


def _settings(config: ResiDualConfig | Mapping[str, Any] | None, seed: int) -> dict[str, Any]:
    """What a config asks for beyond the default, as the command line names it."""
    if config is None:
        return {}
    if isinstance(config, ResiDualConfig):
        default = vars(ResiDualConfig(seed=seed))
        asked = vars(config.fresh())
        config = {n: v for n, v in asked.items() if n[0] != "_" and v != default[n]}
    own = {name: config[name] for name in OWN_OPTIONS if config.get(name) is not None}
    if "units" in own and not isinstance(own["units"], str):
        own["units"] = ",".join(own["units"])
    rest = [
        f"{name}={yaml.safe_dump(_listed(value), default_flow_style=True).partition(chr(10))[0]}"
        for name, value in config.items()
        if name not in own and value is not None
    ]
    return own | ({"set": rest} if rest else {})


def _listed(value: Any) -> Any:
    return sorted(value) if isinstance(value, set | frozenset) else value


def _place(value: Any) -> Any:
    """A path that is there as an absolute one; anything else as it is."""
    if not isinstance(value, str | os.PathLike):
        return value
    path = path_of(value)
    return str(path.absolute()) if Path(path).exists() else str(value)
