"""A Hub on localhost: repositories in memory behind the HTTP calls that `huggingface_hub` makes.

Large files go by LFS: the client must have HF_HUB_DISABLE_XET set, since Xet has no such stand-in.
Files are stored by content, a commit is a whole tree, and a branch moves once a commit is whole.
LFS downloads are redirected to "localhost", another origin than the endpoint's 127.0.0.1, as the
real Hub redirects to its CDN: a client that sends its token there is answered with an error.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.hub_store import (
    ACCOUNTS,
    LFS_SUFFIXES,
    Hub,
    Refusal,
    Repository,
    check_metadata,
    entry_of,
    listing,
)


class Handler(BaseHTTPRequestHandler):
    """One request: find its route, answer in JSON or bytes."""

    protocol_version = "HTTP/1.1"
    hub: Hub
    ROUTES: tuple[tuple[str, str, str], ...] = (
        ("GET", r"/api/whoami-v2", "whoami"),
        ("POST", r"/api/repos/create", "create"),
        ("POST", r"/api/validate-yaml", "validate"),
        ("GET", r"/api/(?P<repo>.+?)/revision/(?P<revision>[^/]+)", "info"),
        ("POST", r"/api/(?P<repo>.+?)/preupload/(?P<revision>[^/]+)", "preupload"),
        ("POST", r"/api/(?P<repo>.+?)/commit/(?P<revision>[^/]+)", "commit"),
        ("POST", r"/api/(?P<repo>.+?)/paths-info/(?P<revision>[^/]+)", "paths_info"),
        ("POST", r"/api/(?P<repo>.+?)/branch/(?P<name>[^/]+)", "branch"),
        ("POST", r"/api/(?P<repo>.+?)/tag/(?P<revision>[^/]+)", "tag"),
        ("GET", r"/api/(?P<repo>.+?)/tree/(?P<revision>[^/]+)(?:/(?P<folder>.*))?", "tree"),
        ("GET", r"/api/(?P<repo>.+?)/refs", "refs"),
        ("GET", r"/api/(?P<repo>(?:models|datasets)/[^/]+/[^/]+)", "info"),
        ("POST", r"/(?P<repo>.+?)\.git/info/lfs/objects/batch", "batch"),
        ("PUT", r"/lfs/(?P<name>\w+)", "put"),
        ("POST", r"/lfs/(?P<name>\w+)/verify", "verify"),
        ("GET", r"/cdn/(?P<name>\w+)", "cdn"),
        ("GET", r"/(?P<repo>.+?)/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
    )

    def log_message(self, *args: Any) -> None:
        """Keep the tests' output clean."""

    def handle_one(self) -> None:
        """Find the route of this request and answer it."""
        parts = urlsplit(self.path)
        self.query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.hub.requests.append((self.command, self.path, headers))
        method = "GET" if self.command == "HEAD" else self.command
        try:
            for wanted, pattern, name in self.ROUTES:
                if wanted == method and (found := re.fullmatch(pattern, parts.path)):
                    values = {k: unquote(v or "") for k, v in found.groupdict().items()}
                    return getattr(self, f"do_{name}")(**values)
            raise Refusal(404, f"no such route: {self.path}")
        except Refusal as refusal:
            self.body()  # else the rest of it would be taken for the next request
            self.answer(refusal.body, refusal.status, refusal.headers)

    read = False
    do_GET = do_HEAD = do_POST = do_PUT = handle_one

    def body(self) -> bytes:
        """The request's body, sent whole or in chunks; nothing the second time."""
        if self.read:
            return b""
        self.read = True
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def answer(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        """Send JSON, or bytes as they are."""
        self.read = False
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        kind = "application/octet-stream" if isinstance(value, bytes) else "application/json"
        self.send_response(status)
        for name, text in {"Content-Type": kind, **(headers or {})}.items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = self.hub.cuts("download") if self.path.startswith("/cdn/") else None
        self.wfile.write(content if cut is None else content[:cut])
        self.close_connection = self.close_connection or cut is not None

    def account(self) -> tuple[str, str] | None:
        """Who asks; None without a token."""
        found = re.fullmatch(r"Bearer (\S+)", self.headers.get("Authorization") or "")
        if found and found[1] not in ACCOUNTS:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return ACCOUNTS[found[1]] if found else None

    def repository(self, repo: str, write: bool = False) -> Repository:
        """The repository of a path, if it may be seen."""
        return self.hub.repository(repo.removeprefix("models/"), self.account(), write)

    def do_whoami(self) -> None:
        """Who owns the token."""
        if (account := self.account()) is None:
            raise Refusal(401, "Invalid username or password.")
        name, role = account
        token = {"accessToken": {"displayName": "test", "role": role}}
        self.answer({"type": "user", "name": name, "orgs": [], "auth": token})

    def do_create(self) -> None:
        """Make a repository with a first commit, as the Hub does."""
        asked, account = json.loads(self.body()), self.account()
        if account is None:
            raise Refusal(401, "Invalid username or password.")
        owner = asked.get("organization") or account[0]
        if account != (owner, "write"):
            raise Refusal(403, f"You don't have the rights to create a model under {owner}")
        prefix = "datasets/" if asked.get("type") == "dataset" else ""
        name = f"{prefix}{owner}/{asked['name']}"
        url = f"{self.hub.url}/{name}"
        if name in self.hub.repositories:
            raise Refusal(409, "You already created this model repo", url=url)
        made = Repository(
            private=asked.get("visibility") == "private" or bool(asked.get("private"))
        )
        made.commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit")
        self.hub.repositories[name] = made
        self.answer({"url": url, "name": name})

    def do_validate(self) -> None:
        """Check a card's metadata."""
        check_metadata(json.loads(self.body())["content"])
        self.answer({"errors": [], "warnings": []})

    def do_info(self, repo: str, revision: str = "main") -> None:
        """What a repository is and holds."""
        found = self.repository(repo)
        commit, name = found.resolve(revision), repo.split("/", 1)[1]
        siblings = [{"rfilename": path} for path in found.commits[commit]]
        facts = {"private": found.private, "gated": False, "disabled": False, "downloads": 0}
        names = {"_id": name, "id": name, "modelId": name, "author": name.split("/")[0]}
        self.answer({**names, **facts, "sha": commit, "tags": [], "likes": 0, "siblings": siblings})

    def do_tree(self, repo: str, revision: str, folder: str) -> None:
        """The files of a revision."""
        files = self.repository(repo).files(revision)
        self.answer(listing(files, folder, self.query.get("recursive", "").lower() == "true"))

    def do_paths_info(self, repo: str, revision: str) -> None:
        """The files and folders among the given paths."""
        files = self.repository(repo).files(revision)
        asked = parse_qs(self.body().decode()).get("paths", [])
        entries = {entry["path"]: entry for entry in listing(files, "", True)}
        self.answer([entries[path] for path in asked if path in entries])

    def do_refs(self, repo: str) -> None:
        """Branches and tags."""
        found = self.repository(repo)
        answer: dict[str, Any] = {"converts": [], "pullRequests": []}
        for kind, folder, names in (
            ("branches", "heads", found.branches),
            ("tags", "tags", found.tags),
        ):
            answer[kind] = [
                {"name": name, "ref": f"refs/{folder}/{name}", "targetCommit": commit}
                for name, commit in names.items()
            ]
        self.answer(answer)

    def do_branch(self, repo: str, name: str) -> None:
        """Start a branch."""
        asked = json.loads(self.body() or b"{}")
        found = self.repository(repo, write=True)
        if name in found.branches:
            raise Refusal(409, f"Reference already exists: {name}")
        found.branches[name] = found.resolve(asked.get("startingPoint") or "main")
        self.answer({})

    def do_tag(self, repo: str, revision: str) -> None:
        """Name a commit."""
        name, found = json.loads(self.body())["tag"], self.repository(repo, write=True)
        if name in found.tags:
            raise Refusal(409, f"Tag reference exists already: {name}")
        found.tags[name] = found.resolve(revision)
        self.answer({})

    def do_preupload(self, repo: str, revision: str) -> None:
        """Which files go by LFS, and which are there already."""
        asked, found = json.loads(self.body()), self.repository(repo, write=True)
        files, answers = found.files(revision), []
        for file in asked["files"]:
            path = file["path"]
            mode = "lfs" if path.endswith(LFS_SUFFIXES) else "regular"
            entry = entry_of(path, files[path]) if path in files else {}
            name = entry.get("lfs", entry).get("oid")
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": name})
        self.answer({"files": answers})

    def do_batch(self, repo: str) -> None:
        """Where to put large files; those that are there already need no upload."""
        asked = json.loads(self.body())
        self.repository(repo, write=True)
        answers = []
        for item in asked["objects"]:
            name, answer = item["oid"], {"oid": item["oid"], "size": item["size"]}
            if name not in self.hub.objects:
                where = f"{self.hub.url}/lfs/{name}"
                actions = {"upload": {"href": where}, "verify": {"href": f"{where}/verify"}}
                answer |= {"authenticated": True, "actions": actions}
            answers.append(answer)
        self.answer({"transfer": "basic", "objects": answers})

    def do_put(self, name: str) -> None:
        """Take a large file, if it is whole."""
        if (cut := self.hub.cuts("upload")) is not None:
            self.rfile.read(cut)
            self.close_connection = True
            return
        content = self.body()
        if hashlib.sha256(content).hexdigest() != name:
            raise Refusal(400, "the content does not match its name")
        self.hub.objects[name] = content
        self.answer(b"", headers={"ETag": f'"{name}"'})

    def do_verify(self, name: str) -> None:
        """Say whether a large file is here."""
        asked = json.loads(self.body())
        if len(self.hub.objects.get(name, b"")) != asked["size"]:
            raise Refusal(422, "the object is not here, or has another size")
        self.answer({})

    def do_commit(self, repo: str, revision: str) -> None:
        """Add and delete files: all of it or nothing."""
        lines = [json.loads(line) for line in self.body().splitlines() if line.strip()]
        found = self.repository(repo, write=True)
        if revision not in found.branches:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        files = dict(found.files(revision))
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    raise Refusal(
                        400, f"LFS pointer pointed to a file that does not exist: {value}"
                    )
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                files.pop(value["path"])
        commit = found.commit(revision, files, lines[0]["value"]["summary"])
        name = repo.removeprefix("models/")
        self.answer({"commitUrl": f"{self.hub.url}/{name}/commit/{commit}", "commitOid": commit})

    def do_resolve(self, repo: str, revision: str, path: str) -> None:
        """One file; a large one is redirected to the CDN with its size and name in the headers."""
        found = self.repository(repo)
        commit = found.resolve(revision)
        headers = {"X-Repo-Commit": commit}
        if path not in found.commits[commit]:
            refusal = Refusal(404, "Entry not found", "EntryNotFound")
            refusal.headers |= headers
            raise refusal
        content = found.commits[commit][path]
        entry = entry_of(path, content)
        if "lfs" not in entry:
            return self.answer(content, headers=headers | {"ETag": f'"{entry["oid"]}"'})
        name = entry["lfs"]["oid"]
        self.hub.objects[name] = content
        headers |= {"X-Linked-Etag": f'"{name}"', "X-Linked-Size": str(len(content))}
        cdn = self.hub.url.replace("127.0.0.1", "localhost")
        return self.answer(b"", 302, headers | {"Location": f"{cdn}/cdn/{name}"})

    def do_cdn(self, name: str) -> None:
        """A large file, or the rest of it from a given byte on."""
        if self.headers.get("Authorization"):
            raise Refusal(400, "a token was sent to the CDN")
        content = self.hub.objects[name]
        found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if not found:
            return self.answer(content, headers={"ETag": f'"{name}"'})
        start = int(found[1])
        where = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        return self.answer(content[start:], 206, where)


@contextmanager
def running_hub() -> Iterator[Hub]:
    """Serve an empty Hub on a free port of 127.0.0.1 until the block ends."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
