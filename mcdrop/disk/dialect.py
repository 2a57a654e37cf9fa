"""What a program may say: the rules that a graph keeps before it is stored and after it is read.

Checked before anything runs, so that a crafted file is refused instead of crashing, or filling the memory of, the
process that reads it: operations from the list in `operators`, arguments of the kinds that their schema names, bounded
constants, references to earlier nodes only, every weight and every site used, one output. A rule that is broken raises
`Refused` with the reason; `bundle` adds the file and what to do.

What no reading can bound is what a well-formed program computes when it runs: a model is as trusted as its maker.
"""

import inspect
import operator
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from math import isfinite, prod
from typing import Any

import torch
from torch import fx

from mcdrop.disk.operators import FACTORIES, FUNCTIONS, SWITCHED_OFF, name_of
from mcdrop.disk.strictjson import Refused
from mcdrop.graph.sites import Site

__all__ = ["MAX_CONSTANT", "MAX_ELEMENTS", "check_call", "check_graph"]

MAX_CONSTANT = 2**31 - 1  # largest size, stride, axis or count that is written out
MAX_ELEMENTS = 2**30  # most elements that one call may make from constants alone
MAX_SCALE = 1e4  # largest factor of an interpolation
MAX_EXPONENT = 16  # of a power of sizes: whole numbers of Python grow without bound

_OPEN_ENDED = frozenset({"slice", "slice_copy", "slice_scatter"})  # their `end` is 2**63 - 1 for "to the end"
_RANGES = frozenset({"arange", "range"})


def check_call(name: str, function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Check one call's arguments: their names, number, kinds and sizes. `name` is the operation's stored name."""
    if not isinstance(function, torch._ops.OpOverload):
        _check_function(name, args, kwargs)
        return
    given = _bind(name, function._schema.arguments, args, kwargs)
    packet = name.split(".")[1]
    sizes: list[int] = []
    for argument, value in given:
        kind = str(argument.real_type)
        if not _fits(kind, value):
            raise Refused(f"{name} takes {kind} as {argument.name!r}, not {value!r:.80}")
        if "int" in kind:
            sizes += _constants(value)
        if "float" in kind and isinstance(value, list | tuple):
            _check_factors(name, value)
    if packet not in _OPEN_ENDED:
        _check_sizes(name, sizes, product=packet in FACTORIES)
    values = {argument.name: value for argument, value in given}
    if packet in _RANGES:
        _check_range(name, values)
    if rules := SWITCHED_OFF.get(name):
        defaults = {argument.name: argument.default_value for argument in function._schema.arguments}
        if not any(_same(values.get(key, defaults.get(key)), wanted) for key, wanted in rules):
            raise Refused(f"{name} is stored only with {' or '.join(f'{key}={wanted}' for key, wanted in rules)}")


def check_graph(graph: fx.Graph, *, weights: Iterable[str], inputs: int, sites: Sequence[Site]) -> None:
    """Check a whole graph: order, references, inputs, weights, sites and output; the calls one by one.

    Args:
        weights: the names that `get_attr` nodes may use, and that all have to be used.
        inputs: how many placeholders there have to be.
        sites: the table of sites; each active one, numbered 0, 1, ..., has one `noise` node.
    """
    seen: set[fx.Node] = set()
    wanted = set(weights)
    used: set[str] = set()
    placeholders, outputs, draws = 0, 0, Counter[int]()
    for node in graph.nodes:
        if missing := [earlier for earlier in node.all_input_nodes if earlier not in seen]:
            raise Refused(f"node {node.name!r} uses {missing[0].name!r}, which is no earlier node")
        seen.add(node)
        if outputs:
            raise Refused(f"node {node.name!r} comes after the output")
        if node.op == "placeholder":
            if len(seen) != placeholders + 1:
                raise Refused(f"input {node.name!r} comes after other nodes")
            placeholders += 1
        elif node.op == "get_attr":
            if node.target not in wanted:
                raise Refused(f"node {node.name!r} reads the weight {node.target!r}, which is not there")
            used.add(str(node.target))
        elif node.op == "call_function":
            name = name_of(node.target)
            if name is None:
                raise Refused(f"node {node.name!r} calls {node.target}, which a stored program may not")
            check_call(name, node.target, node.args, node.kwargs)
            if name == "mcdrop.noise":
                draws[_noise_index(node)] += 1
        elif node.op == "output":
            results = node.args[0] if len(node.args) == 1 else None
            if not isinstance(results, tuple | list) or not results or not all(isinstance(r, fx.Node) for r in results):
                raise Refused("the output is not a tuple of nodes")
            outputs += 1
        else:
            raise Refused(f"node {node.name!r} is a {node.op}")
    if outputs != 1:
        raise Refused("there is no output")
    if placeholders != inputs:
        raise Refused(f"the program has {placeholders} inputs, its description {inputs}")
    if unused := sorted(wanted - used):
        raise Refused(f"the weight {unused[0]!r} is not used")
    active = [site.index for site in sites if site.active]
    if any(a >= b for a, b in zip([-1, *active], active, strict=False)) or any(
        site.index != -1 for site in sites if not site.active
    ):
        raise Refused("active sites have to stand in the order of their numbers, and inactive ones have -1")
    if draws != Counter(active):
        odd = sorted((draws - Counter(active)) + (Counter(active) - draws))[0]
        raise Refused(
            f"site {odd} is drawn {draws[odd]} times by the program and stands {active.count(odd)} times in the table"
        )


def _noise_index(node: fx.Node) -> int:
    index = node.kwargs["index"] if "index" in node.kwargs else node.args[0]
    if type(index) is not int:
        raise Refused(f"node {node.name!r} draws for a site that is no number")
    return index


# ---- arguments


def _bind(name: str, schema: Sequence[Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[tuple[Any, Any]]:
    """Pair arguments with their places in the schema, as the dispatcher would."""
    positional = [argument for argument in schema if not argument.kwarg_only]
    if len(args) > len(positional):
        raise Refused(f"{name} takes {len(positional)} positional arguments, not {len(args)}")
    given = list(zip(positional, args, strict=False))
    taken = {argument.name for argument, _ in given}
    by_name = {argument.name: argument for argument in schema}
    for key, value in kwargs.items():
        if key not in by_name or key in taken:
            raise Refused(f"{name} has no argument {key!r:.80}" if key not in by_name else f"{name} gets {key!r} twice")
        given.append((by_name[key], value))
        taken.add(key)
    if missing := [
        argument.name for argument in schema if argument.name not in taken and not argument.has_default_value()
    ]:
        raise Refused(f"{name} lacks its argument {missing[0]!r}")
    return given


def _fits(kind: str, value: Any) -> bool:
    """Whether a value may stand where the schema says `kind`; a node may stand for tensors and numbers."""
    if kind.startswith("Optional["):
        return value is None or _fits(kind[9:-1], value)
    if kind.startswith("List["):
        inner = kind[5:-1]
        if isinstance(value, list | tuple):
            return all(_fits(inner, item) for item in value)
        return isinstance(value, fx.Node) or (inner in ("int", "float") and _fits(inner, value))
    match kind:
        case "Tensor" | "number":
            return isinstance(value, fx.Node | bool | int | float | complex)
        case "int":
            return isinstance(value, fx.Node | int)
        case "float":
            return isinstance(value, fx.Node | int | float)
        case "bool":
            return isinstance(value, fx.Node | bool)
        case "str":
            return isinstance(value, str)
        case "ScalarType":
            return isinstance(value, torch.dtype)
        case "Layout":
            return isinstance(value, torch.layout)
        case "MemoryFormat":
            return isinstance(value, torch.memory_format)
        case "Device":
            return isinstance(value, torch.device)
    return False


def _constants(value: Any) -> list[int]:
    return [size for size in (value if isinstance(value, list | tuple) else [value]) if isinstance(size, int)]


def _check_sizes(name: str, sizes: Sequence[int], *, product: bool) -> None:
    if any(abs(size) > MAX_CONSTANT for size in sizes):
        raise Refused(f"{name} has a size beyond {MAX_CONSTANT}")
    if product and prod(abs(size) for size in sizes if size) > MAX_ELEMENTS:
        raise Refused(f"{name} would make more than {MAX_ELEMENTS} elements")


def _check_factors(name: str, value: Sequence[Any]) -> None:
    if any(isinstance(item, int | float) and not abs(item) <= MAX_SCALE for item in value):
        raise Refused(f"{name} has a factor beyond {MAX_SCALE:g}")


def _check_range(name: str, values: Mapping[str, Any]) -> None:
    start, end, step = values.get("start", 0), values.get("end"), values.get("step", 1)
    numbers = [value for value in (start, end, step) if isinstance(value, int | float)]
    if len(numbers) < 3:
        numbers = [value for value in numbers if abs(value) > MAX_CONSTANT]  # the rest is known only when it runs
        if numbers:
            raise Refused(f"{name} reaches beyond {MAX_CONSTANT}")
        return
    if not all(map(isfinite, numbers)) or step == 0 or abs(end - start) > MAX_ELEMENTS * abs(step):
        raise Refused(f"{name} would make more than {MAX_ELEMENTS} elements")


def _same(value: Any, wanted: Any) -> bool:
    return (
        value is wanted
        if wanted is None or isinstance(wanted, bool)
        else type(value) is type(wanted) and value == wanted
    )


def _check_function(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Calls that have no schema: arithmetic on sizes, and the three functions of `sites`."""
    function = FUNCTIONS[name]
    try:
        values = inspect.signature(function).bind(*args, **kwargs).arguments
    except TypeError as error:
        raise Refused(f"{name}: {error}") from error
    if name == "mcdrop.noise":
        sizes = values["sizes"]
        if not isinstance(sizes, list | tuple) or not all(isinstance(size, fx.Node | int) for size in sizes):
            raise Refused(f"{name} takes a list of sizes, not {sizes!r:.80}")
        _check_sizes(name, _constants(sizes), product=True)
        return
    items = list(values.values())
    if not all(isinstance(item, fx.Node | int | float) for item in items):
        raise Refused(f"{name} takes nodes and numbers")
    if not any(isinstance(item, fx.Node) for item in items):
        raise Refused(f"{name} computes with constants only")
    if function is operator.pow and not (type(items[1]) is int and 0 <= items[1] <= MAX_EXPONENT):
        raise Refused(f"{name} has an exponent that is not between 0 and {MAX_EXPONENT}")
    if function is operator.getitem and type(items[1]) is not int:
        raise Refused(f"{name} takes a position, not {items[1]!r:.80}")
