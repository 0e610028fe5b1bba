"""A torch network behind a random preprocessing."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from fp_audit.augmentation import Augmentation


class Augmented(nn.Module):
    """From [0, 1] images to the answers of a network, drawn anew in every forward pass; differentiable."""

    def __init__(self, network: nn.Module, augmentation: Augmentation, draws: np.random.Generator) -> None:
        super().__init__()
        self.network = network
        self._augmentation, self._draws = augmentation, draws

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Answer N x C x H x W images."""
        answers: torch.Tensor = self.network(self._augmentation.apply_torch(images, self._draws))
        return answers
