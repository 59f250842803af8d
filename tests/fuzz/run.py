"""Loaders on spoiled folders: `python -m tests.fuzz.run ROOT INPUTS [SEED [LOADER ...]]`.

Each loader runs in child processes with bounded memory, a few hundred inputs each, while this one
looks after the time. Prints a line of JSON with all that ended in anything but a ResiDualError.
"""

import copy
import io
import json
import logging
import os
import resource
import select
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from peft import PeftModel
from PIL import Image

from residual_peft.bases.basis import SpectralBasis
from residual_peft.classifiers.backbones import load_backbone
from residual_peft.classifiers.many_tasks import TaskSet
from residual_peft.classifiers.zero_shot import ZeroShotClassifier
from residual_peft.data import load_data
from residual_peft.errors import ResiDualError
from residual_peft.reporting import write_report
from residual_peft.reporting.run_record import RunRecord
from residual_peft.solvers.store import CoordinateStore
from residual_peft.towers.running import run_tower
from residual_peft.tuner import load_adapter
from tests.fuzz.good import make
from tests.fuzz.mutations import spoil
from tests.models import clip_model, pixels
from tests.tokenizers import VOCABULARY

BATCH = 300  # inputs of one child
MEMORY = 2 * 2**30  # bytes of addresses beyond those of a child that has read good folders
SECONDS = 40  # of one input
IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8))


def _model() -> Any:
    return copy.deepcopy(_model_of())


def _model_of(made: list[Any] = []) -> Any:  # noqa: B006  the one model of all
    if not made:
        made.append(clip_model(vocab_size=VOCABULARY).eval())
    return made[0]


def _finite(values: torch.Tensor) -> None:
    if not bool(torch.isfinite(values).all()):
        raise ArithmeticError("what was loaded gives NaN or infinite values")


def _model_as(base: Path, made: list[Any] = []) -> Any:  # noqa: B006  read once
    if not made:
        made.append(load_backbone(base).model.eval())
    return copy.deepcopy(made[0])


def _classifier(folder: Path, good: Path) -> None:
    # half of them with the base model that they name
    given = {} if len(os.listdir(folder)) % 2 else {"model": _model()}
    loaded = ZeroShotClassifier.from_pretrained(folder, **given)
    _finite(loaded.predict_logits([IMAGE]))
    if loaded.held_out is not None and len(loaded.held_out):
        loaded.predict([IMAGE], coverage=0.5)


def _headed(folder: Path, good: Path) -> None:
    """A class head, the sums of its images that it can be changed by, and their rows."""
    loaded = ZeroShotClassifier.from_pretrained(folder, model=_model_as(good / "base"))
    _finite(loaded.predict_logits([IMAGE]))
    loaded.predict([IMAGE])
    if loaded.head is not None and loaded._without is not None:
        loaded.predict([IMAGE], coverage=0.5)
    if loaded.head is not None and loaded.statistics is not None:
        loaded.update([IMAGE], [0])
        _finite(loaded.predict_logits([IMAGE]))


def _adapter(folder: Path, good: Path) -> None:
    _loaded(lambda model: load_adapter(model, folder))


def _peft(folder: Path, good: Path) -> None:
    try:
        _loaded(lambda model: PeftModel.from_pretrained(model, folder))
    except (ResiDualError, ArithmeticError):
        raise
    except Exception:
        if _is_ours(folder):
            raise  # PEFT's own words for a config of which it does not learn that it is ours


def _is_ours(folder: Path) -> bool:
    try:
        if not (folder / "adapter_config.json").is_file():
            return False
        with (folder / "adapter_config.json").open(encoding="utf-8") as file:
            return json.loads(file.read(2**20))["peft_type"] == "RESIDUAL_PEFT"
    except Exception:
        return False


def _loaded(load: Callable[[Any], Any]) -> None:
    """Load onto a model and run it; its own weights stay, whatever comes of that."""
    model, own = _model(), _model_of().state_dict()
    weights = dict(model.named_parameters())
    try:
        adapted = load(model).eval()
        with torch.no_grad():
            _finite(run_tower(adapted, pixels(2)))
    finally:
        changed = [name for name, weight in weights.items() if not torch.equal(weight, own[name])]
        if changed:
            raise ArithmeticError(f"{changed[0]} of the base model has changed")


def _basis(folder: Path, good: Path) -> None:
    basis = SpectralBasis.from_pretrained(folder)
    basis.truncate(2).select([basis.units[0]])


def _store(folder: Path, good: Path) -> None:
    model = load_adapter(_model(), good / "adapter")
    CoordinateStore.open(folder, model).load()


def _record(folder: Path, good: Path) -> None:
    write_report(RunRecord.load(folder), folder.parent / "report.html")


def _tasks(folder: Path, good: Path) -> None:
    tasks = TaskSet.from_pretrained({"good": good / "classifier"}, model=_model())
    before = tasks.predict(IMAGE)["good"].probabilities
    try:
        tasks.add("evil", folder)
        tasks.predict(IMAGE)
    finally:
        if not np.allclose(tasks.predict(IMAGE)["good"].probabilities, before, atol=1e-5):
            raise ArithmeticError("another task has changed")


def _data(folder: Path, good: Path) -> None:
    load_data(str(folder))


def _each(folder: Path, good: Path) -> None:
    """Every table or archive of a folder; the first refusal after all have been tried."""
    datasets.config.HF_DATASETS_CACHE = folder.parent / "cache"
    refused = None
    for path in sorted(folder.glob("a.*")):
        try:
            load_data(path)
        except ResiDualError as error:
            refused = error
    shutil.rmtree(folder.parent / "cache", ignore_errors=True)
    if refused is not None:
        raise refused


def _backbone(folder: Path, good: Path) -> None:
    backbone = load_backbone(folder)
    backbone.image_processor(images=[IMAGE], return_tensors="pt")
    backbone.tokenizer("a cat")


LOADERS: dict[str, tuple[str, Callable[[Path, Path], None]]] = {
    "classifier": ("classifier", _classifier),
    "headed": ("headed", _headed),
    "adapter": ("adapter", _adapter),
    "gains": ("gains", _adapter),
    "stream": ("stream", _peft),
    "peft": ("adapter", _peft),
    "basis": ("basis", _basis),
    "store": ("store", _store),
    "record": ("fit", _record),
    "tasks": ("classifier", _tasks),
    "photos": ("photos", _data),
    "saved": ("saved", _data),
    "tables": ("tables", _each),
    "archives": ("archives", _each),
    "backbone": ("base", _backbone),
}


def _one(name: str, seed: int, root: Path) -> dict[str, Any] | None:
    """One input; what is wrong, if anything."""
    kind, load = LOADERS[name]
    good, place = root / "good", root / f"work-{name}-{os.getpid()}"
    folder = place / "folder"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(good / kind, folder)
    done = spoil(folder, seed, good)
    found = {"loader": name, "seed": seed, "done": done}
    before = _listing(folder)
    try:
        load(folder, good)
    except ResiDualError as error:
        text = str(error)
        if set(text) & {"\x1b", "\n", "\x07"} or len(text) > 5000:
            return {**found, "error": "unprintable", "text": text[:200], "where": "message"}
        if (left := _listing(folder) - before) and kind not in ("photos", "saved"):
            return {**found, "error": "left behind", "text": str(sorted(left)), "where": "folder"}
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)
        ours = [f for f in frames if "residual_peft" in f.filename] or frames[-1:]
        where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno} {frames[-1].name}"
        kind_of = type(error).__name__
        return {**found, "error": kind_of, "text": str(error)[:200], "where": where}
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return None


def _listing(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def _child(name: str, seeds: range, root: Path, out: int) -> None:
    """Run inputs in turn, saying before each which it is."""
    sys.stdin.close()
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    sys.stdout = sys.stderr = io.StringIO()
    os.environ["HF_DATASETS_CACHE"] = str(root / f"cache-{os.getpid()}")
    kind, load = LOADERS[name]
    load(root / "good" / kind, root / "good")  # good folders load, and then all is imported
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for seed in seeds:
        os.write(out, json.dumps({"begun": seed}).encode() + b"\n")
        if (found := _one(name, seed, root)) is not None:
            os.write(out, json.dumps(found).encode() + b"\n")
        sys.stdout.seek(0), sys.stdout.truncate()
    os.write(out, b'{"ended": true}\n')


def _batch(name: str, seeds: range, root: Path) -> tuple[list[dict[str, Any]], int]:
    """What a child finds in a range of seeds, and how far it came."""
    reader, writer = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(reader)
        try:
            os.setsid()
            _child(name, seeds, root, writer)
        except BaseException:
            os.write(writer, json.dumps({"broken": traceback.format_exc()}).encode() + b"\n")
        os._exit(0)
    os.close(writer)
    found, last, text, since = [], seeds.start - 1, b"", time.monotonic()
    while True:
        if not select.select([reader], [], [], max(0.0, since + SECONDS - time.monotonic()))[0]:
            os.killpg(process, signal.SIGKILL)
            what = {"loader": name, "seed": last, "error": "hung", "text": "", "where": f"{last}"}
            found.append(what)
            break
        if not (part := os.read(reader, 65536)):
            break
        *lines, text = (text + part).split(b"\n")
        for line in map(json.loads, lines):
            since = time.monotonic()
            if "begun" in line:
                last = line["begun"]
            elif "broken" in line:
                raise RuntimeError(line["broken"])
            elif "ended" in line:
                last = seeds.stop
            else:
                found.append(line)
    os.close(reader)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    if last < seeds.stop and not any(f["seed"] == last and f["error"] == "hung" for f in found):
        where = f"signal {-status}"
        found.append({"loader": name, "seed": last, "error": "died", "text": "", "where": where})
    return found, last + 1


def fuzz(root: Path, inputs: int, start: int = 0, names: list[str] | None = None) -> list[dict]:
    """Run so many inputs, shared out over the loaders; the findings."""
    if not (root / "good").is_dir():
        make(root / "good")
    names = names or list(LOADERS)
    found: list[dict[str, Any]] = []
    for number, name in enumerate(names):
        share = inputs // len(names) + (number < inputs % len(names))
        seed, end = start, start + share
        while seed < end:
            more, seed = _batch(name, range(seed, min(seed + BATCH, end)), root)
            found += more
            for finding in more:
                print(json.dumps(finding), file=sys.stderr, flush=True)
    return found


if __name__ == "__main__":
    folder, count, *rest = sys.argv[1:]
    first = int(rest[0]) if rest else 0
    json.dump(fuzz(Path(folder), int(count), first, rest[1:]), sys.stdout)
