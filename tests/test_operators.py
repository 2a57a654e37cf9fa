"""The list of operations keeps the rules that it states."""

import pytest
import torch

from mcdrop.disk.operators import FACTORIES, FAMILIES, FUNCTIONS, OPERATORS, SWITCHED_OFF, ZEROED, function_of, name_of


@pytest.fixture(scope="module")
def overloads() -> dict[str, torch._ops.OpOverload]:
    found = {name: function_of(name) for name in sorted(OPERATORS)}
    assert [name for name, function in found.items() if not isinstance(function, torch._ops.OpOverload)] == []
    return {name: function for name, function in found.items() if isinstance(function, torch._ops.OpOverload)}


def test_every_operation_exists_once_and_is_found_by_name(overloads: dict[str, torch._ops.OpOverload]) -> None:
    assert sum(len(family.split()) for family in FAMILIES.values()) == len(OPERATORS)
    assert [name for name, function in overloads.items() if name_of(function) != name] == []
    assert [
        name for name, function in FUNCTIONS.items() if name_of(function) != name or function_of(name) != function
    ] == []


def test_no_operation_mutates_an_argument(overloads: dict[str, torch._ops.OpOverload]) -> None:
    assert [name for name, function in overloads.items() if function._schema.is_mutable] == []
    assert [name for name in OPERATORS if name.split(".")[1].endswith("_") and not name.startswith("aten.__")] == []


def test_no_operation_draws_unless_a_switch_keeps_it_from_doing_so(overloads: dict[str, torch._ops.OpOverload]) -> None:
    seeded = {name for name, function in overloads.items() if torch.Tag.nondeterministic_seeded in function.tags}
    generators = {
        name
        for name, function in overloads.items()
        if any("Generator" in str(argument.type) for argument in function._schema.arguments)
    }
    assert seeded | generators <= set(SWITCHED_OFF)


def test_switches_are_arguments_of_their_operations(overloads: dict[str, torch._ops.OpOverload]) -> None:
    for name, rules in SWITCHED_OFF.items():
        assert {key for key, _ in rules} <= {argument.name for argument in overloads[name]._schema.arguments}, name


def test_what_could_update_running_statistics_has_a_switch(overloads: dict[str, torch._ops.OpOverload]) -> None:
    """A schema may hide that batch_norm in training mode writes to its buffers."""
    writers = {
        name
        for name, function in overloads.items()
        if {"running_mean"} <= {argument.name for argument in function._schema.arguments}
        and {"training", "use_input_stats", "train"} & {argument.name for argument in function._schema.arguments}
    }
    assert writers <= set(SWITCHED_OFF)


def test_no_operation_reaches_outside(overloads: dict[str, torch._ops.OpOverload]) -> None:
    assert {name.split(".")[0] for name in OPERATORS} == {"aten"}
    texts = {
        f"{name}:{argument.name}"
        for name, function in overloads.items()
        for argument in function._schema.arguments
        if str(argument.type) in ("str", "Optional[str]")
    }
    assert {text.rpartition(":")[2] for text in texts} <= {
        "UPLO", "approximate", "driver", "equation", "indexing", "interpolation", "mode", "norm", "ord", "p",
        "pad_mode", "padding", "padding_side", "reduce", "rounding_mode", "side",
    }  # fmt: skip
    kinds = {str(argument.type) for function in overloads.values() for argument in function._schema.arguments}
    assert not {kind for kind in kinds if "Storage" in kind or "Stream" in kind or "classes" in kind}


@pytest.mark.parametrize(
    "name",
    [
        "aten.from_file.default",
        "aten.set_.source_Storage",
        "aten.add_.Tensor",
        "aten.add.out",
        "aten.rand.default",
        "aten.bernoulli.p",
        "aten.set_data.default",
        "aten._reshape_alias.default",
        "prim.device.default",
        "mylib.op.default",
        "operator.setitem",
        "torch.load",
        "builtins.eval",
        "aten.add",
        "aten..",
        "",
        "aten.__class__.default",
    ],
)
def test_what_is_not_listed_is_not_found(name: str) -> None:
    assert function_of(name) is None


def test_tables_speak_of_listed_operations() -> None:
    assert set(ZEROED) <= OPERATORS
    assert set(ZEROED.values()) <= OPERATORS
    assert {name.split(".")[1] for name in OPERATORS} >= FACTORIES


def test_an_unknown_target_has_no_name() -> None:
    assert name_of(torch.ops.aten.add_.Tensor) is None
    assert name_of(torch.add) is None
    assert name_of(eval) is None
    assert name_of("aten.add.Tensor") is None
