"""What `heads.py` measures on: features of labelled images, from one pass each, kept for the day.

Handwriting, clip art and the world's shifted tasks, all through the bundled CLIP, with bases fitted
on images of its own world. Features lie under the system's temporary directory; nothing of them is
committed but the list of clip art, `clip_art.json`, with its split:

    python benchmarks/heads_tasks.py        # writes clip_art.json again, with apt-get and dpkg
"""

import json
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_letters
from typing import Any

import torch
from datasets import ClassLabel, Dataset, Features, Image
from peft import get_peft_model
from PIL import Image as PillowImage
from PIL import ImageDraw, ImageFilter, ImageFont, ImageOps
from torch import Tensor
from torch.nn import functional
from tqdm.auto import tqdm

from residual_peft import ResiDualConfig, fit_bases
from residual_peft.app.demonstration import handwriting_task
from residual_peft.classifiers.backbones import Backbone, load_backbone
from residual_peft.classifiers.zero_shot import ZeroShotClassifier
from residual_peft.data import batches
from residual_peft.demo.tasks import world_task
from residual_peft.demo.world import TEMPLATES
from residual_peft.hub.files import write_json
from residual_peft.solvers.coordinates import collect_coordinates

CACHE = Path(tempfile.gettempdir()) / "residual-peft-heads"
CLIP_ART = Path(__file__).with_name("clip_art.json")
PACKAGE = "openclipart-png=1:0.18+dfsg-19"
SHIFTED = (
    ("digit", "noisy"),
    ("digit", "blurred"),
    ("letter", "noisy"),
    ("letter", "turned"),
    ("shape", "noisy"),
    ("color", "inverted"),
)
"""Tasks of the world, and what is done to their images; inverted digits are no shift to it."""
WORLD_IMAGES = 1200
SUBJECTS = (
    "animals/birds",
    "animals/bugs",
    "animals/mammals",
    "buildings/homes",
    "computer/hardware",
    "food/beverages",
    "food/desserts",
    "food/fruit",
    "food/meats_and_eggs",
    "people/bodypart",
    "people/smilies",
    "people/stickmen",
    "plants",
    "plants/flowers",
    "recreation/games/cards/ornamental",
    "recreation/music",
    "recreation/party",
    "recreation/sports",
    "recreation/toys",
    "shapes/arrows",
    "shapes/jigsaw",
    "signs_and_symbols/flags/europe",
    "signs_and_symbols/weather",
    "tools",
    "tools/weapons",
    "transportation/boating",
    "transportation/roadsigns",
    "transportation/vehicles",
    "education",
    "office",
)
KINDS = ("embedding", "heads", "heads and MLPs")


@dataclass(frozen=True)
class Rows:
    """Labelled images as all kinds of features, with the text's logits."""

    features: dict[str, Tensor]  # by KINDS (N, K)
    zero_shot: Tensor  # (N, C)
    labels: Tensor  # (N,)
    text: Tensor  # class embeddings (C, d)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def class_count(self) -> int:
        """C."""
        return self.zero_shot.shape[1]

    def rows(self, index: Tensor) -> "Rows":
        """Some of them."""
        features = {name: values[index] for name, values in self.features.items()}
        return Rows(features, self.zero_shot[index], self.labels[index], self.text)


def joined(*parts: Rows) -> Rows:
    """Several as one."""
    features = {kind: torch.cat([part.features[kind] for part in parts]) for kind in KINDS}
    zero_shot = torch.cat([part.zero_shot for part in parts])
    return Rows(features, zero_shot, torch.cat([part.labels for part in parts]), parts[0].text)


def some_of(labels: Tensor, shots: int | None, generator: torch.Generator) -> Tensor:
    """So many rows of each class, drawn as `few_shot.py` does; all when None."""
    if shots is None:
        return torch.arange(len(labels))
    drawn: list[Tensor] = []
    for label in labels.unique():
        index = (labels == label).nonzero().flatten()
        drawn.append(index[torch.randperm(len(index), generator=generator)[:shots]])
    return torch.cat(drawn)


def handwriting_rows() -> dict[str, Rows]:
    """The demo's splits of scikit-learn's digits: train (1,077), validation and test (360 each)."""

    def made() -> dict[str, Rows]:
        task = handwriting_task(load_backbone())
        model = _with_basis(task.backbone, task.basis)
        classifier = task.classifier(model)
        parts = {"train": task.train, "validation": task.validation, "test": task.test}
        return {name: _rows(classifier, part) for name, part in parts.items()}

    return _kept("handwriting", made)


def shifted_rows() -> dict[str, Rows]:
    """Tasks of the world on images of another kind, see `SHIFTED`."""

    def made() -> dict[str, Rows]:
        backbone = load_backbone()
        model = _with_basis(backbone, handwriting_task(backbone).basis)
        found = {}
        for name, shift in SHIFTED:
            task = world_task(name, WORLD_IMAGES, seed=1)
            names = task.features["label"].names
            images = [shifted(image, shift, row) for row, image in enumerate(task["image"])]
            part = batches(_dataset(images, task["label"], names), backbone.image_processor)
            classifier = _classifier(model, backbone, names, TEMPLATES[name])
            found[f"{name}s, {shift}"] = _rows(classifier, part)
        return found

    return _kept("shifted", made)


def clip_art_rows() -> dict[str, Rows]:
    """30 subjects of Debian's openclipart-png: `train` and `test` as `clip_art.json` lists them."""

    def made() -> dict[str, Rows]:
        folder, listed = clip_art_folder(), json.loads(CLIP_ART.read_text())
        backbone = load_backbone()
        model = _with_basis(backbone, handwriting_task(backbone).basis)
        names = [Path(subject).name.replace("_", " ") for subject in listed["train"]]
        classifier = _classifier(model, backbone, names, ("a {}", "an image of a {}"))
        found = {}
        for split in ("train", "test"):
            images, labels = [], []
            for label, (subject, files) in enumerate(listed[split].items()):
                images += [on_white(folder / subject / file) for file in tqdm(files, subject)]
                labels += [label] * len(files)
            dataset = _dataset(images, labels, names)
            found[split] = _rows(classifier, batches(dataset, backbone.image_processor))
        return found

    return _kept("clip art", made)


def stranger_rows() -> dict[str, Rows]:
    """What a classifier of digits has never seen: letters as the digits were scanned, and more.

    `letters` are drawn like scikit-learn's digits; `world digits` and `world letters` are printed
    in the world's colours and places alike. Their text is that of the digits or of the letters.
    """

    def made() -> dict[str, Rows]:
        backbone = load_backbone()
        model = _with_basis(backbone, handwriting_task(backbone).basis)
        names = list(ascii_letters)
        labels = [row % len(names) for row in range(20 * len(names))]
        images = [_scanned(names[label], row) for row, label in enumerate(labels)]
        part = batches(_dataset(images, labels, names), backbone.image_processor)
        found = {"letters": _rows(_classifier(model, backbone, names, TEMPLATES["letter"]), part)}
        for name in ("digit", "letter"):
            task = world_task(name, WORLD_IMAGES, seed=2)
            classes = task.features["label"].names
            classifier = _classifier(model, backbone, classes, TEMPLATES[name])
            found[f"world {name}s"] = _rows(classifier, batches(task, backbone.image_processor))
        return found

    return _kept("strangers", made)


def _scanned(letter: str, seed: int) -> PillowImage.Image:
    """A letter as E. Alpaydin and C. Kaynak scanned digits: 32 x 32 dots, counted in 8 x 8 fields.

    The glyph is turned and sheared a little, fills the height, and its strokes vary in weight.
    """
    generator = torch.Generator().manual_seed(seed)
    turn, shear, weight = (torch.rand(3, generator=generator) - 0.5).tolist()
    large = PillowImage.new("L", (240, 240))
    font = ImageFont.load_default(120)
    stroke = 2 + round(6 * (weight + 0.5))
    ImageDraw.Draw(large).text(
        (120, 120), letter, fill=255, font=font, anchor="mm", stroke_width=stroke
    )
    large = large.rotate(20 * turn)
    large = large.transform(
        large.size, PillowImage.Transform.AFFINE, (1, 0.4 * shear, -48 * shear, 0, 1, 0)
    )
    glyph = large.crop(large.getbbox())
    size = (max(1, min(32, round(32 * glyph.width / glyph.height))), 32)
    dots = PillowImage.new("L", (32, 32))
    dots.paste(glyph.resize(size), ((32 - size[0]) // 2, 0))
    on = torch.tensor(list(dots.getdata())).view(8, 4, 8, 4) > 127
    counted = on.sum((1, 3)).double() * (255 / 16)
    return PillowImage.fromarray(counted.round().to(torch.uint8).numpy())


def _kept(name: str, made: Any) -> Any:
    """What was computed before, or computed now and kept."""
    path = CACHE / f"{name}.pt"
    if not path.exists():
        found = made()
        CACHE.mkdir(exist_ok=True)
        torch.save({key: vars(rows) for key, rows in found.items()}, path)
    return {key: Rows(**fields) for key, fields in torch.load(path).items()}


def _with_basis(backbone: Backbone, basis: Any) -> Any:
    model = get_peft_model(backbone.model, ResiDualConfig(units=("head", "mlp")))
    fit_bases(model, basis)
    return model


def _classifier(
    model: Any, backbone: Backbone, names: Sequence[str], templates: Sequence[str]
) -> ZeroShotClassifier:
    return ZeroShotClassifier.from_text(model, backbone.tokenizer, names, templates)


@torch.no_grad()
def _rows(classifier: ZeroShotClassifier, part: Any) -> Rows:
    found = collect_coordinates(classifier.model, part)
    state = found.state
    units = [
        u for u, count in zip(state.settings.units, state.counts, strict=True) for _ in range(count)
    ]
    heads = torch.tensor([unit.kind == "head" for unit in units])
    features = {
        "embedding": functional.normalize(found.readout, dim=1),
        "heads": found.coordinates[:, heads],
        "heads and MLPs": found.coordinates,
    }
    zero_shot = classifier.scaled_cosines(found.readout)
    return Rows(features, zero_shot, found.labels, classifier.class_embeddings.detach())


def _dataset(images: list[Any], labels: Sequence[int], names: Sequence[str]) -> Dataset:
    features = Features({"image": Image(), "label": ClassLabel(names=list(names))})
    return Dataset.from_dict({"image": images, "label": list(labels)}, features=features)


def shifted(image: PillowImage.Image, shift: str, seed: int) -> PillowImage.Image:
    """Colours inverted; blurred by 2 pixels; turned by 45 to 135 degrees; noise of a quarter."""
    image = image.convert("RGB")
    if shift == "inverted":
        return ImageOps.invert(image)
    if shift == "blurred":
        return image.filter(ImageFilter.GaussianBlur(2))
    if shift == "turned":
        return image.rotate(45 + 37 * seed % 91)
    generator = torch.Generator().manual_seed(seed)
    noise = 64 * torch.randn(image.height, image.width, 3, generator=generator)
    pixels = torch.tensor(list(image.getdata())).view_as(noise) + noise
    return PillowImage.fromarray(pixels.clamp(0, 255).to(torch.uint8).numpy())


def on_white(path: Path) -> PillowImage.Image:
    """The picture on white, no larger than needed."""
    with PillowImage.open(path) as image:
        image.draft("RGB", (160, 160))
        image = image.convert("RGBA")
        image.thumbnail((160, 160))
        white = PillowImage.new("RGBA", image.size, "white")
        return PillowImage.alpha_composite(white, image).convert("RGB")


def clip_art_folder() -> Path:
    """Debian's package, fetched and unpacked once, without installing it."""
    root = CACHE / "openclipart"
    if not root.exists():
        CACHE.mkdir(exist_ok=True)
        subprocess.run(["apt-get", "download", PACKAGE], cwd=CACHE, check=True)
        (package,) = CACHE.glob("openclipart-png*.deb")
        subprocess.run(["dpkg", "-x", package, root], check=True)
    return root / "usr/share/openclipart/png"


def _small(path: Path) -> bool:
    """Whether a picture is of 16 million pixels at most; the package has some of hundreds."""
    try:
        with PillowImage.open(path) as image:
            return image.width * image.height <= 16e6
    except PillowImage.DecompressionBombError:
        return False


def main() -> None:
    """List the pictures that lie directly in each subject's folder, three of ten for testing."""
    root, listed = clip_art_folder(), {"train": {}, "test": {}}
    generator = torch.Generator().manual_seed(0)
    for subject in SUBJECTS:
        files = sorted(path.name for path in (root / subject).glob("*.png") if _small(path))
        order = torch.randperm(len(files), generator=generator).tolist()
        cut = round(0.3 * len(files))
        listed["test"][subject] = sorted(files[place] for place in order[:cut])
        listed["train"][subject] = sorted(files[place] for place in order[cut:])
    write_json(CLIP_ART, listed)


if __name__ == "__main__":
    main()
