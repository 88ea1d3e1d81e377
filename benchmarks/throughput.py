"""Late-phase training against plain training of the same model on the same batches: throughput, memory, evaluation.

Prints a table; --json writes it with device, versions and commit.
"""

import argparse
import json
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

import latephase
from environment import environment
from latephase.experiments.models.wide_resnet import WideResNet
from memory import parked_bytes, peak_bytes, resident_bytes
from paired import Ratio, compare

CLASSES = 10


class Training:
    """A WRN and its SGD, stepping over a few resident batches.

    Args:
        options: batch size, depth, width, device, memory format, members.
        kind: "plain", "late-phase", "no step" (the limit: forward and backward alone) or "accumulation" (gradients
            added up over K minibatches, one step of everything).
    """

    def __init__(self, options: argparse.Namespace, kind: str) -> None:
        torch.manual_seed(0)
        device = torch.device(options.device)
        layout = torch.channels_last if options.channels_last else torch.contiguous_format
        self.kind, self.members, self.done = kind, options.members, 0
        model = WideResNet(options.depth, options.width, classes=CLASSES)
        self.model: nn.Module = model.to(device, memory_format=layout)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4
        )
        self.batches = [
            (
                torch.randn(options.batch, 3, 32, 32, device=device).contiguous(memory_format=layout),
                torch.randint(0, CLASSES, (options.batch,), device=device),
            )
            for _ in range(2)
        ]
        if kind.startswith("late-phase"):
            accumulate = "in_place" if kind.endswith("in place") else "copy"
            self.late = latephase.LatePhase(self.model, members=options.members, accumulate=accumulate)
            self.late.optimizer(self.optimizer)
            self.late.start()

    def step(self) -> None:
        """One minibatch."""
        x, y = self.batches[self.done % len(self.batches)]
        accumulating = self.kind == "accumulation" and self.done % self.members
        if not accumulating:
            self.optimizer.zero_grad()
        functional.cross_entropy(self.model(x), y).backward()
        self.done += 1
        if self.kind == "no step" or (self.kind == "accumulation" and self.done % self.members):
            return
        self.optimizer.step()

    def round(self) -> None:
        """As many minibatches as there are members."""
        for _ in range(self.members):
            self.step()


def evaluation(options: argparse.Namespace, plain: nn.Module, collapsed: nn.Module, pairs: int) -> Ratio:
    """The collapsed model's forward pass against the plain model's."""
    x = torch.randn(options.batch, 3, 32, 32, device=options.device)

    def forward(model: nn.Module) -> Callable[[], object]:
        def run() -> object:
            with torch.inference_mode():
                return model(x)

        return run

    return compare(forward(plain.eval()), forward(collapsed.eval()), pairs, synchronize=_sync(options))


def _sync(options: argparse.Namespace) -> Callable[[], None]:
    return torch.cuda.synchronize if options.device.startswith("cuda") else lambda: None


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--depth", type=int, default=16)
    parser.add_argument("--width", type=int, default=2)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--members", type=int, default=10)
    parser.add_argument("--pairs", type=int, default=40, help="pairs of rounds, each of K minibatches")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--contiguous", dest="channels_last", action="store_false")
    parser.add_argument("--limits", action="store_true", help="also: no optimizer step, and accumulation alone")
    parser.add_argument("--json", help="write the table to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    plain = Training(options, "plain")
    rows: dict[str, object] = {}
    kinds = ["late-phase", "late-phase, in place"] + (["no step", "accumulation"] if options.limits else [])
    for kind in kinds:
        other = Training(options, kind)
        ratio = compare(plain.round, other.round, options.pairs, synchronize=_sync(options))
        rows[f"{kind} / plain, samples per second"] = vars(ratio)
        print(f"{kind} / plain, samples per second: {ratio}", flush=True)

    late, frugal = Training(options, "late-phase"), Training(options, "late-phase, in place")
    for training in (late, frugal):
        training.round()
    device = torch.device(options.device)
    peaks = [peak_bytes(training.round, device) for training in (plain, late, frugal)]
    resident = resident_bytes(plain.model, plain.optimizer)
    gradients = sum(p.numel() * p.element_size() for p in late.late.base_parameters())
    memory = {
        "plain": resident + peaks[0],
        "late-phase": resident + peaks[1] + parked_bytes(late.late),
        "late-phase, in place": resident + peaks[2] + parked_bytes(frugal.late),
        "parked members": parked_bytes(late.late),
        "base gradients": gradients,
    }
    memory["late-phase without parked members and one copy of the base gradients / plain"] = (
        memory["late-phase"] - memory["parked members"] - gradients
    ) / memory["plain"]
    memory["in place, without parked members / plain"] = (
        memory["late-phase, in place"] - memory["parked members"]
    ) / memory["plain"]
    rows["peak memory, bytes"] = memory
    for name, value in memory.items():
        print(f"peak memory: {name}: {value:,.4g}" if value < 10 else f"peak memory: {name}: {value:,.0f} bytes")

    collapsed = late.late.collapse()
    ratio = evaluation(options, plain.model, collapsed, options.pairs)
    rows["eval of the collapsed model / plain, samples per second"] = vars(ratio)
    print(f"eval of the collapsed model / plain, samples per second: {ratio}")
    if options.json:
        settings = {key: value for key, value in vars(options).items() if key != "json"}
        measured = environment(torch.device(options.device))
        with open(options.json, "w") as file:
            json.dump({"environment": measured, "settings": settings, "rows": rows}, file, indent=1)
            file.write("\n")


if __name__ == "__main__":
    main()
