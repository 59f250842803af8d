"""Patterns that cannot hang, against `re`."""

import random
import re
import time
import warnings

import pytest

from residual_peft.errors import ResiDualError
from residual_peft.tuner import ResiDualConfig
from residual_peft.tuner.patterns import _Matcher, _parsed, _UnknownError, fullmatch, pattern_key
from tests.pairs import table

ATOMS = ["a", "b", "ab", r"\d", ".", "[ab]", "[^a]", r"\w", "1", r"\.", "[a-b1]", r"[^\d]"]
REPEATS = ["*", "+", "?", "{2}", "{1,2}", "*?", "+?", "{0,3}", "{2,}"]


def drawn(choose: random.Random, depth: int) -> str:
    kind = choose.randrange(12)
    if depth == 0 or kind < 3:
        return choose.choice(ATOMS)
    one = drawn(choose, depth - 1)
    if kind < 6:
        return one + drawn(choose, depth - 1)
    if kind < 7:
        return f"({one}|{drawn(choose, depth - 1)})"
    if kind < 10:
        return f"(?:{one}){choose.choice(REPEATS)}"
    if kind == 10:
        return f"{choose.choice(['(?=', '(?!'])}{one})"
    return choose.choice(["^", "$", r"\b", r"\Z", "(?<=a)", "(?<!b)"]) + one


def test_what_matches_is_what_re_says() -> None:
    choose, compared, found = random.Random(0), 0, 0
    for _ in range(4000):
        pattern = drawn(choose, 4)
        text = "".join(choose.choice("ab1.\n") for _ in range(choose.randrange(1, 7)))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                wanted = re.fullmatch(pattern, text) is not None
            got = len(text) in _Matcher(text).ends(_parsed(pattern), 0)
        except (re.error, _UnknownError):
            continue
        assert got == wanted, (pattern, text)
        compared, found = compared + 1, found + wanted
    assert compared > 3000
    assert 200 < found < compared - 200


@table(
    "pattern",
    [r"((\w|\.)+)+X", r"(\w*)*(\w*)*(\w*)*X", "(a|aa|a?)+" * 8 + "X", r"\w*" * 30 + "X"],
)
def test_none_takes_long(pattern: str) -> None:
    started = time.process_time()
    assert not fullmatch(pattern, "vision_model.encoder.layers.11.self_attn.out_proj.aaaa")
    assert fullmatch(pattern, "a" * 50 + "X")
    assert time.process_time() - started < 5  # and not the age of the universe


def test_what_users_write() -> None:
    name = "vision_model.encoder.layers.11.self_attn.out_proj"
    for pattern in (
        r".*\.layers\.(10|11)\.(self_attn\.out_proj|mlp\.fc2)",
        r"^(?!text).*out_proj$",
        r"vision.*\.[0-9]+\..*",
        r".*(?<!fc2)",
    ):
        assert fullmatch(pattern, name)
        assert not fullmatch(pattern, "text_model.encoder.layers.0.mlp.fc2")
    assert pattern_key([r"layer\d", "mlp"], "layer3.mlp") == "mlp"
    assert pattern_key([r"layer\d", "mlp"], "layer3.head0") == "layer3.head0"


@table(
    ("pattern", "why"),
    [
        (r"(a)\1", "not known here"),
        ("(?i)A", "flags"),
        ("(", "no regex"),
        ("a" * 3000, "at most 2000"),
        ("(" * 900 + ")" * 900, "no regex"),
        (r"(\w*)*" * 60, "many ways"),
    ],
)
def test_what_is_not_matched_is_refused_at_once(pattern: str, why: str) -> None:
    with pytest.raises(ResiDualError, match=f"unit_pattern: .* is no regex.*{why}|{why}"):
        ResiDualConfig(unit_pattern=pattern)
