"""Images kept in memory: what a processor gives of each, in any order, as far as there is room."""

import torch

from residual_peft.data import ProcessedImages
from residual_peft.experiments.bench.pixels import Images, Pixels, Room
from tests.pictures import image_processor
from tests.training_case import task


def test_each_image_as_prepared_whether_it_was_kept_or_not() -> None:
    reads: list[int] = []

    class Counted(ProcessedImages):
        def __getitem__(self, index: int):
            reads.append(int(index))
            return super().__getitem__(index)

    split = task().train
    plain = ProcessedImages(split, image_processor())
    each = plain[0]["pixel_values"].nbytes + 8  # and its label
    generator = torch.Generator().manual_seed(0)
    for images in (0, 5, 10**6):
        room = Room(images * each)
        pixels, reads[:] = Pixels(Counted(split, image_processor()), room), []
        for _ in range(3):
            rows = torch.randperm(len(split), generator=generator)[:17]
            whole = Images(pixels, torch.arange(len(split)))
            found = list(whole.some(rows).batches(6))
            assert [len(batch["labels"]) for batch in found] == [6, 6, 5]
            values = torch.cat([batch["pixel_values"] for batch in found])
            expected = torch.stack([plain[row]["pixel_values"] for row in rows.tolist()])
            assert torch.equal(values, expected)
            assert [split["label"][row] for row in rows.tolist()] == torch.cat(
                [batch["labels"] for batch in found]
            ).tolist()
        assert len(list(whole.batches())) == len(list(whole.batches()))
        assert len(pixels._kept) == min(images, len(split))
        assert room.left == (images - len(pixels._kept)) * each
        before = len(reads)
        list(whole.batches())
        assert (len(reads) == before) == (images > len(split))
        pixels.forget()
        assert room.left == images * each
