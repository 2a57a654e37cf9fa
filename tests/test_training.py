"""The training loop: what it leaves behind, when it stops, what it mixes, and what it says when a loss is no number."""

import itertools
import math
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import beta
from torch import nn

import mcdrop
from bounds import FALSE_ALARM, assert_distribution
from mcdrop.errors import InputError, SettingError, TrainingError
from mcdrop.surroundings.threads import fitting_threads, limited_threads
from mcdrop.training import Epoch, History, fit
from mcdrop.training.losses import LOSSES, accuracy
from mcdrop.training.mixing import cutmix, mix, mixup


def network(p=0.5, *, seed=0, outputs=3):
    """A small network in training mode, the same at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(p), nn.Linear(16, outputs))


def data(rows=40, *, seed=0):
    """Three classes that a line separates."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(rows, 4, generator=generator)
    return inputs, inputs[:, :3].argmax(dim=1)


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


# ---- its history


def test_a_history_prints_as_one_line():
    epochs = (Epoch(1, 0.5, 0.25, 0.875), Epoch(2, 0.40625, 0.3125, 0.75))
    assert str(History(epochs, 1, True)) == (
        "History: 2 epochs, stopped early; weights of epoch 1: "
        "training loss 0.5, validation loss 0.25, validation accuracy 0.875"
    )
    assert str(History((Epoch(1, 0.5),), 1, False)) == "History: 1 epoch; weights of epoch 1: training loss 0.5"


# ---- threads


def test_a_small_network_trains_on_one_thread_and_the_number_is_put_back():
    seen = []

    def loss(output, targets):
        seen.append(torch.get_num_threads())
        return F.cross_entropy(output, targets)

    with limited_threads(3):
        fit(network(), data(), loss=loss, epochs=1)
        fit(network(), data(), loss=loss, epochs=1, threads=2)
        with pytest.raises(ZeroDivisionError):
            fit(network(), data(), loss=lambda *_: 1 / 0, epochs=1)
        assert torch.get_num_threads() == 3
    assert seen == [1, 2]


@pytest.mark.parametrize(
    ("model", "shape", "threads"),
    [
        (nn.Linear(999, 500), (8, 999), 1),
        (nn.Linear(1000, 500), (8, 1000), 3),  # more than 500,000 with its biases
        (nn.Conv2d(1, 2, 3), (8, 1, 32, 32), 1),
        (nn.Conv2d(1, 2, 3), (8, 1, 32, 33), 3),
    ],
)
def test_which_networks_are_small(model, shape, threads):
    with limited_threads(3):
        assert fitting_threads(model, torch.zeros(shape)) == threads


# ---- training


def test_it_learns():
    model = network()
    history = fit(model, data(200), data(100, seed=1), epochs=30, learning_rate=1e-2)
    first, last = history.epochs[0], history.epochs[-1]
    assert [epoch.number for epoch in history.epochs] == list(range(1, 31))
    assert last.training_loss < first.training_loss / 2
    assert last.validation_loss < first.validation_loss / 2
    assert last.validation_accuracy > 0.85
    assert (history.kept, history.stopped_early) == (30, False)
    with torch.no_grad():
        output = model.eval()(data(100, seed=1)[0])
    assert last.validation_loss == pytest.approx(F.cross_entropy(output, data(100, seed=1)[1]).item(), rel=1e-5)
    assert last.validation_accuracy == pytest.approx(accuracy("classification", output, data(100, seed=1)[1]))


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_one_full_batch_is_one_step_of_the_optimizer(optimizer):
    """Without dropout nothing is random but the order of the rows, which a mean does not see."""
    inputs, targets = data(10)
    model, plain = network(0.0), network(0.0)
    history = fit(
        model, (inputs, targets), epochs=1, batch_size=10, optimizer=optimizer, learning_rate=0.1, weight_decay=0.5
    )
    kinds = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
    more = {"momentum": 0.9} if optimizer == "sgd" else {}
    descent = kinds[optimizer](plain.parameters(), lr=0.1, weight_decay=0.5, **more)
    loss = F.cross_entropy(plain(inputs), targets)
    loss.backward()
    descent.step()
    assert history.epochs == (Epoch(1, pytest.approx(loss.item(), rel=1e-6)),)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value)


def test_every_row_is_seen_once_in_batches_of_equal_size():
    seen = []

    def note(batch):
        seen.append(batch[:, 0].tolist())
        return batch

    inputs = torch.arange(13.0)[:, None].expand(13, 4).contiguous()
    fit(network(), (inputs, torch.zeros(13).long()), epochs=2, batch_size=4, augment=note)
    assert [len(batch) for batch in seen] == [4, 3, 3, 3] * 2
    epochs = [[row for batch in part for row in batch] for part in (seen[:4], seen[4:])]
    assert [sorted(epoch) for epoch in epochs] == [list(range(13))] * 2
    assert epochs[0] != epochs[1]


def test_one_cycle_ends_where_it_moves_no_more():
    """The last steps are far smaller than the largest."""
    places = []
    model = network(0.0)
    fit(
        model, data(), epochs=20, batch_size=40, schedule="one-cycle", learning_rate=0.05,
        progress=lambda _: places.append(model[0].weight.detach().clone()),
    )  # fmt: skip
    steps = [float((after - before).norm()) for before, after in itertools.pairwise(places)]
    assert steps[-1] < max(steps) / 100


# ---- early stopping


class Scripted(nn.Module):
    """Its validation loss follows a script: the loss is `value`, which each training step moves to the next entry."""

    def __init__(self, script):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))
        self.register_buffer("step", torch.tensor(0))
        self.script = script

    def forward(self, x):
        self.step += self.training
        return self.unused * 0 + self.script[max(int(self.step) - 1, 0)]


def scripted(losses, patience):
    model = Scripted(losses)
    rows = (torch.zeros(1, 1), torch.zeros(1))
    seen = []
    history = fit(
        model, rows, rows, loss=lambda output, _: output.sum(), epochs=len(losses), patience=patience,
        progress=seen.append,
    )  # fmt: skip
    assert tuple(seen) == history.epochs
    return history, int(model.step)


def test_patience_goes_back_to_the_best_weights():
    history, step = scripted([5.0, 3.0, 4.0, 2.0, 2.5, 2.0, 9.0], patience=3)
    assert [epoch.validation_loss for epoch in history.epochs] == [5.0, 3.0, 4.0, 2.0, 2.5, 2.0, 9.0]
    assert (history.kept, step, history.stopped_early) == (4, 4, False)


def test_patience_ends_training():
    history, step = scripted([5.0, 3.0, 4.0, 3.5, 1.0], patience=2)
    assert (len(history.epochs), history.kept, step, history.stopped_early) == (4, 2, 2, True)


def test_without_patience_the_last_weights_stay():
    history, step = scripted([5.0, 1.0, 4.0], patience=None)
    assert (len(history.epochs), history.kept, step, history.stopped_early) == (3, 3, 3, False)


# ---- what is left alone


def test_training_is_a_function_of_its_seed():
    first, again, other = network(), network(), network()
    torch.manual_seed(1)
    history = fit(first, data(), data(seed=1), epochs=2, batch_size=8, mixup=0.4, seed=3)
    torch.manual_seed(2)
    assert fit(again, data(), data(seed=1), epochs=2, batch_size=8, mixup=0.4, seed=3) == history
    fit(other, data(), epochs=2, batch_size=8, mixup=0.4, seed=4)
    assert same(weights(first), weights(again))
    assert not same(weights(first), weights(other))


def test_two_networks_of_one_seed_see_the_same_batches():
    """However many numbers their dropout draws."""
    seen = {}
    for p in (0.0, 0.5):
        batches = seen.setdefault(p, [])
        model = nn.Sequential(nn.Identity(), network(p))
        model[0].register_forward_hook(lambda _, inputs, __, batches=batches: batches.append(inputs[0].clone()))
        fit(model, data(), epochs=2, batch_size=8, mixup=0.4, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(seen[0.0], seen[0.5], strict=True))


@pytest.mark.parametrize("fails", [False, True])
def test_the_global_random_state_and_the_flags_are_as_before(fails):
    model = network()
    model.train()
    model[2].eval()
    flags = [module.training for module in model.modules()]
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    inputs, targets = data()
    if fails:
        inputs = inputs * math.nan
    with torch.no_grad():
        try:
            fit(model, (inputs, targets), data(seed=1), epochs=2, patience=1, mixup=0.4)
        except TrainingError:
            assert fails
        assert not torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[1:]
    assert [module.training for module in model.modules()] == flags
    assert fails or all(parameter.grad is None for parameter in model.parameters())


def test_dropout_is_on_while_training_and_off_for_validation():
    model = network()
    seen = []
    model[2].register_forward_hook(lambda module, *_: seen.append(module.training))
    fit(model.eval(), data(8), data(4), epochs=1, batch_size=4)
    assert seen == [True, True, False]


def test_frozen_parameters_stay():
    model = network()
    model[0].requires_grad_(False)
    before = weights(model)
    fit(model, data(), epochs=1)
    assert torch.equal(model[0].weight, before["0.weight"])
    assert not torch.equal(model[3].weight, before["3.weight"])


# ---- a loss that is no number


def test_a_loss_that_overflows_says_where_and_what_to_try():
    with pytest.raises(TrainingError, match=r"the loss of epoch \d+, step \d of 2 is (nan|inf).*lower learning_rate"):
        fit(network(outputs=1), (data()[0] * 1e15, torch.ones(40, 1) * 1e30), task="regression", batch_size=20)


@pytest.mark.parametrize("what", ["inputs", "targets"])
def test_data_that_are_no_numbers_are_named(what):
    inputs, targets = torch.ones(4, 4), torch.ones(4, 1)
    {"inputs": inputs, "targets": targets}[what][2] = math.nan
    with pytest.raises(TrainingError, match=f"epoch 1, step 1 of 1 is nan: there are NaN or infinite {what}"):
        fit(network(outputs=1), (inputs, targets), task="regression")
    fine = torch.ones(4, 4), torch.ones(4, 1)
    with pytest.raises(TrainingError, match=f"validation loss of epoch 1 is nan: there are NaN or infinite {what}"):
        fit(network(outputs=1), fine, (inputs, targets), task="regression")


# ---- mixing


def test_mixup_is_the_weighted_sum():
    ones, threes = torch.ones(2, 3), torch.full((2, 3), 3.0)
    assert torch.equal(mixup(ones, threes, share=0.25), torch.full((2, 3), 2.5))
    assert torch.equal(mixup(ones, threes, share=1.0), ones)


def test_cutmix_pastes_a_box_and_gives_the_share_that_is_kept():
    """Half the sides of a 4 x 8 image: a box of 2 x 4, whole in the middle, a quarter of it in the corner."""
    zeros, ones = torch.zeros(2, 1, 4, 8), torch.ones(2, 1, 4, 8)
    mixed, share = cutmix(zeros, ones, share=0.75, center=(0.5, 0.5))
    expected = torch.zeros(4, 8)
    expected[1:3, 2:6] = 1
    assert torch.equal(mixed, expected.expand(2, 1, 4, 8))
    assert share == 1 - 8 / 32
    mixed, share = cutmix(zeros, ones, share=0.75, center=(0.0, 0.0))
    expected = torch.zeros(4, 8)
    expected[0, :2] = 1
    assert torch.equal(mixed, expected.expand(2, 1, 4, 8))
    assert share == 1 - 2 / 32
    assert torch.equal(zeros, torch.zeros(2, 1, 4, 8))


def test_cutmix_of_all_or_nothing():
    zeros, ones = torch.zeros(1, 4, 8), torch.ones(1, 4, 8)
    assert cutmix(zeros, ones, share=1.0, center=(0.3, 0.9)) == (pytest.approx(zeros), 1.0)
    assert cutmix(zeros, ones, share=0.0, center=(0.5, 0.5)) == (pytest.approx(ones), 0.0)


@pytest.mark.parametrize("alphas", [(0.4, 0.0), (0.0, 1.0), (0.4, 1.0)])
def test_a_mixed_batch_is_its_rows_and_partners_in_the_share_it_says(alphas):
    """Rows of one value each, so that the mean of a mixed row is the weighted sum of the two values."""
    values = torch.arange(6.0)
    generator = np.random.default_rng(0)
    for _ in range(20):
        mixed, partners, share = mix(
            values[:, None, None].expand(6, 8, 8), generator, mixup_alpha=alphas[0], cutmix_alpha=alphas[1]
        )
        assert sorted(partners.tolist()) == list(range(6))
        assert 0 <= share <= 1
        torch.testing.assert_close(mixed.mean(dim=(1, 2)), share * values + (1 - share) * values[partners])


def test_the_share_of_mixup_follows_a_beta_distribution():
    """Fails right code once in a million; a shape of 0.45 for 0.4 moves the distribution function by 0.019, and 60,000
    shares show 0.011."""
    generator, rows = np.random.default_rng(0), torch.zeros(1, 1)
    shares = [mix(rows, generator, mixup_alpha=0.4, cutmix_alpha=0.0)[2] for _ in range(60_000)]
    assert_distribution(shares, beta(0.4, 0.4).cdf, false_alarm=FALSE_ALARM)


def test_the_mixed_loss_is_the_loss_of_mixed_targets():
    """For cross-entropy: share L(y) + (1 - share) L(y') = L(share y + (1 - share) y'). With one step, no dropout."""
    inputs, targets = data(6)
    batch, partners, share = mix(
        inputs[(order := torch.from_numpy(np.random.default_rng(5).permutation(6)))],
        generator_after_order(5),
        mixup_alpha=1.0,
        cutmix_alpha=0.0,
    )
    wanted = targets[order]
    soft = share * F.one_hot(wanted, 3) + (1 - share) * F.one_hot(wanted[partners], 3)
    expected = F.cross_entropy(network(0.0)(batch), soft).item()
    history = fit(network(0.0), (inputs, targets), epochs=1, batch_size=6, mixup=1.0, seed=5)
    assert history.epochs[0].training_loss == pytest.approx(expected, rel=1e-6)


def generator_after_order(seed):
    """The generator of `fit` as the first batch of six rows meets it."""
    generator = np.random.default_rng(seed)
    generator.permutation(6)
    return generator


# ---- losses


def test_losses_are_what_their_names_say():
    logits, labels = torch.tensor([[2.0, 0.0], [5.0, 6.0]]), torch.tensor([0, 0], dtype=torch.uint8)
    by_hand = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(1))) / 2
    assert LOSSES["classification"](logits, labels).item() == pytest.approx(by_hand, rel=1e-6)
    steps = logits.expand(3, 2, 2), labels.expand(3, 2)  # (batch, time, classes)
    assert LOSSES["classification"](*steps).item() == pytest.approx(by_hand, rel=1e-6)
    assert LOSSES["binary"](torch.tensor([0.0, 2.0]), torch.tensor([True, True])).item() == pytest.approx(
        (math.log(2) + math.log(1 + math.exp(-2))) / 2, rel=1e-6
    )
    assert LOSSES["regression"](torch.tensor([1.0, 2.0]), torch.tensor([2.0, 4.0])).item() == 2.5
    mean, log_variance, target = torch.tensor([1.0]), torch.tensor([math.log(4)]), torch.tensor([3.0])
    for output in ((mean, log_variance), torch.stack([mean, log_variance], dim=-1)):
        assert LOSSES["heteroscedastic"](output, target).item() == pytest.approx(0.5 * (math.log(4) + 1), rel=1e-6)


def test_accuracy_by_task():
    assert accuracy("classification", torch.eye(4)[[0, 1, 2, 3]], torch.tensor([0, 1, 2, 0])) == 0.75
    assert accuracy("binary", torch.tensor([-1.0, 0.0, 3.0]), torch.tensor([0, 1, 0])) == pytest.approx(2 / 3)
    assert accuracy("multilabel", torch.tensor([[-1.0, 2.0]]), torch.tensor([[1.0, 1.0]])) == 0.5
    assert accuracy("regression", torch.zeros(1), torch.zeros(1)) is None


def test_targets_of_another_shape_are_never_broadcast():
    with pytest.raises(InputError, match=r"targets have shape \[40\] and the output \[40, 1\]"):
        fit(network(outputs=1), (data()[0], torch.zeros(40)), task="regression")
    with pytest.raises(InputError, match=r"targets are float32\[40\].*class numbers"):
        fit(network(), (data()[0], torch.zeros(40)))


# ---- arguments


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "guess"}, "task='guess' is unknown; choose one of classification"),
        ({"optimizer": "lion"}, "optimizer='lion' is unknown; choose one of adamw, sgd"),
        ({"schedule": "cosine"}, "schedule='cosine' is unknown; choose one of constant, one-cycle"),
        ({"epochs": 0}, "epochs=0; expected a whole number of at least 1"),
        ({"batch_size": 2.5}, "batch_size=2.5; expected a whole number"),
        ({"seed": -1}, "seed=-1; expected a whole number of at least 0"),
        ({"learning_rate": math.nan}, "learning_rate=nan; expected a finite number"),
        ({"mixup": -0.2}, "mixup=-0.2; expected a finite number of at least 0"),
        ({"patience": 3}, "patience waits for a lower validation loss; give validation data"),
        ({"cutmix": 1.0}, r"cutmix pastes boxes into images .* shape \[40, 4\]. Use mixup"),
    ],
)
def test_arguments_that_mean_nothing_are_named(settings, message):
    with pytest.raises(SettingError, match=message):
        fit(network(), data(), **settings)


def test_data_that_do_not_fit_together_are_named():
    inputs, targets = data()
    with pytest.raises(InputError, match=r"train: inputs of shape \[40, 4\] and targets of shape \[39\]"):
        fit(network(), (inputs, targets[1:]))
    with pytest.raises(InputError, match="validation is no pair of tensors"):
        fit(network(), (inputs, targets), (inputs, targets.numpy()))
    with pytest.raises(InputError, match="at least one"):
        fit(network(), (inputs[:0], targets[:0]))
    with pytest.raises(SettingError, match=r"mix floating point inputs; these are torch\.int64"):
        fit(network(), (inputs.long(), targets), mixup=0.2)
    with pytest.raises(SettingError, match="no parameter that takes a gradient"):
        fit(network().requires_grad_(False), (inputs, targets))


def test_it_is_reached_from_the_front_door():
    assert mcdrop.training.fit is fit
    assert "training" in dir(mcdrop)
