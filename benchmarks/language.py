"""Late-phase training of language models against plain training on the same batches: throughput and memory.

An LSTM with rank-1 members and a decoder-only transformer with members of its norms, of rank-1 factors and of low-rank
adapters. Members, factors and plain training go in turn, a round of K minibatches each. Prints a table; --json writes
it with device, versions and commit.
"""

import argparse
import dataclasses
import time

import torch
from torch import nn
from torch.nn import functional

import latephase
from environment import save
from latephase.experiments.config import Model
from latephase.experiments.models import build_text_model
from memory import parked_bytes, peak_bytes, resident_bytes
from paired import compare

VOCABULARY = 205
# Model, characters of a row, rows, families.
SETTINGS = {
    "lstm-500": (128, 32, ["rank-one"]),
    "lstm-128": (64, 32, ["rank-one"]),
    "transformer-3-96": (128, 16, ["norm", "rank-one", "lora"]),
    "transformer-6-384": (512, 16, ["norm", "rank-one", "lora"]),
}


class Training:
    """A model and its AdamW on two resident minibatches.

    Args:
        name: Model, a key of `SETTINGS`.
        options: Device, threads, members, rank.
        family: Family of late-phase weights; None for plain training.
        members: K.
    """

    def __init__(self, name: str, options: argparse.Namespace, family: str | None, members: int) -> None:
        length, rows, _ = SETTINGS[name]
        self.device, self.minibatches, self.done = torch.device(options.device), options.members, 0
        self.model: nn.Module = build_text_model(Model(name), vocabulary=VOCABULARY, seed=0).to(self.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(VOCABULARY, (2, rows, length + 1), generator=generator).to(self.device)
        self.batches = [(row[:, :-1], row[:, 1:].flatten()) for row in tokens]
        self.late: latephase.LatePhase | None = None
        if family is not None:
            weights = latephase.LoRA(rank=options.rank) if family == "lora" else family
            self.late = latephase.LatePhase(self.model, members=members, weights=[weights])
            self.late.optimizer(self.optimizer)
            self.late.start()

    def step(self) -> None:
        """One minibatch."""
        x, y = self.batches[self.done % 2]
        self.done += 1
        self.optimizer.zero_grad()
        logits, _ = self.model(x)
        functional.cross_entropy(logits.flatten(0, 1), y).backward()
        self.optimizer.step()

    def round(self) -> None:
        """K minibatches, also where there are no members."""
        for _ in range(self.minibatches):
            self.step()


def measure(name: str, family: str, options: argparse.Namespace) -> dict[str, object]:
    """Throughput of the members relative to plain training and to one set of factors, and memory relative to plain."""
    clock = time.process_time if options.cpu_time else time.perf_counter
    sync = torch.cuda.synchronize if options.device.startswith("cuda") else lambda: None
    timing = {"warmup": 2, "synchronize": sync, "clock": clock, "parts": options.members}
    plain, late = Training(name, options, None, 1), Training(name, options, family, options.members)
    ratio = compare(plain.step, late.step, options.pairs, **timing)
    row: dict[str, object] = {"late-phase / plain, samples per second": dataclasses.asdict(ratio)}
    print(f"{name}, {family}: late-phase / plain, samples per second: {ratio}", flush=True)
    if family != "norm":
        alone = Training(name, options, family, 1)
        ratio = compare(alone.step, late.step, options.pairs, **timing)
        row["late-phase / one set of factors, samples per second"] = dataclasses.asdict(ratio)
        print(f"{name}, {family}: late-phase / one set of factors, samples per second: {ratio}", flush=True)
    assert late.late is not None
    whole = [
        resident_bytes(t.model, t.optimizer) + peak_bytes(t.round, t.device)
        if t.device.type == "cpu"
        else peak_bytes(t.round, t.device)
        for t in (plain, late)
    ]
    parked = parked_bytes(late.late)
    if late.device.type == "cpu":
        whole[1] += parked
    row["peak memory, bytes"] = {"plain": whole[0], "late-phase": whole[1], "parked members": parked}
    print(
        f"{name}, {family}: peak memory {whole[1] / whole[0]:.3f} x plain ({whole[0] / 1e6:.1f} MB); "
        f"the parked members are {parked / whole[0]:.3f} of it",
        flush=True,
    )
    return row


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--members", type=int, default=10)
    parser.add_argument("--rank", type=int, default=8, help="of the low-rank adapters")
    parser.add_argument("--pairs", type=int, default=40, help="pairs of rounds, each of K minibatches")
    parser.add_argument("--only", help="part of a model's name")
    parser.add_argument("--families", nargs="*", help="families; by default all of the model")
    parser.add_argument("--cpu-time", action="store_true", help="count the process's own seconds: for a busy machine")
    parser.add_argument("--json", help="write the table to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = {
        f"{name}, {family}": measure(name, family, options)
        for name, (_, _, families) in SETTINGS.items()
        for family in families
        if (options.only is None or options.only in name) and (not options.families or family in options.families)
    }
    if options.json:
        save(options.json, options, rows)


if __name__ == "__main__":
    main()
