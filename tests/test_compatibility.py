"""Models saved by earlier versions stay readable and give the numbers that they gave."""

import json
from pathlib import Path

import pytest
import torch

from mcdrop import MCDropout

DATA = Path(__file__).parent / "data"


@pytest.mark.parametrize("name", ["bundle-v1"])
def test_a_folder_of_an_earlier_format_still_answers_as_it_did(name: str) -> None:
    mc = MCDropout.load(DATA / name)
    prediction = mc(torch.linspace(-1, 1, 2 * 25).reshape(2, 1, 5, 5))
    expected = json.loads((DATA / f"{name}.json").read_text())
    assert (mc.name, mc.num_samples, mc.seed, prediction.class_names) == ("tiny", 40, 3, ("a", "b", "c"))
    assert [site.kind for site in mc.sites] == [
        "feature_dropout",
        "recurrent_dropout",
        "attention_dropout",
        "alpha_dropout",
    ]
    for field, values in expected.items():
        torch.testing.assert_close(getattr(prediction, field), torch.tensor(values), rtol=1e-5, atol=1e-6)
