"""Good folders of every kind, to be spoiled: made once, of a tiny model."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas
import torch
from datasets import Dataset, DatasetDict
from PIL import Image

from residual_peft.analysis.describing import Words
from residual_peft.app.fitting import fit_adapter
from residual_peft.bases.basis import SpectralBasis
from residual_peft.data import ProcessedImages
from residual_peft.hub.directories import RUN_DIRECTORY
from residual_peft.reporting.run_record import Example, NamedImage
from residual_peft.solvers.store import write_coordinates
from residual_peft.towers.units import Unit
from residual_peft.tuner import ResiDualConfig, fit_bases
from tests.models import pixels
from tests.records import TRUST, head_record, record
from tests.training_case import adapted_classifier, save_clip, task


def make(root: Path) -> None:
    """Fill `root` with folders of every kind that a loader reads."""
    save_clip(root / "base")
    classifier = adapted_classifier()
    for name in ("config._name_or_path", "name_or_path"):
        owner = classifier.model.get_base_model()
        owner = owner.config if name.startswith("config") else owner
        setattr(owner, name.split(".")[-1], str(root / "base"))
    fit_bases(classifier.model, [pixels(40)])
    classifier.held_out = torch.linspace(0.1, 2, 12)
    classifier.save_pretrained(root / "classifier")
    classifier.model.save_pretrained(root / "adapter")
    (root / "adapter" / "README.md").unlink()
    basis = SpectralBasis.fit(classifier.model, [pixels(40)])
    basis.save_pretrained(root / "basis")
    data = ProcessedImages(task(30).train, classifier.image_processor, "train")
    write_coordinates(classifier.model, data, root / "store", shard_size=8)
    gains = adapted_classifier(ResiDualConfig(basis=str(root / "basis"), save_basis=False))
    gains.model.save_pretrained(root / "gains")
    stream = adapted_classifier(ResiDualConfig(mode="stream")).model
    fit_bases(stream, [pixels(40)])
    stream.save_pretrained(root / "stream")
    _photos(root / "photos")
    _tables(root / "photos", root / "tables")
    _archives(root / "photos", root / "archives")
    fit_adapter(
        str(root / "base"),
        str(root / "photos"),
        root / "headed",
        templates=["a {}."],
        method="ridge",
        keep_statistics=True,
        sets="jackknife+",
        num_workers=0,
    )
    _record(root / "fit", next((root / "photos").rglob("*.png")).read_bytes())
    rows = {"image": [str(p) for p in sorted((root / "photos").rglob("*.png"))]}
    rows["label"] = [Path(p).parent.name for p in rows["image"]]
    DatasetDict({"train": Dataset.from_dict(rows)}).save_to_disk(str(root / "saved"))


def _photos(root: Path) -> None:
    generator = np.random.default_rng(0)
    lines = ["file_name,label"]
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for number in range(8):
            pixels_of = generator.integers(0, 255, (16, 16, 3), np.uint8)
            Image.fromarray(pixels_of).save(root / name / f"{number}.png")
            lines.append(f"{name}/{number}.png,{name}")
    (root / "metadata.csv").write_text("\n".join(lines) + "\n")


def _tables(photos: Path, root: Path) -> None:
    """A folder of images beside each other, a table of them of each kind, and a classes.csv."""
    shutil.copytree(photos, root / "images")
    (root / "images" / "metadata.csv").unlink()
    paths = sorted((root / "images").rglob("*.png"))
    rows = [(str(path.relative_to(root)), path.parent.name) for path in paths]
    frame = pandas.DataFrame(rows, columns=["file_name", "label"])
    frame.to_csv(root / "a.csv", index=False)
    frame.to_csv(root / "a.tsv", index=False, sep="\t")
    frame.to_json(root / "a.jsonl", orient="records", lines=True)
    frame.to_json(root / "a.json", orient="records")
    frame.to_parquet(root / "a.parquet")
    (root / "classes.csv").write_text("name,words,spellings\ncat,a cat,kitten|tom\n")


def _archives(photos: Path, root: Path) -> None:
    root.mkdir()
    for kind in ("zip", "tar", "gztar"):
        shutil.make_archive(str(root / "a"), kind, photos)


def _record(root: Path, picture: bytes) -> None:
    words = (Words(Unit("head", 0, 0), 1, (("a stripe", 0.5),), 0.4),)
    image = NamedImage("cats/1.png", 0, 1, 0.9, picture)
    replace(
        record(),
        examples=(Example(3, picture),),
        words=words,
        head=head_record(3),
        trust=TRUST,
        mistakes=(image,),
        suspicious=(image,),
    ).save(root / RUN_DIRECTORY)
    (root / "residual_classifier.json").write_text(json.dumps({}))
