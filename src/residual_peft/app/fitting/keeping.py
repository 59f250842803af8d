"""What a fit has read, kept beside its output until it has succeeded, so that it can go on."""

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...errors import ResiDualError
from ...hub.files import write_json
from ...hub.places import reading_place

try:
    import fcntl
except ImportError:  # Windows, where two fits at once are the user's to avoid
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

_SETTINGS, _LOCK = "settings.json", "lock"


class Keeping:
    """The hidden directory `.OUT.reading` beside an output, the target.

    Attributes:
        folder: it; in it lie the coordinates of each split, under its name.
        checkpoints: where the Trainer leaves its own.
        trained: where the gains lie once the Trainer is done.
    """

    def __init__(self, target: Path) -> None:
        self.target, self.folder = target, reading_place(target)
        self.checkpoints = self.folder / "trainer"
        self.trained = self.folder / "trained.safetensors"

    def begin(self, settings: Mapping[str, Any]) -> bool:
        """Go on with what is there if it belongs to the same fit, or remove it with a word.

        Settings are JSON-able: all that what is read depends on, name -> value; the names are told
        where they differ. Whether there is something to go on with.
        """
        wanted = json.loads(json.dumps(dict(settings)))
        path = self.folder / _SETTINGS
        there = _json_in(path)
        if there == wanted:
            return self.holds_images
        if self.holds_images:
            other = [n for n in wanted if there is None or there.get(n) != wanted[n]]
            logger.warning(
                "an interrupted fit to '%s' had read images with other %s: all are read anew",
                self.target.name,
                ", ".join(other) or "settings",
            )
        for part in self.folder.iterdir():
            if part.name != _LOCK:
                shutil.rmtree(part) if part.is_dir() else part.unlink()
        write_json(path, wanted)
        return False

    @property
    def last_checkpoint(self) -> Path | None:
        """The newest whole checkpoint: the Trainer writes its state last."""
        found = [
            folder
            for folder in self.checkpoints.glob("checkpoint-*")
            if folder.name.rpartition("-")[2].isdigit()
            and _json_in(folder / "trainer_state.json") is not None
        ]
        return max(found, key=lambda folder: int(folder.name.rpartition("-")[2]), default=None)

    @property
    def holds_images(self) -> bool:
        """Whether something was read that would have to be read again."""
        return any(self.folder.glob("*/*.safetensors"))


@contextmanager
def keeping(target: Path) -> Iterator[Keeping]:
    """Keep what the block reads until it succeeds; one fit at a time.

    Raises:
        ResiDualError: another fit is writing to the same place.
    """
    kept = Keeping(target)
    handle, succeeded = _locked(kept), False
    try:
        yield kept
        succeeded = True
    finally:
        if succeeded or not kept.holds_images:
            shutil.rmtree(kept.folder, ignore_errors=True)
        os.close(handle)


def _locked(kept: Keeping) -> int:
    """Hold the directory for this process, which loses it however it ends."""
    while True:
        with contextlib.suppress(FileExistsError):
            kept.folder.mkdir(parents=True)
        handle = os.open(kept.folder / _LOCK, os.O_RDONLY | os.O_CREAT, 0o600)
        try:
            if fcntl is not None:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            here = os.stat(kept.folder / _LOCK)
        except BlockingIOError:
            os.close(handle)
            raise ResiDualError(
                f"another fit is writing to '{kept.target}' (it holds '{kept.folder}'); wait for "
                "it, or name another output."
            ) from None
        except FileNotFoundError:  # the other one has just succeeded
            os.close(handle)
            continue
        if os.path.samestat(here, os.fstat(handle)):
            return handle
        os.close(handle)


def _json_in(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
