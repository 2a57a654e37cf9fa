"""A private copy of a user's network that takes tensors and returns a tuple of tensors.

`private_copy` makes the snapshot; `Adapter` gives it the plain shape that the tracer and the engines want: inputs in
order, and of the outputs only those that count.
"""

import copy
import dataclasses
import inspect
import types
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from mcdrop.errors import InputError, SettingError
from mcdrop.graph.inputs import InputSpec, Signature

__all__ = ["Adapter", "Example", "private_copy", "read_example"]


def private_copy(model: nn.Module) -> nn.Module:
    """A copy that shares nothing that matters with `model`: works where `copy.deepcopy` fails.

    Attributes that cannot be copied (locks, open files, tensors that hang in a graph of gradients) are detached and
    cloned, or, if they are no tensors, shared.
    """
    memo: dict[int, Any] = {}
    with torch.no_grad():
        try:
            twin: nn.Module = copy.deepcopy(model, memo)
        except Exception:  # user code runs inside deepcopy and can fail in any way
            memo.clear()
            twin = _copied(model, memo)
        for module in twin.modules():
            if isinstance(module, nn.RNNBase):
                module.__dict__["_update_flat_weights"] = types.MethodType(_read_weights, module)
            for name, value in list(vars(module).items()):
                if isinstance(value, types.FunctionType):
                    module.__dict__[name] = _rebound(value, memo)
    return twin


def _read_weights(rnn: Any) -> None:
    """`nn.RNNBase._update_flat_weights`, but reading each weight once.

    PyTorch reads a weight up to four times per call, and each time a parametrization that draws draws again.
    """
    rnn._flat_weights = [getattr(rnn, name, None) for name in rnn._flat_weights_names]


def _rebound(function: types.FunctionType, memo: dict[int, Any]) -> types.FunctionType:
    """A function that closes over parts of the original, or their methods, closing over their copies instead."""
    cells = [cell.cell_contents for cell in function.__closure__ or () if _filled(cell)]
    owners = [content.__self__ if inspect.ismethod(content) else content for content in cells]
    if not any(isinstance(owner, nn.Module | Tensor) and id(owner) in memo for owner in owners):
        return function

    def twin_of(content: Any) -> Any:
        if inspect.ismethod(content):
            return types.MethodType(content.__func__, memo.get(id(content.__self__), content.__self__))
        return memo.get(id(content), content)

    closure = tuple(
        types.CellType(twin_of(cell.cell_contents)) if _filled(cell) else cell for cell in function.__closure__ or ()
    )
    twin = types.FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, closure
    )
    twin.__kwdefaults__ = function.__kwdefaults__
    return twin


def _filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018  # an empty cell raises
    except ValueError:
        return False
    return True


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    if id(value) in memo:
        return memo[id(value)]
    if isinstance(value, nn.Module):
        twin = memo[id(value)] = object.__new__(type(value))
        for name, item in value.__dict__.items():
            twin.__dict__[name] = _copied(item, memo)
        return twin
    if isinstance(value, nn.Parameter):
        made: Any = nn.Parameter(value.detach().clone(), value.requires_grad)
    elif isinstance(value, Tensor):
        made = value.detach().clone()
    elif type(value) in (list, tuple, set):
        made = type(value)(_copied(item, memo) for item in value)
    elif isinstance(value, dict):
        made = memo[id(value)] = copy.copy(value)
        for key, item in value.items():
            made[key] = _copied(item, memo)
        return made
    elif inspect.ismethod(value) and isinstance(value.__self__, nn.Module):
        made = type(value)(value.__func__, _copied(value.__self__, memo))
    else:
        try:
            made = copy.deepcopy(value, memo)
        except Exception:
            made = value
    memo[id(value)] = made
    return made


@dataclasses.dataclass(frozen=True)
class Example:
    """Example inputs, taken apart: tensors in order with their specs, and what else the call needs."""

    tensors: tuple[Tensor, ...]
    signature: Signature
    positional: tuple[Any, ...]  # the call's arguments; a tensor stands as its number in `tensors`, wrapped
    keyword: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class _Slot:
    """The place of tensor `number` in a call."""

    number: int


def read_example(
    model: nn.Module, example: Any, dynamic: Mapping[Any, Any] | None, dtype: torch.dtype, device: torch.device
) -> Example:
    """The example in the form that capture wants.

    Raises:
        InputError: there is no tensor, or the tensors disagree about the number of rows.
        SettingError: `dynamic` names what is not there.
    """
    names = _parameter_names(model)
    if isinstance(example, Mapping):
        given = dict(example)
    else:
        values = tuple(example) if isinstance(example, tuple | list) else (example,)
        if len(values) > len(names):
            raise InputError(
                f"{type(model).__name__}.forward takes {len(names)} inputs; the example has {len(values)}."
            )
        given = dict(zip(names, values, strict=False))
    tensors: list[Tensor] = []
    slots: dict[str, Any] = {}
    chosen: list[str] = []
    for name, value in given.items():
        if hasattr(value, "__array__") and not isinstance(value, Tensor) and getattr(value, "ndim", 0) > 0:
            value = torch.as_tensor(value)
        if isinstance(value, Tensor):
            value = value.detach().to(device)
            slots[name] = _Slot(len(tensors))
            tensors.append(value.to(dtype) if value.is_floating_point() else value)
            chosen.append(name)
        elif any(isinstance(leaf, Tensor) for leaf in tree_leaves(value)):
            raise InputError(
                f"input {name!r} is a {type(value).__name__} that holds tensors; give each tensor as an input of its "
                "own, by a module around the network that puts them together."
            )
        else:
            slots[name] = value
    batched = [tensor for tensor in tensors if tensor.ndim]
    if not batched:
        raise InputError(
            "the example inputs hold no tensor with a batch axis: give at least one of shape (batch, ...)."
        )
    if not batched[0].shape[0]:
        raise InputError("the example inputs have no row: give an example of at least one row.")
    specs = _specs(chosen, tensors, batched[0].shape[0], dict(dynamic or {}))
    keyword = isinstance(example, Mapping)
    return Example(
        tuple(tensors),
        Signature(specs, keyword=keyword),
        () if keyword else tuple(slots.values()),
        slots if keyword else {},
    )


def _parameter_names(model: nn.Module) -> list[str]:
    names = []
    if isinstance(model, torch.jit.ScriptModule):
        scripted: Any = model.forward
        return [argument.name for argument in scripted.schema.arguments[1:]]
    for name, parameter in inspect.signature(model.forward).parameters.items():
        if parameter.kind is parameter.VAR_POSITIONAL:
            names += [f"{name}_{number}" for number in range(16)]
        elif parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            names.append(name)
    return names


def _specs(
    names: Sequence[str], tensors: Sequence[Tensor], rows: int, dynamic: dict[Any, Any]
) -> tuple[InputSpec, ...]:
    if dynamic and all(isinstance(axis, int) for axis in dynamic):
        dynamic = {names[0]: dynamic}
    if unknown := sorted(set(dynamic) - set(names)):
        raise SettingError(f"dynamic names the input {unknown[0]!r}; the inputs are {', '.join(names)}.")
    specs = []
    for name, tensor in zip(names, tensors, strict=True):
        sizes: list[Any] = list(tensor.shape)
        if sizes and sizes[0] == rows:
            sizes[0] = "batch"
        for axis, text in dynamic.get(name, {}).items():
            if not 0 < axis < len(sizes):
                raise SettingError(
                    f"dynamic names axis {axis} of input {name!r}, which has the shape "
                    f"{tuple(tensor.shape)}; axis 0 is "
                    "the batch and always dynamic."
                )
            sizes[axis] = text
        dtype = str(tensor.dtype).removeprefix("torch.")
        specs.append(InputSpec.parse(f"{name}: {dtype}[{', '.join(map(str, sizes))}]"))
    return tuple(specs)


class Adapter(nn.Module):
    """Calls a network with tensors in order and returns the tensors that count, as a tuple.

    A network that computes in another `dtype` than its inputs have gets them rounded to it.
    """

    def __init__(
        self,
        network: nn.Module,
        example: Example,
        output: str | int | None,
        pair: bool,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.network = network
        self.positional, self.keyword, self.specs = example.positional, example.keyword, example.signature.inputs
        self.output, self.pair, self.dtype = output, pair, dtype

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return select(self._call(tensors), self.output, pair=self.pair)

    def everything(self, *tensors: Tensor) -> tuple[str, tuple[Tensor, ...], tuple[Tensor, ...]]:
        """The structure of all that the network returned, the tensors in it, and those that count."""
        result = self._call(tensors)
        leaves: list[Tensor] = []
        return _structure(result, leaves), tuple(leaves), select(result, self.output, pair=self.pair)

    def _call(self, tensors: Sequence[Tensor]) -> Any:
        self._check_sizes(tensors)
        tensors = [x.to(self.dtype) if x.is_floating_point() and x.dtype != self.dtype else x for x in tensors]

        def filled(value: Any) -> Any:
            return tensors[value.number] if isinstance(value, _Slot) else value

        return self.network(
            *map(filled, self.positional), **{name: filled(value) for name, value in self.keyword.items()}
        )

    def _check_sizes(self, tensors: Sequence[Tensor]) -> None:
        """Sizes of one name are equal. Callers have seen to it; a tracer learns it here."""
        sizes: dict[str, int] = {}
        for tensor, spec in zip(tensors, self.specs, strict=True):
            for name, size in zip(spec.shape, tensor.shape, strict=True):
                if isinstance(name, str) and size != sizes.setdefault(name, size):
                    raise InputError(f"input {spec.name!r} has {size} for {name!r}, another input {sizes[name]}.")


def _structure(result: Any, leaves: list[Tensor]) -> str:
    if isinstance(result, Tensor):
        leaves.append(result)
        return f"{result.dtype}{list(result.shape)}"
    named, ordered = _parts(result)
    if named:
        return "{" + ", ".join(f"{name}: {_structure(value, leaves)}" for name, value in named.items()) + "}"
    if ordered:
        return "(" + ", ".join(_structure(value, leaves) for value in ordered) + ")"
    return type(result).__name__


def select(result: Any, output: str | int | None, *, pair: bool) -> tuple[Tensor, ...]:
    """The tensors that count of what a network returned: the one named, the only one, `logits`, or the first.

    With `pair`, a tuple of two tensors counts whole (mean and log variance).
    """
    named, ordered = _parts(result)
    if output is not None:
        chosen = named.get(output) if isinstance(output, str) else dict(enumerate(ordered)).get(output)
        if chosen is None:
            have = ", ".join(named) or f"{len(ordered)} without names"
            raise SettingError(f"the network has no output {output!r}; its outputs are {have}.")
        result = chosen
        named, ordered = _parts(result)
    tensors = [value for value in ordered if isinstance(value, Tensor)]
    if pair and len(tensors) == 2 and len(ordered) == 2:
        return tensors[0], tensors[1]
    if isinstance(named.get("logits"), Tensor):
        return (named["logits"],)
    if not tensors:
        raise SettingError(
            f"the network returned {type(result).__name__} without a tensor in it; name the tensor that counts with "
            "output=."
        )
    return (tensors[0],)


def _parts(result: Any) -> tuple[dict[str, Any], list[Any]]:
    """What a network returned, by name and in order."""
    if isinstance(result, Tensor):
        return {}, [result]
    if isinstance(result, Mapping):
        return dict(result), list(result.values())
    if dataclasses.is_dataclass(result) and not isinstance(result, type):
        named = {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}
        return named, list(named.values())
    if isinstance(result, tuple) and hasattr(result, "_asdict"):
        return dict(result._asdict()), list(result)
    if isinstance(result, tuple | list):
        return {}, list(result)
    return {}, []
