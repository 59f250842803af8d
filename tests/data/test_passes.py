"""Files in batches, in order, the unreadable among them."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil

from residual_peft.data import Batches, ImageFiles, SkippedImage
from residual_peft.data.images import UnreadableImage
from residual_peft.errors import ResiDualError

PROCESSOR = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})


@pytest.fixture
def files(tmp_path: Path) -> list[str | SkippedImage]:
    found: list[str | SkippedImage] = []
    for value in range(20):
        path = tmp_path / f"{value}.png"
        Image.new("RGB", (20, 24), (10 * value, 0, 0)).save(path)
        found.append(str(path))
    (tmp_path / "3.png").write_bytes(b"no image")
    found[7] = SkippedImage("a folder", "a folder without images")
    found[19] = str(tmp_path / "nothing.png")
    return found


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_hold_what_can_be_read_and_say_what_cannot(files, workers: int) -> None:
    batches = Batches(ImageFiles(files, PROCESSOR), 8, workers, skip=True)
    found = list(batches)
    rows = torch.cat([batch["index"] for batch in found]).tolist()
    assert rows == [row for row in range(20) if row not in (3, 7, 19)]
    slow = [
        PROCESSOR(images=Image.open(files[row]), return_tensors="pt")["pixel_values"]
        for row in rows
    ]
    assert torch.equal(torch.cat([batch["pixel_values"] for batch in found]), torch.cat(slow))
    assert batches.skipped == [
        (3, files[3], "not an image that PIL knows"),
        (7, "a folder", "a folder without images"),
        (19, files[19], "no such file"),
    ]


def test_the_first_bad_file_is_an_error_unless_skipped(files) -> None:
    with pytest.raises(UnreadableImage, match=r"3\.png"):
        list(Batches(ImageFiles(files, PROCESSOR), 8, 0))


def test_files_want_a_processor(files) -> None:
    with pytest.raises(ResiDualError, match="this classifier has no image processor"):
        ImageFiles(files, None)


def test_what_is_refused_before_it_is_decoded(tmp_path: Path, monkeypatch) -> None:
    program = tmp_path / "a.eps"
    program.write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    )
    monkeypatch.setattr("residual_peft.data.stored.LARGEST_FILE", 1000)
    (tmp_path / "b.png").write_bytes(bytes(1001))
    images = ImageFiles([str(program), str(tmp_path / "b.png")], PROCESSOR)
    with pytest.raises(UnreadableImage, match="PostScript, a program that would have to be run"):
        images[0]
    with pytest.raises(UnreadableImage, match="too large: a file of 1,001 bytes, more than 1,000"):
        images[1]
