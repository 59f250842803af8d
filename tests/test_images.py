import io

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil

from residual_peft.errors import ResiDualError
from residual_peft.images import image_list, load_image_processor, pixel_values, to_rgb


def noise(height=6, width=9, channels=3, seed=0, dtype=np.uint8):
    high = np.iinfo(dtype).max
    shape = (height, width, channels) if channels else (height, width)
    return np.random.default_rng(seed).integers(0, high, shape, dtype=dtype, endpoint=True)


def rgb(image, **options):
    result = to_rgb(image, **options)
    assert result.mode == "RGB"
    return np.asarray(result)


def stored(image, format="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return {"bytes": stream.getvalue(), "path": None}


def test_rgb_images_arrays_tensors_and_paths_give_the_same_pixels(tmp_path):
    array = noise()
    Image.fromarray(array).save(tmp_path / "a.png")
    tensor = torch.tensor(array).permute(2, 0, 1)
    for image in (
        Image.fromarray(array),
        array,
        array.transpose(2, 0, 1),
        tensor,
        tensor / 255,
        (array / 255).astype(np.float64),
        (tensor / 255).double(),
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        {"bytes": None, "path": str(tmp_path / "a.png")},
        array.astype(np.uint16) * 257,
        array.astype(np.int64),
    ):
        np.testing.assert_array_equal(rgb(image), array)


@pytest.mark.parametrize("through_file", [False, True])
def test_grey_of_8_and_16_bits_keeps_its_brightness(through_file):
    grey = noise(channels=0)
    deep = grey.astype(np.uint16) * 257
    for array in (grey, deep):
        image = Image.fromarray(array)
        result = rgb(stored(image) if through_file else image)
        np.testing.assert_array_equal(result, np.stack([grey] * 3, -1))


def test_a_dark_16_bit_image_stays_dark():
    array = np.full((4, 4), 200, np.uint16)
    assert rgb(stored(Image.fromarray(array))).max() == 1
    other_order = Image.frombytes("I;16B", (4, 4), array.astype(">u2").tobytes())
    assert rgb(other_order).max() == 1


def test_wide_integer_and_float_images_are_scaled_not_clipped():
    grey = noise(channels=0)
    expected = np.stack([grey] * 3, -1)
    np.testing.assert_array_equal(rgb(Image.fromarray(grey.astype(np.int32) * 257)), expected)
    np.testing.assert_array_equal(rgb(Image.fromarray((grey / 255).astype(np.float32))), expected)
    np.testing.assert_array_equal(rgb(Image.fromarray(grey.astype(np.float32))), expected)


def test_transparency_is_laid_on_white():
    array = noise(channels=4)
    alpha = array[..., 3:] / 255
    expected = array[..., :3] * alpha + 255 * (1 - alpha)
    for image in (Image.fromarray(array), stored(Image.fromarray(array)), array):
        assert np.abs(rgb(image) - expected).max() <= 1
    grey_alpha = Image.fromarray(array).convert("LA")
    assert (rgb(grey_alpha)[array[..., 3] == 0] == 255).all()
    hole = Image.new("LA", (2, 2), (0, 0))
    assert (rgb(hole) == 255).all()


def test_palettes_with_and_without_transparency():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    assert rgb(stored(image)).tolist() == [[[10, 20, 30], [200, 100, 50]]]
    transparent = stored(image, transparency=0)
    assert rgb(transparent).tolist() == [[[255, 255, 255], [200, 100, 50]]]


def test_cmyk_bilevel_and_other_modes_become_rgb():
    cmyk = Image.new("CMYK", (3, 3), (0, 255, 255, 0))
    red = rgb(stored(cmyk, "JPEG", quality=100))
    assert red[..., 0].min() > 200
    assert red[..., 1:].max() < 60
    assert (rgb(Image.new("1", (3, 3), 1)) == 255).all()
    assert rgb(np.array([[True, False]])).tolist() == [[[255] * 3, [0] * 3]]
    ycc = Image.fromarray(noise()).convert("YCbCr")
    np.testing.assert_array_equal(rgb(ycc), np.asarray(ycc.convert("RGB")))


def test_exif_orientation_is_applied():
    array = noise(8, 16)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = rgb(stored(Image.fromarray(array), exif=exif))
    np.testing.assert_array_equal(turned, np.rot90(array, -1))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("missing.png", "'missing.png', but there is no such file"),
        ({"bytes": b"no image", "path": None}, "could not read row 3 .not an image that PIL knows"),
        ({"bytes": None, "path": None}, "as bytes or a path"),
        (np.full((4, 4), np.nan), "row 3 has NaN or infinite pixels"),
        (torch.full((3, 4, 4), float("inf")), "row 3 has NaN or infinite pixels"),
        (Image.fromarray(np.full((4, 4), np.nan, np.float32)), "NaN or infinite pixels"),
        (np.full((4, 4), -1.5), "float64 from -1.5 to -1.5; pixel values that a processor"),
        (np.zeros((5, 4, 7)), r"shape \(5, 4, 7\)"),
        (np.zeros((0, 4, 3)), "at least one pixel"),
        (Image.new("RGB", (0, 0)), "at least one pixel"),
        (7, "got int"),
    ],
)
def test_bad_images_are_refused_by_name(image, message):
    with pytest.raises(ResiDualError, match=message):
        to_rgb(image, name="row 3")


def test_a_file_cut_short_is_refused_by_its_path(tmp_path):
    path = tmp_path / "cut.png"
    path.write_bytes(stored(Image.fromarray(noise(40, 40)))["bytes"][:900])
    with pytest.raises(ResiDualError, match=r"could not read '.*cut\.png'"):
        to_rgb(path)


def test_one_and_many_are_told_apart(tmp_path):
    image = Image.new("RGB", (4, 4))
    assert image_list(image) == ([image], True)
    assert image_list([image, image]) == ([image, image], False)
    assert image_list("a.png") == (["a.png"], True)
    assert image_list(tmp_path) == ([tmp_path], True)
    for batch, lone in (
        (np.zeros((2, 4, 4, 3)), np.zeros((4, 4, 3))),
        (torch.zeros(2, 3, 4, 4), torch.zeros(3, 4, 4)),
    ):
        assert [len(image_list(batch)[0]), image_list(batch)[1]] == [2, False]
        assert [len(image_list(lone)[0]), image_list(lone)[1]] == [1, True]


def test_the_processor_is_saved_loaded_and_applied(tmp_path):
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8}
    )
    processor.save_pretrained(tmp_path)
    images = [Image.fromarray(noise(8, 8, seed=s)) for s in range(2)]
    values = pixel_values(load_image_processor(tmp_path), images)
    expected = (np.stack(images) / 255 - processor.image_mean) / processor.image_std
    np.testing.assert_allclose(values.numpy(), expected.transpose(0, 3, 1, 2), atol=1e-5)
    with pytest.raises(ResiDualError, match="wanted an image processor in"):
        load_image_processor(tmp_path.joinpath("empty").mkdir() or tmp_path / "empty")
