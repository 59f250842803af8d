"""What a registry is made of: models, data sets, protocols and published figures, as data."""

from collections.abc import Container
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from ...classifiers.prompts import DEFAULT_TEMPLATES
from ...data.class_names import check_class_names, check_templates
from ...data.defaults import SHARE
from ...errors import ResiDualError, check_names
from ...hub.files import Within
from .corruptions import CORRUPTIONS
from .methods import METHODS

Share = Annotated[float, Within(0, 0.9)]
Percent = Annotated[float, Within(0, 100)]
Severity = Annotated[int, Within(1, 5)]
Seeds = Annotated[tuple[Annotated[int, Within(0, 2**31)], ...], Within(1, 1000)]


@dataclass(frozen=True)
class ModelEntry:
    """A model."""

    source: str  # a Hub id, a directory, or the bundled model's name
    revision: str | None = None  # branch, tag or commit on the Hub
    # K of its heads and MLPs, for the plan; counted where the model is at hand
    coordinates: Annotated[int, Within(1, 10**9)] | None = None
    width: Annotated[int, Within(1, 10**6)] | None = None  # d of its readout, likewise
    note: str = ""  # where these facts come from, for whoever reads the file


@dataclass(frozen=True)
class DataEntry:
    """A data set with one label per image."""

    source: str  # what `load_data` takes by name: a Hub id, a folder, a table, an archive
    revision: str | None = None  # branch, tag or commit on the Hub
    config: str | None = None  # of a Hub data set that has several
    image_column: str | None = None  # found when None
    label_column: str | None = None  # found when None
    # "train", "validation", "test" -> which of the source's to use; found when None
    splits: dict[str, str] | None = None
    resplit: bool = False  # put all images together and cut them anew
    # share of the training images to hold out where there is no such split
    validation: Share = SHARE
    test: Share = SHARE  # likewise
    seed: int = 42  # of the splits that are cut
    # in the order of the labels; the data's own when None
    class_names: tuple[str, ...] | None = None
    templates: tuple[str, ...] = DEFAULT_TEMPLATES  # prompts
    # how many, for the plan; counted where the data are at hand
    classes: Annotated[int, Within(2, 10**6)] | None = None
    images: dict[str, Annotated[int, Within(1, 2**40)]] | None = None  # split -> how many, likewise
    # other data sets of the registry with the same classes, or some of them, whose test images a
    # classifier that was fitted here is asked for, too
    shifted: tuple[str, ...] = ()
    # a column; the images of one class and one value of it are a group, such as birds of the water
    # on land. A row says how the worst group fares
    subgroups: str | None = None
    # in the order of that column's numbers, where these have no names
    subgroup_names: tuple[str, ...] | None = None
    note: str = ""  # where these facts come from, for whoever reads the file

    def __post_init__(self) -> None:
        check_templates(self.templates)
        for names in (self.class_names, self.subgroup_names):
            if names is not None:
                check_class_names(names)
        if self.subgroup_names is not None and self.subgroups is None:
            raise ResiDualError("wanted a column in subgroups that subgroup_names name, got none")


@dataclass(frozen=True)
class Protocol:
    """Which training images a method gets, and what it is asked."""

    # "full": all of them; "shots": so many of each class, drawn anew with each seed;
    # "base-to-novel": so many of each class of a random half of the classes, and the other half is
    # asked for, too. What a method chooses, it chooses on training images that it leaves out,
    # unless there are validation_shots
    kind: Literal["full", "shots", "base-to-novel"]
    # images of each class; with "base-to-novel" all when None
    shots: Annotated[int, Within(1, 10**6)] | None = None
    # so many other images of each class, by which methods that train by steps choose rate and
    # epochs, and which nothing is fitted on; those that leave out exactly, or by folds, do so
    # either way
    validation_shots: Annotated[int, Within(1, 10**6)] | None = None
    seeds: Seeds = (0,)  # of the draws
    # methods that are left out, such as those that compare all images with all
    without: tuple[str, ...] = ()
    basis: str | None = None  # what the bases are of in this protocol; the registry's when None
    # names of `corruptions.CORRUPTIONS`; what was fitted on images as they are is asked for
    # corrupted test images, too
    corruptions: tuple[str, ...] = ()
    severities: tuple[Severity, ...] = (1, 3, 5)  # how strongly, 1 to 5

    def __post_init__(self) -> None:
        check_names(self.without, METHODS, "a method")
        check_names(self.corruptions, CORRUPTIONS, "a corruption")
        if (self.kind == "shots" and not self.shots) or (self.kind == "full" and self.shots):
            raise ResiDualError(
                f"wanted shots with the kind 'shots', and none with 'full', got {self.kind!r} "
                f"with shots={self.shots}"
            )
        if self.validation_shots and not self.shots:
            raise ResiDualError(
                "wanted validation_shots beside shots: of a protocol without, all images are "
                "trained on"
            )
        if self.corruptions and self.kind == "base-to-novel":
            raise ResiDualError(
                "wanted corruptions with the kind 'full' or 'shots', got 'base-to-novel', which "
                "asks for half of the classes at a time"
            )
        for values in (self.seeds, self.severities, self.corruptions):
            if len(set(values)) < len(values):
                what = "seed, severity and corruption"
                raise ResiDualError(f"wanted each {what} once, got {list(values)}")


@dataclass(frozen=True)
class Published:
    """Accuracies that others have published: shown beside ours, compared with them by no test."""

    model: str  # of the registry
    source: str  # where the figures stand
    # protocol -> data set -> percent
    accuracy: dict[str, dict[str, Percent]] = field(default_factory=dict)
    # protocol -> the published mean over data sets in percent
    average: dict[str, Percent] = field(default_factory=dict)
    note: str = ""  # how their setting differs from the protocols'

    def __post_init__(self) -> None:
        if not any(self.accuracy.values()) and not self.average:
            raise ResiDualError("wanted a published accuracy or average, got neither")

    @property
    def protocols(self) -> tuple[str, ...]:
        """What there are figures of."""
        return tuple(dict.fromkeys((*self.accuracy, *self.average)))

    def of(
        self, protocols: Container[str], tasks: Container[str], whole: bool
    ) -> "Published | None":
        """The figures of some protocols and tasks; None where there are none.

        A mean over all tasks is theirs where these are the `whole` of them.
        """
        accuracy = {
            protocol: {name: value for name, value in row.items() if name in tasks}
            for protocol, row in self.accuracy.items()
            if protocol in protocols
        }
        accuracy = {protocol: row for protocol, row in accuracy.items() if row}
        means = self.average.items() if whole else ()
        average = {name: value for name, value in means if name in protocols}
        return replace(self, accuracy=accuracy, average=average) if accuracy or average else None
