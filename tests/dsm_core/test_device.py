"""A device is used where it is there, and named where it is not."""

import pytest
import torch

from dsm_core.device import DeviceError, find_device


def test_auto_is_cuda_where_there_is_one(monkeypatch):
    assert find_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert find_device("auto") == torch.device("cpu")
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "zeros", lambda *_, device: asked.append(device))
    assert find_device("auto") == asked[0] == torch.device("cuda")


@pytest.mark.parametrize("name", ["cuda:97", "abacus"])
def test_a_device_that_is_not_there_is_named(name):
    with pytest.raises(DeviceError, match=f"device {name} is not available here: "):
        find_device(name)


@pytest.mark.gpu
def test_cuda_is_found():
    assert find_device("auto").type == find_device("cuda").type == "cuda"
