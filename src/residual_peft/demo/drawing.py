"""Draws scenes: signed distances of shapes and glyphs, warped, textured and set on a background.

Everything is batched tensor arithmetic, so that drawing a million images costs minutes.
"""

from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from .world import ATTRIBUTES, COLORS, Scene

IMAGE_SIZE = 40
"""Pixels per side."""

FONTS = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique",
    "DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique",
    "DejaVuSansMono-BoldOblique", "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic",
    "DejaVuSerif-BoldItalic", "STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic",
    "STIXGeneralBolIta", "cmb10", "cmr10", "cmss10", "cmtt10",
)  # fmt: skip
"""Fonts that matplotlib ships."""

_CELL = 64  # pixels per side of one stored distance field; the object fills the inner half
_SHAPES = ATTRIBUTES["shape"]
_GLYPHS = ATTRIBUTES["digit"] + ATTRIBUTES["letter"]
_DOWN, _ACROSS = torch.meshgrid(*[torch.arange(IMAGE_SIZE) + 0.5] * 2, indexing="ij")


_DISCS = {  # x, y, radius and colour of each
    "circle": [(0.5, 0.5, 0.5, 255)],
    "ring": [(0.5, 0.5, 0.5, 255), (0.5, 0.5, 0.27, 0)],
    "crescent": [(0.5, 0.5, 0.5, 255), (0.74, 0.5, 0.42, 0)],
}
_POLYGONS = {
    "square": [(0.04, 0.04), (0.96, 0.04), (0.96, 0.96), (0.04, 0.96)],
    "triangle": [(0.5, 0.04), (1, 0.94), (0, 0.94)],
    "cross": [(0.33, 0), (0.67, 0), (0.67, 0.33), (1, 0.33), (1, 0.67), (0.67, 0.67), (0.67, 1),
              (0.33, 1), (0.33, 0.67), (0, 0.67), (0, 0.33), (0.33, 0.33)],
    "arrow": [(0, 0.34), (0.5, 0.34), (0.5, 0.05), (1, 0.5), (0.5, 0.95), (0.5, 0.66), (0, 0.66)],
    "diamond": [(0.5, 0), (0.86, 0.5), (0.5, 1), (0.14, 0.5)],
}  # fmt: skip


def _outline(name: str) -> list[tuple[float, float]]:
    if name == "star":
        angles = np.deg2rad(-90) + np.arange(10) * 2 * np.pi / 10
        radii = np.tile([1.0, 0.42], 5)
        return list(
            zip(0.5 + radii * np.cos(angles) / 2, 0.5 + radii * np.sin(angles) / 2, strict=True)
        )
    if name == "heart":
        t = np.linspace(0, 2 * np.pi, 200)
        x = 16 * np.sin(t) ** 3
        y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
        return list(zip(0.5 + x / 34, 0.47 - y / 34, strict=True))
    return _POLYGONS[name]


def _shape(name: str, size: int = 256) -> Image.Image:
    image = Image.new("L", (size, size))
    pen = ImageDraw.Draw(image)
    if name not in _DISCS:
        pen.polygon([(x * size, y * size) for x, y in _outline(name)], fill=255)
    for x, y, radius, fill in _DISCS.get(name, ()):
        box = [(x - radius) * size, (y - radius) * size, (x + radius) * size, (y + radius) * size]
        pen.ellipse(box, fill=fill)
    return image


def _glyph(character: str, font: str) -> Image.Image:
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    face = ImageFont.truetype(str(folder / f"{font}.ttf"), 256)
    image = Image.new("L", (512, 512))
    ImageDraw.Draw(image).text((128, 64), character, font=face, fill=255)
    return image.crop(image.getbbox())


def _distance(image: Image.Image) -> np.ndarray:
    """Signed distance to the outline, positive inside, in units of the object's longer side."""
    mask = np.asarray(image) > 127
    side = max(mask.shape)
    room = np.zeros((2 * side, 2 * side), bool)
    top, left = side - mask.shape[0] // 2, side - mask.shape[1] // 2
    place = slice(top, top + mask.shape[0]), slice(left, left + mask.shape[1])
    room[place] = mask
    # what is nearest to a point inside is the object's own edge
    inside = distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    signed = -distance_transform_edt(~room)
    signed[place] += inside
    signed /= side
    small = Image.fromarray(signed.astype(np.float32), mode="F")
    return np.array(small.resize((_CELL, _CELL), Image.Resampling.BOX))


@cache
def _field(number: int) -> Tensor:
    """Distance field (64, 64) of a shape or, after the shapes, of a character in a font."""
    if number < len(_SHAPES):
        image = _shape(_SHAPES[number])
    else:
        character, font = divmod(number - len(_SHAPES), len(FONTS))
        image = _glyph(_GLYPHS[character], FONTS[font])
    return torch.from_numpy(_distance(image))


def _fields(shape: Tensor, character: Tensor, font: Tensor) -> Tensor:
    """Distance fields (B, 64, 64); only those that are asked for are made, as each takes its time.

    `character` and `font` count where `shape` is negative.
    """
    number = torch.where(shape < 0, len(_SHAPES) + character * len(FONTS) + font, shape)
    numbers, places = number.unique(return_inverse=True)
    return torch.stack([_field(one) for one in numbers.tolist()])[places]


def _uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator)


def _centers(scene: Scene, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Object sizes (B,) and centres (B, 3, 2) in pixels; the second and third are for counts."""
    size, position, several = (scene.values[k] for k in ("size", "position", "count"))
    batch = len(scene)
    side = torch.where(size == 1, _uniform((batch,), 27, 30, generator),
                       _uniform((batch,), 17, 20, generator))  # fmt: skip
    side = torch.where(several > 0, _uniform((batch,), 14, 16, generator), side)
    away = (IMAGE_SIZE - side) / 2 - 0.5  # to the edge of the frame, not past it
    steps = torch.tensor([[-1.0, 0], [1, 0], [0, -1], [0, 1], [0, 0]])[position]
    jitter = _uniform((batch, 2), -1.2, 1.2, generator)
    single = IMAGE_SIZE / 2 + steps * away[:, None] + jitter * (steps == 0)
    corners = torch.tensor([[10.5, 10.5], [29.5, 10.5], [10.5, 29.5], [29.5, 29.5]])
    order = torch.rand(batch, 4, generator=generator).argsort(1)[:, :3]
    grid = corners[order] + _uniform((batch, 3, 2), -1.5, 1.5, generator)
    centers = torch.where((several > 0)[:, None, None], grid, single[:, None])
    return side, centers


def _silhouettes(scene: Scene, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Coverage (B, H, W) of the objects in [0, 1], and their sizes in pixels (B,)."""
    batch = len(scene)
    font = torch.randint(len(FONTS), (batch,), generator=generator)
    shape, digit, letter = (scene.values[name] for name in ("shape", "digit", "letter"))
    character = torch.where(digit >= 0, digit, 10 + letter).clamp(min=0)
    glyph = shape < 0
    fields = _fields(shape, character, font)[:, None]
    side, centers = _centers(scene, generator)
    angle = _uniform((batch,), -0.16, 0.16, generator)
    shear = _uniform((batch,), -0.25, 0.25, generator) * glyph
    aspect = 1 + _uniform((batch,), -0.15, 0.15, generator) * glyph
    thicker = torch.where(glyph, _uniform((batch,), -0.2, 1.2, generator), 0.0)
    warp = torch.randn(batch, 2, 4, 4, generator=generator) * 0.035 * glyph[:, None, None, None]
    warp = F.interpolate(warp, (IMAGE_SIZE, IMAGE_SIZE), mode="bicubic", align_corners=True)
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    result = torch.zeros(batch, IMAGE_SIZE, IMAGE_SIZE)
    for index in range(3):
        rows = (scene.values["count"] >= index).nonzero()[:, 0]
        scale = side[rows, None, None]
        x = (_ACROSS - centers[rows, index, 0, None, None]) / scale
        y = (_DOWN - centers[rows, index, 1, None, None]) / scale
        c, s = cos[rows], sin[rows]
        u = (c * x + s * y) * aspect[rows, None, None]
        v = (c * y - s * x) / aspect[rows, None, None]
        u = u + shear[rows, None, None] * v + warp[rows, 0]
        v = v + warp[rows, 1]
        # a stored field covers twice the object, so its half width is one object side
        distance = F.grid_sample(
            fields[rows], torch.stack([u, v], -1), padding_mode="border", align_corners=False
        )[:, 0]
        cover = (0.5 + distance * scale + thicker[rows, None, None]).clamp(0, 1)
        result[rows] = torch.maximum(result[rows], cover)
    return result, side


def _pattern(scene: Scene, generator: torch.Generator) -> Tensor:
    """Which pixels show the second tone (B, H, W), 0 or 1, smoothed at its edges."""
    batch = len(scene)
    angle = _uniform((batch, 1, 1), -0.5, 0.5, generator)
    shift = _uniform((batch, 2, 1, 1), 0, 6, generator)
    period = _uniform((batch, 1, 1), 5.0, 6.0, generator)
    u = (angle.cos() * _ACROSS + angle.sin() * _DOWN + shift[:, 0]) * (2 * torch.pi / period)
    v = (angle.cos() * _DOWN - angle.sin() * _ACROSS + shift[:, 1]) * (2 * torch.pi / period)
    waves = torch.stack(
        [
            torch.full_like(u, -1.0),
            u.sin(),
            (u.cos() + v.cos()) * 0.8 - 0.45,
            (u * 0.8).sin() * (v * 0.8).sin() * 1.6,
        ]
    )
    texture = scene.values["texture"].clamp(min=0)
    chosen = waves[texture, torch.arange(batch)]
    return (0.5 + chosen * 1.6).clamp(0, 1)


def _backgrounds(scene: Scene, generator: torch.Generator) -> Tensor:
    batch = len(scene)
    noise = torch.rand(batch, 1, IMAGE_SIZE // 2, IMAGE_SIZE // 2, generator=generator)
    noise = F.interpolate(noise, scale_factor=2.0, mode="nearest")[:, 0]
    turn = _uniform((batch, 1, 1), 0, 2 * torch.pi, generator)
    ramp = (turn.cos() * (_ACROSS - 20) + turn.sin() * (_DOWN - 20)) / 50
    shift = torch.randint(8, (batch, 2, 1, 1), generator=generator)
    grid = ((_ACROSS.long() + shift[:, 0]) % 8 == 0) | ((_DOWN.long() + shift[:, 1]) % 8 == 0)
    plain = _uniform((batch, 1, 1), -0.03, 0.03, generator).expand(-1, IMAGE_SIZE, IMAGE_SIZE)
    looks = torch.stack(
        [
            0.03 + plain,
            0.97 + plain,
            0.5 + 2 * plain,
            0.33 + 0.34 * noise,
            0.5 + 0.75 * ramp,
            0.62 - 0.3 * grid.float(),
        ]
    )
    gray = looks[scene.values["background"], torch.arange(batch)]
    return gray[:, None].expand(-1, 3, -1, -1)


def _blurred(images: Tensor, scene: Scene, side: Tensor, generator: torch.Generator) -> Tensor:
    """Some large glyphs lose resolution, as in a small or unsharp photograph."""
    glyph = (scene.values["shape"] < 0) & (side > 25)
    lottery = torch.rand(len(scene), generator=generator)
    for resolution, low in ((10, 0.0), (14, 0.15), (20, 0.3)):
        rows = (glyph & (lottery >= low) & (lottery < low + 0.15)).nonzero()[:, 0]
        if len(rows):
            small = F.interpolate(images[rows], (resolution, resolution), mode="area")
            images[rows] = F.interpolate(
                small, (IMAGE_SIZE, IMAGE_SIZE), mode="bicubic", align_corners=False
            )
    return images


def draw(scene: Scene, generator: torch.Generator) -> Tensor:
    """Draw what B images show: (B, 3, 40, 40) uint8 RGB.

    The generator gives all that the scene leaves open (font, jitter, noise).
    """
    cover, side = _silhouettes(scene, generator)
    base = COLORS[scene.values["color"]] + _uniform((len(scene), 3), -0.04, 0.04, generator)
    light = base.mean(1, keepdim=True)
    second = torch.where(light > 0.3, base * 0.4, base * 0.4 + 0.5)
    second = torch.where(light > 0.15, second, base + 0.3)  # black stays darker than gray
    tone = _pattern(scene, generator)[:, None]
    paint = base[:, :, None, None] * (1 - tone) + second[:, :, None, None] * tone
    images = _backgrounds(scene, generator) * (1 - cover[:, None]) + paint * cover[:, None]
    images = _blurred(images, scene, side, generator)
    images = images + torch.randn(images.shape, generator=generator) * 0.015
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)
