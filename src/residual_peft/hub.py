"""A name or a path -> a local directory, and back: the only place that speaks to the Hub."""

import os
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, snapshot_download

from .errors import ResiDualError

DEMO_MODEL = "residual_peft/demo-clip"
"""The name under which the bundled model goes; it never leaves this machine."""

BUNDLED_DIRECTORY = Path(__file__).parent / "demo" / "clip"


def local_directory(
    name_or_path: str | os.PathLike[str],
    *,
    what: str = "model",
    allow_patterns: list[str] | None = None,
    revision: str | None = None,
    token: str | None = None,
) -> Path:
    """The local directory of a path, of the bundled model's name, or of a Hub id (downloaded).

    Args:
        name_or_path: an existing directory, `DEMO_MODEL` or a Hub id.
        what: the word for it in messages.
        allow_patterns: on the Hub, download only files that match.
        revision: a branch, tag or commit on the Hub.
        token: for private repositories.

    Raises:
        ResiDualError: there is no such directory and the Hub did not give it either.
    """
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return path
    name = str(name_or_path)
    if name == DEMO_MODEL:
        return BUNDLED_DIRECTORY
    if path.is_file():
        raise ResiDualError(f"wanted the directory of a {what}, got the file '{name}'.")
    try:
        return Path(
            snapshot_download(name, allow_patterns=allow_patterns, revision=revision, token=token)
        )
    except Exception as error:  # the client raises many kinds, all of which a user must mend
        first = next((line for line in str(error).splitlines() if line.strip()), repr(error))
        raise ResiDualError(
            f"could not find the {what} '{name}': it is no directory here, and the Hugging Face "
            f"Hub did not give it ({first}). Check the spelling and the connection, or give a "
            "local directory."
        ) from error


def push_directory(
    directory: str | os.PathLike[str],
    repo_id: str,
    *,
    commit_message: str = "Upload with residual-peft",
    private: bool | None = None,
    token: str | None = None,
) -> Any:
    """Upload every file of `directory` to the Hub repository `repo_id`, created when missing.

    Returns:
        The client's `CommitInfo`.
    """
    api = HfApi(token=token)
    api.create_repo(repo_id, private=private, exist_ok=True)
    return api.upload_folder(
        repo_id=repo_id, folder_path=str(directory), commit_message=commit_message
    )
