import io
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil

from residual_peft.data import images
from residual_peft.data.images import UnreadableImage, image_list, to_rgb
from residual_peft.data.processors import least_side, pixel_values
from residual_peft.errors import ResiDualError
from tests.pairs import table


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
        tensor.permute(1, 2, 0),
        (array / 255).astype(np.float64),
        (tensor / 255).double(),
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        {"bytes": None, "path": str(tmp_path / "a.png")},
        array.astype(np.uint16) * 257,
        array.astype(np.int64),
    ):
        np.testing.assert_array_equal(rgb(image), array)


@table("through_file", [False, True])
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


@table(
    ("image", "message"),
    [
        ("missing.png", "'missing.png', but there is no such file"),
        (".", "'.', but that is a folder: give the images in it one by one"),
        ({"bytes": b"no image", "path": None}, "could not read row 3 .not an image that PIL knows"),
        ({"bytes": None, "path": None}, "as bytes or a path"),
        (np.full((4, 4), np.nan), "row 3 has NaN or infinite pixels"),
        (np.full((4, 4), 300), "or as uint16 of 0 to 65535, got int64 up to 300: how bright"),
        (torch.zeros(7, 8, 9), r"got an array of shape .7, 8, 9."),
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


def camera(width=1600, height=1200, kind="JPEG", mode="RGB", **options):
    """A picture with detail of several sizes, as a file."""
    generator = np.random.default_rng(0)
    whole = np.zeros((height, width, len(mode)), np.float32)
    for step in (4, 16, 64, 256):
        shape = (height // step + 1, width // step + 1, len(mode))
        part = Image.fromarray(generator.integers(0, 256, shape).astype(np.uint8), mode)
        whole += np.asarray(part.resize((width, height)), np.float32) * (step / 340)
    stream = io.BytesIO()
    Image.fromarray(whole.clip(0, 255).astype(np.uint8), mode).save(stream, kind, **options)
    return stream.getvalue()


def test_large_jpegs_are_decoded_no_larger_than_needed_and_look_the_same():
    processor, content = CLIPImageProcessorPil(), camera()
    least = least_side(processor)
    whole, near = to_rgb({"bytes": content}), to_rgb({"bytes": content}, least=least)
    assert (whole.size, near.size) == ((1600, 1200), (800, 600))  # a quarter would be too small
    exact, found = (pixel_values(processor, [image]) for image in (whole, near))
    difference = (exact - found).abs()
    assert float(difference.mean()) < 0.01 * float(exact.std())
    assert float(difference.max()) < 0.1 * float(exact.std())
    assert to_rgb({"bytes": camera(7000, 5000)}, least=least).size == (875, 625)


def test_what_is_small_in_memory_or_no_jpeg_is_taken_as_it_is():
    small, large = camera(800, 600), camera()
    as_pil = Image.open(io.BytesIO(large))
    png = camera(kind="PNG")
    for image in ({"bytes": small}, as_pil, {"bytes": png}, np.asarray(as_pil)):
        assert np.array_equal(to_rgb(image, least=448), to_rgb(image))
    assert to_rgb(as_pil, least=448).size == (1600, 1200)


def test_orientation_counts_for_what_is_decoded_smaller(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "upright.jpg"
    path.write_bytes(camera(exif=exif))
    assert to_rgb(path).size == (1200, 1600)
    near = to_rgb(path, least=300)
    assert near.size == (300, 400)
    small = np.asarray(to_rgb(path).resize(near.size, Image.Resampling.BOX), np.float32)
    assert np.abs(np.asarray(near, np.float32) - small).mean() < 1


@table("mode", ["RGB", "RGBA"])
def test_large_files_of_other_kinds_are_reduced_in_bands(mode, monkeypatch):
    content = camera(1001, 703, "PNG", mode)
    whole = to_rgb({"bytes": content})
    monkeypatch.setattr(images, "LARGE", 1)
    near = to_rgb({"bytes": content}, least=100)
    assert near.size == (143, 101)
    assert np.array_equal(near, whole.reduce(7))


def test_files_beyond_bounds_are_refused_by_name(tmp_path, monkeypatch):
    path = tmp_path / "wide.png"
    path.write_bytes(camera(640, 480, "PNG"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300_000)
    with pytest.raises(UnreadableImage, match="640 x 480 pixels, more than the 300,000") as told:
        to_rgb(path)
    assert told.value.file == str(path)
    assert pickle.loads(pickle.dumps(told.value)).reason == told.value.reason
    (tmp_path / "wide.jpg").write_bytes(camera(640, 480))
    assert to_rgb(tmp_path / "wide.jpg", least=100).size == (160, 120)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert to_rgb(path).size == (640, 480)
    strip = Image.new("RGB", (30_000, 20))
    strip.save(tmp_path / "strip.png")
    assert to_rgb(tmp_path / "strip.png").size == strip.size
    with pytest.raises(UnreadableImage, match="too long a strip to be resized"):
        to_rgb(tmp_path / "strip.png", least=448)
