"""A captured program moves between devices and draws the same masks there."""

import pytest
import torch
from torch import nn

from mcdrop import MCDropout

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def encoder() -> nn.Module:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.2, batch_first=True)
    return nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(16, 3)).eval()


@pytest.mark.parametrize("masks", ["shared", "independent"])
def test_masks_are_the_same_bits_on_both_devices(masks: str) -> None:
    here = MCDropout(nn.Sequential(nn.Dropout(0.3)), torch.ones(3, 100), task="raw", masks=masks)
    there = here.to("cuda")
    ones = torch.ones(3, 100)
    assert there.device.type == "cuda"
    assert torch.equal(here.sample(ones, num_samples=70, seed=9), there.sample(ones, num_samples=70, seed=9).cpu())


def test_a_program_captured_on_either_device_answers_the_same() -> None:
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1))
    here = MCDropout(encoder(), x, task="regression")
    there = MCDropout(encoder().cuda(), x.cuda(), task="regression")
    back = there.to("cpu")
    for other in (there, here.to("cuda"), back):
        torch.testing.assert_close(other(x, seed=4).mean.cpu(), here(x, seed=4).mean, rtol=1e-4, atol=1e-5)


def test_a_saved_model_loads_onto_the_gpu(tmp_path: object) -> None:
    x = torch.randn(2, 5, 16)
    here = MCDropout(encoder(), x, task="regression")
    here.save(f"{tmp_path}/model")
    there = MCDropout.load(f"{tmp_path}/model", device="cuda")
    torch.testing.assert_close(there(x).variance.cpu(), here(x).variance, rtol=1e-3, atol=1e-6)
