"""What a `RunRecord` consists of."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from ...errors import ResiDualError
from ...towers.units import Unit


@dataclass(frozen=True)
class MethodRow:
    """What one method gave in a comparison.

    Attributes:
        name: of the method.
        title: in words.
        score: accuracy on the test images; with several labels the mean average precision.
        low: of the score's 95 % interval; None where there is none.
        high: likewise.
        left_out: the share of labels right of training images that each fit did not see; None
            where nothing could be left out.
        log_loss: of those predictions, by which methods are chosen.
        trained: how many numbers were trained.
        seconds: of the fit, choices included.
        chosen: whether this one was.
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


@dataclass(frozen=True)
class RunFacts:
    """How an adapter was made, in values that say nothing of anybody's directories.

    Attributes:
        base_model: a Hub id, the bundled model's name, or the last part of a path.
        adapter: what loads the adapter: the name of its directory.
        method: in words, such as "ResiDual, readout mode, solved from coordinates".
        trained: how many numbers were trained.
        dataset: what to call the data.
        splits: split -> its number of images.
        templates: prompts; empty when unknown.
        settings: of the adapter's config, name -> value in words.
        basis: in words, what the basis was fitted on.
        seed: of splits and order.
        encoding_seconds: of the pass over the images; None where it was not timed by itself.
        fitting_seconds: of all that came after.
        images_read: how many images that pass read.
        strength: of the ridge, chosen on the validation images.
        adapter_bytes: the size of the adapter's weights on disk.
        machine: the processor.
        cores: how many of it.
        versions: package -> its version.
        date: of the fit, such as "2026-01-31".
        train_accuracy: with the adapter, on the images that it was fitted on.
        largest_class: the accuracy on the test images of always answering the class that most
            training images have.
        skipped: images that could not be read, and were left out.
        repeated: test images that were trained on as well, and were left out of the score.
        findings: what the numbers say against the fit, a sentence each.
        title: the report's heading; made from the dataset when None.
        methods: what was compared, the chosen one among them; empty where nothing was.
    """

    base_model: str
    adapter: str
    method: str
    trained: int
    dataset: str
    splits: Mapping[str, int]
    templates: tuple[str, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    basis: str | None = None
    seed: int | None = None
    encoding_seconds: float | None = None
    fitting_seconds: float | None = None
    images_read: int | None = None
    strength: float | None = None
    adapter_bytes: int | None = None
    machine: str | None = None
    cores: int | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    date: str | None = None
    train_accuracy: float | None = None
    largest_class: float | None = None
    skipped: int | None = None
    repeated: int | None = None
    findings: tuple[str, ...] = ()
    title: str | None = None
    methods: tuple[MethodRow, ...] = ()

    def __post_init__(self) -> None:
        numbers: list[float | None] = [self.trained, self.seed, self.encoding_seconds]
        numbers += [self.fitting_seconds, self.images_read, self.strength, self.adapter_bytes]
        numbers += [self.train_accuracy, self.largest_class, self.skipped, self.repeated]
        numbers += [self.cores, *self.splits.values()]
        if bad := [n for n in numbers if n is not None and not isinstance(n, int | float)]:
            raise ResiDualError(f"wanted numbers among the facts of a fit, got {bad[0]!r}.")


@dataclass(frozen=True)
class GainRecord:
    """K gains of U units, unit after unit, and what they did to the test images.

    Attributes:
        units: the adapted units.
        counts: gains of each, K in all; 1 each where a unit has a single gain.
        gains: λ (K,).
        share: (K,), of the squared change of the logits, as `explain_adapter` divides it.
        toward_label: (K,), mean change of the label's logit.
        rescaling_share: the same for the change of the embeddings' length.
        settings_share: the same for what the adapter's settings drop; all shares add up to 1.
        eigenvalues: variance along each component in the basis (K,); None without components.
    """

    units: tuple[Unit, ...]
    counts: tuple[int, ...]
    gains: Tensor
    share: Tensor
    toward_label: Tensor
    rescaling_share: float = 0.0
    settings_share: float = 0.0
    eigenvalues: Tensor | None = None

    def __post_init__(self) -> None:
        total = sum(self.counts)
        wrong = [name for name, tensor in self.tensors().items() if tensor.shape != (total,)]
        if len(self.units) != len(self.counts) or wrong:
            raise ResiDualError(
                f"wanted {total} numbers for the gains of {len(self.units)} units, got "
                f"{len(self.counts)} counts and another size of {', '.join(wrong) or 'none'}."
            )

    def tensors(self) -> dict[str, Tensor]:
        """All that is (K,), by name."""
        names = ("gains", "share", "toward_label", "eigenvalues")
        found = {name: getattr(self, name) for name in names}
        return {name: tensor for name, tensor in found.items() if tensor is not None}


@dataclass(frozen=True)
class Example:
    """A test image that changed side, small.

    Attributes:
        row: which of the N test images.
        image: JPEG or PNG bytes of at most 160 pixels each way.
    """

    row: int
    image: bytes
