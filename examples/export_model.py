"""Train with late-phase weights on scikit-learn's digits, and hand over the averaged model and its members.

Writes into a temporary folder: the averaged model as ONNX and as a torch.export program, and all members as one
module. Needs `pip install 'latephase[experiments,export]'`; takes a few seconds on one core.
"""

import tempfile
from pathlib import Path

import onnxruntime
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import latephase
from latephase.export import Ensemble, verify, write


def network() -> nn.Module:
    """A small BatchNorm CNN for images of 8x8 pixels."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 10),
    )


def main() -> None:
    """Train, collapse, write, and read back."""
    torch.manual_seed(0)
    digits = load_digits()
    images = torch.from_numpy(digits.images).float()[:, None] / 16
    labels = torch.from_numpy(digits.target)
    x, y, test_x, test_y = images[:1500], labels[:1500], images[1500:], labels[1500:]

    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    late = latephase.LatePhase(model, members=5)
    late.optimizer(optimizer)
    for epoch in range(6):
        if epoch == 3:
            late.start()
        for batch in torch.randperm(len(x)).split(50):
            optimizer.zero_grad()
            F.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()

    ensemble = Ensemble(late, output="probabilities")  # before the collapse: the members go with it
    before = model.eval()(test_x)
    model = late.collapse()

    print(verify(network(), model, (test_x,), before=before))
    with tempfile.TemporaryDirectory() as folder:
        written = write(model, (test_x[:2],), Path(folder) / "digits.onnx", "onnx", check=(test_x,))
        print(f"the averaged model: {written.summary}")
        session = onnxruntime.InferenceSession(written.path, providers=["CPUExecutionProvider"])
        (logits,) = session.run(None, {session.get_inputs()[0].name: test_x.numpy()})
        right = (torch.from_numpy(logits).argmax(1) == test_y).float().mean()
        print(f"onnxruntime with it: {right:.1%} of the test images right")

        written = write(ensemble, (test_x[:2],), Path(folder) / "members.pt2", "export", check=(test_x,))
        print(f"its 5 members: {written.summary}")
        members = torch.export.load(written.path).module()
        right = (members(test_x).argmax(1) == test_y).float().mean()
        print(f"their mean probabilities: {right:.1%} of the test images right")


if __name__ == "__main__":
    main()
