"""The README and docs/operations.md are true: blocks run and print what they say, tables have a line for everything."""

import ast
import importlib
import json
import math
import re
import shlex
import socket
import subprocess
import sys
import tomllib
import urllib.parse
import warnings
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import mcdrop
import model_networks
from mcdrop import errors, layers, prediction
from mcdrop.capturing import exposing
from mcdrop.cli import main
from mcdrop.client import Client
from mcdrop.command_line.parser import make_parser
from mcdrop.errors import McdropError
from mcdrop.outputs import fields
from mcdrop.predictor import MCDropout
from mcdrop.reporting import findings
from mcdrop.wire import api_errors
from mcdrop.wire.api import show_model
from metering import described
from service.app import create_app
from service.errors import HTTP_CODES, TABLE
from service.server import listen, serving
from service.settings import Settings, load_settings
from serving import live, model, models_folder

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
OPERATIONS = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
TEXT = README + OPERATIONS
NEAR = 0.03  # the example trains its network on this machine, and trained weights differ by machine in the last digits


# ---- reading the README


@dataclass(frozen=True)
class Block:
    language: str
    text: str


BLOCKS = [Block(*found) for found in re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, flags=re.MULTILINE | re.DOTALL)]


def section(title: str) -> str:
    """The text below a heading, up to the next heading of the same level or above."""
    start = re.search(rf"^(#+) {re.escape(title)}$", TEXT, flags=re.MULTILINE)
    assert start is not None, f"no page has a heading {title!r}"
    rest = TEXT[start.end() :]
    end = re.search(rf"^#{{1,{len(start[1])}}} ", rest, flags=re.MULTILINE)
    return rest[: end.start()] if end else rest


def table(title: str, *first: str) -> list[dict[str, str]]:
    """The rows of the table in a section whose header begins with `first`, by column name."""
    lines = [line for line in section(title).splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    (start,) = (number for number, cells in enumerate(rows) if tuple(cells[: len(first)]) == first)
    found = []
    for cells in rows[start + 2 :]:
        if len(cells) != len(rows[start]):
            break
        found.append(dict(zip(rows[start], cells, strict=True)))
    return found


def words(cell: str) -> set[str]:
    """What a cell writes as code."""
    return set(re.findall(r"`([^`]+)`", cell))


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d+\.?\d*(?:e-?\d+)?", text)]


def assert_same_text(found: str, wanted: str) -> None:
    """Equal in words, and near in numbers."""
    number = r"-?\d+\.?\d*(?:e-?\d+)?"
    shape = [" ".join(re.sub(number, "#", text).split()) for text in (found, wanted)]
    assert shape[0] == shape[1], found
    for a, b in zip(numbers(found), numbers(wanted), strict=True):
        assert math.isclose(a, b, rel_tol=NEAR, abs_tol=NEAR), f"{a} where the README has {b}:\n{found}"


# ---- blocks


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[list[tuple[str, str]], httpx.Client]]:
    """Every Python block of the README run in order, as (what it printed, what the README says), and a server of its
    models. The blocks share their names, as in one interpreter."""
    folder = tmp_path_factory.mktemp("readme")
    names: dict[str, Any] = {}
    outputs: list[tuple[str, str]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        started: Any = None
        for number, block in enumerate(BLOCKS):
            if block.language != "python":
                continue
            text = block.text
            if "http://127.0.0.1:8000" in text:
                if started is None:
                    started = serving(
                        load_settings(models=folder / "models" / "quadrants", port=0, device="cpu", log_level="error")
                    )
                    url = started.__enter__()
                text = text.replace("http://127.0.0.1:8000", url)
            out = StringIO()
            with redirect_stdout(out), torch.random.fork_rng(devices=[]):
                exec(compile(text, f"README block {number}", "exec"), names)
            following = BLOCKS[number + 1]
            outputs.append((out.getvalue(), following.text if following.language == "text" else ""))
        assert started is not None
        try:
            with httpx.Client(base_url=url, trust_env=False, timeout=30) as http:
                yield outputs, http
        finally:
            started.__exit__(None, None, None)


def test_python_blocks_print_what_the_readme_says(printed):
    outputs, _ = printed
    assert len(outputs) >= 4
    for found, wanted in outputs:
        assert wanted
        assert_same_text(found, wanted)


(MODELS,) = (block for block in BLOCKS if block.language == "py" and "def build(p" in block.text)


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "py" and block is not MODELS])
def test_blocks_for_other_frameworks_are_python(block):
    """They are not run, since these frameworks are no dependencies."""
    assert {"MCDropout", "triton"} & set(compile(block.text, "README", "exec").co_names)


def test_the_example_says_what_its_explanation_says(printed):
    """Row 1 is mostly aleatoric, row 2 mostly epistemic."""
    rows = [numbers(line) for line in printed[0][0][0].splitlines()[2:]]
    certain, doubtful, far = (dict(zip(("entropy", "aleatoric", "epistemic"), row[3:6], strict=True)) for row in rows)
    assert certain["entropy"] < 0.01
    assert doubtful["aleatoric"] > 2 * doubtful["epistemic"]
    assert far["epistemic"] > 2 * far["aleatoric"]


def test_the_curl_lines_get_the_answers_that_are_shown(printed):
    lines = [
        line for block in BLOCKS for line in block.text.splitlines() if line.startswith("$ curl") and " -d " in line
    ]
    *answers, refusal = [block.text for block in BLOCKS if block.language == "json"]
    assert len(answers) == len(lines) == 2
    for line, shown in zip(lines, answers, strict=True):
        parts = shlex.split(line.removeprefix("$ "))
        url = next(part for part in parts if part.startswith("http://"))
        headers = dict(parts[at + 1].split(": ") for at, part in enumerate(parts) if part == "-H")
        answer = printed[1].post(urllib.parse.urlparse(url).path, content=parts[parts.index("-d") + 1], headers=headers)
        assert answer.status_code == 200
        found, wanted = (re.sub(r'_ms":[0-9.]+', '_ms":0', text) for text in (answer.text, shown.strip()))
        assert_same_text(found, wanted)
    refused = printed[1].post("/v1/models/cat/predict", json={"inputs": []}).json()
    example = json.loads(refusal)
    assert {**refused, "request_id": ""} == {**example, "request_id": ""}


COMMANDS = [
    line.removeprefix("$ ").partition("   #")[0]
    for block in BLOCKS
    if block.language == "console"
    for line in block.text.splitlines()
    if line.startswith("$ ")
]


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("mcdrop ")])
def test_mcdrop_commands_parse(command):
    assert make_parser().parse_args(shlex.split(command)[1:]).command == shlex.split(command)[1]


OF_FILES = [
    command.strip() + (" --seeds 2 --epochs 1 --num-samples 2" if command.startswith("mcdrop sweep") else "")
    for command in COMMANDS
    if re.match(r"mcdrop (inspect|export|predict|sweep) ", command)
]


def test_mcdrop_commands_run_on_the_files_of_the_examples(printed, monkeypatch, capsys):
    """One after the other, in the folder in which the Python blocks ran."""
    here = Path.cwd()
    (here / "my_package").mkdir()
    (here / "my_package" / "models.py").write_text(MODELS.text)
    monkeypatch.syspath_prepend(str(here))
    monkeypatch.setitem(sys.modules, "my_package", None)  # to be put back
    monkeypatch.setitem(sys.modules, "my_package.models", None)
    del sys.modules["my_package"], sys.modules["my_package.models"]
    assert {command.split()[1] for command in OF_FILES} == {"inspect", "export", "predict", "sweep"}
    url = str(printed[1].base_url).rstrip("/")
    for command in OF_FILES:
        typed = shlex.split(command.replace("http://127.0.0.1:8000", url))
        assert main(typed[1:]) == 0, (command, capsys.readouterr().err)
    exported, python = (MCDropout.load(f"models/{name}") for name in ("mine", "quadrants"))
    rows = torch.from_numpy(np.load("points.npy"))
    assert torch.equal(exported.sample(rows, num_samples=4), python.sample(rows, num_samples=4))
    assert {path.name for path in (here / "sweeps" / "mine").iterdir()} >= {"sweep.txt", "sweep.json"}


def test_the_first_screen_has_the_two_commands():
    first = [command for command in COMMANDS if command.startswith("python3 -m venv")]
    assert [command.rpartition("&& ")[2].strip() for command in first] == [
        ".venv/bin/mcdrop demo --once",
        ".venv/bin/python -m pytest",
    ]
    screen = README.splitlines()[:40]
    assert all(any(command.strip() in line for line in screen) for command in first)


def test_relative_links_lead_somewhere():
    titles = re.findall(r"^#+ (.+)$", README, flags=re.MULTILINE)
    headings = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
    for target in re.findall(r"\]\(([^)]+)\)", README):
        if target.startswith("#"):
            assert target[1:] in headings, target
        elif not target.startswith("https://"):
            assert (ROOT / target).exists(), target
    for target in re.findall(r"\]\(([^)]+)\)", OPERATIONS):
        assert target.startswith("https://") or (ROOT / "docs" / target).exists(), target


# ---- what there is


def test_the_front_door_is_complete():
    assert mcdrop.__all__ == sorted(mcdrop.__all__)
    results = {name for name in prediction.__all__ if name.endswith("Prediction")}
    raised = set(errors.__all__) - {"PortError"}  # only the server raises it
    assert set(mcdrop.__all__) == results | raised | {"MCDropout", "Report", "inspect", "layers"}
    for name in mcdrop.__all__:
        assert getattr(mcdrop, name).__name__.removeprefix("mcdrop.") == name
        assert re.search(rf"`(mcdrop\.)?{name}", TEXT), name


@pytest.mark.parametrize(
    "name", [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in sorted((ROOT / "mcdrop").rglob("*.py"))]
)
def test_names_in_all_exist(name):
    module = importlib.import_module(name.removesuffix(".__init__")) if "__main__" not in name else mcdrop
    assert [each for each in getattr(module, "__all__", ()) if not hasattr(module, each)] == []


def test_the_map_has_every_module():
    drawn = section("Map of the code")
    for package in ("mcdrop", "service"):
        part = drawn.partition(f"\n{package}/")[2].partition("\n\nservice/" if package == "mcdrop" else "\n\ntests/")[0]
        modules = {path.name for path in (ROOT / package).rglob("*.py")} - {"__init__.py"}
        assert set(re.findall(r"\b(\w+\.py)\b", part)) == modules


def test_every_setting_has_its_line():
    rows = {(name,): row for row in table("Settings", "setting") for name in words(row["setting"])}
    wanted = {}
    for name, field in Settings.model_fields.items():
        default = "" if field.default is None else f"`{field.default}`"
        wanted[(name,)] = {"setting": f"`{name}`", "default": default, "what": field.description}
    assert rows == wanted


def test_every_metric_has_its_line():
    beside = {"mcdrop_device_memory_bytes"}  # on CUDA only
    rows = {name: row for row in table("Metrics", "metric") for name in words(row["metric"])}
    assert beside <= set(rows)
    assert [row for name, row in rows.items() if name not in beside] == list(described())


def test_the_command_line_shows_every_setting(capsys):
    with pytest.raises(SystemExit):
        make_parser().parse_args(["serve", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for name, field in Settings.model_fields.items():
        flag = "MODELS" if name == "models" else f"--{name.replace('_', '-')} "
        default = "" if field.default is None or name == "models" else f" (default: {field.default})"
        assert flag in shown
        assert name == "models" or " ".join(f"{field.description}{default}".split()) in shown, name


def _codes() -> dict[str, tuple[str, str]]:
    """Every code: its HTTP status, and the name of the library's or the client's class."""
    found: dict[str, tuple[str, str]] = {}
    waiting: list[type[McdropError]] = [McdropError]
    while waiting:
        error = waiting.pop()
        waiting += error.__subclasses__()
        if not error.__module__.startswith(("mcdrop.", "service.")) or "code" not in vars(error):
            continue
        row = next((TABLE[cls] for cls in error.__mro__ if cls in TABLE), None)
        is_public = error.__module__ in ("mcdrop.errors", "mcdrop.wire.api_errors")
        found[error.code] = ("" if row is None else str(row.status), f"`{error.__name__}`" if is_public else "")
    for row in TABLE.values():
        if row.code is not None:
            found.setdefault(row.code, (str(row.status), ""))
    for status, code in HTTP_CODES.items():
        found[code] = (str(status), "")
    return found | {"internal-error": ("500", ""), "http-error": ("any", "")}


def test_every_error_code_has_its_line():
    rows = table("Error codes", "code")
    assert {code: (row["HTTP"], row["in Python"]) for row in rows for code in words(row["code"])} == _codes()


def test_every_class_of_client_errors_has_a_status_in_its_docstring():
    for status, cls in api_errors.STATUS_ERRORS.items():
        assert (cls.__doc__ or "").startswith(str(status))


def test_every_statistic_has_its_line():
    rows: dict[tuple[str, str], str] = {}
    for row in table("Statistics", "field", "task"):
        (name,) = words(row["field"])
        for task in row["task"].split(", "):
            assert (task, name) not in rows, f"{name} of {task} has two lines"
            rows[task, name] = " ".join(row.values())
    assert set(rows) == {(task, name) for task, known in fields.FIELDS.items() for name in known}
    year = re.compile(r"\b(?:19|20)\d\d\b")
    for (task, name), line in rows.items():  # the same source as the table in the code
        assert set(year.findall(fields.FIELDS[task][name])) <= set(year.findall(line)), line


def test_every_finding_has_its_line():
    rows = {code: row for row in table("Is my network fit for it?", "code") for code in words(row["code"])}
    wanted = {kind.code: (kind.severity, kind.title, kind.source) for kind in findings.KINDS.values()}
    assert {code: (row["severity"], row["what"], row["source"]) for code, row in rows.items()} == wanted


def test_usual_rates_are_those_that_findings_name():
    rows = {row["where"]: row["usual p"] for row in table("What the numbers mean", "where")}
    assert set(rows) == {"fully connected", "convolutional", "recurrent", "transformer", "input"}
    for place, usual in rows.items():
        assert usual.startswith(findings.rates.USUAL[place].text), place


def test_fields_on_request_have_their_lines():
    from_server = show_model("x")  # the request that lists them
    assert from_server.path == "/v1/models/x"
    with live(models=models_folder() / "one") as http:
        outputs = set(http.get("/v1/models/insects").json()["outputs"])
    known = {name for row in table("Statistics", "field", "what") for name in words(row["field"])}
    assert known == outputs - set(fields.FIELDS["classification"])


def test_every_endpoint_has_its_line():
    listed = {text for row in table("Serve", "HTTP") for cell in row.values() for text in words(cell) if " /" in text}
    document = create_app(load_settings(models=models_folder(), device="cpu")).openapi()
    served = {f"{verb.upper()} {path}" for path, verbs in document["paths"].items() for verb in verbs}
    assert listed == served | {"GET /docs", "GET /openapi.json"}


def test_versions_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    low, high = re.search(r"torch>=(\d+\.\d+),<2\.(\d+)", " ".join(project["dependencies"])).groups()
    assert f"torch {low} to 2.{int(high) - 1}" in README
    assert f"CPython {project['requires-python'].removeprefix('>=')} and later" in README
    assert f"version = {{{mcdrop.__version__}}}" in README


def test_every_trap_of_serving_is_covered_by_tests_that_exist():
    page = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in page.splitlines() if line[:2] == "| "]
    traps = {row[0]: row for row in rows if row[0] != "trap"}
    assert len(traps) == 35
    known = {
        f"{path.stem}::{node.name}"
        for path in (ROOT / "tests").glob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    for trap, row in traps.items():
        assert len(row) == 3, trap
        named = re.findall(r"`([^`]+)`", row[2])
        assert named, trap
        assert set(named) <= known, trap
        assert re.sub(r"`[^`]+`|, ", "", row[2]) == "", trap


# ---- kinds


class Call(nn.Module):
    """A function as the dropout of a network: it gets the activations."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.inner(x)).flatten(1)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 1, dropout=0.5, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.attention(x, x, x, need_weights=False)[0]
        return result.flatten(1)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.LSTM(4, 4, num_layers=2, dropout=0.5, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layers(x)[0]
        return result.flatten(1)


def layer(dropout: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Linear(4, 4), dropout, nn.Flatten())


KINDS: dict[str, Callable[[], nn.Module]] = {
    "dropout": layer(nn.Dropout(0.5)),
    "feature_dropout": layer(nn.Dropout1d(0.5)),
    "alpha_dropout": layer(nn.AlphaDropout(0.5)),
    "feature_alpha_dropout": layer(nn.FeatureAlphaDropout(0.5)),
    "attention_dropout": Attention,
    "recurrent_dropout": Recurrent,
    "bernoulli": lambda: Call(lambda x: x * torch.empty_like(x).bernoulli_(0.5)),
    "uniform": lambda: Call(lambda x: x * (torch.rand_like(x) > 0.5)),
    "normal": lambda: Call(lambda x: x * (1 + torch.randn_like(x))),
    "exponential": lambda: Call(lambda x: x - torch.empty_like(x).exponential_()),
}


@pytest.fixture(scope="module")
def kinds() -> dict[str, dict[str, str]]:
    return {name: row for row in table("Kinds of dropout", "kind") for name in words(row["kind"])}


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_is_captured_under_the_name_in_its_line(kind, kinds):
    assert kind in kinds
    found = MCDropout(KINDS[kind](), torch.rand(2, 3, 4), task="raw").sites
    assert [site.kind for site in found if site.active] == [kind]


def test_every_kind_and_operation_has_its_line(kinds):
    assert set(kinds) == set(KINDS)
    listed = {name for row in kinds.values() for name in words(row["operations in the graph"])}
    listed |= words(next(line for line in section("Kinds of dropout").splitlines() if line.startswith("RReLU")))
    assert listed == {str(operation).removeprefix("aten.") for operation in exposing.TABLE}


def test_every_layer_has_its_line():
    rows = table("Layers that PyTorch lacks", "module", "function", "kind")
    listed = {}
    for row in rows:
        modules = {name.partition("(")[0] for name in words(row["module"])}
        (kind,) = words(row["kind"])
        assert {getattr(layers, name).dropout_kind for name in modules} == {kind}
        assert all(row[column] for column in ("mask of one pass", "mean", "where it is used", "reference"))
        listed |= dict.fromkeys(modules | words(row["function"]))
    beside = set(layers.__all__) - set(listed)
    assert set(listed) <= set(layers.__all__)
    assert beside == {name for name in beside if f"`{name}(" in section("Layers that PyTorch lacks")}


# ---- other people's models


def test_works_with_what_is_tested():
    tested: dict[tuple[str, str], dict[str, dict[str, None]]] = {}
    for engine, networks in (("graph", model_networks.GRAPH), ("eager", model_networks.EAGER)):
        for network in networks:
            family, task, attention = network.name.split(", ")
            row = tested.setdefault((family, engine), {"task": {}, "attention": {}})
            row["task"][task] = row["attention"][attention] = None
    rows = [
        {"model": family, "task": ", ".join(row["task"]), "attention": ", ".join(row["attention"]), "engine": engine}
        for (family, engine), row in tested.items()
    ]
    assert table("Works with", "model") == rows


# ---- the first five minutes: what you see


def mlp(*middle: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), *middle, nn.Linear(8, 3))


class Branching(nn.Module):
    """Looks at its values."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.dropout = nn.Linear(4, 3), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.dropout(self.inner(x))
        return hidden * 2 if x.sum() > 0 else hidden


def captured(network: nn.Module, **keywords: Any) -> MCDropout:
    return MCDropout(network, torch.rand(2, 4), **{"task": "classification", **keywords})


def taken_port() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        listen("127.0.0.1", holder.getsockname()[1])


def no_server() -> None:
    with socket.socket() as holder:  # bound but not listening: whoever connects is refused
        holder.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{holder.getsockname()[1]}"
        with Client(url, http_client=httpx.Client(trust_env=False), max_retries=0) as client:
            client.predict([[0.0]])


def serve_missing() -> None:
    create_app(load_settings(models=Path("no-such-place") / "models"))


def eager_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        captured(Branching())


def normalised() -> nn.Module:
    return nn.BatchNorm1d(8, track_running_stats=False)


SEEN: dict[str, Callable[[Path], object]] = {
    "Port 8000 on 127.0.0.1 is in use by another program.": lambda _: taken_port(),
    "No answer from http://127.0.0.1:8000/": lambda _: no_server(),
    "device is 'cuda' and this PyTorch sees no CUDA device": lambda _: captured(mlp(nn.Dropout()), device="cuda"),
    "The setting device is 'cuda' and PyTorch sees no CUDA devices here.": lambda _: create_app(
        load_settings(models=models_folder(), device="cuda")
    ),
    "There is no folder models.": lambda _: serve_missing(),
    "is no model folder and has none inside": lambda empty: create_app(load_settings(models=empty, device="cpu")),
    "is no folder. Give the folder that": lambda empty: MCDropout.load(empty / "nowhere"),
    "has no dropout, so every sample would be the same.": lambda _: captured(mlp()),
    "and none is active, so every sample would be the same": lambda _: captured(mlp(nn.Dropout(0.0))),
    "cannot be captured as a graph, so it runs eagerly": lambda _: eager_warning(),
    "torch.export could not trace the network": lambda _: captured(Branching(), engine="graph"),
    "draws random numbers by a law that mcdrop does not know.": lambda _: captured(
        Call(lambda x: x * torch.randint(0, 2, (1,)))
    ),
    "the rows of a batch influence one another": lambda _: captured(mlp(normalised(), nn.Dropout())),
    "has size 5 at axis 1, shape [2, 5]; expected 4": lambda _: model("one")(torch.rand(2, 5)),
    "One row also needs the batch axis: x[None].": lambda _: model("one")(torch.rand(4)),
    "a prediction's variance takes at least 2 passes": lambda _: model("one")(torch.rand(2, 4), num_samples=1),
    "has size 1; expected at least 2 classes": lambda _: captured(
        nn.Sequential(nn.Linear(4, 8), nn.Dropout(), nn.Linear(8, 1))
    ),
    "they sum to 1 only within": lambda _: captured(mlp(nn.Dropout()), output_kind="probs")(torch.rand(2, 4)),
}


def test_every_row_of_the_first_five_minutes_is_tried():
    rows = [text for row in table("The first five minutes", "what you see") for text in words(row["what you see"])]
    assert rows == list(SEEN)


@pytest.mark.parametrize("sentence", SEEN)
def test_you_see_what_the_first_five_minutes_say(sentence, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises((McdropError, UserWarning)) as caught:
        SEEN[sentence](tmp_path)
    said = re.sub(r"(127\.0\.0\.1:|Port )\d+", r"\g<1>8000", str(caught.value)).replace("no-such-place/", "")
    assert sentence in said


def test_an_error_on_the_command_line_is_one_sentence(tmp_path):
    asked = [sys.executable, "-m", "mcdrop", "predict", str(tmp_path / "nowhere"), "data.npy"]
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert re.fullmatch(r"mcdrop: error: \S+ is no folder\. Give the folder .+\n", done.stderr)
