"""Every image is looked at once, before the data are split."""

import io
import logging
import re
import struct
import zlib

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image

from residual_peft.data import load_data
from residual_peft.provenance import image_digest


def encoded(kind, seed=0, size=(40, 30), **options):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


def with_thumbnail(content, thumbnail):
    """A JPEG whose EXIF block holds a whole JPEG, as cameras write it."""
    block = b"Exif\0\0" + thumbnail
    return content[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + content[2:]


def one_colour(width, height):
    """A PNG of few bytes whose pixels would need width x height x 3."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 10_000)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def flipped(content, place):
    return content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :]


JPEG = encoded("JPEG")
PROGRESSIVE = encoded("JPEG", progressive=True)
PNG = encoded("PNG")
GOOD = {
    "whole": JPEG,
    "with more behind its end": JPEG + b"\0" * 500,
    "progressive": PROGRESSIVE,
    "with a thumbnail": with_thumbnail(JPEG, encoded("JPEG", 1, (8, 8))),
    "with restart markers": encoded("JPEG", restart_marker_blocks=1),
    "with filling before markers": JPEG[:2] + b"\xff\xff" + JPEG[2:],
    "png": PNG,
    "webp": encoded("WEBP"),
    "bmp": encoded("BMP"),
    "gif": encoded("GIF"),
    "tiff": encoded("TIFF"),
}
BAD = {
    "empty": (b"", "an empty file"),
    "text": (b"no image", "not an image that PIL knows"),
    "jpeg cut": (JPEG[: len(JPEG) // 2], "cut short"),
    "progressive cut": (PROGRESSIVE[: len(PROGRESSIVE) * 2 // 3], "cut short"),
    "jpeg of zeros from the middle": (JPEG[:700] + b"\0" * 900, "cut short"),
    "cut, thumbnail whole": (with_thumbnail(JPEG, encoded("JPEG", 1, (8, 8)))[:-600], "cut short"),
    "only a thumbnail": (with_thumbnail(JPEG, encoded("JPEG", 1, (8, 8)))[:1100], "."),
    "png cut": (PNG[:-200], "."),
    "png with a wrong bit": (flipped(PNG, len(PNG) // 2), "checksum|broken"),
    "webp cut": (encoded("WEBP")[:300], "."),
    "tiff cut": (encoded("TIFF")[:2000], "."),
    "2.7 GB of one colour": (
        one_colour(30_000, 30_000),
        r"too large: more than 178,956,970 pixels",
    ),
}


def folder(path, count=40):
    for k, name in enumerate(("cat", "dog")):
        (path / name).mkdir(parents=True)
        for i in range(count):
            (path / name / f"{i:02}.png").write_bytes(encoded("PNG", 2 * i + k, (4, 4)))
    return path


@pytest.mark.parametrize("door", ["folder", "dataset"])
def test_bad_images_are_skipped_with_a_word_and_good_ones_kept(tmp_path, caplog, door):
    contents = {**GOOD, **{name: content for name, (content, _) in BAD.items()}}
    source = folder(tmp_path)
    for i, content in enumerate(contents.values()):
        (source / "cat" / f"z{i:02}.jpg").write_bytes(content)
    paths = sorted(source.rglob("*.*g"))
    if door == "dataset":
        columns = {
            "image": [*({"bytes": p.read_bytes(), "path": None} for p in paths), None],
            "label": [*(p.parent.name for p in paths), "cat"],
        }
        kinds = {"image": ImageFeature(), "label": ClassLabel(names=["cat", "dog"])}
        source = Dataset.from_dict(columns, features=Features(kinds))
    caplog.set_level(logging.WARNING, "residual_peft")
    data = load_data(source, max_bad=0.3)
    skipped = {image.file: image.reason for image in data.skipped}
    first = len(GOOD) + 40  # cats without a name come after the others
    for i, (name, (_, reason)) in enumerate(BAD.items()):
        path = tmp_path / "cat" / f"z{len(GOOD) + i:02}.jpg"
        file = f"'{path}'" if door == "folder" else f"row {first + i} of the split train"
        assert re.search(reason, skipped.pop(file)), (name, data.skipped)
    assert skipped == (
        {} if door == "folder" else {f"row {len(paths)} of the split train": "an empty row"}
    )
    whole, digests = data.whole()
    assert len(whole) == len(digests) == 80 + len(GOOD)
    expected = {image_digest(content) for content in GOOD.values()}
    assert expected <= set(digests)
    assert (
        f"skipped {len(data.skipped)} of the {len(paths) + (door == 'dataset')} images"
        in caplog.text
    )
    for image in whole:
        image["image"].load()
