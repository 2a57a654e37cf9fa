"""Networks given by words: factories, weight files, example inputs."""

import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mcdrop.command_line.exporting import build_network, call_of, load_checkpoint, read_checkpoint
from mcdrop.errors import InputError, SettingError
from mcdrop.graph.examples import example_inputs
from mcdrop.graph.inputs import InputSpec

FACTORIES = """
from torch import nn

network = nn.Linear(2, 3)
text = "no network"

class Shelf:
    @staticmethod
    def build():
        return nn.Linear(2, 3)

def returns_text():
    return "text"

def wants_more(size):
    return nn.Linear(size, size)
"""


@pytest.fixture
def factories(tmp_path, monkeypatch):
    """A module of factories in the current directory; yields its name."""
    name = f"factories_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(FACTORIES)
    (tmp_path / f"{name}_broken.py").write_text("1 / 0")
    (tmp_path / f"{name}_needs.py").write_text("import surely_not_installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


@pytest.mark.parametrize("path", ["Shelf.build", "network"])
def test_a_network_is_found_from_here(factories, path):
    assert isinstance(build_network(f"{factories}:{path}"), nn.Linear)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("{}", "names no network. Write it as pkg.module:factory"),
        ("{}:", "names no network"),
        ("surely_missing:build", "no module 'surely_missing'. Run the command in the folder that contains"),
        ("{}_needs:build", "no module 'surely_not_installed'"),
        ("{}_broken:build", "importing it failed with ZeroDivisionError"),
        ("{}:missing", "has no attribute 'missing'"),
        ("{}:text", "is a str; name a function that returns an nn.Module"),
        ("{}:returns_text", "returned a str; it has to return an nn.Module"),
        ("{}:wants_more", "TypeError.*called without arguments"),
    ],
)
def test_a_wrong_reference_says_what_to_do(factories, reference, message):
    with pytest.raises(SettingError, match=message):
        build_network(reference.format(factories))


class Tied(nn.Module):
    """Two names for one weight, as in language models."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.second = nn.Linear(2, 2, bias=False)
        self.second.weight = self.first.weight


def _save(path, weights):
    save_file(weights, path) if path.suffix == ".safetensors" else torch.save(weights, path)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "w.ckpt"])
def test_weights_are_loaded(tmp_path, name):
    trained, network = nn.Linear(2, 3), nn.Linear(2, 3)
    _save(tmp_path / name, trained.state_dict())
    load_checkpoint(network, tmp_path / name)
    assert torch.equal(network.weight, trained.weight)
    assert torch.equal(network.bias, trained.bias)


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_checkpoints_of_training_scripts(tmp_path, key, prefix):
    trained, network = nn.Linear(2, 3), nn.Linear(2, 3)
    weights = {prefix + name: value for name, value in trained.state_dict().items()}
    torch.save({key: weights, "epoch": 3, "loss": 0.1}, tmp_path / "w.pt")
    load_checkpoint(network, tmp_path / "w.pt")
    assert torch.equal(network.weight, trained.weight)


def test_tied_weights_may_come_once(tmp_path):
    trained, network = Tied(), Tied()
    weights = trained.state_dict()
    del weights["second.weight"]
    save_file(weights, tmp_path / "w.safetensors")
    load_checkpoint(network, tmp_path / "w.safetensors")
    assert torch.equal(network.second.weight, trained.first.weight)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("bias"), "1 missing in the file: bias"),
        (lambda w: w.update(extra=torch.zeros(1)), "1 unknown to the network: extra"),
        (lambda w: w.update(bias=torch.zeros(4)), r"1 of another shape: bias \(file \[4\], network \[3\]\)"),
        (lambda w: (w.clear(), w.update(a=torch.zeros(1))), "2 missing in the file: weight, bias; 1 unknown.*: a"),
    ],
)
def test_weights_have_to_fit_exactly(tmp_path, change, message):
    network = nn.Linear(2, 3)
    before = network.bias.detach().clone()
    weights = nn.Linear(2, 3).state_dict()
    change(weights)
    torch.save(dict(weights), tmp_path / "w.pt")
    with pytest.raises(SettingError, match=message):
        load_checkpoint(network, tmp_path / "w.pt")
    assert torch.equal(network.bias, before)


class Trap:
    def __reduce__(self):
        return (exec, ("raise SystemExit('ran')",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda path: torch.save(Trap(), path), "never allowed"),
        (lambda path: path.write_bytes(pickle.dumps(Trap())), "never allowed|cannot be read"),
        (lambda path: torch.save(nn.Linear(2, 3), path), "never allowed"),
        (lambda path: torch.save({"epoch": 3, "loss": 0.5}, path), "a mapping with epoch, loss; expected the tensors"),
        (lambda path: torch.save([torch.zeros(1)], path), "holds a list; expected"),
        (lambda path: path.write_bytes(b""), "cannot be read as weights"),
        (lambda path: path.write_bytes(b"PK\x03\x04" + b"\0" * 100), "cannot be read as weights"),
        (lambda path: None, "there is no weights file"),
    ],
)
def test_files_that_are_no_weights(tmp_path, content, message):
    content(tmp_path / "w.pt")
    with pytest.raises(SettingError, match=message):
        read_checkpoint(tmp_path / "w.pt")


def test_a_file_that_is_no_safetensors(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(SettingError, match="cannot be read as weights"):
        read_checkpoint(tmp_path / "w.safetensors")


def test_examples_fit_their_specifications():
    specs = [
        InputSpec.parse(text)
        for text in (
            "image: float32[batch, 1, 4]",
            "half: bfloat16[batch, 3]",
            "ids: int64[batch, length<=6]",
            "mask: bool[batch, length<=6]",
            "pixels: uint8[batch, 500]",
            "long: float32[batch, frames>=20]",
        )
    ]
    state = torch.get_rng_state()
    inputs = example_inputs(specs)
    assert torch.equal(torch.get_rng_state(), state)
    assert [tuple(value.shape) for value in inputs.values()] == [(2, 1, 4), (2, 3), (2, 6), (2, 6), (2, 500), (2, 20)]
    assert [value.dtype for value in inputs.values()] == [spec.dtype for spec in specs]
    assert bool(inputs["mask"].all())
    assert set(inputs["ids"].unique().tolist()) <= {0, 1}
    assert bool((inputs["ids"][:, 0] == 1).all())
    assert int(inputs["pixels"].max()) > 200
    assert float(inputs["image"].min()) >= 0
    assert float(inputs["image"].max()) < 1
    again = example_inputs(specs)
    assert all(torch.equal(inputs[name], again[name]) for name in inputs)


class Pair(nn.Module):
    def forward(self, ids, mask):
        return ids * mask


def test_inputs_go_by_name_where_forward_knows_them():
    specs = [InputSpec.parse(text) for text in ("mask: bool[batch, length<=6]", "ids: int64[batch, length<=6]")]
    example, dynamic = call_of(Pair(), specs, None)
    assert list(example) == ["mask", "ids"]
    assert example["mask"].dtype == torch.bool
    assert dynamic == {"mask": {1: "length<=6"}, "ids": {1: "length<=6"}}
    with pytest.raises(SettingError, match=r"forward\(\) of Pair takes no 'words'; it takes ids, mask"):
        call_of(Pair(), [InputSpec.parse("words: int64[batch, 3]"), specs[0]], None)


def test_a_single_input_may_have_any_name():
    example, dynamic = call_of(nn.Linear(3, 2), [InputSpec.parse("image: float32[batch, frames>=2, 3]")], None)
    assert isinstance(example, torch.Tensor)
    assert example.shape == (2, 8, 3)
    assert dynamic == {1: "frames>=2"}


def test_examples_from_a_file_are_checked_against_the_specifications():
    spec = InputSpec.parse("features: float32[batch, 3]")
    rows = np.random.default_rng(0).random((4, 3))
    for given in (rows, {"anything": rows}):
        example, _ = call_of(nn.Linear(3, 2), [spec], given)
        assert isinstance(example, torch.Tensor)
        assert example.dtype == torch.float32
        assert np.allclose(example.numpy(), rows)
    with pytest.raises(InputError, match="features"):
        call_of(nn.Linear(3, 2), [spec], rows[:, :2])
    example, dynamic = call_of(Pair(), [], {"ids": rows, "mask": rows})
    assert isinstance(example, dict)
    assert (list(example), dynamic) == (["ids", "mask"], {})
