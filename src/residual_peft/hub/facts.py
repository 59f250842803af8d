"""One sheet of facts about an adapter and its fit, for cards, reports and records."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from ..errors import ResiDualError


@dataclass(frozen=True)
class MethodRow:
    """What one method gave in a comparison.

    Attributes:
        name: of the method.
        title: in words.
        score: accuracy on the test images; with several labels the mean average precision.
        low: of the score's 95 % interval; None where there is none.
        high: likewise.
        left_out: the share of labels right of training images that each fit did not see; None where
            nothing could be left out.
        log_loss: of those predictions, by which methods are chosen.
        trained: how many numbers were trained.
        seconds: of the fit, choices included.
        chosen: whether this one was.
        bytes: on disk, of what was fitted: a head or gains and what goes with them; the basis that
            coordinates are taken in aside. None where it was not noted.
        recall: mean per-class recall of the left-out images, by which methods are chosen where
            every class counts alike; None where it does not.
        test_recall: the same of the test images.
    """

    name: str
    title: str
    score: float
    low: float | None
    high: float | None
    left_out: float | None
    log_loss: float | None
    trained: int
    seconds: float
    chosen: bool = False
    bytes: int | None = None
    recall: float | None = None
    test_recall: float | None = None


@dataclass(frozen=True, kw_only=True)
class FitNumbers:
    """What a fit took and came to: what its report and its sheet of facts both say.

    Attributes:
        splits: split -> how many of its images were used.
        learned: images that it was fitted on, of the training and maybe the validation split; None
            in what was written before it was kept.
        encoding_seconds: of the pass over the training and validation images, for the Trainer's way
            over those that fit the bases; None where it was not timed by itself.
        fitting_seconds: of all that came after.
        strength: of the ridge of gains, chosen on left-out images; None without one.
        largest_class: what the first of the metrics is by chance (`OneLabel.chance`).
        repeated: test images that were trained on as well, and were left out of the score.
        findings: what the numbers say against the fit, a sentence each.
        methods: what was compared, the chosen one among them; empty where nothing was.
    """

    splits: Mapping[str, int] = field(default_factory=dict)
    learned: int | None = None
    encoding_seconds: float | None = None
    fitting_seconds: float | None = None
    strength: float | None = None
    largest_class: float | None = None
    repeated: int | None = None
    findings: tuple[str, ...] = ()
    methods: tuple[MethodRow, ...] = ()

    def numbers(self) -> dict[str, Any]:
        """These alone, by name."""
        return {part.name: getattr(self, part.name) for part in fields(FitNumbers)}


@dataclass(frozen=True)
class Facts(FitNumbers):
    """What there is to say of an adapter, in values that say nothing of anybody's directories.

    All of it may be left out. What an adapter, its classes and the machine know by themselves is
    filled in where these are at hand. Numbers of the fit are `FitNumbers`.

    Attributes:
        title: the heading of a card or report; made from the dataset when None.
        dataset: what the metrics were measured on; no path.
        dataset_id: its id on the Hub, where it has one.
        split: which part of it.
        metrics: name -> value of the adapted model; "accuracy" and others.
        metrics_before: the same of the model without the adapter.
        test_images: how many images they were measured on; those of `splits` when None.
        training_data: what the gains were fitted on, in words; the images of `splits` when None.
        basis_data: what the basis was fitted on, in words; says it better than `basis`.
        seed: of splits and order.
        license: of the adapter, an identifier of the Hub such as "apache-2.0".
        table: a table in Markdown to show instead of the metrics.
        method: how it was fitted, in words.
        images_read: how many images the timed pass read.
        train_accuracy: with the adapter, on the images that it was fitted on; of several labels per
            image the mean average precision.
        skipped: images that could not be read, and were left out.
        adapter: what loads it: the name of its directory, or a Hub id.
        base_model: a Hub id, the bundled model's name, or the last part of a path.
        base_class: the base model's class.
        class_names: the classes.
        templates: prompts; empty when unknown.
        multi_label: whether an image may have several labels.
        logit_bias: of the classes' sigmoids.
        own_thresholds: whether the classes of a head count from thresholds of their own.
        peft_type: the adapter's; None without an adapter.
        gains: how many it has, for an adapter of ours.
        moved: whether any of them is not 1; a class head leaves them there.
        head: what its class head reads, in words; None without one.
        trained: how many numbers were trained.
        effect: what each gain scales, in words.
        settings: of the adapter's config, name -> value in words.
        basis: what the basis was fitted on, as the adapter's config has it.
        figure: the picture of the gains, relative to the card.
        adapter_bytes: what adapter and classes, with a head that there is, take on disk.
        machine: the processor.
        cores: how many of it.
        versions: package -> its version.
        date: of the fit, such as "2026-01-31".
    """

    title: str | None = None
    dataset: str | None = None
    dataset_id: str | None = None
    split: str = "test"
    metrics: Mapping[str, float] = field(default_factory=dict)
    metrics_before: Mapping[str, float] = field(default_factory=dict)
    test_images: int | None = None
    training_data: str | None = None
    basis_data: str | None = None
    seed: int | None = None
    license: str | None = None
    table: str | None = None

    method: str | None = None
    images_read: int | None = None
    train_accuracy: float | None = None
    skipped: int | None = None

    adapter: str | None = None
    base_model: str | None = None
    base_class: str | None = None
    class_names: Sequence[str] = ()
    templates: Sequence[str] = ()
    multi_label: bool = False
    logit_bias: float = 0.0
    own_thresholds: bool = False
    peft_type: str | None = None
    gains: int | None = None
    moved: bool = True
    head: str | None = None
    trained: int | None = None
    effect: str | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    basis: str | None = None
    figure: str | None = None
    adapter_bytes: int | None = None

    machine: str | None = None
    cores: int | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    date: str | None = None

    def __post_init__(self) -> None:
        if self.metrics and not self.data_name:
            raise ResiDualError(
                "wanted the dataset beside the metrics of a card, got none; name it with dataset="
                " or dataset_id=."
            )
        numeric = [f.name for f in fields(self) if f.type in (int | None, float | None)]
        numbers = [getattr(self, name) for name in numeric] + list(self.splits.values())
        if bad := [n for n in numbers if n is not None and not isinstance(n, int | float)]:
            raise ResiDualError(f"wanted numbers among the facts of a fit, got {bad[0]!r}.")

    @property
    def data_name(self) -> str | None:
        """What to call the data."""
        return self.dataset or self.dataset_id

    @property
    def model_name(self) -> str | None:
        """What to call the base model."""
        return self.base_model or self.base_class

    def stored(self) -> dict[str, Any]:
        """What a record keeps: all but what lies beside it."""
        return {k: v for k, v in asdict(self).items() if k not in ("class_names", "table")}
