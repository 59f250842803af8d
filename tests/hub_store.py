"""What a Hub holds, without HTTP: repositories with commits, branches, tags; who may see them."""

import hashlib
import re
from dataclasses import dataclass, field
from typing import Any

import yaml

LFS_SUFFIXES = (".safetensors", ".bin", ".png", ".parquet")
OWNER, READER, STRANGER = "hf_owner", "hf_reader", "hf_stranger"
ACCOUNTS = {OWNER: ("me", "write"), READER: ("me", "read"), STRANGER: ("other", "write")}


class Refusal(Exception):
    """An answer that is no success, with the headers by which the client knows it."""

    def __init__(self, status: int, message: str, code: str | None = None, **body: Any) -> None:
        super().__init__(message)
        self.status, self.message, self.body = status, message, {"error": message, **body}
        self.headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})


@dataclass
class Repository:
    """Commits are trees (path -> content); branches and tags point at them."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    titles: list[str] = field(default_factory=list)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, bytes], title: str) -> str:
        """Put a whole tree on a branch."""
        name = hashlib.sha1(f"{len(self.commits)} {title}".encode()).hexdigest()
        self.commits[name] = files
        self.titles.append(title)
        self.branches[branch] = name
        return name

    def resolve(self, revision: str) -> str:
        """A branch, tag or commit -> the commit."""
        name = self.branches.get(revision) or self.tags.get(revision) or revision
        if name not in self.commits:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return name

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """The tree of a revision."""
        return self.commits[self.resolve(revision)]


@dataclass
class Cut:
    """Break the connection within the body of the next transfers of one kind."""

    kind: str  # "upload" or "download"
    after: int
    times: int


@dataclass
class Hub:
    """What the server knows; tests look into it and set `cut`."""

    repositories: dict[str, Repository] = field(default_factory=dict)  # "datasets/me/x" or "me/x"
    objects: dict[str, bytes] = field(default_factory=dict)  # LFS: sha256 -> content
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    cut: Cut | None = None
    url: str = ""

    def cuts(self, kind: str) -> int | None:
        """After how many bytes to break off this transfer, if at all."""
        cut = self.cut
        if cut is None or cut.kind != kind or cut.times == 0:
            return None
        cut.times -= 1
        return cut.after

    def repository(self, name: str, account: tuple[str, str] | None, write: bool) -> Repository:
        """A repository that the account may see, and write to if it wants to."""
        found, owner = self.repositories.get(name), name.split("/")[-2]
        hidden = found is None or (found.private and (account is None or account[0] != owner))
        if hidden and account is None:
            raise Refusal(401, "Invalid username or password.")
        if hidden:
            raise Refusal(404, "Repository not found", "RepoNotFound")
        if write and account is None:
            raise Refusal(401, "Invalid username or password.")
        if write and account != (owner, "write"):
            raise Refusal(403, "Forbidden: you must use a write token to upload to a repository.")
        assert found is not None
        return found


def blob_name(content: bytes) -> str:
    """Git's name of a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def entry_of(path: str, content: bytes) -> dict[str, Any]:
    """A file as tree listings show it."""
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content)}
    if path.endswith(LFS_SUFFIXES):
        name = hashlib.sha256(content).hexdigest()
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{name}\n".encode()
        lfs = {"oid": name, "size": len(content), "pointerSize": len(pointer)}
        return entry | {"oid": blob_name(pointer), "lfs": lfs}
    return entry | {"oid": blob_name(content)}


def listing(files: dict[str, bytes], folder: str, recursive: bool) -> list[dict[str, Any]]:
    """What lies in a folder, folders included."""
    prefix = f"{folder}/" if folder else ""
    entries: dict[str, dict[str, Any]] = {}
    for path in sorted(files):
        parts = path.removeprefix(prefix).split("/")
        if not path.startswith(prefix):
            continue
        for depth in range(1, len(parts)) if recursive else range(1, min(2, len(parts))):
            name = prefix + "/".join(parts[:depth])
            entries[name] = {"type": "directory", "path": name, "oid": blob_name(name.encode())}
            entries[name]["size"] = 0
        if recursive or len(parts) == 1:
            entries[path] = entry_of(path, files[path])
    if folder and not entries:
        raise Refusal(404, f"{folder} does not exist", "EntryNotFound")
    return list(entries.values())


def check_metadata(content: str) -> None:
    """Refuse a card whose metadata the Hub would refuse."""
    found = re.match(r"\s*---\r?\n(.*?)\r?\n---\s*(\r?\n|$)", content, re.DOTALL)
    errors = []
    try:
        data = yaml.safe_load(found[1]) if found else {}
    except yaml.YAMLError as error:
        data, errors = {}, [{"message": f"bad YAML: {error}"}]
    base = data.get("base_model")
    if base is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+|[\w.-]+", str(base)):
        errors.append({"message": f'"base_model" with value "{base}" is not valid.'})
    for model in data.get("model-index", []):
        for result in model["results"]:
            whole = result["task"]["type"] and result["dataset"]["type"] and result["metrics"]
            if not (model["name"] and whole and result["dataset"]["name"]):
                errors.append({"message": "model-index lacks a field"})
    if errors:
        raise Refusal(400, "Invalid metadata", errors=errors, warnings=[])
