"""Late-phase training against plain training of the same model on the same batches: throughput, memory, evaluation.

Prints a table; --json writes it with device, versions and commit.
"""

import argparse
from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.nn import functional

import latephase
from environment import save
from latephase.experiments.models.wide_resnet import WideResNet
from memory import parked_bytes, peak_bytes, resident_bytes
from paired import Ratio, compare

CLASSES = 10


class Training:
    """A WRN and its SGD, stepping over a few resident batches.

    Args:
        options: batch size, depth, width, device, memory format, members, precision, whether to compile.
        kind: "plain", "late-phase", "late-phase, in place", "late-phase, parallel" (a round in one pass), "no step"
            (the limit: forward and backward alone) or "accumulation" (gradients added up over K minibatches, one step
            of everything).
    """

    def __init__(self, options: argparse.Namespace, kind: str) -> None:
        torch.manual_seed(0)
        device = torch.device(options.device)
        layout = torch.channels_last if options.channels_last else torch.contiguous_format
        self.kind, self.members, self.done = kind, options.members, 0
        self.late: latephase.LatePhase | None = None
        self.precision = partial(torch.autocast, device.type, torch.bfloat16, enabled=options.bf16)
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
        if options.compile and kind.endswith("parallel"):
            self.late.compile_parallel(backend=options.compile)
        elif options.compile:
            self.model.compile(backend=options.compile)
        if kind.endswith("parallel"):
            every = [self.batches[k % 2] for k in range(self.members)]
            self.batches = [tuple(torch.cat(parts) for parts in zip(*every, strict=True))]

    def step(self) -> None:
        """One minibatch."""
        x, y = self.batches[self.done % len(self.batches)]
        accumulating = self.kind == "accumulation" and self.done % self.members
        if not accumulating:
            self.optimizer.zero_grad()
        forward = self.late.parallel if self.kind.endswith("parallel") else self.model
        with self.precision():
            loss = functional.cross_entropy(forward(x), y)
        loss.backward()
        self.done += 1
        if self.kind == "no step" or (self.kind == "accumulation" and self.done % self.members):
            return
        self.optimizer.step()

    def round(self) -> None:
        """As many minibatches as there are members."""
        for _ in range(1 if self.kind.endswith("parallel") else self.members):
            self.step()


def evaluation(options: argparse.Namespace, plain: nn.Module, collapsed: nn.Module, pairs: int) -> Ratio:
    """The collapsed model's forward pass against the plain model's."""
    x = torch.randn(options.batch, 3, 32, 32, device=options.device)

    def forward(model: nn.Module) -> Callable[[], object]:
        def run() -> object:
            with torch.inference_mode():
                return model(x)

        return run

    return compare(forward(plain.eval()), forward(collapsed.eval()), pairs, synchronize=synchronizer(options.device))


def synchronizer(device: str) -> Callable[[], None]:
    """What waits for a device."""
    return torch.cuda.synchronize if device.startswith("cuda") else lambda: None


def above(work: Callable[[], object], device: torch.device) -> int:
    """Peak of the memory that a piece of work allocates, above what stands before it."""
    before = torch.cuda.memory_allocated() if device.type == "cuda" else 0
    return peak_bytes(work, device) - before


def memory(options: argparse.Namespace, plain: Training) -> tuple[dict[str, float], latephase.LatePhase]:
    """Peaks in bytes and relative to plain training, and the phase they are of."""
    late, frugal = Training(options, "late-phase"), Training(options, "late-phase, in place")
    for training in (late, frugal):
        training.round()
    device = torch.device(options.device)
    peaks = [above(training.round, device) for training in (plain, late, frugal)]
    resident = resident_bytes(plain.model, plain.optimizer)
    gradients = sum(p.numel() * p.element_size() for p in late.late.base_parameters())
    found: dict[str, float] = {
        "plain": resident + peaks[0],
        "late-phase": resident + peaks[1] + parked_bytes(late.late),
        "late-phase, in place": resident + peaks[2] + parked_bytes(frugal.late),
        "parked members": parked_bytes(late.late),
        "base gradients": gradients,
    }
    found["late-phase without parked members and one copy of the base gradients / plain"] = (
        found["late-phase"] - found["parked members"] - gradients
    ) / found["plain"]
    found["in place, without parked members / plain"] = (
        found["late-phase, in place"] - found["parked members"]
    ) / found["plain"]
    return found, late.late


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
    parser.add_argument("--bf16", action="store_true", help="autocast")
    parser.add_argument("--compile", nargs="?", const="inductor", help="with torch.compile, and this backend of it")
    parser.add_argument("--limits", action="store_true", help="also: no optimizer step, and accumulation alone")
    parser.add_argument("--json", help="write the table to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    plain = Training(options, "plain")
    rows: dict[str, object] = {}
    kinds = ["late-phase", "late-phase, in place"] + (["no step", "accumulation"] if options.limits else [])
    for kind in kinds:
        other = Training(options, kind)
        ratio = compare(
            plain.step, other.step, options.pairs, synchronize=synchronizer(options.device), parts=options.members
        )
        rows[f"{kind} / plain, samples per second"] = vars(ratio)
        print(f"{kind} / plain, samples per second: {ratio}", flush=True)

    peaks, late = memory(options, plain)
    rows["peak memory, bytes"] = peaks
    for name, value in peaks.items():
        print(f"peak memory: {name}: {value:,.4g}" if value < 10 else f"peak memory: {name}: {value:,.0f} bytes")

    collapsed = late.collapse()
    ratio = evaluation(options, plain.model, collapsed, options.pairs)
    rows["eval of the collapsed model / plain, samples per second"] = vars(ratio)
    print(f"eval of the collapsed model / plain, samples per second: {ratio}")
    if options.json:
        save(options.json, options, rows)


if __name__ == "__main__":
    main()
