"""Small convolutional networks of four families; each of their one to three stages halves the image.

- ``plain``: convolution, BatchNorm, ReLU
- ``residual``: two normalised convolutions around a shortcut
- ``depthwise``: an inverted bottleneck with a convolution of each channel by itself
- ``lenet``: 5 x 5 convolutions without normalisation, and two linear layers

The first stage of ``residual`` and ``depthwise`` is that of ``plain``: at the full size of the image their own would
take more time than all others together.
"""

from __future__ import annotations

from torch import Tensor, nn


class _Centre(nn.Module):
    """Bring [0, 1] images to about zero mean and unit deviation."""

    def forward(self, images: Tensor) -> Tensor:
        return (images - 0.5) / 0.25


class _Residual(nn.Module):
    """Two normalised convolutions around a shortcut (He et al., CVPR 2016)."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*_conv(channels, out), nn.ReLU(), *_conv(out, out))
        self.shortcut = nn.Identity() if channels == out else nn.Conv2d(channels, out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x) + self.shortcut(x)
        return out.relu()


def _conv(channels: int, out: int, groups: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(channels, out, 3, padding=1, groups=groups, bias=False), nn.BatchNorm2d(out)]


def _block(family: str, channels: int, out: int) -> nn.Module:
    """Return one stage of a family, ``channels`` to ``out`` at the same height and width."""
    if family == "plain":
        return nn.Sequential(*_conv(channels, out), nn.ReLU())
    if family == "residual":
        return _Residual(channels, out)
    if family == "depthwise":
        point = [nn.Conv2d(channels, 2 * out, 1, bias=False), nn.BatchNorm2d(2 * out), nn.ReLU()]
        return nn.Sequential(*point, *_conv(2 * out, 2 * out, groups=2 * out), nn.ReLU(), nn.Conv2d(2 * out, out, 1))
    return nn.Sequential(nn.Conv2d(channels, out, 5, padding=2), nn.ReLU())


def build(family: str, width: int, classes: int, shape: tuple[int, int, int], *, max_side: int = 64) -> nn.Module:
    """Build an untrained network from [0, 1] images to logits; its weights come from torch's global generator.

    Args:
        family: see above.
        width: channels of the first stage; each stage doubles them.
        classes: number of outputs.
        shape: C, H, W of the images.
        max_side: larger images are shrunk to this many pixels a side.
    """
    channels, high, wide = shape
    shrink = max(high, wide) / max_side
    blocks: list[nn.Module] = [_Centre()]
    if shrink > 1:
        blocks.append(nn.AdaptiveAvgPool2d((round(high / shrink), round(wide / shrink))))
    side = min(high, wide, max_side)
    stages = max(1, min(3, side.bit_length() - 2))
    last = channels
    for stage in range(stages):
        out = width * 2**stage
        kind = family if stage or family == "lenet" else "plain"
        blocks += [_block(kind, last, out), nn.MaxPool2d(2)]
        last = out
    if family == "lenet":
        blocks += [
            nn.AdaptiveAvgPool2d(3),
            nn.Flatten(),
            nn.Linear(9 * last, 96),
            nn.ReLU(),
            nn.Linear(96, classes),
        ]
    else:
        blocks += [
            _block(family, last, last),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(last, classes),
        ]
    return nn.Sequential(*blocks)
