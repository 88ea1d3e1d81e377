"""A BatchNorm CNN of a few thousand weights, for images of a few pixels."""

from __future__ import annotations

from torch import Tensor, nn


class SmallCNN(nn.Module):
    """3x3 convolutions with BatchNorm and ReLU and one Linear layer.

    Each convolution but the last is followed by 2x2 pooling while the images are larger than 4 pixels; what is then
    still larger is averaged down to 4x4. A dropout layer of rate 0, which does nothing, stands before the classifier.

    Args:
        classes: Number of classes.
        channels: Channels of the images.
        size: Side of the images in pixels.
        width: Channels of the convolutions.
        depth: Number of convolutions.

    Example:
        >>> import torch
        >>> SmallCNN(classes=10, channels=1, size=8)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(self, classes: int, channels: int, size: int, width: int = 8, depth: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i in range(depth):
            conv = nn.Conv2d(channels if i == 0 else width, width, 3, padding=1, bias=False)
            layers += [conv, nn.BatchNorm2d(width), nn.ReLU()]
            if i < depth - 1 and size > 4:
                layers.append(nn.MaxPool2d(2))
                size //= 2
        if size > 4:
            layers.append(nn.AdaptiveAvgPool2d(4))
        self.features = nn.Sequential(*layers)
        self.dropout = nn.Dropout(0.0)
        self.classifier = nn.Linear(width * min(size, 4) ** 2, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Classify images.

        Args:
            x: Images, (N, channels, size, size).

        Returns:
            Logits, (N, classes).
        """
        return self.classifier(self.dropout(self.features(x).flatten(1)))
