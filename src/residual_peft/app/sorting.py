"""Copies of images in a folder per class; nothing is moved, and nothing is written over."""

import filecmp
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from ..hub.files import path_of
from ..hub.places import check_place

UNSURE, NONE = "unsure", "none of these"
_LONGEST = 100  # characters of a folder's name


class Sorting:
    """Where images of each class are copied to.

    Attributes:
        root: the folder of the classes' folders.
        copied: how many images were.
        present: how many were there already, from an earlier run.
    """

    def __init__(self, root: str | os.PathLike[str], class_names: Sequence[str]) -> None:
        """Args are the folder, made when there is something to put into it, and C class names.

        Raises:
            ResiDualError: the folder cannot be written.
        """
        check_place(root)
        self.root = path_of(root)
        self.copied = self.present = 0
        taken: set[str] = set()
        self.folders = {name: _free(folder_name(name), taken) for name in class_names}
        self.unsure, self.none = _free(UNSURE, taken), _free(NONE, taken)

    def put(self, file: str, label: str | None, *, apart: bool = False) -> Path:
        """Copy a file into the folder of a class, or of the unsure ones (None); returns its path.

        With `apart` into that of what is none of the classes. A file of that name with the same
        content stays, beside one with other content it gets a number: "photo (2).jpg".
        """
        name = self.none if apart else self.unsure if label is None else self.folders[label]
        folder = self.root / name
        folder.mkdir(parents=True, exist_ok=True)
        stem, suffix = os.path.splitext(os.path.basename(file))
        number = 1
        while True:
            target = folder / (f"{stem}{suffix}" if number == 1 else f"{stem} ({number}){suffix}")
            try:
                _copy_new(file, target)
            except FileExistsError:
                if target.is_file() and filecmp.cmp(file, target, shallow=False):
                    self.present += 1
                    return target
                number += 1
                continue
            self.copied += 1
            return target


def folder_name(class_name: str) -> str:
    """A class name as the name of one folder, on any system.

    >>> folder_name("cat/dog"), folder_name(".."), folder_name("a. ")
    ('cat_dog', '_', 'a')
    """
    kept = "".join("_" if c in '/\\:*?"<>|' or ord(c) < 32 else c for c in class_name)
    return kept[:_LONGEST].strip(" .") or "_"


def _free(name: str, taken: set[str]) -> str:
    """The name, with a number where another class's is the same but for capitals; then taken."""
    number, free = 1, name
    while free.casefold() in taken:
        number += 1
        free = f"{name} ({number})"
    taken.add(free.casefold())
    return free


def _copy_new(file: str, target: Path) -> None:
    """Copy a file under a name that nothing has; a copy that fails leaves nothing.

    Raises:
        FileExistsError: something has the name.
    """
    with open(file, "rb") as source, open(target, "xb") as copy:
        try:
            shutil.copyfileobj(source, copy)
        except BaseException:
            target.unlink(missing_ok=True)
            raise
    shutil.copystat(file, target)
