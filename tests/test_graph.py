import pytest
import torch
from torch import nn

from fp_audit.errors import UnsupportedModel
from fp_audit.graph import last_layer, uses

IMAGES = torch.rand(2, 1, 4, 4)


def found(module):
    layer = last_layer(module.eval(), IMAGES)
    named = {id(parameter): name for name, parameter in module.named_parameters()}
    return {named[id(parameter)] for parameter in layer.parameters}, layer.inputs


def test_a_linear_head():
    module = nn.Sequential(nn.Conv2d(1, 6, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(24, 5))
    assert found(module) == ({"3.weight", "3.bias"}, 24)


def test_a_normalisation_before_the_head_is_not_part_of_it():
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Linear(8, 5))
    assert found(module) == ({"3.weight", "3.bias"}, 8)


def test_a_convolution_straight_before_the_head_is_not_part_of_it():
    class Direct(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution, self.head = nn.Conv2d(1, 6, 4, bias=False), nn.Linear(6, 5, bias=False)

        def forward(self, images):
            return self.head(self.convolution(images).flatten(1))

    assert found(Direct()) == ({"head.weight"}, 6)


def test_a_convolution_as_head():
    module = nn.Sequential(nn.Conv2d(1, 6, 3), nn.Conv2d(6, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert found(module) == ({"1.weight", "1.bias"}, 6)


def test_a_matrix_product_with_untransposed_weights_and_a_separate_bias():
    class Product(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(16, 8)
            self.weight, self.bias = nn.Parameter(torch.rand(8, 5)), nn.Parameter(torch.rand(1, 5))

        def forward(self, images):
            return torch.log_softmax(self.first(images.flatten(1)).relu() @ self.weight + self.bias, 1)

    assert found(Product()) == ({"weight", "bias"}, 8)


def test_two_heads_are_both_last():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.one, self.two = nn.Linear(16, 8), nn.Linear(8, 5), nn.Linear(8, 5)

        def forward(self, images):
            inner = self.body(images.flatten(1))
            return (self.one(inner) + self.two(inner)) / 2

    assert found(Two()) == ({"one.weight", "one.bias", "two.weight", "two.bias"}, 8)


def test_a_network_without_weights_has_no_last_layer():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.factor = nn.Parameter(torch.ones(16))

        def forward(self, images):
            return images.flatten(1) * self.factor

    with pytest.raises(UnsupportedModel, match="no last layer"):
        last_layer(Scale(), IMAGES)


def test_scales_are_told_from_shifts():
    module = nn.Sequential(nn.Flatten(), nn.LayerNorm(16), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Linear(8, 5)).eval()
    named = {id(parameter): name for name, parameter in module.named_parameters()}
    assert {named[id(use.parameter)] for use in uses(module, IMAGES) if use.multiplies} == {"1.weight", "3.weight"}
