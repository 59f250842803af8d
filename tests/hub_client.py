"""The real clients (`huggingface_hub`, and others through it), pointed at a server."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
from huggingface_hub import constants, hf_api
from huggingface_hub.utils import _http

from tests.hub_server import running_hub
from tests.hub_store import OWNER, Hub


def point_client_at(monkeypatch: pytest.MonkeyPatch, url: str, home: Path) -> None:
    """Do to this process what HF_ENDPOINT, HF_HOME and their like do to a new one."""
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    for name, value in {
        "ENDPOINT": url,
        "HUGGINGFACE_CO_URL_TEMPLATE": template,
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_TOKEN_PATH": str(home / "token"),
    }.items():
        monkeypatch.setattr(constants, name, value)
    for name, value in {
        "HF_ENDPOINT": url,
        "HF_HUB_OFFLINE": False,
        "HF_DATASETS_CACHE": home / "datasets",
    }.items():
        monkeypatch.setattr(datasets.config, name, value)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")  # PEFT reads it there
    # made at import, with the endpoint of that time
    monkeypatch.setattr(hf_api.api, "endpoint", url)
    monkeypatch.setattr("transformers.utils.hub._hf_api", None, raising=False)
    # the client waits up to 23 seconds between its attempts
    impatient = SimpleNamespace(**{**vars(_http.time), "sleep": lambda seconds: None})
    monkeypatch.setattr(_http, "time", impatient)
    monkeypatch.setattr("huggingface_hub.file_download.time", impatient)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """Serve an empty Hub to this process, logged in as "me"."""
    with running_hub() as served:
        point_client_at(monkeypatch, served.url, tmp_path / "home")
        monkeypatch.setenv("HF_TOKEN", OWNER)
        yield served
