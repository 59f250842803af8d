import io
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from residual_peft.data import ProcessedImages, batches, collate, load_data
from residual_peft.errors import ResiDualError
from tests.pictures import PROCESSOR, png, stored


def test_batches_hold_what_the_processor_makes_of_each_image():
    data = [png(seed=i) for i in range(5)]
    seen = list(batches(stored(data), PROCESSOR, batch_size=2))
    assert [len(batch["labels"]) for batch in seen] == [2, 2, 1]
    assert torch.cat([batch["labels"] for batch in seen]).tolist() == [0, 1, 0, 1, 0]
    images = [Image.open(io.BytesIO(content)).convert("RGB") for content in data]
    expected = np.stack([np.asarray(i) for i in images]) / 255 - PROCESSOR.image_mean
    expected = (expected / PROCESSOR.image_std).transpose(0, 3, 1, 2)
    pixels = torch.cat([batch["pixel_values"] for batch in seen])
    np.testing.assert_allclose(pixels.numpy(), expected, atol=1e-5)


def test_grey_palette_and_transparent_images_go_into_one_batch():
    items = ProcessedImages(stored([png("L"), png("P"), png("RGBA"), png("1")]), PROCESSOR)
    batch = collate([items[i] for i in range(4)])
    assert batch["pixel_values"].shape == (4, 3, 8, 8)


def test_unreadable_images_are_named_by_row_or_path(tmp_path):
    items = ProcessedImages(stored([png(), b"broken", None]), PROCESSOR, "the split 'test'")
    with pytest.raises(ResiDualError, match=r"could not read image 1 of the split 'test' \(not an"):
        items[1]
    with pytest.raises(ResiDualError, match="image 2 of the split 'test' is missing"):
        items[2]
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(3):
            (tmp_path / name / f"{i}.png").write_bytes(png(seed=i))
    data = load_data(tmp_path, validation=0, test=0)
    (tmp_path / "b" / "0.png").write_bytes(b"broken")  # since it was looked at
    with pytest.raises(ResiDualError, match=r"could not read '.*b/0\.png'"):
        list(batches(data.train, PROCESSOR))


def test_items_travel_to_other_processes():
    items = pickle.loads(pickle.dumps(ProcessedImages(stored([png(), png()]), PROCESSOR)))
    assert len(items) == 2
    assert items[1]["labels"] == 1


def test_a_transform_is_refused_instead_of_ignored():
    changed = stored([png(), png()]).with_transform(lambda batch: batch)
    with pytest.raises(ResiDualError, match=r"the split 'train' has a transform .* be ignored"):
        ProcessedImages(changed, PROCESSOR, "the split 'train'")
