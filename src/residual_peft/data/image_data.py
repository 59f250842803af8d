"""Labelled images, split: what `load_data` gives and everything else takes."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from datasets import Dataset, DatasetDict, concatenate_datasets

from ..errors import ResiDualError, short, some
from .checking import title_of
from .defaults import SHARE
from .folders import SPLIT_NAMES
from .groups import split_by_content
from .labels import Labelling, labelling_of
from .labels.columns import label_array
from .provenance import SplitRecord, digest_of_part, drawn
from .skipped import SkippedImage


@dataclass(frozen=True, repr=False)
class ImageData:
    """Labelled images, split.

    Attributes:
        splits: some of "train", "validation" and "test", each with the columns `image` and `label`:
            a ClassLabel, or with `multi_label` a list of it, increasing and perhaps empty.
        class_names: one name per label.
        source: where they came from, for messages and cards.
        multi_label: whether an image may have several labels, or none.
        split: how the images were shared out, for whoever evaluates later.
        skipped: the images that were left out because they cannot be read.
        digests: split -> `provenance.image_digest` of each of its images, in the order of its rows.
        groups: split -> what each of its images is left out with; empty where nobody says.
        left_out: what lies beside the images and is not taken for any, in words: such as folders
            without images and kinds of pictures that PIL does not read.
    """

    splits: DatasetDict
    class_names: tuple[str, ...]
    source: str
    multi_label: bool = False
    split: SplitRecord = field(default_factory=lambda: SplitRecord(""))
    skipped: tuple[SkippedImage, ...] = ()
    digests: dict[str, tuple[str, ...]] = field(default_factory=dict)
    groups: dict[str, tuple[str, ...]] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()

    def __repr__(self) -> str:
        names = some([short(name) for name in self.class_names])
        images = ", ".join(f"{split} {len(rows):,}" for split, rows in self.splits.items())
        return (
            f"ImageData({short(self.source)}, {len(self.class_names)} classes ({names}), "
            f"{self.labelling.words} per image, images: {images}, skipped: {len(self.skipped)})"
        )

    def __getitem__(self, split: str) -> Dataset:
        if split not in self.splits:
            raise ResiDualError(
                f"'{self.source}' has no split '{split}', only {', '.join(self.splits) or 'none'}."
            )
        return self.splits[split]

    @property
    def labelling(self) -> Labelling:
        """One label per image, or several."""
        return labelling_of(self.multi_label)

    @property
    def train(self) -> Dataset:
        """The images to fit on."""
        return self["train"]

    @property
    def validation(self) -> Dataset:
        """The images to choose by."""
        return self["validation"]

    @property
    def test(self) -> Dataset:
        """The images to report on, never to choose by."""
        return self["test"]

    @property
    def total(self) -> int:
        """Images there are, unreadable ones included."""
        return sum(map(len, self.splits.values())) + len(self.skipped)

    def whole(self) -> tuple[Dataset, tuple[str, ...]]:
        """All images of all splits, and their digests."""
        digests = [digest for split in self.splits for digest in self.digests[split]]
        return concatenate_datasets(list(self.splits.values())), tuple(digests)

    def cut(
        self,
        shares: Mapping[str, float],
        seed: int = 0,
        few: int = 0,
        *,
        keep: Iterable[str] = ("test",),
    ) -> "ImageData":
        """The same with the splits that the data are without cut from the training images.

        Shares are of those, 0 for none. With `few` so many images of each class are trained on, and
        the others tested on where the data have no test images; splits to `keep` stay beside such a
        draw, as with others one would learn from more.

        Raises:
            ResiDualError: shares that leave nothing to train on, too few images, or a seed or
                number that is none.
        """
        seed, few = drawn(seed, few)
        shares = {p: share for p, share in shares.items() if share and p not in self.splits}
        shares = shares if "train" in self.splits and not few else {}
        if not shares and not few and self.split.shares:  # all of it has been cut before
            return self
        if few and self.groups:
            raise ResiDualError(
                "so many images per class are drawn one by one, which would part those of a group: "
                "leave out few or the group column."
            )
        found = self._cut(shares, seed, few, keep) if shares or few else self
        counts = {split: len(found.splits[split]) for split in SPLIT_NAMES if split in found.splits}
        return replace(
            found,
            splits=DatasetDict({split: found.splits[split] for split in counts}),
            split=replace(
                self.split,
                seed=seed,
                shares={**self.split.shares, **shares},
                images=counts,
                few=few,
                tested=digest_of_part(found.digests.get("test", ())),
            ),
        )

    def _cut(
        self, shares: Mapping[str, float], seed: int, few: int, keep: Iterable[str]
    ) -> "ImageData":
        """With parts of the training images in place of these, and of what they make idle."""
        whole, own = self["train"], self.digests["train"]
        parts = split_by_content(
            label_array(whole, len(self.class_names)),
            shares,
            seed,
            own,
            self.class_names,
            lambda row: title_of(whole, row),
            few=few,
            tested="test" in self.splits,
            groups=self.groups.get("train", ()),
        )
        wanted = set(keep) if few else set(self.splits)
        kept = [split for split in self.splits if split != "train" and split in wanted]
        cut = {part: ("train", rows) for part, rows in parts.items() if part not in kept}
        return self._taken({split: (split, None) for split in kept} | cut)

    def _taken(self, parts: Mapping[str, tuple[str, Any]]) -> "ImageData":
        """Other splits: of each the one that it comes from, and which rows of it; None all."""

        def of(old: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
            return {
                part: old[split] if rows is None else tuple(old[split][row] for row in rows)
                for part, (split, rows) in parts.items()
                if split in old
            }

        splits = {
            part: self.splits[split] if rows is None else self.splits[split].select(rows)
            for part, (split, rows) in parts.items()
        }
        digests, groups = of(self.digests), of(self.groups)
        return replace(self, splits=DatasetDict(splits), digests=digests, groups=groups)

    def without(
        self, split: str, rows: Iterable[int], skipped: Iterable[SkippedImage] = ()
    ) -> "ImageData":
        """The same without some rows of a split, such as images that turn out to be unreadable.

        The record of the split stays: what the other images are for does not change. Names of
        `skipped` ones and what is wrong with them are listed with the others.

        Raises:
            ResiDualError: no such split or row, or no image is left in it.
        """
        dropped, count = set(rows), len(self[split])
        if dropped and not 0 <= min(dropped) <= max(dropped) < count:
            raise ResiDualError(f"wanted rows of '{split}' from 0 to {count - 1}, got {dropped}.")
        if not (kept := [row for row in range(count) if row not in dropped]):
            raise ResiDualError(f"no image is left in the split '{split}' of '{self.source}'.")
        parts: dict[str, Any] = {own: (own, None) for own in self.splits}
        left = self._taken({**parts, split: (split, kept)})
        return replace(left, skipped=(*self.skipped, *skipped))

    def without_repeated(self) -> tuple["ImageData", int]:
        """Test images that are training or validation images, too, are no test; how many there are.

        Raises:
            ResiDualError: a split is missing, or no test image is left.
        """
        for split in ("train", "test"):
            self[split]  # says which one is missing
        digests = self.digests  # none of data that a caller put together by hand
        known = {digest for split in ("train", "validation") for digest in digests.get(split, ())}
        rows = [row for row, digest in enumerate(digests.get("test", ())) if digest in known]
        if len(rows) == len(self.test):
            raise ResiDualError(
                f"all {len(rows)} test images of '{self.source}' are training or validation "
                "images, too, so that no score would mean anything; bring other test images."
            )
        return (self.without("test", rows) if rows else self), len(rows)


def check_as_cut(
    data: ImageData, parts: Mapping[str, Any], draw: Mapping[str, Any], reading: Sequence[Any]
) -> None:
    """Refuse options of `load_data` for images that it has given before and cut otherwise.

    A default asks for nothing: `SHARE` of a part, seed 0, None; and a part of 0 cuts nothing more.
    A share of a part, and a seed, are no matter where nothing was cut by it. `parts` has what was
    asked of "validation" and "test", `draw` few (0 for none), seed and group_column, `reading` what
    says how files become images.

    Raises:
        ResiDualError: one that is not how they were cut.
    """
    record = data.split
    came = {part for part in parts if part in data.splits and part not in record.shares}
    fit: dict[str, tuple[Any, ...]] = {p: (0, SHARE, record.shares.get(p, 0)) for p in parts}
    fit |= {"few": (0, record.few), "group_column": (None, record.group_column)}
    fit["seed"] = (0, record.seed if record.shares or record.few else draw["seed"])
    asked = {**parts, **draw}
    other = [
        f"{name}={short(value)}"
        for name, value in asked.items()
        if not isinstance(value, int | float | str | None)
        or not (value in fit[name] or (name in came and not isinstance(value, str)))
    ]
    if not other and all(option is None for option in reading):
        return
    raise ResiDualError(
        f"the images of '{data.source}' are an ImageData, which has been read and cut (shares "
        f"{record.shares or 'none'}, seed {record.seed}, few {record.few}, group_column "
        f"{record.group_column}); wanted {', '.join(other) or 'other columns, classes or splits'}: "
        "give that to the load_data that reads the images, or leave it out."
    )
