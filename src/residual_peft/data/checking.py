"""Every image is looked at once, before anything is made of the data: whole, and what content?

Files are read once, in threads, and only as many are in memory as there are threads. What is
looked at is the cheapest sign that an image is whole: a JPEG's markers up to its end, a PNG's
checksums; whatever else there is, and a JPEG that seems cut short, is decoded.
"""

import io
import logging
import math
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import PurePath
from typing import Any

import datasets
from datasets import Dataset
from PIL import Image, ImageFile

from ..errors import ResiDualError, printable, some
from .images import UnreadableImage, to_rgb
from .progress import Bar
from .provenance import image_digest
from .skipped import SkippedImage, as_text
from .stored import PROGRAM, Unusable, content_of, reason_of

logger = logging.getLogger(__name__)

THREADS = 8
ROWS = 32  # of a table at a time
ALWAYS_TOLERATED = 3


def check_images(
    parts: Mapping[str, Dataset],
    source: str,
    *,
    strict: bool = False,
    max_bad: float = 0.05,
    listed: Sequence[SkippedImage] = (),
    progress: bool | Callable[[int], object] = False,
) -> tuple[dict[str, dict[int, str]], dict[str, dict[int, SkippedImage]]]:
    """Look at all images once: by split, row -> `image_digest` of the good ones, and the bad ones.

    With `strict` the first bad image is an error; else the share `max_bad` of all may be bad, and
    three always may. `listed` are bad ones that are known already and in none of the parts.

    Raises:
        ResiDualError: more images are bad than may be.
    """
    if isinstance(max_bad, bool) or not 0 <= max_bad <= 1:
        raise ResiDualError(f"max_bad: wanted a share of the images from 0 to 1, got {max_bad!r}.")
    skipped = list(listed)
    if strict and skipped:
        raise _refused(skipped[0])
    Image.init()  # here, not in several threads at once
    digests: dict[str, dict[int, str]] = {split: {} for split in parts}
    unread: dict[str, dict[int, SkippedImage]] = {split: {} for split in parts}
    total = sum(map(len, parts.values())) + len(skipped)
    with (
        Bar(desc="checking", unit="image", total=total, disable=progress is not True) as bar,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # of huge images and odd EXIF: they come again with pixels
        for split, row, path, digest, reason in _examined(parts):
            if digest is not None:
                digests[split][row] = digest
            else:
                image = SkippedImage(path or f"row {row} of the split {split}", reason)
                unread[split][row] = image
                skipped.append(image)
                if strict:
                    raise _refused(image)
            bar.update()
            if callable(progress):
                progress(1)
    check_skipped(skipped, max_bad, total, source)
    if skipped:
        told = (len(skipped), total, printable(source), some(skipped, 3))
        logger.warning("skipped %d of the %d images of %s: %s", *told)
    return digests, unread


def title_of(dataset: Dataset, row: int) -> str:
    """An image of a data set as messages name it: by its path where it has one."""
    _, path = next(stored_images(dataset.select([row])))
    return SkippedImage(path or f"row {row}", "").title


def files_of(dataset: Dataset, rows: Iterable[int], title: str) -> list[str]:
    """What some images are called: their paths, or of those without one the row of `title`."""
    stored = undecoded(dataset)
    images = [(row, stored[row]["image"] or {}) for row in rows]
    return [as_text(image.get("path") or f"row {row} of {title}") for row, image in images]


def short_name(file: str) -> str:
    """A file's name and its folder's: what people know it by, wherever it lies.

    >>> short_name("/home/me/photos/cats/1.png"), short_name("row 3 of the test split")
    ('cats/1.png', 'row 3 of the test split')
    """
    return "/".join(part for part in PurePath(file).parts[-2:] if part != "/")


def _refused(image: SkippedImage) -> ResiDualError:
    return ResiDualError(
        f"could not read {image}; repair, replace or remove it, or leave out "
        "strict: then it is skipped."
    )


def check_skipped(
    skipped: Sequence[SkippedImage], max_bad: float, total: int, source: str, strict: bool = False
) -> None:
    """Raise a ResiDualError where more of `total` images cannot be read than may be.

    That is the share `max_bad` of them, and three always may; with `strict` none.
    """
    count, allowed = len(skipped), max(ALWAYS_TOLERATED, int(max_bad * total + 1e-9))
    if strict and skipped:
        raise _refused(skipped[0])
    if count > allowed:
        raise ResiDualError(
            f"{count} of the {total} images of {source} cannot be read, and max_bad={max_bad:g} "
            f"allows {allowed}: {some(skipped, 3)}; repair or remove them, or go on without them "
            f"with max_bad={math.ceil(100 * count / total) / 100:g}."
        )


def _examined(
    parts: Mapping[str, Dataset],
) -> Iterator[tuple[str, int, str | None, str | None, str]]:
    """Split, row, path, digest (None where the image is bad) and reason of every image, in order.

    A few more than there are threads are under way at any time, however many there are.
    """
    pending: deque[tuple[tuple[str, int, str | None], Future[tuple[str | None, str]]]] = deque()

    def done() -> tuple[str, int, str | None, str | None, str]:
        place, future = pending.popleft()
        return *place, *future.result()

    with ThreadPoolExecutor(THREADS) as pool:
        try:
            for split, dataset in parts.items():
                for row, (content, path) in enumerate(stored_images(dataset)):
                    pending.append(((split, row, path), pool.submit(_look, content, path)))
                    while len(pending) > 2 * THREADS:
                        yield done()
            while pending:
                yield done()
        finally:
            for _, future in pending:
                future.cancel()


def undecoded(dataset: Dataset, column: str = "image") -> Dataset:
    """The column of images as they are stored: bytes, path or both."""
    images = dataset.select_columns([column]).with_format(None)
    return images.cast_column(column, datasets.Image(decode=False))


def stored_images(dataset: Dataset) -> Iterator[tuple[Any, str | None]]:
    """Bytes (a buffer that need not be copied, or None) and path of every row."""
    tables = undecoded(dataset).with_format("arrow")
    for start in range(0, len(tables), ROWS):
        for image in tables[start : start + ROWS]["image"]:
            if not image.is_valid:
                yield None, None
                continue
            content = image["bytes"]
            yield content.as_buffer() if content.is_valid else None, image["path"].as_py()


def _look(content: Any, path: str | None) -> tuple[str | None, str]:
    """The image's digest; None, and why, where it cannot be used."""
    try:
        if content is None and not path:
            raise Unusable("an empty row")
        found = bytes(content) if content is not None else content_of(path or "")
        _check_whole(found)
        return image_digest(found), ""
    except Unusable as bad:
        return None, str(bad)


def _check_whole(content: bytes) -> None:
    """Raise `Unusable` unless the bytes are a whole image of a size that can be decoded."""
    if not content:
        raise Unusable("an empty file")
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.format == "EPS":
                raise Unusable(PROGRAM)
            jpeg, most = image.format in ("JPEG", "MPO"), Image.MAX_IMAGE_PIXELS
            if not jpeg and most and image.width * image.height > most:  # as `images.to_rgb`
                raise Unusable(f"{image.width} x {image.height} pixels are more than {most:,}")
            if image.format == "PNG":
                image.verify()
                return
            ended = _reaches_end(content) if jpeg else None
            if ended is False and not ImageFile.LOAD_TRUNCATED_IMAGES:
                raise Unusable("cut short: a JPEG without an end")
            if not ended:
                to_rgb(image, "it")
    except Unusable:
        raise
    except Exception as error:  # PIL's decoders raise many kinds
        raise Unusable(
            error.reason if isinstance(error, UnreadableImage) else reason_of(error)
        ) from None


def _reaches_end(content: bytes) -> bool | None:
    """Whether a JPEG's end marker follows its pixels; None where there is no telling.

    A thumbnail before them has one as well. Between the start of the pixels and their end no FF D9
    occurs: every FF there is escaped. (PIL itself takes zeros in place of the rest, as a download
    leaves them, for pixels.)
    """
    place = 2
    while place + 4 <= len(content) and content[place] == 0xFF:
        marker = content[place + 1]
        if marker == 0xFF or marker == 0x01 or 0xD0 <= marker <= 0xD7:  # filling, or no length
            place += 1 if marker == 0xFF else 2
            continue
        place += 2 + int.from_bytes(content[place + 2 : place + 4], "big")
        if marker == 0xDA:
            return content.find(b"\xff\xd9", place) >= 0
    return None
