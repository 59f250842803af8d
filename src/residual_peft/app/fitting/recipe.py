"""All that a fit is asked for, in one value: checked by name, and written so that it repeats."""

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import numpy as np
import yaml
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import nn

from ...classifiers.backbones import Backbone, device_of, dtype_of, load_backbone
from ...classifiers.heads.conformal import By
from ...data import ImageData, load_data
from ...data.checking import check_skipped
from ...data.defaults import SHARE
from ...data.provenance import Seed
from ...errors import ResiDualError, check_names, printable
from ...hub.files import Within, path_of, record_of
from ...solvers.choice import AUTO, check_methods
from ...towers.registry import find_tower
from ...tuner import ResiDualConfig
from .checks import PER_CLASS, check_kept, check_way

OWN_OPTIONS = ("units", "components", "basis", "readout")
"""Settings of an adapter's config that the command line has options of their own for."""
_LISTS = ("template", "set")
_PLACES = ("basis", "validation", "test", "words")
_CUTTING = ("group_column", "few", "validation", "test")
_FREE = ("templates", "config", "words", "keep_statistics", "device")
_SHARE = Annotated[float, Within(0, 1)]
_COUNT = Annotated[int, Within(1, 2**31 - 1)]


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
        sets: what sets of classes (`predict(..., coverage=0.9)`) come from. "jackknife" takes what
            fits without them say of training images, and costs nothing. "held-out" learns nothing
            from validation images and calibrates by them instead (by those that are no copies of
            training images), whatever is fitted: the only one with a guarantee, where there is no
            `group_column` (images of one group are alike, so of new groups nothing is promised).
            "jackknife+" keeps what a ridge reads of every image in `run/jackknife.safetensors`:
            N × K numbers of 4 bytes, data, never pushed.
        image_column: of the data, found when None.
        label_column: likewise.
        group_column: images of one value of it, such as one patient's, stay in one split and are
            left out together; as `load_data` has it.
        few: so many images of each class are learned from, drawn at random, and the others are test
            images, where the data have none of their own; there are no validation images then but
            data named by `validation`.
        validation: share of the training images to validate on where the data have no such split, 0
            for none; or data of their own, as `data`. Both are learned from, but for `sets` by
            held-out images: methods are compared on images left out by turns.
        test: the same for the images to test on.
        seed: of the splits that are cut (an `ImageData` has been); with `trainer` of the order of
            the images, too.
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
        dtype: what it computes in: "float32", which None stands for, "bfloat16" or "float16"; a
            `Backbone` has its own.
    """

    templates: Sequence[str] | None = None
    config: ResiDualConfig | Mapping[str, Any] | None = None
    method: str = AUTO
    balanced: bool = False
    trainer: bool = False
    keep_statistics: bool | str = False
    sets: By = "jackknife"
    image_column: str | None = None
    label_column: str | None = None
    group_column: str | None = None
    few: _COUNT | None = None
    validation: Any = SHARE
    test: Any = SHARE
    seed: Seed = 0
    license: str | None = None
    words: str | os.PathLike[str] | Iterable[str] | None = None
    max_bad: _SHARE = 0.05
    strict: bool = False
    batch_size: _COUNT = 64
    num_workers: Annotated[int, Within(0, 2**15)] | None = None
    device: str | None = None
    dtype: str | None = None

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> "Recipe":
        """The recipe of some options, before any work.

        Raises:
            ResiDualError: an option or a setting that there is not, one of another kind or out of
                bounds, one that does not suit another.
        """
        check_names(options, [field.name for field in dataclasses.fields(cls)], "an option of fit")
        recipe = cls(**{name: _checked(name, value) for name, value in options.items()})
        check_way(recipe.settled(), recipe.trainer, recipe.method, recipe.balanced)
        check_methods([] if recipe.method == AUTO else [recipe.method])
        device_of(recipe.device)
        dtype_of(recipe.dtype)
        check_kept(recipe.keep_statistics, recipe.sets, recipe.method, recipe.trainer)
        return recipe

    def settled(self, backbone: Backbone | None = None) -> ResiDualConfig:
        """The adapter's config, for a model; as far as it was asked for without one.

        Whole units have no means to restore where no basis has them. Under an attention pooling a
        unit has as many directions as the readout is wide, of which the default keeps as many as a
        head has dimensions.
        """
        if isinstance(self.config, ResiDualConfig):
            return self.config
        known = [field.name for field in dataclasses.fields(ResiDualConfig)]
        check_names(self.config or (), known, "a setting of the adapter's config")
        given = {"seed": self.seed, **(self.config or {})}
        if given.get("granularity") == "unit" and given.get("basis") is None:
            given.setdefault("restore_mean", False)
        if backbone is not None and not {"readout", "granularity"} & set(given):
            tower = find_tower(backbone.model)
            if tower.pools > 1:
                given.setdefault("components", tower.head_dim)
        return ResiDualConfig(**given)

    def images(self, data: Any) -> ImageData:
        """The images of some data, shared out.

        Raises:
            ResiDualError: as `load_data`; an `ImageData` that was cut in another way than asked.
        """
        return load_data(
            data,
            image_column=self.image_column,
            label_column=self.label_column,
            group_column=self.group_column,
            few=self.few,
            validation=self.validation,
            test=self.test,
            seed=data.split.seed if isinstance(data, ImageData) else self.seed,
            max_bad=self.max_bad,
            strict=self.strict,
            progress=True,
        )

    def check_skipped(self, images: ImageData, total: int) -> None:
        """Raise a ResiDualError where more images of the total cannot be read than may be."""
        check_skipped(images.skipped, self.max_bad, total, images.source, self.strict)

    @property
    def reading(self) -> dict[str, Any]:
        """For `batches` and `write_coordinates`."""
        return {"batch_size": self.batch_size, "num_workers": self.num_workers}

    def check_model(self, model: str | Backbone) -> None:
        """Refuse a model that is loaded and computes in another dtype, or holds what is not saved.

        Raises:
            ResiDualError: the dtype is another, or an adapter is in it.
        """
        if not isinstance(model, Backbone):
            return
        _check_bare(model.model)
        if self.dtype is None:
            return
        own = str(next(model.model.parameters()).dtype).removeprefix("torch.")
        if own != self.dtype:
            raise ResiDualError(
                f"wanted the model in {self.dtype}, got a Backbone, which is in {own}: load it "
                f"with load_backbone(..., dtype='{self.dtype}'), or leave dtype out."
            )

    def backbone(self, model: str | Backbone) -> Backbone:
        """The model, loaded where it is a name; one that is given stays without an adapter."""
        if isinstance(model, Backbone):
            return model.again()
        return load_backbone(model, dtype=self.dtype)

    def as_file(self, data: Any, model: str | Backbone) -> str:
        """YAML that `residual-peft fit --config` repeats the fit from.

        The names are those of the command line's options, and paths are absolute. What came from
        Python and has no name, such as a DataFrame, is named in a comment; of an `ImageData`, how
        it was cut.
        """
        found: dict[str, Any] = {"data": _place(data)}
        found["model"] = _place(model.name if isinstance(model, Backbone) else model)
        found |= vars(self)
        found["template"] = None if found["templates"] is None else list(found.pop("templates"))
        found.pop("templates", None)
        if found["keep_statistics"] == PER_CLASS:
            found |= {"keep_statistics": True, "keep_statistics_per_class": True}
        found |= _settings(found.pop("config"), self.seed)
        found |= {name: _place(found[name]) for name in _PLACES if name in found}
        if isinstance(data, ImageData):
            found = {name: value for name, value in found.items() if name not in _CUTTING}
        plain = (str, int, float)
        known = {n: v for n, v in found.items() if isinstance(v, plain) or (n in _LISTS and v)}
        lines = ["# residual-peft fit --config run.yaml --out OUT"]
        lines += [
            f"# {name} came from Python and is not here: {printable(type(value).__name__)}"
            for name, value in found.items()
            if value is not None and name not in known
        ]
        if isinstance(data, ImageData):
            how = {n: getattr(data.split, n) for n in ("shares", "seed", "few", "group_column")}
            lines.append(f"# the data were cut with {printable(how)}")
        text = yaml.safe_dump(known, sort_keys=False, allow_unicode=True)
        return "\n".join([*lines, text])


def _check_bare(model: nn.Module) -> None:
    """Refuse a model with an adapter, which the fit would not save."""
    for name, module in model.named_modules():
        if not isinstance(module, BaseTuner | BaseTunerLayer):
            continue
        if type(module).__module__.startswith("residual_peft."):
            raise ResiDualError(
                "wanted a model without an adapter, as a fit makes its own, got one of ours at "
                f"'{name}': load the model afresh, or take it out (unload())."
            )
        raise ResiDualError(
            "wanted a model without another method's adapter, got a layer of "
            f"{type(module).__module__.split('.')[-2]} at '{name}', which the fit would not "
            "save: merge it (merge_and_unload()), save that model, and fit to it."
        )


def _checked(name: str, value: Any) -> Any:
    """An option whose kind can be told at once, of that kind; numpy's numbers as Python's.

    Raises:
        ResiDualError: it is of another, or out of bounds.
    """
    value = value.item() if isinstance(value, np.generic) else value
    hint = get_type_hints(Recipe, include_extras=True)[name]
    if name in ("validation", "test"):
        if not isinstance(value, bool | int | float):
            return value
        hint = _SHARE
    elif name in _FREE:
        return value
    return record_of(value, hint, f"the option {name}", advice="Leave it out for the default.")


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
    rest = []
    for name, value in config.items():
        if name not in own and value is not None:
            plain = sorted(value) if isinstance(value, set | frozenset) else value
            text, *_ = yaml.safe_dump(plain, default_flow_style=True).splitlines()
            rest.append(f"{name}={text}")
    return own | ({"set": rest} if rest else {})


def _place(value: Any) -> Any:
    """A path that is there as an absolute one; anything else as it is."""
    if not isinstance(value, str | os.PathLike):
        return value
    path = path_of(value)
    return str(path.absolute()) if Path(path).exists() else str(value)
