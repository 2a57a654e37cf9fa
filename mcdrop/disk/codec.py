"""Programs as plain JSON: nodes, arguments, sites. The format, number 1, of `program.json`:

    {"nodes": [{"name": "x", "input": 0},
               {"name": "w", "weight": "fc.weight"},
               {"name": "y", "call": "aten.linear.default", "args": [{"node": "x"}, {"node": "w"}], "kwargs": {}}],
     "outputs": ["y"]}

An argument is a JSON number, string, boolean, null or list, or an object with one key that says what it is:

    {"node": name}   {"tuple": [...]}   {"slice": [start, stop, step]}   {"float": "inf" | "-inf" | "nan"}
    {"complex": [re, im]}   {"dict": {...}}   {"dtype": "float32"}   {"layout": "strided"}
    {"memory_format": "contiguous_format"}   {"device": "model"}

dtypes, layouts and memory formats are names of fixed tables. No device is stored: a constant that names one is read as
the device that the program is loaded to. What is not of this form is `Refused`; nothing is ever evaluated.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from mcdrop.disk.operators import ZEROED, function_of, name_of
from mcdrop.disk.strictjson import FLOATS, Refused, as_list, as_text, as_whole, encode_float

__all__ = ["DTYPES", "decode_graph", "encode_graph"]

MAX_NODES = 100_000
MAX_LIST = 100_000
MAX_DEPTH = 8

DTYPES: Mapping[str, torch.dtype] = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.complex128,
        torch.int64, torch.int32, torch.int16, torch.int8, torch.uint64, torch.uint32, torch.uint16, torch.uint8,
        torch.bool, torch.float8_e4m3fn, torch.float8_e5m2, torch.complex32,
    )
}  # fmt: skip
_LAYOUTS: Mapping[str, torch.layout] = {"strided": torch.strided}
_MEMORY_FORMATS: Mapping[str, torch.memory_format] = {
    str(memory_format).removeprefix("torch."): memory_format
    for memory_format in (
        torch.contiguous_format,
        torch.preserve_format,
        torch.channels_last,
        torch.channels_last_3d,
    )
}


# ---- graphs


def encode_graph(graph: fx.Graph) -> dict[str, Any]:
    """The graph as JSON values. Raises `Refused` for what the format cannot say."""
    nodes: list[dict[str, Any]] = []
    outputs: list[str] = []
    inputs = 0
    for node in graph.nodes:
        if node.op == "placeholder":
            nodes.append({"name": node.name, "input": inputs})
            inputs += 1
        elif node.op == "get_attr":
            nodes.append({"name": node.name, "weight": str(node.target)})
        elif node.op == "call_function":
            name = name_of(node.target)
            if name is None:
                raise Refused(f"node {node.name!r} calls {node.target}, which a stored program may not")
            args = [_encode(value) for value in node.args]
            kwargs = {key: _encode(value) for key, value in node.kwargs.items()}
            nodes.append({"name": node.name, "call": name, "args": args, "kwargs": kwargs})
        elif node.op == "output":
            results = node.args[0]
            if not isinstance(results, tuple | list) or not all(isinstance(result, fx.Node) for result in results):
                raise Refused("the output is not a tuple of nodes")
            outputs = [result.name for result in results if isinstance(result, fx.Node)]
        else:
            raise Refused(f"node {node.name!r} is a {node.op}")
    return {"nodes": nodes, "outputs": outputs}


def decode_graph(document: Mapping[str, Any], *, device: torch.device) -> fx.Graph:
    """A graph from JSON values, with `device` where a constant names one. Raises `Refused` for anything unexpected."""
    entries, outputs = (
        as_list(document.get("nodes"), "nodes", MAX_NODES),
        as_list(document.get("outputs"), "outputs", MAX_LIST),
    )
    graph = fx.Graph()
    known: dict[str, fx.Node] = {}
    for entry in entries:
        if not isinstance(entry, dict):
            raise Refused("a node is not an object")
        name = as_text(entry.get("name"), "the name of a node")
        if name in known:
            raise Refused(f"two nodes are named {name!r:.80}")
        if not name.isidentifier() or not name.isascii():
            raise Refused(f"{name!r:.80} cannot name a node")
        known[name] = _decode_node(graph, name, entry, known, device)
    graph.output(tuple(_node(output, known) for output in outputs))
    return graph


def _decode_node(
    graph: fx.Graph, name: str, entry: Mapping[str, Any], known: Mapping[str, fx.Node], device: torch.device
) -> fx.Node:
    match entry:
        case {"name": _, "input": int(position), **rest} if not rest:
            if position != len(known):
                raise Refused(f"input {name!r} is at place {len(known)} and says {position}")
            return graph.create_node("placeholder", name, name=name)
        case {"name": _, "weight": str(weight), **rest} if not rest:
            return graph.create_node("get_attr", as_text(weight, "a weight"), name=name)
        case {"name": _, "call": str(call), "args": list(args), "kwargs": dict(kwargs), **rest} if not rest:
            function = function_of(ZEROED.get(call, call))
            if function is None:
                raise Refused(
                    f"node {name!r} calls {call!r:.80}, which is not on the list of operations "
                    f"or unknown to torch {torch.__version__}"
                )
            if call in ZEROED:
                kwargs = {key: value for key, value in kwargs.items() if key != "memory_format" or "like" in call}
            values = tuple(_decode(value, known, device) for value in args)
            named = {as_text(key, "an argument"): _decode(value, known, device) for key, value in kwargs.items()}
            return graph.create_node("call_function", function, values, named, name=name)
    raise Refused(f"node {name!r} is no input, weight or call")


def _node(name: object, known: Mapping[str, fx.Node]) -> fx.Node:
    if not isinstance(name, str) or name not in known:
        raise Refused(f"{name!r:.80} is no earlier node")
    return known[name]


# ---- arguments


def _encode(value: object) -> Any:
    match value:
        case None | bool() | str():
            return value
        case fx.Node():
            return {"node": value.name}
        case int():
            return int(value)
        case float():
            return encode_float(value)
        case complex():
            return {"complex": [_encode(value.real), _encode(value.imag)]}
        case list():
            return [_encode(item) for item in value]
        case tuple():
            return {"tuple": [_encode(item) for item in value]}
        case slice():
            return {"slice": [_encode(item) for item in (value.start, value.stop, value.step)]}
        case dict():
            return {"dict": {as_text(key, "a key"): _encode(item) for key, item in value.items()}}
        case torch.device():
            return {"device": "model"}
    for kind, table in (("dtype", DTYPES), ("layout", _LAYOUTS), ("memory_format", _MEMORY_FORMATS)):
        for name, known in table.items():
            if value is known:
                return {kind: name}
    raise Refused(f"{value!r:.80} of type {type(value).__name__} cannot be an argument of a stored call")


def _decode(value: Any, known: Mapping[str, fx.Node], device: torch.device, depth: int = 0) -> Any:
    if depth > MAX_DEPTH:
        raise Refused(f"arguments are nested deeper than {MAX_DEPTH}")

    def items(value: Any, *, count: int = MAX_LIST) -> list[Any]:
        return [_decode(item, known, device, depth + 1) for item in as_list(value, "a list of arguments", count)]

    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return as_text(value, "an argument")
    if isinstance(value, int):
        return as_whole(value)
    if isinstance(value, float):
        return value
    if isinstance(value, list):
        return items(value)
    if not isinstance(value, dict) or len(value) != 1:
        raise Refused("an argument is an object with more or less than one key")
    ((kind, inner),) = value.items()
    match kind:
        case "node":
            return _node(inner, known)
        case "tuple":
            return tuple(items(inner))
        case "slice":
            start, stop, step = _three(items(inner, count=3))
            return slice(start, stop, step)
        case "float" if isinstance(inner, str) and inner in FLOATS:
            return FLOATS[inner]
        case "complex":
            parts = items(inner, count=2)
            if len(parts) == 2 and all(isinstance(part, float) for part in parts):
                return complex(*parts)
        case "dict" if isinstance(inner, dict) and len(inner) <= MAX_LIST:
            return {as_text(key, "a key"): _decode(item, known, device, depth + 1) for key, item in inner.items()}
        case "device" if inner == "model":
            return device
        case "dtype" if isinstance(inner, str) and inner in DTYPES:
            return DTYPES[inner]
        case "layout" if isinstance(inner, str) and inner in _LAYOUTS:
            return _LAYOUTS[inner]
        case "memory_format" if isinstance(inner, str) and inner in _MEMORY_FORMATS:
            return _MEMORY_FORMATS[inner]
    raise Refused(f"an argument of kind {kind!r:.80} cannot be {inner!r:.80}")


def _three(items: list[Any]) -> tuple[Any, Any, Any]:
    if len(items) != 3:
        raise Refused("a slice has three parts")
    return items[0], items[1], items[2]
