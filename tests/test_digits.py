"""The demo's material: bundled data, the small network, images that are no digits."""

import json
from importlib import resources

import numpy as np
import torch

from mcdrop.digits import CLASS_NAMES, INK, DigitNetwork, Digits, accuracy, load_digits, not_digits, train


def test_the_data_is_whole_and_small():
    learn, test = load_digits()
    assert (len(learn), len(test)) == (1437, 360)
    assert learn.images.shape == (1437, 8, 8)
    assert learn.images.dtype == np.uint8
    assert int(learn.images.max()) == INK
    assert set(learn.labels.tolist()) == set(test.labels.tolist()) == set(range(10))
    data = resources.files("mcdrop") / "data"
    assert len((data / "digits.npz").read_bytes()) < 64 * 1024
    licence = (data / "LICENSE-digits.md").read_text(encoding="utf-8")
    assert "CC BY 4.0" in licence
    assert "10.24432/C50P49" in licence


def test_no_image_is_in_both_parts():
    learn, test = load_digits()
    assert not {image.tobytes() for image in learn.images} & {image.tobytes() for image in test.images}


def test_training_leaves_the_global_random_state_and_the_threads_alone():
    learn, _ = load_digits()
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    epochs = []
    network = train(Digits(learn.images[:64], learn.labels[:64]), epochs=2, on_epoch=lambda: epochs.append(1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert len(epochs) == 2
    assert not network.training


def test_training_is_a_function_of_its_seed():
    learn, _ = load_digits()
    few = Digits(learn.images[:64], learn.labels[:64])
    torch.manual_seed(1)
    first = train(few, epochs=1, seed=3).state_dict()
    torch.manual_seed(2)
    again, other = train(few, epochs=1, seed=3).state_dict(), train(few, epochs=1, seed=4).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.1.weight"], other["head.1.weight"])


def test_the_normalisation_is_part_of_the_network():
    """An image with ink 0 to 16 gives what its parts give for the image divided by 16."""
    network = DigitNetwork().eval()
    image = torch.full((1, 8, 8), float(INK))
    with torch.no_grad():
        parts = network.head(network.features(torch.ones(1, 1, 8, 8)))
        assert torch.equal(network(image), parts)


def test_accuracy_counts():
    """A network that always says 3 is right where a 3 is."""

    class AlwaysThree(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.one_hot(torch.full((len(image),), 3), len(CLASS_NAMES)).float()

    digits = Digits(np.zeros((4, 8, 8), np.uint8), np.array([3, 1, 3, 2], np.uint8))
    assert accuracy(AlwaysThree(), digits) == 0.5


def test_what_is_no_digit_is_drawn_with_the_same_ink():
    images = not_digits(load_digits()[1])
    assert len(images) >= 4
    for image in images.values():
        assert image.shape == (8, 8)
        assert image.dtype == np.uint8
        assert int(image.max()) <= INK
    letter = json.dumps(images["the letter A"].tolist())
    assert letter == json.dumps(not_digits(load_digits()[1])["the letter A"].tolist())
