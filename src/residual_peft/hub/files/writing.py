"""Files and folders that appear whole or not at all: written aside, then renamed.

A folder that is new appears by one rename. One that is there already keeps what the user put into
it, so it cannot be exchanged as a whole: its new files are gathered in a hidden folder within it,
whose rename is the moment in which the save counts, and are then put in their places. Whoever is
killed before that moment leaves the old files, and whoever is killed after it the new ones, since
`whole_directory`, by which every loader of this package comes in, finishes the work first.
"""

import contextlib
import errno
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...errors import ResiDualError
from ..aside import aside_name, remove, sweep
from ..places import PathLike, disk_faults
from .looking import path_of, quoted

_SAVE = ".residual-peft-save-"
_GONE = ".residual-peft-gone"  # in a save: what goes with it, one name a line
_LONE_HALF = re.compile("[\ud800-\udfff]")


def _reveal(source: Path, destination: Path) -> None:
    """Give a file or folder its name, by which it takes the place of an older one."""
    os.replace(source, destination)


@contextmanager
def atomic_file(path: PathLike) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its place once the block has succeeded.

    Raises:
        ResiDualError: the disk does not take it; says why and what to do. Nothing is left behind.
    """
    target = path_of(path)
    temporary = target.parent / aside_name(target.name)
    with disk_faults(target), _parents_of(target):
        sweep(target.parent)
        try:
            os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            yield temporary
            _open_to_others(temporary)
            _reveal(temporary, target)
        finally:
            remove(temporary)


@contextmanager
def atomic_directory(path: PathLike, gone: list[str] | None = None) -> Iterator[Path]:
    """Yield a temporary directory whose files move into `path` once the block has succeeded.

    Files already in `path` stay, unless one of the same name replaces them. Killed at any moment,
    it leaves the old files or, for `whole_directory`, the new ones: never some of each. Paths in
    `gone` belong to the old files and go with them, except for what the new ones have there; it is
    read when the block has succeeded.

    Raises:
        ResiDualError: the disk does not take them, or something of another kind is in the way;
            says why and what to do. The old files are then as they were.
    """
    target = path_of(path)
    with disk_faults(target), _parents_of(target):
        if target.exists() and not target.is_dir():
            raise ResiDualError(
                f"wanted a directory to write to, got the file {quoted(target)}; name another "
                "output."
            )
        is_new = not target.is_dir()
        temporary = (target.parent if is_new else target) / aside_name(target.name)
        sweep(target.parent)
        if not is_new:
            sweep(target)
            _finish_all(target)
        try:
            temporary.mkdir()
            yield temporary
            if gone and not is_new:
                (temporary / _GONE).write_text("\n".join(gone), "utf-8")
            _open_to_others(temporary)
            _appear(temporary, target)
        finally:
            remove(temporary)


def whole_directory(path: PathLike) -> Path:
    """Where the files of a folder lie, after a save that was killed while it put them in place.

    That is `path`, once the last save is finished; where that may not be written, the folder within
    it that holds all files of that save.
    """
    target = path_of(path)
    if not (saves := _saves(target)):
        return target
    try:
        _finish_all(target)
    except (OSError, ResiDualError):
        return saves[-1]
    return target


def write_json(path: PathLike, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all.

    Raises:
        ResiDualError: the disk does not take it; says why and what to do.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    # of a file name that is not UTF-8; JSON can say so, and reads it as it was
    text = _LONE_HALF.sub(lambda half: f"\\u{ord(half[0]):04x}", text)
    with atomic_file(path) as temporary:
        temporary.write_text(text, "utf-8")


def _open_to_others(path: Path) -> None:
    """Give a file, or a folder with all in it, the rights that the user's umask gives."""
    mask = os.umask(0)
    os.umask(mask)
    inside = [path, *path.rglob("*")] if path.is_dir() else [path]
    for part in inside:
        if not part.is_symlink():
            part.chmod((0o777 if part.is_dir() else 0o666) & ~mask)


@contextmanager
def _parents_of(target: Path) -> Iterator[None]:
    """Make the folders above a path; those that were missing go when the block fails."""
    missing = [folder for folder in target.parents if not folder.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for folder in missing:  # the innermost first, as far as they are empty
            try:
                folder.rmdir()
            except OSError:
                break
        raise


def _appear(temporary: Path, target: Path) -> None:
    """Show the files of a temporary folder in `target`."""
    if not target.is_dir():
        try:
            _reveal(temporary, target)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or not target.is_dir():
                raise
    _check_way(temporary, target)
    save = target / f"{_SAVE}{time.time_ns():020d}-{secrets.token_hex(4)}"
    _reveal(temporary, save)  # from now on the new files count
    _finish(save, target)


def _saves(target: Path) -> list[Path]:
    """Saves into a folder that are whole but not all in place, the oldest first."""
    try:
        names = [entry.name for entry in os.scandir(target) if entry.name.startswith(_SAVE)]
    except OSError:
        return []
    found = [target / name for name in sorted(names)]
    return [save for save in found if save.is_dir() and not save.is_symlink()]


def _finish_all(target: Path) -> None:
    for save in _saves(target):
        _check_way(save, target)
        _finish(save, target)


def _finish(save: Path, target: Path) -> None:
    """Put the files of a whole save in their places; two processes may do so at once."""
    try:
        _remove_old(save, target)
        for source in _files_in(save):
            destination = target / source.relative_to(save)
            destination.parent.mkdir(parents=True, exist_ok=True)
            temporary = target / aside_name(destination.name)  # where `sweep` looks
            try:
                _same_file(source, temporary)
                _reveal(temporary, destination)
            finally:
                remove(temporary)
        done = target / aside_name("save")
        _reveal(save, done)  # so that no half of it is taken for a whole
        remove(done)
    except FileNotFoundError:
        if save.exists():
            raise


def _remove_old(save: Path, target: Path) -> None:
    """Remove what a save says belongs to the files before it, and folders that get empty."""
    said = save / _GONE
    if not said.is_file() or said.is_symlink():
        return
    for name in said.read_text("utf-8", errors="replace").split("\n"):
        parts = Path(name).parts
        place = target.joinpath(*parts)
        above = [target.joinpath(*parts[:depth]) for depth in range(1, len(parts))]
        # a save may lie in a stranger's folder, and tells of files in that folder alone
        if (
            not parts
            or Path(name).is_absolute()
            or ".." in parts
            or any(map(Path.is_symlink, above))
        ):
            continue
        inside = _files_in(place) if place.is_dir() and not place.is_symlink() else [place]
        for file in inside:
            if not file.is_dir() and not (save / file.relative_to(target)).exists():
                file.unlink(missing_ok=True)
        folders = [p for p in place.rglob("*") if p.is_dir()] if place.is_dir() else []
        for folder in [*sorted(folders, reverse=True), place, *reversed(above)]:
            with contextlib.suppress(OSError):  # not empty
                folder.rmdir()


def _same_file(source: Path, destination: Path) -> None:
    # a link takes no room, and the save stays whole until all its files are in place
    try:
        os.link(source, destination)
    except OSError:  # a file system without links
        shutil.copy2(source, destination)


def _files_in(folder: Path) -> list[Path]:
    found = (p for p in folder.rglob("*") if p.is_file() and not p.is_symlink())
    return sorted(p for p in found if p.name != _GONE)


def _check_way(source: Path, target: Path) -> None:
    """See to it that nothing but older files is where the files of `source` will be.

    Links are no folders here: a stranger's could lead to any place.

    Raises:
        ResiDualError: a folder lies where a file should be, or a file or link where a folder.
    """
    for file in _files_in(source):
        place = file.relative_to(source)
        folders = [target / folder for folder in place.parents if folder != Path()]
        for folder in folders:
            if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
                raise ResiDualError(
                    f"wanted the folder {quoted(folder)} to write to, got a file or a link; move "
                    "it away, or name another output."
                )
        if (target / place).is_dir():
            raise ResiDualError(
                f"wanted to write the file {quoted(target / place)}, got a folder; move it away, "
                "or name another output."
            )
