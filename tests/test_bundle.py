"""A model on disk comes back bit for bit, or says what is wrong with it."""

import json
import math
import os
import warnings
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from mcdrop.disk import bundle
from mcdrop.disk.bundle import FILES, FORMAT, read_bundle, read_meta, write_bundle
from mcdrop.errors import BundleError
from mcdrop.graph import draws, sites
from mcdrop.graph.inputs import InputSpec
from mcdrop.graph.program import Program
from mcdrop.randomness.noise import NOISE_VERSION

aten = torch.ops.aten
META = {
    "name": "digits", "version": "1", "task": {"name": "classification", "class_axis": -1}, "num_samples": 64,
    "seed": 0, "masks": "shared", "class_names": ["a", "b"], "more": {"nested": [1, 2.5, None, "é"]},
}  # fmt: skip


def small_program() -> Program:
    """One linear layer, one dropout site, one weight used twice under two names, constants of every kind."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    weight = graph.create_node("get_attr", "fc.weight", name="fc_weight")
    tied = graph.create_node("get_attr", "tied.weight", name="tied_weight")
    rows = graph.call_function(aten.sym_size.int, (x, 0))
    y = graph.call_function(aten.linear.default, (x, weight))
    y = graph.call_function(draws.scale, (y, graph.call_function(draws.noise, (0, [rows, 3]))))
    y = graph.call_function(aten.clamp.default, (y, -math.inf, math.inf))
    y = graph.call_function(aten.matmul.default, (y, tied))
    zeros = graph.call_function(aten.full.default, ([3], 0.5), {"dtype": torch.float32, "device": torch.device("cpu")})
    y = graph.call_function(aten.add.Tensor, (y, graph.call_function(aten.sum.default, (zeros,))))
    y = graph.call_function(aten.clone.default, (y,), {"memory_format": torch.contiguous_format})
    graph.output((y, rows))
    shared = torch.arange(9.0).reshape(3, 3)
    table = (
        sites.Site(
            index=0, path="drop", kind="dropout", p=0.5, law="bernoulli", scale=2.0, shape=("batch", 3), row_axis=0,
            row_major=True, active=True, reason=None, source="model.py:3",
        ),
        sites.Site(
            index=-1, path="rest", kind="dropout", p=None, law="normal", scale=1.0, shape=(3,), row_axis=None,
            row_major=True, active=False, reason="p = 0", source=None,
        ),
    )  # fmt: skip
    return Program(
        graph=graph,
        weights={"fc.weight": shared, "tied.weight": shared, "unused": torch.ones(1000)},
        inputs=(InputSpec.parse("x: float32[batch, length=2..9, 3]"),),
        sites=table,
        dims={"length": (2, 9)},
    )


def run(program: Program, *inputs: Tensor) -> tuple[Any, ...]:
    """The plain meaning of a program, all units kept: one call after the other."""
    values: dict[fx.Node, Any] = {}
    given = iter(inputs)
    plain: dict[object, Callable[..., Any]] = {
        draws.noise: lambda index, sizes: torch.ones(sizes),
        draws.scale: torch.mul,
    }
    for node in program.graph.nodes:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
        if node.op == "placeholder":
            values[node] = next(given)
        elif node.op == "get_attr":
            values[node] = program.weights[node.target]
        elif node.op == "call_function":
            values[node] = plain.get(node.target, node.target)(*args, **kwargs)
        else:
            return tuple(args[0])
    raise AssertionError("no output")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_bundle(tmp_path / "model", small_program(), META)
    return tmp_path / "model"


def edit(folder: Path, name: str, change: Callable[[Any], Any]) -> None:
    """Change a JSON file and put its checksum right: a crafted folder, not a damaged one."""
    path = folder / name
    document = json.loads(path.read_text())
    document = change(document) or document
    path.write_text(json.dumps(document))
    if name != "model.json":
        edit_sums(folder, name)


def edit_sums(folder: Path, name: str) -> None:
    data = (folder / name).read_bytes()
    sums = {"bytes": len(data), "sha256": sha256(data).hexdigest()}
    edit(folder, "model.json", lambda model: model["files"].update({name: sums}))


# ---- round trips


def test_a_program_comes_back(folder: Path) -> None:
    before = small_program()
    after, meta = read_bundle(folder)
    assert meta == META == read_meta(folder)
    assert (after.inputs, after.sites, after.dims) == (before.inputs, before.sites, before.dims)
    assert set(after.weights) == {"fc.weight", "tied.weight"}
    assert after.weights["fc.weight"].data_ptr() == after.weights["tied.weight"].data_ptr()
    assert [(node.op, node.name) for node in after.graph.nodes] == [(node.op, node.name) for node in before.graph.nodes]
    x = torch.randn(2, 3)
    assert all(
        torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(run(before, x), run(after, x), strict=True)
    )


def test_no_device_and_no_path_is_stored(folder: Path) -> None:
    text = (folder / "program.json").read_text() + (folder / "model.json").read_text()
    assert "cpu" not in text.replace("+cpu", "")
    assert str(folder.parent) not in text


def test_constants_follow_the_device(folder: Path) -> None:
    program, _ = read_bundle(folder, device="meta")
    devices = [node.kwargs["device"] for node in program.graph.nodes if "device" in node.kwargs]
    assert devices == [torch.device("meta")]
    assert all(weight.is_meta for weight in program.weights.values())


def test_memory_that_a_network_leaves_unset_is_zero(tmp_path: Path) -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    unset = graph.call_function(aten.empty.memory_format, ([4],), {"memory_format": torch.contiguous_format})
    like = graph.call_function(aten.empty_like.default, (x,), {"memory_format": torch.preserve_format})
    graph.output((unset, like, graph.call_function(aten.new_empty.default, (x, [5]))))
    write_bundle(tmp_path / "m", Program(graph, {}, (InputSpec.parse("x: float32[batch]"),), ()), {})
    program, _ = read_bundle(tmp_path / "m")
    assert [value.tolist() for value in run(program, torch.ones(3))] == [[0] * 4, [0] * 3, [0] * 5]


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 5, 2, bidirectional=True, batch_first=True)
        self.gru = nn.GRU(10, 3, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.gru(self.lstm(x)[0])[0]
        return output[:, -1]


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="gelu")
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, ids: Tensor) -> Tensor:
        hidden: Tensor = self.encoder(self.embedding(ids), src_key_padding_mask=ids == 0)
        return hidden.mean(dim=1)


def convolutional() -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding="same"), nn.BatchNorm2d(4), nn.RReLU(), nn.MaxPool2d(2), nn.Dropout2d(),
        nn.ConvTranspose2d(4, 4, 2, stride=2), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4), nn.Upsample(scale_factor=2),
        nn.ReflectionPad2d(1), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3), nn.AlphaDropout(),
        nn.Softmax(-1),
    )  # fmt: skip
    for weight in model.parameters():
        if weight.ndim == 4:
            weight.data = weight.data.to(memory_format=torch.channels_last)
    return model


def exported(model: nn.Module, example: Tensor) -> Program:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.export warns about torch's own modules
        found = torch.export.export(model.eval(), (example,), strict=False).run_decompositions({})
    signature = found.graph_signature
    stored = {**found.state_dict, **found.constants}
    lifted = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    lifted |= signature.inputs_to_lifted_tensor_constants
    graph, nodes, weights = fx.Graph(), {}, {}
    for node in found.graph.nodes:
        if node.name in signature.user_inputs:
            nodes[node] = graph.placeholder(node.name)
    for node in found.graph.nodes:
        if node.op == "placeholder" and node not in nodes:
            nodes[node] = graph.create_node("get_attr", lifted[node.name], name=node.name)
            weights[lifted[node.name]] = stored[lifted[node.name]].detach()
        elif node.op == "call_function" and "assert" not in str(node.target):
            nodes[node] = graph.node_copy(node, nodes.__getitem__)
        elif node.op == "output":
            graph.output(tuple(nodes[result] for result in node.args[0]))
    spec = InputSpec("x", example.dtype, ("batch", *example.shape[1:]))
    return Program(graph=graph, weights=weights, inputs=(spec,), sites=())


@pytest.mark.parametrize(
    ("build", "example"),
    [
        (convolutional, torch.rand(2, 1, 8, 8)),
        (Recurrent, torch.rand(2, 6, 4)),
        (Attention, torch.tensor([[1, 2, 3, 0], [4, 5, 0, 0]])),
    ],
)
def test_exported_networks_come_back_bit_for_bit(
    build: Callable[[], nn.Module], example: Tensor, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = build()
    before = exported(model, example)
    write_bundle(tmp_path / "m", before, {})
    after, _ = read_bundle(tmp_path / "m")
    with torch.no_grad():
        torch.testing.assert_close(run(after, example)[0], model(example))
    assert torch.equal(run(after, example)[0], run(before, example)[0])


# ---- writing


def test_a_model_is_replaced_and_nothing_else(folder: Path) -> None:
    write_bundle(folder, small_program(), {**META, "version": "2"})
    assert read_meta(folder)["version"] == "2"
    assert sorted(os.listdir(folder.parent)) == ["model"]
    assert sorted(os.listdir(folder)) == sorted(FILES)
    (folder / "notes.md").write_text("mine")
    with pytest.raises(BundleError, match=r"holds 'notes.md', which is no part of a model"):
        write_bundle(folder, small_program(), META)
    (folder / "notes.md").unlink()
    (folder / "model.json").write_text('{"modelTopology": {}}')
    with pytest.raises(BundleError, match="holds no model of mcdrop"):
        write_bundle(folder, small_program(), META)


def test_a_link_to_a_folder_keeps_being_one(folder: Path) -> None:
    link = folder.parent / "current"
    link.symlink_to(folder)
    write_bundle(link, small_program(), {**META, "version": "2"})
    assert link.is_symlink()
    assert read_meta(folder)["version"] == read_meta(link)["version"] == "2"


def test_all_files_can_be_read_by_whom_the_process_lets(folder: Path) -> None:
    assert len({(folder / name).stat().st_mode for name in FILES}) == 1


def test_a_failed_save_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bundle, "write_bytes", full)
    with pytest.raises(BundleError, match="No space left on device"):
        write_bundle(tmp_path / "model", small_program(), META)
    assert os.listdir(tmp_path) == []


def test_an_operation_of_a_user_is_named(tmp_path: Path) -> None:
    with torch.library._scoped_library("mcdrop_tests", "DEF") as library:
        library.define("twice(Tensor x) -> Tensor")
        graph = fx.Graph()
        graph.output((graph.call_function(torch.ops.mcdrop_tests.twice.default, (graph.placeholder("x"),)),))
        program = Program(graph, {}, (InputSpec.parse("x: float32[batch]"),), ())
        with pytest.raises(
            BundleError, match=r"mcdrop_tests.twice.default, which a stored program may not.*PyTorch's own"
        ):
            write_bundle(tmp_path / "m", program, {})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({"format": 3}, "'format', a name that the format uses itself"),
        ({"name": 3}, "'name' should be a text"),
        ({"num_samples": 0}, "'num_samples' should be a whole number of at least 1"),
        ({"masks": "none"}, "'masks' should be 'shared', 'independent' or 'balanced'"),
        ({"class_names": "ab"}, "'class_names' should be a list of texts"),
        ({"more": math.nan}, "no plain JSON"),
        ({"more": torch.ones(1)}, "no plain JSON"),
        ({"more": 2**70}, "64 bits"),
    ],
)
def test_a_description_is_plain_and_checked(meta: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=message):
        write_bundle(tmp_path / "m", small_program(), meta)
    assert os.listdir(tmp_path) == []


def test_an_argument_that_has_no_form_is_named(tmp_path: Path) -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    node = graph.call_function(aten.relu.default, (x,))
    node.args = (object(),)  # type: ignore[assignment]  # what no graph of a network should hold
    graph.output((node,))
    with pytest.raises(BundleError, match=r"object.* cannot be an argument of a stored call"):
        write_bundle(tmp_path / "m", Program(graph, {}, (InputSpec.parse("x: float32[batch]"),), ()), {})


# ---- wrong, damaged and mixed-up folders


def test_a_wrong_folder_says_what_to_give(folder: Path) -> None:
    with pytest.raises(BundleError, match=r"nowhere is no folder. Give the folder that `mcdrop export`"):
        read_bundle(folder.parent / "nowhere")
    with pytest.raises(BundleError, match=r"holds no model.json, so it is no model. Did you mean .*model\?"):
        read_bundle(folder.parent)
    with pytest.raises(BundleError, match="is no folder"):
        read_bundle(folder / "model.json")


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(name: str, folder: Path) -> None:
    (folder / name).unlink()
    with pytest.raises(BundleError, match=name):
        read_bundle(folder)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("keep", [0, 1, 0.5, -1])
def test_a_truncated_file_is_found(name: str, keep: float, folder: Path) -> None:
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: int(keep * len(data)) if 0 < keep < 1 else int(keep)])
    with pytest.raises(BundleError, match=f"{name} cannot be used: .*(Copy the whole folder again)"):
        read_bundle(folder)


@pytest.mark.parametrize("name", FILES[1:])
def test_a_changed_byte_is_found(name: str, folder: Path) -> None:
    data = bytearray((folder / name).read_bytes())
    data[-5] ^= 1
    (folder / name).write_bytes(bytes(data))
    with pytest.raises(BundleError, match=f"{name} cannot be used: its sha256 is not the one in model.json"):
        read_bundle(folder)


@pytest.mark.parametrize("name", FILES[1:])
def test_files_of_two_models_are_told_apart(name: str, folder: Path) -> None:
    other = small_program()
    shared = other.weights["fc.weight"] + 1
    other = Program(other.graph, {"fc.weight": shared, "tied.weight": shared}, other.inputs, other.sites, other.dims)
    for node in other.graph.nodes:
        if node.target is aten.full.default:
            node.args = ([3], 0.25)
    write_bundle(folder.parent / "other", other, META)
    (folder / name).write_bytes((folder.parent / "other" / name).read_bytes())
    with pytest.raises(BundleError, match=f"{name} cannot be used: .*of another model"):
        read_bundle(folder)


@pytest.mark.parametrize(("what", "known"), [("format", FORMAT), ("noise_version", NOISE_VERSION)])
def test_a_newer_model_asks_for_an_upgrade(what: str, known: int, folder: Path) -> None:
    edit(folder, "model.json", lambda model: model.update({what: known + 1}))
    with pytest.raises(
        BundleError, match=f"has {what} {known + 1} and was made by a newer mcdrop; .*Upgrade: pip install"
    ):
        read_bundle(folder)


def test_files_beyond_any_use_are_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "MAX_JSON_BYTES", 100)
    with pytest.raises(BundleError, match="bytes, more than the 100"):
        read_bundle(folder)
    with pytest.raises(BundleError, match=r"its program.json would have"):
        write_bundle(folder.parent / "new", small_program(), META)


# ---- crafted folders


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: [m], "names no format"),
        (lambda m: m.update(format="1"), "names no format"),
        (lambda m: m.update(format=0), "names no format"),
        (lambda m: m.update(noise_version=None), "noise version None is unknown"),
        (lambda m: m.update(num_samples=-1), "'num_samples' should be"),
        (lambda m: m.update(class_names=[1]), "'class_names' should be"),
        (lambda m: m.update(inputs="x"), "inputs should be a list"),
        (lambda m: m.update(inputs=[]), "at least one tensor input"),
        (lambda m: m.update(inputs=["x: float32[batch]", "y: float32[batch]"]), "has 1 inputs, its description 2"),
        (lambda m: m.update(inputs=["../x: float32[batch]"]), "cannot name an input"),
        (lambda m: m.update(inputs=["x: object[batch]"]), "names dtype 'object'"),
        (lambda m: m.update(dims=[]), "'dims' should be an object"),
        (lambda m: m.update(dims={"length": "2"}), "least and a greatest"),
        (lambda m: m.pop("sites"), "sites should be a list"),
        (lambda m: m["sites"][0].pop("p"), "a Site should have the fields"),
        (lambda m: m["sites"][0].update(p="0.5"), "Site.p cannot be '0.5'"),
        (lambda m: m["sites"][0].update(p=1.5), "has p = 1.5"),
        (lambda m: m["sites"][0].update(scale={"float": "inf"}), "scale inf"),
        (lambda m: m["sites"][0].update(law="__import__('os')"), "Site.law cannot be"),
        (lambda m: m["sites"][0].update(index=1), "site 0 is drawn 1 times"),
        (lambda m: m["sites"].pop(0), "site 0 is drawn 1 times"),
        (lambda m: m.pop("files"), "'files' should give"),
        (lambda m: m["files"].update({"program.json": {"bytes": "9", "sha256": ""}}), "'files' should give"),
        (lambda m: m.update(files={"../../etc/passwd": {"bytes": 1, "sha256": ""}}), "'files' should give"),
    ],
)
def test_a_crafted_description_is_refused(change: Callable[[Any], Any], message: str, folder: Path) -> None:
    def discard(model: Any) -> Any:
        result = change(model)
        return result if isinstance(result, list) and result and result[0] is model else None

    edit(folder, "model.json", discard)
    with pytest.raises(BundleError, match=message):
        read_bundle(folder)


def call(target: str, *args: Any, **kwargs: Any) -> Callable[[Any], None]:
    """Put one more call before the end, and make it the output."""

    def change(program: Any) -> None:
        program["nodes"].append({"name": "last", "call": target, "args": list(args), "kwargs": kwargs})
        program["outputs"] = ["last"]

    return change


X = {"node": "x"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (call("aten.relu_.default", X), "is not on the list of operations"),
        (call("aten.from_file.default", "/etc/passwd"), "is not on the list of operations"),
        (call("os.system", "true"), "is not on the list of operations"),
        (call("builtins.eval", "1"), "is not on the list of operations"),
        (call("aten.rand.default", [3]), "is not on the list of operations"),
        (call("mcdrop.noise", 0, [1]), "site 0 is drawn 2 times"),
        (call("mcdrop.noise", 7, [1]), "site 7 is drawn 1 times"),
        (call("aten.dropout.default", X, 0.5, True), "only with train=False"),
        (call("aten.relu.default", {"node": "last"}), "'last' is no earlier node"),
        (call("aten.relu.default", {"node": "nothing"}), "'nothing' is no earlier node"),
        (call("aten.relu.default", {"node": ["x"]}), "is no earlier node"),
        (call("aten.relu.default", X, X), "takes 1 positional arguments, not 2"),
        (call("aten.relu.default", X, inplace=True), "has no argument 'inplace'"),
        (call("aten.relu.default", "x"), "takes Tensor as 'self'"),
        (call("aten.relu.default", {"node": "x", "more": 1}), "more or less than one key"),
        (call("aten.relu.default", {"pickle": "x"}), "an argument of kind 'pickle'"),
        (call("aten.to.dtype", X, {"dtype": "__class__"}), "an argument of kind 'dtype' cannot be '__class__'"),
        (call("aten.to.device", X, {"device": "cuda:0"}, {"dtype": "float32"}), "an argument of kind 'device'"),
        (call("aten.add.Tensor", X, {"float": "1e9"}), "an argument of kind 'float'"),
        (call("aten.add.Tensor", X, {"complex": ["a", 1.0]}), "an argument of kind 'complex'"),
        (call("aten.zeros.default", [2**62]), "size beyond"),
        (call("aten.zeros.default", [2**16, 2**16]), "more than 1073741824 elements"),
        (call("aten.cat.default", [[[[[[[[[[X]]]]]]]]]]), "nested deeper than 8"),
        (call("aten.einsum.default", "a" * 5000, [X]), "text of at most 4096"),
        (lambda p: p["nodes"].append({**p["nodes"][0]}), "two nodes are named 'x'"),
        (lambda p: p["nodes"].append({"name": "a.b", "weight": "fc.weight"}), "cannot name a node"),
        (lambda p: p["nodes"].append({"name": "y", "input": 1}), "says 1"),
        (lambda p: p["nodes"].append({"name": "y", "method": "relu"}), "is no input, weight or call"),
        (lambda p: p["nodes"].append({"name": "y", "weight": "fc.weight", "call": "x"}), "is no input, weight or call"),
        (lambda p: p["nodes"].append("x"), "a node is not an object"),
        (lambda p: p["nodes"].append({"name": "y", "weight": "../fc"}), "reads the weight '../fc', which is not there"),
        (lambda p: p.update(nodes={}), "nodes should be a list"),
        (lambda p: p.update(outputs=[]), "not a tuple of nodes"),
        (lambda p: p.update(outputs=["nothing"]), "'nothing' is no earlier node"),
        (lambda p: p.update(guards_code="True"), "should have nodes, outputs and weights"),
        (lambda p: p.update(weights=[]), "is not there"),
        (lambda p: p["weights"].pop("tied.weight"), "which is not there"),
        (lambda p: p["weights"].update(more=p["weights"]["fc.weight"]), "the weight 'more' is not used"),
        (lambda p: p["weights"]["fc.weight"].update(shape=[9, 1]), "not torch.float32 \\[9, 1\\]"),
        (lambda p: p["weights"]["fc.weight"].update(tensor="../x"), "which the file does not have"),
    ],
)
def test_a_crafted_program_is_refused(change: Callable[[Any], Any], message: str, folder: Path) -> None:
    def discard(program: Any) -> None:
        change(program)

    edit(folder, "program.json", discard)
    with pytest.raises(BundleError, match=message):
        read_bundle(folder)


@pytest.mark.parametrize("depth", [50, 900, 5000])
def test_nesting_without_end_is_refused(depth: int, folder: Path) -> None:
    path = folder / "program.json"
    text = path.read_text().replace('"args": [', '"args": [{"pickle": ' + "[" * depth + "]" * depth + "}, ", 1)
    path.write_text(text)
    edit_sums(folder, "program.json")
    with pytest.raises(BundleError, match=r"program\.json cannot be used"):
        read_bundle(folder)


def test_keys_given_twice_are_refused(folder: Path) -> None:
    text = (folder / "model.json").read_text()
    (folder / "model.json").write_text(text.replace('"format": 1', '"format": 1, "format": 1', 1))
    with pytest.raises(BundleError, match="the key 'format' is given twice"):
        read_bundle(folder)
