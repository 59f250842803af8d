"""The rows of a class head's images on disk, by which jackknife+ leaves each of them out.

They are what the ridge reads of every training image, N × K numbers of 4 bytes, and N × C of 16: no
pixels, but data as the images are. They lie in `run/`, which is never pushed.
"""

from pathlib import Path

from ..errors import ResiDualError
from ..hub.files import quoted, read_tensors, write_tensors
from .heads.jackknife_plus import RidgeWithout

HEAD = "head"
HOW = "fit a ridge with sets='jackknife+'"


def save_rows(without: RidgeWithout, path: Path, head: str) -> None:
    """Write them, bound to a head by its `head_digest`."""
    path.parent.mkdir(exist_ok=True)
    write_tensors(path, without.state(), {HEAD: head})


def load_rows(path: Path, head: str, columns: int, classes: int) -> RidgeWithout:
    """Read what `save_rows` wrote, for the head of a digest on K columns for C classes."""
    tensors, metadata = read_tensors(path)
    where = quoted(path)
    if metadata.get(HEAD) != head:
        raise ResiDualError(f"{where} belongs to another class head than lies beside it: {HOW}.")
    try:
        found = RidgeWithout.from_state(tensors)
    except ResiDualError as error:
        raise ResiDualError(f"{where}: {error}") from error
    if int(found.columns.max()) >= columns or found.targets.shape[1] != classes:
        raise ResiDualError(f"{where} is of other features or classes than the head's: {HOW}.")
    return found
