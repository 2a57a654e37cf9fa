"""Thinned passes: with one mask for all rows of a pass, what the mask drops is not computed.

`thin` rewrites one pass of the suffix so that activations hold the kept units alone. Two facts carry it:

    needed  what feeds a dropout, through operations that act unit by unit, is needed at the kept units alone: the rows
            of the weight before it that belong to dropped units are left out
    zero    what comes out of a dropout is zero at the dropped units, and stays so through operations that keep zero:
            the columns of the weight behind it are left out too

So Linear - ReLU - Dropout - Linear is a product over kept units on both sides; convolutions likewise, over the channels
that a spatial dropout keeps. Masks are those of the plain suffix, so widths differ from pass to pass and passes are
computed one after the other, each with its own gathered weights, which are kept from call to call under a bound on
bytes.

Not here, which keeps plain passes: draws by row; masks that differ along more than one axis (dropout on sequences or
maps, attention); alpha dropout, whose dropped units are not zero; masks written by hand; weights that are computed;
grouped convolutions. Where a thinned value meets an operation that is not in the tables below (a norm over
units, a concatenation), it is filled up with zeros again. What a network computes at dropped units does not show: where
that is infinite, plain passes give NaN (infinity times 0) and thinned ones do not.
"""

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from mcdrop.sites import Site
from mcdrop.split import Part, Split, scale_by_draw, spread_draw

__all__ = ["Thinned", "gathered_bound", "thin"]

Node = Any  # fx.Node, whose arguments are typed too widely to be of use

aten = torch.ops.aten

_GATHERED_BOUND = 128 * 2**20
_ASKED = 2**14  # passes of which it is remembered that they were asked for

# What computing costs, in nanoseconds on two cores of a server; only the ratios count.
FLOP = 1 / 250  # of a matrix product or convolution
ELEMENT = 0.2  # of an activation: a mask or another unit-wise operation
BYTE = 0.2  # of a gathered weight: it is gathered in some calls and only read in others
CALL = 4000.0  # of one operation from Python
CHANNELS = 16  # of a convolution that are computed together; widths are ragged, so half as many more on average


class Cut(NamedTuple):
    """The units of one axis that a site keeps; `block` neighbours on the axis share the fate of one unit."""

    draw: int
    axis: int
    block: int = 1


class Gather(NamedTuple):
    """A weight cut down to kept units along some axes, times the value of a kept unit where that is left to it."""

    weight: int
    cuts: tuple[Cut, ...]
    factor: float = 1.0


@dataclass(frozen=True)
class Cost:
    """Nanoseconds of one pass: for each row in plain and in thinned form, and for a thinned pass whatever its rows."""

    plain_row: float
    thinned_row: float
    thinned_pass: float

    @property
    def least_rows(self) -> int | None:
        """The number of rows from which thinned passes are faster; None if they never are."""
        saved = self.plain_row - self.thinned_row
        return max(1, int(self.thinned_pass / saved) + 1) if saved > 0 else None


class Thinned:
    """The suffix over kept units, one pass at a time. Read-only but for what it keeps, so that threads may share it.

    Attributes:
        draws: numbers of the draws whose dropped units are left out.
        cost: what passes are expected to cost.
    """

    def __init__(
        self,
        part: Part,
        plain: Part,
        indices: Sequence[tuple[int, int]],
        gathers: Sequence[Gather],
        cost: Cost,
        bound: int,
    ) -> None:
        self._part, self._plain, self._indices, self._gathers = part, plain, tuple(indices), tuple(gathers)
        self.draws = tuple(dict.fromkeys(draw for draw, _ in indices))
        self.cost = cost
        self._kept = _Kept(bound)

    def pays(self, rows: int) -> bool:
        """Whether passes of so many rows are expected to be faster thinned than plain."""
        least = self.cost.least_rows
        return least is not None and rows >= least

    def passes(
        self, sizes: Sequence[int], frontier: Sequence[Tensor], draws: Sequence[Tensor], passes: range, seed: int
    ) -> tuple[Tensor, ...]:
        """Outputs (passes, rows, ...) under the draws (passes, ...) of these passes of this seed."""
        each = []
        for place, number in enumerate(passes):
            drawn = [draw[place] for draw in draws]
            kept: tuple[Tensor, ...] = ()
            if self.draws:
                kept = self._kept.get(seed, number, lambda drawn=drawn: self._gathered(drawn))  # type: ignore[misc]
            part = self._part if kept or not self.draws else self._plain
            each.append(part(*sizes, *frontier, *drawn, *kept))
        return tuple(torch.stack(outputs) for outputs in zip(*each, strict=True))

    def _gathered(self, drawn: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """What one pass keeps: the numbers of its units, and the weights that belong to them.

        Nothing where a site keeps no unit at all, on which few operations are defined: that pass goes the plain way.
        """
        units = {draw: drawn[draw].flatten().nonzero().flatten() for draw in self.draws}
        indices = {(draw, block): _blocks(units[draw], block) for draw, block in self._indices}
        if not all(len(kept) for kept in units.values()):
            return ()
        weights = []
        for gather in self._gathers:
            weight = self._plain.weights[gather.weight]
            for draw, axis, block in gather.cuts:
                weight = _select(weight, axis, indices[draw, block])
            weights.append(weight if gather.factor == 1 else weight.mul_(gather.factor))
        return *indices.values(), *weights


def _blocks(units: Tensor, block: int) -> Tensor:
    if block == 1:
        return units
    return (units[:, None] * block + torch.arange(block, device=units.device)).flatten()


class _Kept:
    """What passes keep, under a bound on bytes. Safe to use from many threads.

    A pass is kept when it is asked for the second time: of a seed that never comes again nothing would be of use.
    Passes come in order, call after call, so once the room is taken by passes of the same seed, those stay: what is
    put out for the next would be missed first. Other seeds go, the least recently used first.
    """

    def __init__(self, bound: int) -> None:
        self.bound, self.held = bound, 0
        self.seeds: OrderedDict[int, dict[int, tuple[Tensor, ...]]] = OrderedDict()
        self.asked: OrderedDict[tuple[int, int], None] = OrderedDict()
        self.lock = threading.Lock()

    def get(self, seed: int, number: int, make: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        with self.lock:
            if seed in self.seeds:
                self.seeds.move_to_end(seed)
                if number in self.seeds[seed]:
                    return self.seeds[seed][number]
            again = (seed, number) in self.asked
            self.asked[seed, number] = None
            if len(self.asked) > _ASKED:
                self.asked.popitem(last=False)
        made = make()
        if again:
            with self.lock:
                self._keep(seed, number, made)
        return made

    def _keep(self, seed: int, number: int, made: tuple[Tensor, ...]) -> None:
        size = _bytes(made)
        while self.held + size > self.bound and any(other != seed for other in self.seeds):
            oldest = next(other for other in self.seeds if other != seed)
            self.held -= sum(_bytes(kept) for kept in self.seeds.pop(oldest).values())
        if self.held + size <= self.bound and number not in self.seeds.setdefault(seed, {}):
            self.seeds[seed][number] = made
            self.held += size


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def gathered_bound(max_memory: int | None, thinned: bool = True) -> int:
    """Bytes of gathered weights that may be kept beside the draws of `Masks.within`; 0 where passes stay plain."""
    if not thinned:
        return 0
    return _GATHERED_BOUND if max_memory is None else min(_GATHERED_BOUND, max_memory // 8)


def thin(split: Split, arguments: Sequence[Any], rows: int, *, bound: int) -> Thinned | None:
    """The suffix of a program over kept units; None where nothing is left out, whether or not that pays.

    Args:
        split: the program in its parts.
        arguments: sizes, frontier and draws of one pass for `rows` rows, of which only the shapes count.
        bound: bytes of gathered weights that may be kept; a suffix of which one pass takes more stays plain.
    """
    candidates = {number for number, (site, sizes) in enumerate(split.draws) if _may_be_cut(site, sizes)}
    gates = {number for number, (site, sizes) in enumerate(split.draws) if _is_gate(site, sizes)}
    if not candidates | gates:
        return None
    part, sites = split.mapped, [site for site, _ in split.draws]
    shapes = _Shapes(part)
    shapes.run(*arguments, *part.weights)
    while True:
        rewriter = _Rewriter(part, shapes.found, sites, candidates)
        useful = {cut.draw for gather in rewriter.products for cut in gather.cuts}
        if useful == candidates:
            skips = rewriter.skip_blocks(gates)
            return rewriter.finished(rows, bound) if candidates or skips else None
        candidates = useful  # those that save no part of a product go the plain way


def _may_be_cut(site: Site, sizes: Sequence[Any]) -> bool:
    """Whether a draw is a mask that differs along one axis alone, of fixed size, and that all rows share."""
    own = [size for axis, size in enumerate(sizes) if axis != site.row_axis and size != 1]
    return site.law == "bernoulli" and bool(site.p) and len(own) == 1 and isinstance(own[0], int)


def _is_gate(site: Site, sizes: Sequence[Any]) -> bool:
    """Whether a draw is one number for each pass that drops a whole branch."""
    own = [size for axis, size in enumerate(sizes) if axis != site.row_axis]
    return site.law == "bernoulli" and bool(site.p) and all(size == 1 for size in own)


class _Shapes(fx.Interpreter):
    """Runs a graph and notes the shape of each result."""

    def __init__(self, part: Part) -> None:
        super().__init__(part.module)
        self.found: dict[Node, torch.Size] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.found[n] = result.shape
        return result


class _Rewriter:
    """Rewrites the graph of one pass: first from the outputs what each node is needed for, then forward the nodes."""

    def __init__(
        self, part: Part, shapes: Mapping[Node, torch.Size], sites: Sequence[Site], candidates: set[int]
    ) -> None:
        self.part, self.shapes, self.sites = part, shapes, sites
        self.nodes: list[Node] = list(part.module.graph.nodes)
        inputs = [node for node in self.nodes if node.op == "placeholder"]
        first_weight = len(inputs) - len(part.weights)
        self.weights = {node: number for number, node in enumerate(inputs[first_weight:])}
        first_draw = first_weight - len(sites)
        self.draws = {node: number for number, node in enumerate(inputs[first_draw:first_weight])}
        self.candidates = candidates
        self.cuts = {node: cut for node in self.nodes if (cut := self._cut_by(node)) is not None}
        self.needs: dict[Node, Cut | None] = {}
        for node in reversed(self.nodes):
            wanted = {self._wanted(user, node) for user in node.users}
            self.needs[node] = wanted.pop() if len(wanted) == 1 else None

        self.graph = fx.Graph()
        self.env: dict[Node, tuple[Node, Cut | None]] = {
            node: (self.graph.placeholder(node.name), None) for node in inputs[:first_weight]
        }
        self.marks = [self.graph.call_function(tuple) for _ in range(2)]  # where indices end, and gathered weights
        self.indices: dict[tuple[int, int], Node] = {}
        self.gathers: dict[Gather, Node] = {}
        self.others: dict[tuple[Node, Cut | None], Node] = {}
        self.unscaled: dict[Node, tuple[Node, float]] = {}  # what a dropout keeps, and by what it is to be multiplied
        self.products: list[Gather] = []
        self.plain_cost = 0.0
        for node in self.nodes:
            if node.op == "call_function":
                self.env[node] = self._rewritten(node)
                self._note_cost(node)
            elif node.op == "output":
                self.graph.output(tuple(self.held(value, None) for value in node.args[0]))

    # ---- what is needed

    def _cut_by(self, node: Node) -> Cut | None:
        """The cut that a dropout makes, if it is one of the candidates, in activations that fit its mask."""
        if node.target is not scale_by_draw or node.args[1] not in self.draws:
            return None
        x, draw, row_axis = node.args[:3]
        drawn = self.shapes[draw]
        axes = [axis for axis, size in enumerate(drawn) if size != 1 and axis != row_axis]
        if self.draws[draw] not in self.candidates or len(drawn) != len(self.shapes[x]) or len(axes) != 1:
            return None
        (axis,) = axes
        if drawn[axis] != self.shapes[x][axis] or (row_axis is not None and drawn[row_axis] != 1):
            return None
        return Cut(self.draws[draw], axis)

    def _wanted(self, user: Node, node: Node) -> Cut | None:
        """The units of `node` that `user` looks at; None for all."""
        if user in self.cuts:
            return self.cuts[user] if node is user.args[0] else None
        need = self._own_need(user)
        if need is None or node not in self.shapes or len(self.shapes[node]) != len(self.shapes[user]):
            return None
        return need if self.shapes[node][need.axis] == self.shapes[user][need.axis] else None

    def _own_need(self, node: Node) -> Cut | None:
        """The units at which `node` is needed, if it can be computed there from its inputs at the same units."""
        need = self.needs[node]
        if node.target in ZERO_KEEPING | UNIT_WISE | ARITHMETIC:
            return need
        by_channel = node.target in CHANNEL_WISE or (
            node.target is aten.batch_norm.default
            and all(value in self.weights for value in node.args[1:5] if isinstance(value, fx.Node))
        )
        return need if by_channel and need is not None and need.axis == 1 else None

    # ---- values in the new graph

    def held(self, node: Any, cut: Cut | None) -> Any:
        """A value in the new graph, at the units of `cut`, of whose axis it has all; all of them for None."""
        if not isinstance(node, fx.Node):
            return node
        if node in self.weights:
            return self._gathered(node, () if cut is None else (cut,))
        new, has = self.env[node]
        if has != cut and (node, cut) not in self.others:
            if has is not None:
                new = self.graph.call_function(_filled, (new, has.axis, self._index(has), self.shapes[node][has.axis]))
            if cut is not None:
                new = self.graph.call_function(_select, (new, cut.axis, self._index(cut)))
            self.others[node, cut] = new
        return new if has == cut else self.others[node, cut]

    def _index(self, cut: Cut) -> Node:
        if (cut.draw, cut.block) not in self.indices:
            with self.graph.inserting_before(self.marks[0]):
                self.indices[cut.draw, cut.block] = self.graph.placeholder(f"kept_{cut.draw}_{cut.block}")
        return self.indices[cut.draw, cut.block]

    def _gathered(self, node: Node, cuts: tuple[Cut, ...], *, product: bool = False, factor: float = 1.0) -> Node:
        """A weight at the units of `cuts`; `product` says that work is left out with what it loses."""
        gather = Gather(self.weights[node], cuts, factor)
        if cuts and product:
            self.products.append(gather)
        if not cuts:
            return self.graph.get_attr(f"weight_{gather.weight}")
        if gather not in self.gathers:
            for cut in cuts:
                self._index(cut)
            with self.graph.inserting_before(self.marks[1]):
                self.gathers[gather] = self.graph.placeholder(f"gathered_{len(self.gathers)}")
        return self.gathers[gather]

    # ---- nodes

    def _rewritten(self, node: Node) -> tuple[Node, Cut | None]:
        """The node in the new graph, and the units that it has there."""
        target, need = node.target, self._own_need(node)
        has = self._has(node.args[0]) if node.args else None
        if node in self.cuts:
            cut, site = self.cuts[node], self.sites[self.draws[node.args[1]]]
            factor = float(torch.tensor(site.scale, dtype=torch.float32))  # as in the draw
            self.unscaled[node] = x, factor = self.held(node.args[0], cut), factor
            return self.graph.call_function(torch.mul, (x, factor)), cut
        if self._is_plain_product(node):
            return self._product(node)
        if target is aten.batch_norm.default and need is not None:
            by_unit = [self.held(value, need._replace(axis=0)) for value in node.args[1:5]]
            x = self.held(node.args[0], need)
            return self.graph.call_function(target, (x, *by_unit, *node.args[5:]), dict(node.kwargs)), need
        if has is not None and self._flattens(node, has):
            new = self.graph.call_function(torch.flatten, (self.env[node.args[0]][0], 1))
            return new, has._replace(block=has.block * self.shapes[node.args[0]][2:].numel())
        if need is not None:
            return self._copied(node, need)
        if target in ARITHMETIC:
            return self._copied(node, self._zero_in(node))
        if target in ZERO_KEEPING or (target in CHANNEL_WISE and has is not None and has.axis == 1):
            return self._copied(node, has)
        return self._copied(node, None)

    def _flattens(self, node: Node, has: Cut) -> bool:
        """Whether a reshape makes (rows, channels * space) of (rows, channels, *space), of fixed size."""
        if node.target is not torch.reshape or has.axis != 1 or len(node.args[1]) != 2:
            return False
        rows, units = node.args[1]
        shape = self.shapes[node.args[0]]
        return not isinstance(rows, int) and isinstance(units, int) and units == shape[1:].numel()

    def _has(self, value: Any) -> Cut | None:
        return self.env[value][1] if isinstance(value, fx.Node) and value in self.env else None

    def _zero_in(self, node: Node) -> Cut | None:
        """The units outside of which arithmetic on what is zero there gives zero."""
        shape = self.shapes[node]
        operands = node.args[:2]
        has = [self._has(value) for value in operands]
        fits = [
            cut if cut is not None and len(self.shapes[value]) == len(shape) else None
            for cut, value in zip(has, operands, strict=True)
        ]
        if node.target in _SUMS:
            return fits[0] if fits[0] == fits[1] else None
        if node.target in _QUOTIENTS:
            return fits[0] if has[1] is None else None
        return fits[0] or fits[1]

    def _copied(self, node: Node, cut: Cut | None) -> tuple[Node, Cut | None]:
        """The same operation at the units of `cut`."""

        def argument(value: Node) -> Any:
            if cut is None or value not in self.shapes:
                return self.held(value, None)
            axis = _broadcast(self.shapes[value], self.shapes[node], cut)
            return self.held(value, None if axis is None else cut._replace(axis=axis))

        args, kwargs = (fx.node.map_arg(values, argument) for values in (node.args, node.kwargs))
        return self.graph.call_function(node.target, args, kwargs), cut

    def _is_plain_product(self, node: Node) -> bool:
        """Whether this is a linear map or an ungrouped convolution of a batch, by weights that are not computed."""
        if node.target not in WEIGHT_AXES:
            return False
        x, weight, bias = (*node.args, None)[:3]
        return (
            weight in self.weights
            and (bias is None or bias in self.weights)
            and node.args[_GROUPS : _GROUPS + 1] in ((), (1,))
            and not node.kwargs
            and (node.target is torch.nn.functional.linear or len(self.shapes[x]) == len(self.shapes[weight]))
        )

    def _product(self, node: Node) -> tuple[Node, Cut | None]:
        """A linear map or convolution, from the units that its input has to those that are needed."""
        x, weight, bias = (*node.args, None)[:3]
        leaving, entering = WEIGHT_AXES[node.target]
        linear = node.target is torch.nn.functional.linear
        axis = len(self.shapes[x]) - 1 if linear else 1
        has, need = self._has(x), self.needs[node]
        has = has if has is not None and has.axis == axis else None
        need = need if need is not None and need.axis == axis else None
        cuts = [cut._replace(axis=at) for cut, at in ((need, leaving), (has, entering)) if cut is not None]
        held, factor = self.unscaled[x] if x in self.unscaled and has is not None else (self.held(x, has), 1.0)
        new = [held, self._gathered(weight, tuple(cuts), product=True, factor=factor)]
        if len(node.args) > 2:
            new.append(None if bias is None else self.held(bias, need and need._replace(axis=0)))
        result = self.graph.call_function(node.target, (*new, *node.args[3:]))
        flops = 2.0 * self.shapes[weight].numel() * self.shapes[node if not _transposed(node) else x].numel()
        flops /= self.shapes[weight][leaving if not _transposed(node) else entering]
        self.plain_cost += flops * FLOP
        for cut, at in ((has, entering), (need, leaving)):
            flops *= self._fraction(cut) if linear or cut is None else self._channels(cut, self.shapes[weight][at])
        result.meta["cost"] = flops * FLOP
        return result, need

    # ---- blocks

    def skip_blocks(self, gates: set[int]) -> int:
        """Compute residual branches only in passes whose gate is open; how many there are.

        A sum of a shortcut and a branch that a gate multiplies is the shortcut where the gate is closed. What serves
        the branch alone moves into a function of its own.
        """
        opened = {self.env[node][0]: number for node, number in self.draws.items() if number in gates}
        skipped = 0
        for node in list(self.graph.nodes):
            if node.target is not torch.add or node.kwargs:
                continue
            for shortcut, branch in (node.args, node.args[::-1]):
                gate = _gate_of(branch, opened)
                shape = node.meta.get("shape")
                if gate is not None and isinstance(shortcut, fx.Node) and shape == shortcut.meta.get("shape", shape):
                    self._skip(node, shortcut, branch, gate, 1.0 - (self.sites[opened[gate]].p or 0.0))
                    skipped += 1
                    break
        return skipped

    def _skip(self, node: Node, shortcut: Node, branch: Node, gate: Node, kept: float) -> None:
        inside, waiting = {node}, [branch]
        while waiting:  # a node is looked at again for each of its users
            serving = waiting.pop()
            if serving.op != "call_function" or serving is shortcut:
                continue
            if all(user in inside for user in serving.users):
                inside.add(serving)
                waiting.extend(serving.all_input_nodes)
        block = [each for each in self.graph.nodes if each in inside]
        outside = list(dict.fromkeys(x for each in block for x in each.all_input_nodes if x not in inside))
        graph = fx.Graph()
        env = {x: graph.placeholder(x.name) for x in outside}
        for each in block:
            env[each] = graph.node_copy(each, env.__getitem__)
        graph.output(env[node])
        with self.graph.inserting_before(node):
            new = self.graph.call_function(_where_open(fx.GraphModule({}, graph)), (gate, shortcut, *outside))
        new.meta["shape"] = node.meta["shape"]
        new.meta["cost"] = kept * sum(each.meta.get("cost", 0.0) for each in block)
        new.meta["calls"] = 1 + kept * sum(each.meta.get("calls", 1) for each in block)
        node.replace_all_uses_with(new)
        for each in reversed(block):
            self.graph.erase_node(each)

    # ---- what it costs

    def _fraction(self, cut: Cut | None) -> float:
        return 1.0 if cut is None else 1.0 - (self.sites[cut.draw].p or 0.0)

    def _channels(self, cut: Cut, channels: int) -> float:
        """The share of the channels of a convolution that has to be computed: libraries do so many at a time."""
        kept = channels * self._fraction(cut)
        return min(1.0, math.ceil(kept / CHANNELS + 0.5) * CHANNELS / channels)

    def _note_cost(self, node: Node) -> None:
        if node in self.shapes:
            new, cut = self.env[node]
            cost = self.shapes[node].numel() * ELEMENT
            self.plain_cost += cost
            new.meta["cost"] = new.meta.get("cost", 0.0) + cost * self._fraction(cut)
            new.meta["shape"] = self.shapes[node] if cut is None else None

    def finished(self, rows: int, bound: int) -> Thinned | None:
        """The new graph with what it needs and costs; None where one pass takes more than `bound` bytes."""
        for mark in self.marks:
            self.graph.erase_node(mark)
        self.graph.eliminate_dead_code()
        weights = self.part.weights
        gathered = sum(
            weights[gather.weight].nbytes * math.prod(map(self._fraction, gather.cuts)) for gather in self.gathers
        )
        calls = sum(node.meta.get("calls", 1) for node in self.graph.nodes if node.op == "call_function")
        cost = Cost(
            plain_row=self.plain_cost / rows,
            thinned_row=sum(node.meta.get("cost", 0.0) for node in self.graph.nodes) / rows,
            thinned_pass=gathered * BYTE + calls * CALL,
        )
        if gathered > bound:
            return None
        named = {f"weight_{number}": weight for number, weight in enumerate(weights)}
        part = Part(self.graph, named)
        return Thinned(part, self.part, list(self.indices), list(self.gathers), cost, bound)


def _transposed(node: Node) -> bool:
    return WEIGHT_AXES[node.target] == (1, 0)


def _broadcast(shape: torch.Size, result: torch.Size, cut: Cut) -> int | None:
    """The axis of an operand that meets the cut axis of a result; None where it has one unit for all."""
    axis = cut.axis - len(result) + len(shape)
    return axis if axis >= 0 and shape[axis] == result[cut.axis] else None


def _gate_of(node: Any, gates: Mapping[Node, int]) -> Node | None:
    """The gate without which a value is zero, if there is one."""
    if not isinstance(node, fx.Node):
        return None
    if node.target is scale_by_draw:
        return node.args[1] if node.args[1] in gates else None
    if node.target is spread_draw:
        return node.args[0] if node.args[0] in gates else None
    if node.target in _QUOTIENTS:
        return _gate_of(node.args[0], gates)
    if node.target is torch.mul:
        return _gate_of(node.args[0], gates) or _gate_of(node.args[1], gates)
    return None


def _where_open(module: fx.GraphModule) -> Callable[..., Tensor]:
    """The block as a function of its gate, its shortcut and what it reads."""
    function = type(module).forward

    def block(gate: Tensor, shortcut: Tensor, *values: Any) -> Tensor:
        computed: Tensor = function(module, *values) if gate.any() else shortcut
        return computed

    return block


def _select(x: Tensor, axis: int, kept: Tensor) -> Tensor:
    """Units of an axis, in the layout that `x` has."""
    if x.ndim == 4 and axis < 2 and _is_channels_last(x):
        last = x.permute(0, 2, 3, 1).index_select(3 if axis == 1 else 0, kept)
        return last.permute(0, 3, 1, 2)
    return x.index_select(axis, kept)


def _filled(x: Tensor, axis: int, kept: Tensor, size: int) -> Tensor:
    """All units of an axis, zero where they are not kept, in the layout that `x` has."""
    shape = [*x.shape[:axis], size, *x.shape[axis + 1 :]]
    if x.ndim == 4 and axis == 1 and _is_channels_last(x):
        last = x.new_zeros([shape[0], *shape[2:], size])
        return last.index_copy_(3, kept, x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return x.new_zeros(shape).index_copy_(axis, kept, x)


def _is_channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


# operations by the axes of their weight that leave and enter: (out, in, ...)
WEIGHT_AXES: Mapping[Any, tuple[int, int]] = {
    torch.nn.functional.linear: (0, 1),
    aten.conv1d.default: (0, 1),
    torch.conv2d: (0, 1),
    aten.conv3d.default: (0, 1),
    aten.conv_transpose1d.default: (1, 0),
    aten.conv_transpose2d.input: (1, 0),
    aten.conv_transpose3d.input: (1, 0),
}
_GROUPS = 6  # place of the number of groups among the arguments of each convolution
# operations that act unit by unit and give 0 for 0
ZERO_KEEPING = frozenset({
    torch.relu, aten.relu6.default, aten.gelu.default, aten.silu.default, aten.tanh.default, aten.leaky_relu.default,
    aten.elu.default, aten.selu.default, aten.celu.default, aten.hardswish.default, aten.mish.default,
    aten.abs.default, aten.neg.default, aten.square.default, aten.sin.default, aten.clone.default,
    aten.contiguous.default, aten.to.dtype,
})  # fmt: skip
# operations that act unit by unit
UNIT_WISE = frozenset({
    aten.sigmoid.default, aten.softplus.default, aten.hardtanh.default, aten.hardsigmoid.default, aten.exp.default,
    aten.clamp.default, aten.log_sigmoid.default, aten.cos.default, aten.threshold.default,
})  # fmt: skip
# operations that act channel by channel, over the space behind them, and give 0 for 0
CHANNEL_WISE = frozenset({
    torch.max_pool2d, aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default, aten.upsample_nearest2d.vec,
    aten.upsample_bilinear2d.vec,
})  # fmt: skip
_SUMS = frozenset({torch.add, aten.sub.Tensor})
_QUOTIENTS = frozenset({aten.div.Tensor})
ARITHMETIC = _SUMS | _QUOTIENTS | {torch.mul}
