"""nn.Module -> Program: `torch.export`, every draw made visible, and the graph put into the dialect of `program`.

The tracer runs without gradients on a private copy. Its graph still mutates tensors, hides operations in sub-graphs and
asserts the sizes it saw; running it through `run_decompositions` with an empty table makes it functional and flat and
keeps composite operations whole (linear, attention, recurrent layers). What is left to do here: parameters become
`get_attr` nodes, sizes become arithmetic on the sizes of the inputs, assertions go, sites get their numbers.
"""

import contextlib
import inspect
import io
import logging
import operator
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import sympy
import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.utils._sympy import functions as sizes

from mcdrop.capturing.exposing import expose
from mcdrop.capturing.tracer_rules import tracer_rules
from mcdrop.errors import CaptureError, McdropError
from mcdrop.graph.draws import OPERATORS
from mcdrop.graph.inputs import InputSpec
from mcdrop.graph.program import Program
from mcdrop.graph.sites import LIBRARIES, UNREACHED, Found, Site
from mcdrop.splitting.recurrent import LAYERS

__all__ = ["EXPORT_LOCK", "trace"]

Node = Any  # fx.Node, whose arguments are typed too widely to be of use

EXPORT_LOCK = threading.RLock()  # torch.export is not re-entrant

aten = torch.ops.aten
_ASSERTIONS = {"_assert_tensor_metadata", "_assert_async", "_assert_scalar", "sym_constrain_range_for_size"}


def trace(network: nn.Module, example: Sequence[Tensor], specs: tuple[InputSpec, ...]) -> Program:
    """The program of `network`, a module that takes the tensors of `example` and returns a tuple of tensors.

    Raises:
        CaptureError: the network cannot be traced; the message gives the tracer's reason.
    """
    exported, found = _export(network, example, specs)
    return _finish(exported, found, specs)


def _export(network: nn.Module, example: Sequence[Tensor], specs: tuple[InputSpec, ...]) -> tuple[Any, list[Found]]:
    dynamic = _dynamic_shapes(specs)
    with (
        EXPORT_LOCK,
        _quiet(),
        tracer_rules(),
        torch.no_grad(),
        torch.compiler.set_stance("force_eager"),
    ):
        try:
            exported = torch.export.export(network, tuple(example), dynamic_shapes=(dynamic,), strict=False)
            found = expose(exported.graph_module)
            if _is_functional(exported.graph_module):
                _fill(exported.graph)
                return exported, found
            return exported.run_decompositions({}), found
        except McdropError:
            raise
        except Exception as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            said = str(error).strip().split("\n\n")[0][:1500]
            reason = f"{type(error).__name__}: {said}".rstrip(".")
            hint = _HINT if isinstance(error, GuardOnDataDependentSymNode) else ""
            raise CaptureError(
                f"torch.export could not trace the network{_place(error, network)}: {reason}{hint}"
            ) from error


def _is_functional(module: fx.GraphModule) -> bool:
    """Whether a traced graph is flat and writes into nothing already: to trace it again takes most of the time.

    Recurrent layers are traced again too, by `tracer_rules`, which tell the shapes of what `expose` made of them.
    """
    calls = [node for node in module.graph.nodes if node.op not in ("placeholder", "output")]
    return all(node.op == "call_function" and not _needs_second_trace(node.target) for node in calls)


def _needs_second_trace(target: Any) -> bool:
    if isinstance(target, torch._ops.OpOverload):
        return target._schema.is_mutable or target in LAYERS.values()
    return isinstance(target, torch._ops.HigherOrderOperator)


def _fill(graph: fx.Graph) -> None:
    """Work out the shapes of what `expose` put into a graph."""
    modes = (node.meta["val"].fake_mode for node in graph.nodes if isinstance(node.meta.get("val"), FakeTensor))
    with next(modes):
        for node in graph.nodes:
            if node.op == "call_function" and "val" not in node.meta:
                args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
                node.meta["val"] = node.target(*args, **kwargs)


_HINT = (
    ". What happens there depends on the values of a tensor, not on its shape: compute both ways and choose with "
    "torch.where."
)


def _place(error: Exception, network: nn.Module) -> str:
    """The last line of the network's own `forward` methods that was run before the error: " at file:line, `code`"."""
    forwards = (inspect.unwrap(module.forward) for module in network.modules())
    files = {forward.__code__.co_filename for forward in forwards if hasattr(forward, "__code__")}
    own = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename in files and not frame.filename.startswith(LIBRARIES)
    ]
    if not own:
        return ""
    code = f", `{own[-1].line}`" if own[-1].line else ""
    return f" at {own[-1].filename}:{own[-1].lineno}{code}"


def _dynamic_shapes(specs: tuple[InputSpec, ...]) -> tuple[dict[int, Any], ...]:
    bounds: dict[str, Any] = {}
    for spec in specs:
        bounds.update(spec.bounds)
    dims: dict[str, Any] = {}
    for spec in specs:
        for name in spec.shape:
            if isinstance(name, str) and name not in dims:
                least, greatest = bounds.get(name, (1, None))
                dims[name] = torch.export.Dim(name, min=max(least, 1), max=greatest)
    return tuple({axis: dims[name] for axis, name in enumerate(spec.shape) if isinstance(name, str)} for spec in specs)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The tracer prints pages when it fails; what matters of them is in our error."""
    loggers = [logging.getLogger(name) for name in ("torch.export", "torch._export", "torch.fx", "torch._dynamo")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


class _Sizes:
    """Integer nodes for symbolic sizes, built from the sizes of the inputs and shared."""

    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph
        self.roots: dict[sympy.Symbol, tuple[Node, int, str]] = {}
        self.nodes: dict[sympy.Expr, Any] = {}

    def node(self, value: Any) -> Any:
        """The node (or the plain int) of a size."""
        if isinstance(value, int):
            return value
        expression = value.node.expr if hasattr(value, "node") else value
        if expression not in self.nodes:
            self.nodes[expression] = self._build(expression)
        return self.nodes[expression]

    def _build(self, e: sympy.Expr) -> Any:
        if e.is_Integer:
            return int(e)
        if e.is_Symbol:
            if e not in self.roots:
                raise CaptureError("a size depends on the values of the inputs, not on their shapes alone")
            placeholder, axis, _ = self.roots[e]
            return self.graph.call_function(aten.sym_size.int, (placeholder, axis))
        parts = [self.node(argument) for argument in e.args]
        for kinds, function in _ARITHMETIC:
            if isinstance(e, kinds):
                result = parts[0]
                for part in parts[1:]:
                    result = self.graph.call_function(function, (result, part))
                return result
        raise CaptureError(f"a size is computed in a way that cannot be captured: {e}")

    def text(self, value: Any) -> int | str:
        """A size for people: "batch", "12*batch", 64."""
        if isinstance(value, int):
            return value
        e = value.node.expr
        return str(e.subs({symbol: sympy.Symbol(name) for symbol, (_, _, name) in self.roots.items()}))


_ARITHMETIC: tuple[tuple[tuple[type, ...], Callable[..., Any]], ...] = (
    ((sympy.Add,), operator.add),
    ((sympy.Mul,), operator.mul),
    ((sizes.FloorDiv, sizes.CleanDiv), operator.floordiv),
    ((sizes.Mod, sizes.PythonMod), operator.mod),
    ((sympy.Pow, sizes.PowByNatural), operator.pow),
    ((sympy.Max, sizes.Max), torch.sym_max),
    ((sympy.Min, sizes.Min), torch.sym_min),
)


def _finish(exported: Any, found: list[Found], specs: tuple[InputSpec, ...]) -> Program:
    """The dialect of `program` from the tracer's functional graph."""
    source: fx.Graph = exported.graph
    signature = exported.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    names |= signature.inputs_to_lifted_tensor_constants
    values: Mapping[str, Any] = {**exported.constants, **exported.state_dict}
    graph = fx.Graph()
    env: dict[Node, Any] = {}
    size = _Sizes(graph)
    weights: dict[str, Tensor] = {}
    draws: list[tuple[Node, Node]] = []
    placeholders = [node for node in source.nodes if node.op == "placeholder"]
    inputs = iter(specs)
    for node in placeholders:
        if node.name in names:
            continue
        if not isinstance(node.meta.get("val"), Tensor):
            raise CaptureError(f"the traced graph has an input {node.name!r} that is no tensor")
        spec = next(inputs)
        env[node] = graph.placeholder(_identifier(spec.name))
        for axis, length in enumerate(node.meta["val"].shape):
            if isinstance(length, torch.SymInt) and length.node.expr.is_Symbol:
                size.roots.setdefault(length.node.expr, (env[node], axis, str(spec.shape[axis])))
            elif isinstance(spec.shape[axis], str):
                raise CaptureError(
                    f"the network fixes axis {axis} of input {spec.name!r} ({spec.shape[axis]}) to one size: {length}"
                )
    for node in placeholders:
        if node.name in names:
            target = names[node.name]
            weights[target] = values[target].detach()
            env[node] = graph.get_attr(target)
    for node in source.nodes:
        if node.op == "call_function" and not _is_assertion(node):
            env[node] = _copy(graph, node, env, size)
            if node.target is torch.ops.mcdrop.noise.default:
                draws.append((node, env[node]))
    outputs = _user_outputs(source, signature)
    graph.output(tuple(env[node] if isinstance(node, fx.Node) else node for node in outputs))
    sites = _number(graph, draws, found, size)
    _sweep(graph)
    weights = {name: weights[name] for name in dict.fromkeys(n.target for n in graph.nodes if n.op == "get_attr")}
    dims = {name: bounds for spec in specs for name, bounds in spec.bounds.items()}
    return Program(graph=graph, weights=weights, inputs=specs, sites=sites, dims=dims)


def _identifier(name: str) -> str:
    return name if name.isidentifier() else "input_" + "".join(c if c.isalnum() else "_" for c in name)


def _is_assertion(node: Node) -> bool:
    packet = getattr(node.target, "overloadpacket", None)
    return packet is not None and packet.__name__ in _ASSERTIONS


def _copy(graph: fx.Graph, node: Node, env: dict[Node, Any], size: _Sizes) -> Any:
    value = node.meta.get("val")
    if isinstance(value, torch.SymInt):
        return size.node(value)
    if isinstance(value, int) and not isinstance(value, bool) and node.target is not operator.getitem:
        return value
    args = fx.node.map_arg(node.args, lambda n: env[n])
    kwargs = fx.node.map_arg(node.kwargs, lambda n: env[n])
    if node.target is aten.copy.default:
        into, made = node.args[0].meta["val"], node.args[1].meta["val"]
        if into.shape == made.shape and into.dtype == made.dtype:
            return args[1]
    if node.target is aten._native_batch_norm_legit_no_training.default:  # the composite form picks the fast kernel
        x, weight, bias, mean, variance, momentum, eps = args
        normalised = graph.call_function(
            aten.batch_norm.default, (x, weight, bias, mean, variance, False, momentum, eps, False)
        )
        return (normalised, None, None)
    if node.target is operator.getitem and isinstance(args[0], tuple):
        return args[0][args[1]]
    target = OPERATORS.get(node.target, node.target)
    if target in (aten.view.default, aten._unsafe_view.default):  # strides may differ from the traced ones
        target = aten.reshape.default
    copied = graph.call_function(target, args, kwargs)
    copied.meta["val"] = value
    return copied


def _user_outputs(source: fx.Graph, signature: Any) -> list[Any]:
    """The outputs of the network; updated buffers, which come first, are not kept: each pass starts afresh."""
    returned = next(node for node in source.nodes if node.op == "output").args[0]
    kinds = [spec.kind.name for spec in signature.output_specs]
    return [value for value, kind in zip(returned, kinds, strict=True) if kind == "USER_OUTPUT"]


def _number(graph: fx.Graph, draws: list[tuple[Node, Node]], found: list[Found], size: _Sizes) -> tuple[Site, ...]:
    """The sites in the order in which they draw, then the inactive ones; `noise` nodes get the final numbers."""
    live = _live(graph)
    batch = [symbol for symbol, (_, _, name) in size.roots.items() if name == "batch"]
    active, inactive = [], []
    for index, (traced, node) in enumerate(draws):
        what = found[traced.args[0]]
        shape = traced.meta["val"].shape
        site = _site(what, index, tuple(map(size.text, shape)), _row_axis(shape, batch[0] if batch else None))
        node.args = (index, [size.node(length) for length in shape])
        if node in live:
            active.append(site)
        else:
            inactive.append(replace(site, index=-1, active=False, reason=UNREACHED))
    for what in found:
        if what.reason is not None:
            inactive.append(replace(_site(what, -1, (), None), active=False, reason=what.reason))
    _order(graph)
    return (*active, *inactive)


def _site(what: Found, index: int, shape: tuple[int | str, ...], row_axis: int | None) -> Site:
    return Site(
        index=index, path=what.path, kind=what.kind, p=what.p, law=what.law, scale=what.scale, shape=shape,
        row_axis=row_axis, row_major=True, active=True, reason=None, source=what.source,
    )  # fmt: skip


def _row_axis(shape: Sequence[Any], batch: sympy.Symbol | None) -> int | None:
    """The axis whose size is a multiple of the number of rows."""
    for axis, length in enumerate(shape):
        if isinstance(length, torch.SymInt) and batch in length.node.expr.free_symbols:
            return axis
    return None


def _order(graph: fx.Graph) -> None:
    """Sizes are built when first needed, which may be after an earlier node uses them: move each before its users."""
    scalars = [node for node in graph.nodes if _is_size(node)]
    calls = (node for node in graph.nodes if node.op not in ("placeholder", "get_attr") and not _is_size(node))
    first = next(calls)
    for node in scalars:
        first.prepend(node)


_SIZE_FUNCTIONS = {function for _, function in _ARITHMETIC} | {aten.sym_size.int}


def _is_size(node: Node) -> bool:
    return node.op == "call_function" and node.target in _SIZE_FUNCTIONS and "val" not in node.meta


def _live(graph: fx.Graph) -> set[Node]:
    """The nodes from which the output is computed."""
    output = next(node for node in graph.nodes if node.op == "output")
    live, waiting = set(), [output]
    while waiting:
        node = waiting.pop()
        if node not in live:
            live.add(node)
            waiting.extend(node.all_input_nodes)
    return live


def _sweep(graph: fx.Graph) -> None:
    """Remove what no output needs; inputs stay, so that the signature does."""
    live = _live(graph)
    for node in reversed(list(graph.nodes)):
        if node not in live and node.op != "placeholder":
            graph.erase_node(node)
