"""The registry: the issue's names in the table's order, the paper's configs, the given seed."""

from residual_peft.experiments import METHODS, LoraSettings
from residual_peft.solvers.training import LEARNING_RATE
from residual_peft.tuner import ResiDualConfig
from tests.pairs import table


def test_names_are_those_of_the_results_in_the_order_of_the_table() -> None:
    assert list(METHODS) == [
        "zero_shot",
        "coarse",
        "residual_star",
        "residual",
        "default",
        "rd_y",
        "linear",
        "lora",
    ]
    assert all(name == method.name for name, method in METHODS.items())
    assert len({method.label for method in METHODS.values()}) == len(METHODS)


@table("name", ["coarse", "residual_star", "residual", "rd_y"])
def test_the_papers_methods_are_its_presets_with_the_seed(name: str) -> None:
    assert METHODS[name].kind == "gains"
    assert METHODS[name].config(5) == ResiDualConfig.paper(name, seed=5)


def test_the_default_is_what_a_user_gets() -> None:
    assert METHODS["default"].config(5) == ResiDualConfig(seed=5)


def test_the_others_have_no_gains() -> None:
    kinds = {name: method.kind for name, method in METHODS.items() if method.config is None}
    assert kinds == {"zero_shot": "none", "linear": "linear", "lora": "lora"}


def test_gains_over_heads_are_trained_at_the_papers_rate() -> None:
    for name in ("coarse", "residual_star", "residual", "default"):
        assert METHODS[name].learning_rate == LEARNING_RATE == 0.8


def test_loras_label_says_what_it_is() -> None:
    letters = ", ".join(name.removesuffix("_proj") for name in LoraSettings().target_modules)
    assert METHODS["lora"].label == f"LoRA r={LoraSettings().rank} on {letters}"
