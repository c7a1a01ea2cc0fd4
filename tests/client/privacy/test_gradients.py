"""A patient's gradient is exact for every tensor of the whole model, and a model that would mix patients is refused."""

from __future__ import annotations

import pytest
import torch
from opacus.grad_sample import GradSampleModule
from torch import nn

from client.privacy.faults import PrivacyError
from client.privacy.gradients import PatientGradients
from client.privacy.layers import trained_layers
from dsm_core.config import ModelConfig
from dsm_core.model import SampleWeight
from dsm_core.stages import STAGES

STATE_SPACE = ("A_log", ".D.", "conv1d", "dt_proj", "x_proj")
SMALL = ModelConfig(widths=(8, 8, 16, 16), mamba_blocks=(0, 0, 1, 1), decoder_width=16, query_width=16, mask_width=8)


def patient_gradients(model, losses, patches=1):
    with PatientGradients(model) as watched:
        found = watched.backward(losses(), patches)
        return {name: found[parameter] for name, parameter in model.named_parameters() if parameter in found}


def relative_error(found, wanted):
    if not wanted.any():  # as that of a class row which a step hides
        return float("inf") if found.any() else 0.0
    return ((found - wanted).norm() / wanted.norm()).item()


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(("patients", "patches"), [(3, 1), (2, 2)])
def test_every_tensor_of_a_stage_equals_autograd_with_that_patient_alone(make_task, patients, patches, stage):
    task = make_task(patients * patches, stage=stage)
    found = patient_gradients(task.model, task.losses, patches)
    assert found.keys() == task.trained.keys()
    for patient in range(patients):
        task.model.zero_grad()
        task.losses(slice(patient * patches, (patient + 1) * patches)).mean().backward()
        for name, parameter in task.trained.items():
            assert relative_error(found[name][patient], parameter.grad) < 1e-5, name


@pytest.mark.parametrize(("patients", "patches"), [(3, 1), (2, 2)])
def test_state_space_gradients_equal_autograd_of_that_patient_in_the_same_pass(make_task, patients, patches):
    # PyTorch convolves one sample and a batch by different kernels, whose rounding alone is 9e-6 in these tensors.
    task = make_task(patients * patches)
    found = patient_gradients(task.model, task.losses, patches)
    parameters = {n: p for n, p in task.trained.items() if any(part in n for part in STATE_SPACE)}
    of_patients = task.losses().view(patients, patches).mean(1)
    for patient, loss in enumerate(of_patients):
        wanted = torch.autograd.grad(loss, list(parameters.values()), retain_graph=True)
        for name, gradient in zip(parameters, wanted, strict=True):
            assert relative_error(found[name][patient], gradient) < 2e-6, name


@pytest.mark.filterwarnings("ignore:Full backward hook")
def test_stock_opacus_agrees(make_task):
    task = make_task(2, size=32, config=SMALL)
    found = patient_gradients(task.model, task.losses)
    stock = GradSampleModule(task.model, loss_reduction="sum")
    task.losses().sum().backward()
    stock_gradients = {name: parameter.grad_sample for name, parameter in task.trained.items()}
    stock.to_standard_module()
    for name, gradient in found.items():
        assert relative_error(gradient, stock_gradients[name]) < 1e-5, name


def test_layer_used_twice_and_layer_unused(make_task):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.other, self.unused = nn.Linear(3, 3), nn.Conv1d(1, 1, 3, padding=1), nn.Linear(3, 3)

        def forward(self, x):
            return self.first(self.other(torch.tanh(self.first(x))[:, None])[:, 0]).square().sum(1)

    model, x = Twice(), torch.randn(4, 3)
    found = patient_gradients(model, lambda: model(x), patches=2)
    assert not any(name.startswith("unused") for name in found)
    for patient in range(2):
        model.zero_grad()
        model(x[2 * patient : 2 * patient + 2]).mean().backward()
        for name, gradient in found.items():
            assert torch.allclose(gradient[patient], dict(model.named_parameters())[name].grad, atol=1e-6), name


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv3d(4, 6, 3, stride=2, padding=1),
        nn.Conv3d(4, 4, 3, padding=2, dilation=2, groups=4, bias=False),
        nn.ConvTranspose3d(4, 3, 2, stride=2),
        nn.GroupNorm(2, 4),
        nn.LayerNorm(5),
    ],
    ids=["strided", "depthwise", "transposed", "group norm", "layer norm"],
)
@pytest.mark.parametrize("patches", [1, 2])
def test_each_kind_of_layer(layer, patches):
    torch.manual_seed(0)
    model, x = nn.Sequential(layer), torch.randn(4, 4, 5, 5, 5)

    def losses(rows=slice(None)):
        return model(x[rows]).square().flatten(1).sum(1)

    found = patient_gradients(model, losses, patches)
    assert found.keys() == dict(model.named_parameters()).keys()
    for patient in range(4 // patches):
        model.zero_grad()
        losses(slice(patient * patches, (patient + 1) * patches)).mean().backward()
        for name, parameter in model.named_parameters():
            assert relative_error(found[name][patient], parameter.grad) < 1e-5


def test_frozen_tensors_have_no_gradient_and_nothing_is_left_on_the_model(make_task):
    task = make_task(2, size=16, config=SMALL)
    for name, parameter in task.model.named_parameters():
        parameter.requires_grad_(name.startswith("organ_head"))
    found = patient_gradients(task.model, task.losses)
    assert {name.split(".")[0] for name in found} == {"organ_head"}
    assert all(parameter.grad is None for parameter in task.model.parameters())
    assert not any(layer._forward_hooks for layer in task.model.modules())


def test_every_layer_that_cannot_be_private_is_named_with_its_replacement():
    class Raw(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

    model = nn.ModuleDict(
        {
            "norm": nn.BatchNorm3d(4),
            "attention": nn.MultiheadAttention(4, 1),
            "memory": nn.LSTM(3, 3),
            "raw": Raw(),
            "same": nn.Conv3d(1, 1, 3, padding="same"),
            "fine": SampleWeight(torch.ones(3)),
        }
    )
    with pytest.raises(PrivacyError) as fault:
        trained_layers(model)
    for words in (
        "norm (BatchNorm3d): statistics over the batch mix patients; use nn.GroupNorm",
        "attention (MultiheadAttention)",
        "scaled_dot_product_attention",
        "memory (LSTM)",
        "raw (Raw): no gradient per patient is known for its parameters scale; give each a leaf module",
        "same (Conv3d): padding 'same'",
    ):
        assert words in str(fault.value)
    assert "fine" not in str(fault.value)


def test_frozen_batch_statistics_are_refused_too():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3).requires_grad_(False))
    with pytest.raises(PrivacyError, match=r"1 \(BatchNorm1d\)"):
        trained_layers(model)


def test_layer_called_without_the_patches_as_rows_is_named():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.text = nn.Linear(3, 3)

        def forward(self, x):
            return (x * self.text(torch.ones(1, 3))).sum(1)

    model = Shared()
    with pytest.raises(PrivacyError, match="text was called with 1 rows for 4 patches"):
        patient_gradients(model, lambda: model(torch.randn(4, 3)))
