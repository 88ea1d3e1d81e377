"""Wide residual networks with pre-activation (Zagoruyko and Komodakis, 2016), the paper's model on CIFAR."""

from __future__ import annotations

from torch import Tensor, nn


class WideResNet(nn.Module):
    """WRN-depth-width: three groups of basic blocks with 16, 32 and 64 times `width` channels.

    Between the two convolutions of a block stands a dropout layer of rate 0, which does nothing until it is set.

    Args:
        depth: 6 n + 4 layers, for n blocks in each group.
        width: Widening factor.
        classes: Number of classes.
        channels: Channels of the images.

    Example:
        >>> sum(p.numel() for p in WideResNet(28, 10, classes=10).parameters())
        36479194
    """

    def __init__(self, depth: int, width: int, classes: int, channels: int = 3) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"a wide ResNet has a depth of 10, 16, 22, 28, ...; not {depth}")
        blocks = (depth - 4) // 6
        widths = [16, 16 * width, 32 * width, 64 * width]
        self.stem = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        self.groups = nn.Sequential(
            *(_group(widths[i], widths[i + 1], stride, blocks) for i, stride in enumerate((1, 2, 2)))
        )
        self.norm = nn.BatchNorm2d(widths[3])
        self.relu = nn.ReLU(inplace=True)
        self.classifier = nn.Linear(widths[3], classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Classify images.

        Args:
            x: Images, (N, channels, height, width).

        Returns:
            Logits, (N, classes).
        """
        x = self.relu(self.norm(self.groups(self.stem(x))))
        return self.classifier(x.mean(dim=(2, 3)))


def _group(n_in: int, n_out: int, stride: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(_Block(n_in, n_out, stride), *(_Block(n_out, n_out, 1) for _ in range(blocks - 1)))


class _Block(nn.Module):
    """Two 3x3 convolutions, each after BatchNorm and ReLU; the shortcut branches off after the first activation."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(n_in)
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride=stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(n_out)
        self.dropout = nn.Dropout(0.0)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Conv2d(n_in, n_out, 1, stride=stride, bias=False) if n_in != n_out or stride != 1 else None

    def forward(self, x: Tensor) -> Tensor:
        active = self.relu(self.norm1(x))
        left = x if self.shortcut is None else self.shortcut(active)
        return left + self.conv2(self.dropout(self.relu(self.norm2(self.conv1(active)))))
