"""What tests of several rooms share: an adapter that nothing was fitted for, and pictures."""

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# for the processes that tests start
os.environ["PYTHONPATH"] = str(Path(__file__).parent / "startup")

# a program that tests start, which takes arguments
collect_ignore = ["decoding_script.py", "only_required.py"]


gc.set_threshold(50_000)  # as the program does


def pytest_collection_finish() -> None:
    """What imports made stays: no collection goes through it again."""
    gc.freeze()


@pytest.fixture(autouse=True)
def a_terminal_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command sets for its process how bars are told: not for the tests after it."""
    if progress := sys.modules.get("residual_peft.data.progress"):
        monkeypatch.setattr(progress.Bar, "in_a_log", False)


@pytest.fixture
def nothing_left_behind() -> Iterator[None]:
    """No capture is left for a later pass to find."""
    from residual_peft.towers.captures import _frames

    yield
    assert not _frames.open
    assert not _frames.finished


@pytest.fixture(scope="session")
def saved_adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the bundled model, for three shapes."""
    from peft import get_peft_model

    from residual_peft import ResiDualConfig, ZeroShotClassifier
    from residual_peft.classifiers.backbones import load_backbone
    from residual_peft.hub.directories import DEMO_MODEL

    backbone = load_backbone(DEMO_MODEL)
    model = get_peft_model(backbone.model, ResiDualConfig(components=2))
    classifier = ZeroShotClassifier.from_text(
        model,
        backbone.tokenizer,
        ("circle", "square", "heart"),
        image_processor=backbone.image_processor,
    )
    return classifier.save_pretrained(tmp_path_factory.mktemp("adapter"))


@pytest.fixture
def shapes(tmp_path: Path) -> list[str]:
    """Paths of ten pictures of the bundled world, in a folder of their own."""
    from residual_peft.demo.tasks import world_task

    (tmp_path / "shapes").mkdir()
    paths = []
    for number, row in enumerate(world_task("shape", 10, seed=3)):
        paths.append(str(tmp_path / "shapes" / f"{number}.png"))
        row["image"].save(paths[-1])
    return paths


@pytest.fixture
def one_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Text towers of these tests know the tokenizer's characters."""
    from tests.dual_encoders import CONTEXT
    from tests.models import text_config
    from tests.pooled import text_sizes
    from tests.tokenizers import VOCABULARY

    plain = text_config

    def wide(size: Any, vocab_size: int = VOCABULARY) -> Any:
        config = plain(size, max(vocab_size, VOCABULARY))
        config.max_position_embeddings = CONTEXT
        return config

    monkeypatch.setattr("tests.models.text_config", wide)
    monkeypatch.setattr("tests.pooled.text_config", wide)
    assert text_sizes.__globals__["text_config"] is wide
