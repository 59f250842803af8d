"""How far a pass over batches has come: a bar, or a call for whoever draws it elsewhere."""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from tqdm.auto import tqdm

Progress = bool | Callable[[int], object]
"""True for a bar, or what to call after each batch with its number of images."""


class Bar(tqdm):
    """A bar with rate and time left; where nobody watches it, one line when its stage is done.

    Attributes:
        in_a_log: whether nobody does; the command line says so where it writes to no terminal.
    """

    in_a_log = False
    disable: bool

    def display(self, *given: Any, **options: Any) -> Any:
        """Draw it, on a terminal."""
        return True if self.in_a_log else super().display(*given, **options)

    def close(self) -> None:
        """Leave it as it is; in a log, write the line."""
        if not self.in_a_log:
            super().close()
        elif not self.disable:
            self.disable = True
            self._decr_instances(self)
            taken = self.format_dict["elapsed"]
            name = f"{self.unit}{'' if self.n == 1 else 's'}"
            rate = f", {self.n / taken:,.1f} a second" if taken else ""
            print(f"{self.desc}: {self.n:,} {name} in {taken:.1f} s{rate}", file=sys.stderr)


def with_progress(
    batches: Iterable[Any], description: str, progress: Progress = False, *, unit: str = "image"
) -> Iterator[Any]:
    """Batches with a bar that counts images (True), or a call after each with their number."""
    skipped: list[Any] = getattr(batches, "skipped", [])
    with Bar(desc=description, unit=unit, disable=progress is not True) as bar:
        bar.total = images_of(batches)
        missed = 0
        for batch in batches:
            yield batch
            first = batch[0] if isinstance(batch, tuple | list) else batch
            count = len(next(iter(first.values())) if isinstance(first, Mapping) else first)
            if len(skipped) != missed:
                missed = len(skipped)
                bar.set_postfix_str(f"{missed} skipped", refresh=False)
            bar.update(count)
            if callable(progress):
                progress(count)
            del batch


def images_of(batches: Iterable[Any]) -> int | None:
    """How many images the batches hold, if they say; None where only reading them would tell."""
    count = getattr(batches, "image_count", None)
    try:
        return len(getattr(batches, "dataset", None)) if count is None else count  # type: ignore[arg-type]
    except TypeError:
        return None
