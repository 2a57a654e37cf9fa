"""The private copy, the example taken apart, and the output that counts."""

import collections
import dataclasses
import threading
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mcdrop import MCDropout
from mcdrop.capturing.snapshot import private_copy, read_example, select
from mcdrop.errors import InputError, SettingError


class Awkward(nn.Module):
    """`copy.deepcopy` fails on it: a lock, and a tensor that hangs in a graph of gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.dropout = nn.Linear(4, 3), nn.Dropout(0.5)
        self.tied = self.layer
        self.lock, self.hanging = threading.Lock(), self.layer.weight * 2
        self.listed = [self.layer.weight * 3]

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.layer(x)) + (x @ self.hanging.T) + (x @ self.listed[0].T)


def test_copies_what_deepcopy_cannot() -> None:
    model = Awkward()
    twin: Any = private_copy(model)
    assert twin.layer is not model.layer
    assert twin.tied is twin.layer
    assert twin.lock is model.lock
    assert not twin.hanging.requires_grad
    assert twin.layer.weight.data_ptr() != model.layer.weight.data_ptr()
    assert list(twin.state_dict()) == list(model.state_dict())
    x = torch.randn(2, 4)
    mc = MCDropout(model, x, task="raw")
    before = mc.sample(x)
    with torch.no_grad():
        model.layer.weight.zero_()
        model.listed[0].zero_()
    assert torch.equal(before, mc.sample(x))


def test_tied_weights_stay_tied() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.dropout, self.head = nn.Embedding(9, 4), nn.Dropout(0.5), nn.Linear(4, 9, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.dropout(self.embedding(ids)))

    mc = MCDropout(Tied(), torch.randint(0, 9, (2, 5)), task="raw")
    assert mc._captured.program is not None
    storages = {tensor.data_ptr() for tensor in mc._captured.program.weights.values()}
    assert len(storages) == 1


@pytest.fixture
def model() -> nn.Module:
    class Two(nn.Module):
        def forward(self, image: Tensor, mask: Tensor | None = None, scale: float = 1.0) -> Tensor:
            return image

    return Two()


def read(model: nn.Module, example: Any, dynamic: Any = None) -> Any:
    return read_example(model, example, dynamic, torch.float32, torch.device("cpu"))


def test_forms_of_an_example(model: nn.Module) -> None:
    image, mask = torch.randn(3, 4, dtype=torch.float64), torch.ones(3, 4, dtype=torch.bool)
    assert str(read(model, image).signature) == "image: float32[batch, 4]"
    assert str(read(model, (image, mask)).signature) == "image: float32[batch, 4]; mask: bool[batch, 4]"
    by_name = read(model, {"mask": mask, "image": image.numpy(), "scale": 2.0})
    assert by_name.signature.names == ("mask", "image")
    assert by_name.signature.keyword
    assert by_name.keyword["scale"] == 2.0
    assert read(model, (image, torch.ones(7))).signature.inputs[1].batched is False
    lengths = read(model, (image, mask), {"image": {1: "length<=9"}, "mask": {1: "length<=9"}})
    assert lengths.signature.dims == {"length": (1, 9)}
    assert read(model, image, {1: "length"}).signature.inputs[0].shape == ("batch", "length")


@pytest.mark.parametrize(
    ("example", "dynamic", "error", "message"),
    [
        ((torch.ones(2),) * 4, None, InputError, "takes 3 inputs; the example has 4"),
        ((1.0,), None, InputError, "no tensor with a batch axis"),
        (torch.ones(0, 3), None, InputError, "at least one row"),
        (torch.ones(2, 3), {"picture": {1: "n"}}, SettingError, "names the input 'picture'"),
        (torch.ones(2, 3), {0: "n"}, SettingError, "axis 0 is the batch"),
        (torch.ones(2, 3), {2: "n"}, SettingError, "axis 2 of input 'image'"),
        (torch.ones(2, 3), {1: "n<"}, SettingError, "cannot be read"),
    ],
)
def test_examples_that_make_no_sense(
    model: nn.Module, example: Any, dynamic: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        read(model, example, dynamic)


def test_sizes_of_one_name_that_differ() -> None:
    class Sums(nn.Module):
        def forward(self, one: Tensor, two: Tensor) -> Tensor:
            return nn.functional.dropout(one.sum(1) + two.sum(1), 0.5, self.training)

    example = (torch.ones(3, 5, 4), torch.ones(3, 6, 4))
    with pytest.raises(InputError, match="input 'two' has 6 for 'time', another input 5"):
        MCDropout(Sums(), example, task="raw", dynamic={"one": {1: "time"}, "two": {1: "time"}})


@dataclasses.dataclass
class Output:
    loss: Tensor | None
    logits: Tensor
    other: Tensor


ONE, TWO = torch.ones(2, 3), torch.zeros(2, 4)
Named = collections.namedtuple("Named", ["other", "logits"])


@pytest.mark.parametrize(
    ("result", "output", "wanted"),
    [
        (ONE, None, ONE),
        ((ONE, TWO), None, ONE),
        ([None, TWO], None, TWO),
        ((ONE, TWO), 1, TWO),
        ({"other": ONE, "logits": TWO}, None, TWO),
        ({"other": ONE, "logits": TWO}, "other", ONE),
        ({"other": ONE, "more": TWO}, None, ONE),
        (Named(ONE, TWO), None, TWO),
        (Named(ONE, TWO), "other", ONE),
        (Output(None, TWO, ONE), None, TWO),
        (Output(None, TWO, ONE), "other", ONE),
        ({"inner": (TWO, ONE)}, "inner", TWO),
    ],
)
def test_the_output_that_counts(result: Any, output: Any, wanted: Tensor) -> None:
    assert select(result, output, pair=False)[0] is wanted


@pytest.mark.parametrize(
    ("result", "output", "message"),
    [
        ({"logits": ONE}, "scores", "no output 'scores'; its outputs are logits"),
        ((ONE, TWO), 2, "no output 2; its outputs are 2 without names"),
        (None, None, "NoneType without a tensor"),
        ({"loss": None}, "loss", "no output 'loss'"),
    ],
)
def test_outputs_that_are_not_there(result: Any, output: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        select(result, output, pair=False)


def test_a_pair_counts_whole() -> None:
    assert select((ONE, ONE), None, pair=True) == (ONE, ONE)
    assert select(ONE, None, pair=True) == (ONE,)


def test_any_number_of_inputs() -> None:
    class Sum(nn.Module):
        def forward(self, *tensors: Tensor, **more: Tensor) -> Tensor:
            return nn.functional.dropout(sum(tensors) + sum(more.values()), 0.5, self.training)

    x = torch.ones(2, 3)
    mc = MCDropout(Sum(), (x, x), task="raw")
    assert mc.signature.names == ("tensors_0", "tensors_1")
    assert set(mc.sample((x, x)).unique().tolist()) == {0, 4}
    by_name = MCDropout(Sum(), {"a": x, "b": x}, task="raw")
    assert np.array_equal(by_name.sample({"b": x.numpy(), "a": x.numpy()}), mc.sample((x, x)).numpy())


def test_complex_weights_stay_complex() -> None:
    class Fourier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 4, dtype=torch.complex64))

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.dropout(torch.fft.irfft(torch.fft.rfft(x) @ self.weight), 0.5, self.training)

    assert MCDropout(Fourier(), torch.randn(2, 4), task="raw")(torch.randn(2, 4)).mean.shape == (2, 6)


def test_tensors_in_containers_are_refused() -> None:
    class Nested(nn.Module):
        def forward(self, x: Tensor, more: dict[str, Tensor]) -> Tensor:
            return nn.functional.dropout(x, 0.5, self.training) * more["factor"]

    with pytest.raises(InputError, match="more"):
        MCDropout(Nested(), (torch.ones(1, 3), {"factor": torch.ones(1, 1)}), task="raw")


class Closing(nn.Module):
    """A function that closes over the network, as configuration code likes to make them."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop, self.linear = nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2)
        self.run = lambda x: self.linear(self.drop(self.norm(x)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.run(x)


def test_a_closure_over_the_network_closes_over_the_copy() -> None:
    model = Closing().train()
    mc = MCDropout(model, torch.randn(3, 4), task="raw")
    assert [site.kind for site in mc.sites if site.active] == ["dropout"]
    assert int(model.norm.num_batches_tracked) == 0
