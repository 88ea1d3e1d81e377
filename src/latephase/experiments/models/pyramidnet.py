"""Deep pyramidal residual networks (Han, Kim and Kim, 2017), additive, with basic blocks."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

_STEM = 16


class PyramidNet(nn.Module):
    """PyramidNet-depth-alpha: the number of channels grows by the same amount at every block.

    Block k of N has 16 + k alpha / N channels, rounded. A shortcut has no weights: where the image shrinks it is
    averaged over 2x2 pixels, and channels that it lacks are zero.

    Args:
        depth: 6 n + 2 layers, for n blocks in each of three groups.
        alpha: Channels of the last block beyond the first 16.
        classes: Number of classes.
        channels: Channels of the images.

    Example:
        >>> sum(p.numel() for p in PyramidNet(110, 270, classes=10).parameters())
        28485477
    """

    def __init__(self, depth: int, alpha: int, classes: int, channels: int = 3) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"a PyramidNet has a depth of 8, 14, 20, ..., 110, ...; not {depth}")
        if alpha < 1:
            raise ValueError(f"a PyramidNet widens by at least 1 channel, not by {alpha}")
        per_group = (depth - 2) // 6
        blocks = 3 * per_group
        widths = [round(_STEM + alpha * k / blocks) for k in range(blocks + 1)]
        self.stem = nn.Sequential(nn.Conv2d(channels, _STEM, 3, padding=1, bias=False), nn.BatchNorm2d(_STEM))
        self.blocks = nn.Sequential(
            *(
                _Block(widths[k], widths[k + 1], stride=2 if k in (per_group, 2 * per_group) else 1)
                for k in range(blocks)
            )
        )
        self.norm = nn.BatchNorm2d(widths[-1])
        self.relu = nn.ReLU(inplace=True)
        self.classifier = nn.Linear(widths[-1], classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Classify images.

        Args:
            x: Images, (N, channels, height, width).

        Returns:
            Logits, (N, classes).
        """
        x = self.relu(self.norm(self.blocks(self.stem(x))))
        return self.classifier(x.mean(dim=(2, 3)))


class _Block(nn.Module):
    """Two 3x3 convolutions with a BatchNorm before, between and after, and one ReLU between."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(n_in)
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride=stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(n_out)
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(0.0)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        self.norm3 = nn.BatchNorm2d(n_out)
        self.stride, self.missing = stride, n_out - n_in

    def forward(self, x: Tensor) -> Tensor:
        y = self.dropout(self.relu(self.norm2(self.conv1(self.norm1(x)))))
        y = self.norm3(self.conv2(y))
        left = x if self.stride == 1 else F.avg_pool2d(x, 2, ceil_mode=True)
        return y + F.pad(left, (0, 0, 0, 0, 0, self.missing)) if self.missing else y + left
