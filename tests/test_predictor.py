"""`MCDropout` as users meet it: arguments and their errors, what they see of sites, and forms of inputs and answers."""

import copy
import cProfile
import pickle
import pstats
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mcdrop import MCDropout
from mcdrop.errors import InputError, NoDropoutError, RowsInteractError, SettingError


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3)).eval()


X = torch.linspace(-1, 1, 24).view(4, 6)


@pytest.fixture(scope="module")
def mc() -> MCDropout:
    return MCDropout(network(), X, task="classification", num_samples=16)


class Regression(nn.Module):
    """Gives 0 or 2 times its input."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, 0.5, self.training)


# ---- who looks on


@pytest.mark.parametrize("engine", ["graph", "eager"])
def test_a_profiler_sees_all_of_a_capture(engine: Any) -> None:
    profile = cProfile.Profile()
    profile.enable()
    MCDropout(network(), X, task="raw", engine=engine).sample(X, num_samples=2)
    profile.disable()
    seen = {name for _, _, name in pstats.Stats(profile).stats}  # type: ignore[attr-defined]
    assert {"find_flags", "put_back", "sample"} <= seen  # before, between and after what watches the network


# ---- errors


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"num_samples": 0}, "num_samples is 0"),
        ({"num_samples": True}, "num_samples is True"),
        ({"num_samples": 1}, "at least 2 passes"),
        ({"seed": 1.5}, "seed is 1.5"),
        ({"masks": "own"}, "masks is 'own'"),
        ({"quantiles": (0.0, 2.0)}, "quantile|level"),
    ],
)
def test_arguments_of_a_prediction(mc: MCDropout, keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        mc(X, **keywords)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"task": "guess"}, "task='guess' is unknown"),
        ({"engine": "fast"}, "engine is 'fast'"),
        ({"dtype": torch.int8}, "dtype is torch.int8"),
        ({"max_memory": 0}, "max_memory is 0"),
        ({"device": "moon"}, "device is 'moon'"),
        ({"thinned": "no"}, "thinned is 'no'; expected True or False"),
        ({"fast": "no"}, "fast is 'no'"),
        ({"compile": "no"}, "compile is 'no'"),
        ({"output": "scores"}, "no output 'scores'"),
        ({"class_names": ("a", "b")}, "class_names has 2 names"),
        ({"noise_variance": 1.0}, "noise_variance means nothing"),
    ],
)
def test_arguments_of_a_model(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        MCDropout(network(), X, **{"task": "classification", **keywords})


def test_a_model_is_a_module() -> None:
    with pytest.raises(SettingError, match="model is a function"):
        MCDropout(network, X, task="raw")  # type: ignore[arg-type]


@pytest.mark.parametrize("inputs", [X[0], X[:, :5], {"image": X}, (X, X), [["a"] * 6], None])
def test_inputs_that_do_not_fit(mc: MCDropout, inputs: Any) -> None:
    with pytest.raises(InputError, match="input"):
        mc(inputs)


@pytest.mark.parametrize("budget", [0, -1, True])
def test_budget(mc: MCDropout, budget: Any) -> None:
    with pytest.raises(SettingError, match="budget"):
        mc.advance(mc.start(X), budget)


def test_all_rates_zero_lists_the_site() -> None:
    with pytest.raises(NoDropoutError, match="1: p is 0"):
        MCDropout(nn.Sequential(nn.Linear(6, 3), nn.Dropout(0.0)), X, task="raw")


def test_rows_that_interact() -> None:
    class Centred(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.dropout(x - x.mean(0), 0.5, self.training)

    with pytest.raises(RowsInteractError, match="allow_row_interaction=True"):
        MCDropout(Centred(), X, task="raw")
    mc = MCDropout(Centred(), X, task="raw", allow_row_interaction=True)
    samples = mc.sample(X, num_samples=400)
    kept = samples != 0
    torch.testing.assert_close(samples[kept], (2 * (X - X.mean(0))).expand_as(samples)[kept])
    runs = [mc.start(X), mc.start(X[:2])]
    mc.advance(runs)
    assert torch.equal(runs[1].prediction().mean, mc(X[:2]).mean)


# ---- sites


def test_sites_say_where_and_why() -> None:
    class Sites(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.dropout = nn.Linear(6, 8), nn.Dropout(0.25)
            self.block = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.0))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.rnn = nn.LSTM(8, 3, num_layers=1, dropout=0.4, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            h = self.dropout(self.inner(x))  # first
            h = self.block(self.dropout(h))  # second
            return self.rnn(h[:, None])[0][:, 0]

    mc = MCDropout(Sites(), X, task="raw")
    first, second, *off = mc.sites
    assert [(s.index, s.path, s.kind, s.p, s.shape, s.active) for s in (first, second)] == [
        (0, "dropout", "dropout", 0.25, ("batch", 8), True),
        (1, "dropout", "dropout", 0.25, ("batch", 8), True),
    ]
    assert {(site.index, site.path, site.active, site.reason) for site in off} == {
        (-1, "block.1", False, "p is 0"),
        (-1, "rnn", False, "one layer: there is no place between layers"),
    }
    source = Path(__file__).read_text().splitlines()
    for site, comment in ((first, "# first"), (second, "# second")):
        assert site.source is not None
        name, line = site.source.rsplit(":", 1)
        assert Path(name) == Path(__file__)
        assert source[int(line) - 1].endswith(comment)
    assert MCDropout(nn.Sequential(nn.Linear(6, 3), nn.Dropout()), X, task="raw").sites[0].source is None
    assert repr(mc.sites).splitlines()[0].split()[:2] == ["#", "module"]
    assert "no: p is 0" in repr(mc.sites)
    assert "2 active of 4 sites" in repr(mc)


# ---- forms


def test_arrays_are_answered_with_arrays(mc: MCDropout) -> None:
    given, asked = mc(X), mc(X.double().numpy())
    assert isinstance(asked.mean, np.ndarray)
    assert np.array_equal(given.mean.numpy(), asked.mean)
    assert isinstance(mc.sample(X.numpy()), np.ndarray)
    assert all(isinstance(p.entropy, np.ndarray) for p in mc.stream(X.numpy()))


def test_samples_quantiles_and_errors(mc: MCDropout) -> None:
    p = mc(X, samples=True, quantiles=(0.25, 0.5), standard_errors=True)
    assert torch.equal(p.samples, mc.sample(X))
    probs = p.samples.softmax(-1)
    torch.testing.assert_close(p.mean, probs.mean(0))
    torch.testing.assert_close(p.variance, probs.var(0))
    torch.testing.assert_close(p.quantiles, probs.quantile(torch.tensor([0.25, 0.5]), 0))
    assert set(p.standard_errors) >= {"mean", "variance", "entropy"}
    assert all((error > 0).all() for error in p.standard_errors.values())


def test_stream_ends_with_the_whole(mc: MCDropout) -> None:
    steps = list(mc.stream(X, num_samples=10, every=4))
    assert [p.num_samples for p in steps] == [4, 8, 10]
    torch.testing.assert_close(steps[-1].mean, mc(X, num_samples=10).mean)
    torch.testing.assert_close(steps[0].variance, mc(X, num_samples=4).variance)
    for every in (0, 1.5, "all", True):
        with pytest.raises(SettingError, match=f"every is {every!r}; give a number of passes, at least 1"):
            mc.stream(X, every=every)  # type: ignore[arg-type]


def test_no_rows(mc: MCDropout) -> None:
    for empty in ([], torch.zeros(0, 6), np.zeros((0, 6))):
        for masks in ("shared", "independent"):
            p = mc(empty, masks=masks, samples=True, standard_errors=True, quantiles=(0.5,))
            assert p.mean.shape == (0, 3)
            assert p.entropy.shape == (0,)
            assert p.samples.shape == (16, 0, 3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtype_is_chosen_at_capture(dtype: torch.dtype) -> None:
    mc = MCDropout(network(), X, task="classification", dtype=dtype)
    assert mc.sample(X, num_samples=2).dtype == dtype
    p, exact = mc(X), MCDropout(network(), X, task="classification")(X)
    assert p.mean.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(p.mean, exact.mean, atol=0.02, rtol=0, check_dtype=False)


def test_seeds_of_any_size(mc: MCDropout) -> None:
    first = mc.sample(X, seed=0)
    assert not any(torch.equal(first, mc.sample(X, seed=seed)) for seed in (-1, -(2**70) - 3, 2**200 + 7))
    assert torch.equal(mc.sample(X, seed=-1), mc.sample(X, seed=-1))


def test_dynamic_axis() -> None:
    mc = MCDropout(nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5)), X.view(2, 2, 6), task="raw", dynamic={1: "n<=4"})
    assert mc(torch.ones(1, 4, 6)).mean.shape == (1, 4, 8)
    with pytest.raises(InputError, match="n 5"):
        mc(torch.ones(1, 5, 6))


def test_saved_moved_and_loaded(mc: MCDropout, tmp_path: Path) -> None:
    model = MCDropout(
        network(), X, task="classification", num_samples=9, seed=4, masks="independent", name="mine", version="2"
    )
    model.save(tmp_path / "m")
    loaded = MCDropout.load(tmp_path / "m")
    for twin in (loaded, model.to("cpu")):
        assert (twin.num_samples, twin.seed, twin.masks, twin.name, twin.version) == (9, 4, "independent", "mine", "2")
        assert torch.equal(twin(X).mean, model(X).mean)
        assert twin.cost == model.cost
        assert [site.path for site in twin.sites] == [site.path for site in model.sites]


def test_every_unit_dropped_beside_another_site() -> None:
    mc = MCDropout(nn.Sequential(nn.Dropout(1.0), nn.Linear(6, 3), nn.Dropout(0.5)), X, task="raw")
    samples = mc.sample(X, num_samples=50)
    assert bool(samples.isfinite().all())
    assert torch.equal(samples[:, 0], samples[:, 3]), "nothing of the input is left"


def test_autocast_region_inside() -> None:
    class Region(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.dropout = nn.Linear(6, 3), nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return self.dropout(self.layer(x)).float()

    mc = MCDropout(Region(), X, task="raw")
    assert [site.path for site in mc.sites] == ["dropout"]


def test_hooks_count_and_stay() -> None:
    model = network()
    model[0].register_forward_hook(lambda module, inputs, output: output * 0)
    hooks = dict(model[0]._forward_hooks)
    samples = MCDropout(model, X, task="raw").sample(X)
    torch.testing.assert_close(samples, model[3].bias.detach().expand_as(samples))
    assert dict(model[0]._forward_hooks) == hooks


# ---- noise of a regression


def test_fit_noise_variance_in_closed_form() -> None:
    x, n = torch.ones(50, 2), 8
    mc = MCDropout(Regression(), x, task="regression", num_samples=n)
    targets = torch.linspace(-3, 5, 100).view(50, 2)
    p = mc(x)
    expected = ((targets - p.mean) ** 2 - p.variance / n).mean()
    assert mc.fit_noise_variance(x, targets) == pytest.approx(float(expected), rel=1e-5)
    after = mc(x)
    torch.testing.assert_close(after.aleatoric_variance, expected.expand(50, 2), check_dtype=False)
    torch.testing.assert_close(after.variance, p.variance + expected, check_dtype=False)
    assert mc.fit_noise_variance(x, p.mean) == 0, "never negative"
    with pytest.raises(SettingError, match="targets have the shape"):
        mc.fit_noise_variance(x, targets[:, :1])


def test_fit_noise_variance_is_for_regression(mc: MCDropout) -> None:
    with pytest.raises(SettingError, match="is for regression"):
        mc.fit_noise_variance(X, X)


def test_attention_without_dropout_after_dropout() -> None:
    """ViT's and Llama's default: attention itself drops nothing, what comes before it does."""

    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.dropout = nn.Linear(8, 24), nn.Dropout(0.3)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(self.dropout(x)).view(x.shape[0], -1, 3, 2, 4).permute(2, 0, 3, 1, 4)
            mixed = nn.functional.scaled_dot_product_attention(q, k, v)
            return mixed.transpose(1, 2).contiguous().view(x.shape[0], -1, 8)

    assert MCDropout(Attends(), torch.randn(2, 5, 8), task="raw").engine == "graph"


def test_a_buffer_that_evaluation_changes_too() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return x

    assert MCDropout(nn.Sequential(Counts(), nn.Dropout(0.5)), X, task="raw").engine == "graph"


def test_a_draw_that_reaches_no_output_keeps_its_number() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return nn.functional.dropout(x, 0.5, self.training), nn.functional.dropout(x, 0.5, self.training)

    mc = MCDropout(Two(), X, task="raw", output=1)
    assert [site.index for site in mc.sites if site.active] == [1]


def test_a_module_named_network() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = nn.Sequential(nn.Dropout(0.5))

        def forward(self, x: Tensor) -> Tensor:
            return self.network(x)

    assert MCDropout(Named(), X, task="raw").sites[0].path == "network.0"


def test_autocast_around_a_call_changes_nothing(mc: MCDropout) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        around = mc.sample(X)
    assert torch.equal(around, mc.sample(X))


def test_capture_inside_inference_mode() -> None:
    with torch.inference_mode():
        mc = MCDropout(network(), X, task="raw")
    assert mc.engine == "graph"


@pytest.mark.parametrize("fast", [True, False])
def test_another_default_device_changes_nothing(fast: bool, tmp_path: Path) -> None:
    """As where everything of a program goes to a GPU and one small model stays on the CPU."""
    maps, units = [nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Dropout2d(0.5)], [nn.Flatten(), nn.Linear(72, 3)]
    model = nn.Sequential(*maps, nn.Conv2d(8, 8, 3, padding=1), *maps[1:], *units).eval()
    images = torch.randn(2, 1, 5, 5)
    mc = MCDropout(model, images, task="raw", fast=fast)
    mc.save(tmp_path / "model")
    with torch.device("meta"):
        made = MCDropout(model, images, task="raw", fast=fast)
        read = MCDropout.load(tmp_path / "model", fast=fast)
        moved = mc.to("cpu")
        found = [each.sample(images) for each in (mc, made, read, moved)]
    for each, samples in zip((mc, made, read, moved), found, strict=True):
        assert (each.cost, each._engine.fused) == (mc.cost, fast)  # type: ignore[attr-defined]
        assert torch.equal(samples, mc.sample(images))


def test_copies_are_objects_of_their_own_on_one_network() -> None:
    mc = MCDropout(nn.Sequential(network(), nn.Linear(3, 1)), X, task="regression")
    for twin in (copy.copy(mc), copy.deepcopy({"model": mc})["model"]):
        twin.fit_noise_variance(X, torch.ones(4, 1))
        assert twin.task.noise_variance is not None
        assert torch.equal(twin(X).mean, mc(X).mean)
    assert mc.task.noise_variance is None


def test_pickling_says_what_to_do(mc: MCDropout) -> None:
    with pytest.raises(TypeError, match=r"cannot be pickled.*mc\.save\(folder\).*MCDropout\.load\(folder\)"):
        pickle.dumps(mc)


def test_a_run_in_and_out_of_inference_mode(mc: MCDropout) -> None:
    run = mc.start(X)
    with torch.inference_mode():
        mc.advance(run, 3)
    mc.advance(run)
    assert torch.equal(run.prediction().mean, mc(X).mean)


def test_learned_queries_without_a_batch() -> None:
    class Pools(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query = nn.Parameter(torch.randn(1, 2, 4))

        def forward(self, x: Tensor) -> Tensor:
            p = 0.3 if self.training else 0.0
            return nn.functional.scaled_dot_product_attention(self.query, x, x, dropout_p=p)

    assert MCDropout(Pools(), torch.randn(2, 5, 4), task="raw").engine == "graph"


def test_numpy_numbers_are_numbers(mc: MCDropout) -> None:
    assert mc(X, num_samples=np.int64(4), seed=np.int32(1)).num_samples == 4


def test_float64_whatever_the_rate():
    """1 / (1 - 0.3) is no number of float32, in which the factors of draws are kept; capture's proofs allow for it."""
    x = torch.ones(2, 64, dtype=torch.float64)
    mc = MCDropout(nn.Dropout(0.3).eval(), x, task="raw", dtype=torch.float64, engine="graph")
    samples = mc.sample(x, num_samples=8)
    assert samples.dtype == torch.float64
    torch.testing.assert_close(
        samples[samples != 0], torch.full_like(samples[samples != 0], 1 / 0.7), rtol=1e-7, atol=0
    )
