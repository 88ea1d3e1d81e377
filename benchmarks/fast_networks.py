"""Convolutional networks for short trainings on 32x32 pixels, after what the public speed runs on CIFAR-10 found.

A fixed first layer whitens 2x2 patches; blocks of 3x3 convolutions that begin as the identity where their shapes allow
it follow, with pooling between them; the logits are scaled down. The ideas are those of Page (2018), tysam-code's
hlb-CIFAR10 and Jordan's airbench (2024, arXiv 2404.00498); the code is not.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional


class Whitening(nn.Conv2d):
    """A convolution with fixed 2x2 filters, and their negatives, whose outputs are uncorrelated with variance 1.

    The filters are the eigenvectors of the covariance of all patches, divided by the square root of their eigenvalues.
    The bias is trained.

    Args:
        images: normalised images to take the patches from, (N, channels, height, width).
        stride: of the convolution.
        floor: what is added to the eigenvalues.
    """

    def __init__(self, images: Tensor, stride: int = 1, floor: float = 5e-4) -> None:
        channels = images.shape[1]
        super().__init__(channels, 8 * channels, 2, stride=stride)
        patches = functional.unfold(images.double(), 2).transpose(1, 2).flatten(0, 1)
        values, vectors = torch.linalg.eigh(patches.T.cov())
        # The sign of an eigenvector is chance: its largest entry shall be positive.
        largest = vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True))
        filters = (vectors * largest.sign() / (values + floor).sqrt()).T.reshape(-1, channels, 2, 2)
        self.weight = nn.Parameter(torch.cat([filters, -filters]).float(), requires_grad=False)
        nn.init.zeros_(self.bias)


class Block(nn.Module):
    """Convolutions with BatchNorm and GELU; 2x2 pooling after the first one; with `residual` a sum around the others.

    Args:
        inputs: channels that come in.
        outputs: channels that go out.
        depth: number of convolutions.
        residual: whether the outputs of the first one are added to those of the last one.
    """

    def __init__(self, inputs: int, outputs: int, depth: int, residual: bool) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(inputs if i == 0 else outputs, outputs, 3, padding=1, bias=False) for i in range(depth)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(outputs, momentum=0.4) for _ in range(depth))
        self.residual = residual
        for conv in self.convs:
            nn.init.dirac_(conv.weight[: conv.in_channels])

    def forward(self, x: Tensor) -> Tensor:
        """Half the height and width."""
        first = None
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = conv(x) if first is not None else functional.max_pool2d(conv(x), 2)
            x = functional.gelu(norm(x))
            first = x if first is None else first
        return x + first if self.residual else x


class FastNetwork(nn.Module):
    """Whitening, blocks, the largest value of each channel, and a linear layer whose logits are scaled down.

    Args:
        images: normalised images that the first layer whitens, (N, channels, height, width).
        widths: channels of each block.
        depth: convolutions of each block.
        residual: whether a block adds its first output to its last.
        stride: of the first layer.
        classes: number of classes.
    """

    def __init__(
        self, images: Tensor, widths: list[int], depth: int, residual: bool = False, stride: int = 1, classes: int = 10
    ) -> None:
        super().__init__()
        self.whitening = Whitening(images, stride)
        inputs = [self.whitening.out_channels, *widths[:-1]]
        self.blocks = nn.Sequential(*(Block(i, o, depth, residual) for i, o in zip(inputs, widths, strict=True)))
        self.head = nn.Linear(widths[-1], classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, (N, classes)."""
        x = self.blocks(functional.gelu(self.whitening(x)))
        return self.head(x.amax(dim=(2, 3))) / 9
