"""A name or a path -> a local directory, and back: the only place that speaks to the Hub."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, snapshot_download

from ..errors import ResiDualError
from .files import (
    inside,
    is_file,
    is_folder,
    near_miss,
    path_of,
    quoted,
    read_object,
    whole_directory,
)
from .refusals import why_not_given, why_not_taken

DEMO_MODEL = "residual_peft/demo-clip"
"""The name under which the bundled model goes; it never leaves this machine."""

BUNDLED_DIRECTORY = Path(__file__).parents[1] / "demo" / "clip"

MODEL_FILES = ["*.json", "*.txt", "*.model", "*.safetensors"]
CARD = "README.md"
ADAPTER_CONFIG = "adapter_config.json"
RUN_DIRECTORY = "run"
RECORD_JSON, RECORD_TENSORS, EXAMPLES = "run.json", "run.safetensors", "examples"
"""Where a fit leaves its record, pictures of the user's images included; never pushed."""
MISTAKES, SUSPICIOUS = "mistakes.csv", "suspicious.csv"
"""In the same place: test images that are mistaken, training images whose label looks wrong."""
RUN_YAML = "run.yaml"
"""There, too, since it has paths in it: what repeats the fit."""
SKIPPED = "skipped.csv"
"""The images of a fit that could not be read, by their files' names; never pushed."""
REPORT = "report.html"
"""The report on a fit, pictures included; pushed when asked for."""
_EXAMPLE = re.compile(
    r"((?:ZeroShotClassifier|SpectralBasis)\.from_pretrained\(|PeftModel\.from_pretrained\(base, |"
    r"ResiDualConfig\(basis=)"
    r'"(?:[^"\\\n]|\\.)*"'
)


def local_directory(
    name_or_path: str | os.PathLike[str],
    *,
    what: str = "model",
    marker: str | None = None,
    allow_patterns: list[str] | None = None,
    ignore_patterns: list[str] | None = None,
    revision: str | None = None,
    token: str | None = None,
) -> Path:
    """The local directory of a path, of the bundled model's name, or of a Hub id (downloaded).

    Args:
        name_or_path: an existing directory, `DEMO_MODEL` or a Hub id.
        what: the word for it in messages.
        marker: a file without which a repository on the Hub holds no such thing.
        allow_patterns: on the Hub, download only files that match.
        ignore_patterns: on the Hub, leave out files that match.
        revision: a branch, tag or commit on the Hub.
        token: for private repositories.

    Raises:
        ResiDualError: there is no such directory and the Hub did not give it either; says why.
    """
    path, name = path_of(name_or_path), str(name_or_path)
    if is_folder(path):
        return whole_directory(path)
    if name == DEMO_MODEL:
        return BUNDLED_DIRECTORY
    if is_file(path):
        raise ResiDualError(f"wanted the directory of a {what}, got the file '{name}'.")
    try:
        folder = snapshot_download(
            name,
            allow_patterns=allow_patterns,
            ignore_patterns=ignore_patterns,
            revision=revision,
            token=token,
        )
    except Exception as error:  # the client raises many kinds, all of which a user must mend
        raise ResiDualError(
            f"could not find the {what} '{name}': it is no directory here{near_miss(name)}, and "
            f"{why_not_given(error, revision)}"
        ) from error
    if marker is not None and not (Path(folder) / marker).is_file():
        raise ResiDualError(
            f"could not find the {what} '{name}': the repository of that name on the Hugging Face "
            f"Hub has no {marker}, so it holds no {what}. Check the name and the revision."
        )
    return Path(folder)


def model_directory(
    name_or_path: str | os.PathLike[str],
    *,
    what: str = "model",
    revision: str | None = None,
    token: str | None = None,
) -> Path:
    """`local_directory` of a model in transformers format, without the copies for other libraries.

    Weights are downloaded as safetensors; in PyTorch's own format only where there are no others.
    """
    options: dict[str, Any] = {"what": what, "revision": revision, "token": token}
    options["marker"] = "config.json"
    options["ignore_patterns"] = ["*/*"]  # such as onnx/ and openvino/
    directory = local_directory(name_or_path, allow_patterns=MODEL_FILES, **options)
    if any(directory.glob("*.safetensors")):
        return directory
    return local_directory(name_or_path, allow_patterns=[*MODEL_FILES, "*.bin"], **options)


def model_here(name_or_path: str | os.PathLike[str], revision: str | None = None) -> Path | None:
    """The directory of a model whose weights are on this machine; None where they are not.

    Nothing is asked of the network.
    """
    if is_folder(path_of(name_or_path)) or str(name_or_path) == DEMO_MODEL:
        return local_directory(name_or_path)
    try:
        name = str(name_or_path)
        folder = Path(snapshot_download(name, revision=revision, local_files_only=True))
    except Exception:  # the client raises many kinds where a name is none, or nothing is there
        return None
    weights = any(any(folder.glob(pattern)) for pattern in ("*.safetensors", "*.bin"))
    return folder if weights and (folder / "config.json").is_file() else None


def known_name(name: str) -> str:
    """A model's name or path as other machines know it, as far as they can."""
    if not is_folder(name):
        return name
    path = Path(name).resolve()
    return DEMO_MODEL if path == BUNDLED_DIRECTORY.resolve() else str(path)


def push_directory(
    directory: str | os.PathLike[str],
    repo_id: str,
    *,
    commit_message: str = "Upload with residual-peft",
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
    with_report: bool = False,
) -> Any:
    """Upload the files of `directory` to the Hub repository `repo_id`, created when missing.

    All files go into one commit, so that nothing half ever appears there. Hidden files, the
    Trainer's checkpoints and what shows the user's images (`run/` and, unless asked for,
    `report.html`) stay here; files that only the repository has stay there. The example in a card
    that this package wrote loads from the repository.

    The id is "owner/name", or a name in the token's own namespace; a branch is made when missing.
    `private` makes a private repository, and refuses a public one that is there already. Without a
    token that of who is logged in. Gives the client's `CommitInfo`.

    Raises:
        ResiDualError: no files, one that is a link, no report where one was asked for, no right to
            write, a public repository where a private one was wanted, or the connection broke off;
            the repository is then as it was.
    """
    api, root = HfApi(token=token), whole_directory(directory)
    files = list(_files_of(root, with_report))
    if not files:
        raise ResiDualError(f"wanted a directory with files to push, got '{root}', which has none.")
    if with_report and root / REPORT not in files:
        raise ResiDualError(
            f"wanted {REPORT} in '{root}' to push along, which is missing; write it with "
            f"`residual-peft report {root}`."
        )
    try:
        name = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if private and not api.repo_info(name).private:
            raise ResiDualError(
                f"wanted to push to a private repository, and '{name}' is there already and is "
                "public; make it private in its settings, or name another."
            )
        if revision is not None and not revision.startswith("refs/"):
            api.create_branch(name, branch=revision, exist_ok=True)
        operations = [_addition(path, path.relative_to(root).as_posix(), name) for path in files]
        return api.create_commit(name, operations, commit_message=commit_message, revision=revision)
    except ResiDualError:
        raise
    except Exception as error:  # as above
        raise ResiDualError(f"could not push to '{repo_id}': {why_not_taken(error)}") from error


def _addition(path: Path, place: str, repo_id: str) -> CommitOperationAdd:
    if path.name == ADAPTER_CONFIG:  # an adapter of another name lies in a folder of its own
        # it names the bundled model, not the place where that lies here
        config, key = read_object(path), "base_model_name_or_path"
        if isinstance(name := config.get(key), str) and known_name(name) == DEMO_MODEL:
            content = json.dumps({**config, key: DEMO_MODEL}, indent=2).encode()
            return CommitOperationAdd(place, content)
    if place != CARD:
        return CommitOperationAdd(place, path)
    text = path.read_text(encoding="utf-8", errors="surrogateescape")
    text = _EXAMPLE.sub(lambda match: match[1] + json.dumps(repo_id), text)
    return CommitOperationAdd(place, text.encode(errors="surrogateescape"))


def _files_of(root: Path, with_report: bool) -> Iterator[Path]:
    private = {RUN_DIRECTORY, SKIPPED} if with_report else {RUN_DIRECTORY, SKIPPED, REPORT}
    for path in sorted(root.rglob("*")):
        parts = path.relative_to(root).parts
        if parts[0] in private or any(p.startswith((".", "checkpoint-")) for p in parts):
            continue
        if path.is_symlink() or not inside(path, root):
            raise ResiDualError(
                f"wanted to push what lies in {quoted(root)} itself, and {quoted(path)} is a link, "
                "by which another file of this machine could become public: put a copy of the "
                "file in its place, or remove it."
            )
        if path.is_file():
            yield path
