"""The whole table of what late-phase training costs, each row beside its target; writes results/speed/DEVICE.json.

    python benchmarks/table.py --device cpu --threads 2
    python benchmarks/table.py --device cuda
    python benchmarks/table.py --device cpu --tiny --pairs 6     # every row, at sizes that mean nothing

Times are ratios of two pieces of work in turn in one process; operators and bytes are counted. Rows for an accelerator
say "not measured" where there is none. A row that is measured again replaces the one in the file and the others stay,
so that --only can go through the table in several calls.
"""

import argparse
import dataclasses
import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

import language
import latephase
from environment import environment
from latephase.experiments.config import Model
from latephase.experiments.models import build_text_model
from memory import parked_bytes, resident_bytes
from naive import Naive
from paired import compare
from throughput import Training, above, memory, synchronizer

Options = argparse.Namespace
Values = dict[str, object]
ACCELERATOR = "not measured: needs an accelerator"


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table.

    Args:
        work: what is measured.
        target: what it should be.
        measure: does so.
        accelerator: whether a figure from a CPU means nothing.
    """

    work: str
    target: str
    measure: Callable[[Options], Values]
    accelerator: bool = False


def settings(options: Options, **changes: object) -> Options:
    """Those of one row: WRN-16-2, batch 32, channels-last, K = 10; with --tiny the smallest network."""
    own = {"depth": 16, "width": 2, "batch": 32, "members": 10, "channels_last": True, "bf16": False, "compile": None}
    own |= changes
    if options.tiny:
        own |= {"depth": 10, "width": 1, "batch": 2, "members": min(int(str(own["members"])), 4)}
        own["compile"] = own["compile"] and "eager"
    return Options(device=options.device, **own)


def paired(options: Options, reference: Callable[[], object], work: Callable[[], object], parts: int = 1) -> Values:
    """Samples per second of `work` divided by those of `reference`; a pair is so many calls of each, in turn."""
    clock = time.process_time if options.cpu_time else time.perf_counter
    sync = synchronizer(options.device)
    return vars(compare(reference, work, options.pairs, warmup=2, synchronize=sync, clock=clock, parts=parts))


def against_plain(kind: str, **changes: object) -> Callable[[Options], Values]:
    """Late-phase training against plain training."""

    def measure(options: Options) -> Values:
        own = settings(options, **changes)
        plain, late = Training(own, "plain"), Training(own, kind)
        if kind.endswith("parallel"):
            return paired(options, plain.round, late.round)
        return paired(options, plain.step, late.step, own.members)

    return measure


def against_naive(channels_last: bool) -> Callable[[Options], Values]:
    """Late-phase training against K copies with K + 1 optimizers."""

    def measure(options: Options) -> Values:
        own = settings(options)
        naive = Naive(settings(options, channels_last=channels_last))
        return paired(options, naive.step, Training(own, "late-phase").step, own.members)

    return measure


def lstm(options: Options) -> Values:
    """An LSTM with rank-1 members against plain training."""
    name = "lstm-128" if options.tiny else "lstm-500"
    own = Options(device=options.device, members=2 if options.tiny else 10, rank=8)
    plain, late = (language.Training(name, own, family, own.members) for family in (None, "rank-one"))
    return paired(options, plain.step, late.step, own.members)


def one_large_batch(**changes: object) -> Callable[[Options], Values]:
    """All members in one pass against plain training on as many samples in one minibatch."""

    def measure(options: Options) -> Values:
        own = settings(options, **changes)
        large = Options(**{**vars(own), "batch": own.batch * own.members})
        return paired(options, Training(large, "plain").step, Training(own, "late-phase, parallel").round)

    return measure


class Logits(nn.Module):
    """A language model without its state."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.inner = build_text_model(Model(name), vocabulary=language.VOCABULARY, seed=0)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits of the next character."""
        return self.inner(tokens)[0]


def transformer(family: str | latephase.LoRA) -> Callable[[Options], Values]:
    """A decoder's members in one pass against plain training on as many rows."""

    def measure(options: Options) -> Values:
        name, members, rows, length = (
            ("transformer-3-96", 2, 1, 8) if options.tiny else ("transformer-6-384", 10, 16, 512)
        )
        tokens = torch.randint(language.VOCABULARY, (members * rows, length + 1), device=options.device)

        def training(late_phase: bool) -> Callable[[], None]:
            model = Logits(name).to(options.device)
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
            forward: Callable[[torch.Tensor], torch.Tensor] = model
            if late_phase:
                late = latephase.LatePhase(model, members=members, weights=[family])
                late.optimizer(optimizer)
                late.start()
                forward = late.parallel

            def step() -> None:
                optimizer.zero_grad()
                functional.cross_entropy(forward(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()).backward()
                optimizer.step()

            return step

        return paired(options, training(False), training(True))

    return measure


def loop_memory(options: Options) -> Values:
    """Peaks of the loop."""
    own = settings(options)
    plain = Training(own, "plain")
    plain.round()
    return dict(memory(own, plain)[0])


def parallel_memory(options: Options) -> Values:
    """Peak of all members in one pass against plain training on as many samples."""
    own = settings(options)
    large = Options(**{**vars(own), "batch": own.batch * own.members})
    plain, late = Training(large, "plain"), Training(own, "late-phase, parallel")
    plain.step(), late.round()
    peaks = [
        resident_bytes(each.model, each.optimizer) + above(work, torch.device(options.device))
        for each, work in ((plain, plain.step), (late, late.round))
    ]
    return {
        "plain at K*B": peaks[0],
        "parallel": peaks[1] + parked_bytes(late.late),
        "ratio": (peaks[1] + parked_bytes(late.late)) / peaks[0],
    }


def operators(work: Callable[[], object], device: str) -> int:
    """Operators that a piece of work calls; on a GPU kernels that it launches."""
    cuda = device.startswith("cuda")
    kinds = [ProfilerActivity.CPU, ProfilerActivity.CUDA] if cuda else [ProfilerActivity.CPU]
    with profile(activities=kinds) as recorded:
        work()
        synchronizer(device)()
    events = recorded.events() or []
    if cuda:
        return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in events)
    # What an operator calls within itself is its own affair: on a CPU a foreach call copies one tensor at a time.
    return sum(event.name.startswith("aten::") and not _inside_an_operator(event) for event in events)


def _inside_an_operator(event: object) -> bool:
    parent = getattr(event, "cpu_parent", None)
    return parent is not None and (parent.name.startswith("aten::") or _inside_an_operator(parent))


def counted(options: Options) -> Values:
    """Operators of a plain step, of turns, and of a round in one pass."""
    own = settings(options)
    plain, late, one = (Training(own, kind) for kind in ("plain", "late-phase", "late-phase, parallel"))
    plain.round(), late.round(), one.round(), late.step()
    found: Values = {"plain step": operators(plain.step, options.device)}
    found["a turn"] = operators(late.step, options.device)
    found["a round of turns"] = operators(late.round, options.device)
    found["a round in one pass"] = operators(one.round, options.device)
    return found


def growth(options: Options) -> Values:
    """Time of K turns with K members relative to as many turns with one member, and operators of a turn."""
    found: Values = {}
    one = Training(settings(options, members=1), "late-phase")
    for members in (1, 4) if options.tiny else (1, 4, 16, 64, 256):
        late = Training(settings(options, members=members), "late-phase")
        late.step(), late.step()
        count = operators(late.step, options.device)
        found[f"K={members}"] = {**paired(options, late.step, one.step, 10), "operators of a turn": count}
    return found


def life(options: Options) -> Values:
    """Start, evaluation mode and collapse in units of a plain step: medians of times, and operators."""
    own = settings(options)
    plain = Training(own, "plain")
    plain.step()
    times: dict[str, list[float]] = {}

    def timed(name: str, work: Callable[[], object]) -> None:
        synchronizer(options.device)()
        begun = time.perf_counter()
        work()
        synchronizer(options.device)()
        times.setdefault(name, []).append(time.perf_counter() - begun)

    late = Training(own, "late-phase").late
    late.collapse()
    for _ in range(max(5, options.pairs // 4)):
        training = Training(own, "plain")
        training.step()
        timed("step", plain.step)
        phase = latephase.LatePhase(training.model, members=own.members)
        phase.optimizer(training.optimizer)
        timed("start()", phase.start)
        training.step()
        timed("eval(), after an update", training.model.eval)
        training.model.train()
        timed("eval(), again", training.model.eval)
        timed("collapse()", phase.collapse)
    middle = {name: sorted(values)[len(values) // 2] for name, values in times.items()}
    return {name: value / middle["step"] for name, value in middle.items() if name != "step"}


def prediction(options: Options) -> Values:
    """K members' predictions in one vectorised pass against `predict`, one pass a member."""
    own = settings(options, depth=10, width=1, batch=64)
    late = Training(own, "late-phase").late
    model = late.model.eval()
    x = torch.randn(own.batch, 3, 32, 32, device=options.device)
    values = late.state_dict()["values"]

    def one(member: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.func.functional_call(model, member, x)

    def together() -> None:
        with torch.no_grad():
            torch.vmap(one)(values)

    torch.testing.assert_close(torch.vmap(one)(values), late.predict(x), rtol=1e-3, atol=1e-3)
    return paired(options, lambda: late.predict(x), together)


def keep(file: Path, row: Row, found: object, here: Values, options: Options, seconds: float) -> None:
    """Put a row into the file, among those that earlier calls have measured, each with what it was measured on."""
    kept = json.loads(file.read_text())["rows"] if file.exists() else {}
    settings = {"threads": options.threads, "clock": "CPU seconds" if options.cpu_time else "seconds"}
    kept[row.work] = {"target": row.target, "measured": found, "took, s": round(seconds), **here, **settings}
    ordered = {each.work: kept[each.work] for each in ROWS if each.work in kept}
    file.write_text(json.dumps({"rows": ordered}, indent=1) + "\n")


WRN_28 = {"depth": 28, "width": 10, "batch": 128, "bf16": True}
SMALL = {"depth": 16, "width": 1, "batch": 64}
ROWS = [
    Row("operators, WRN-16-2, K = 10", "at most 3 more in a turn than in a plain step", counted),
    Row("WRN-16-2, B=32, K=10: loop / plain", "lower end >= 0.99", against_plain("late-phase")),
    Row("the same, no optimizer step at all", "the limit", against_plain("no step")),
    Row("the same / K copies with K+1 optimizers, contiguous", ">= 1.3", against_naive(False)),
    Row("the same / K copies with K+1 optimizers, channels-last", ">= 1.0", against_naive(True)),
    Row("LSTM-500, B=32, T=128, rank-1, K=10: loop / plain", ">= 0.98", lstm),
    Row("WRN-28-10, B=128, bf16: loop / plain", ">= 1.00", against_plain("late-phase", **WRN_28), True),
    Row("the same, compiled", ">= 1.00", against_plain("late-phase", **WRN_28, compile="inductor"), True),
    Row("WRN-16-1, B=64: parallel / plain at B", ">= 4", against_plain("late-phase, parallel", **SMALL), True),
    Row("WRN-16-1, B=64: parallel / plain at K*B", ">= 0.90", one_large_batch(**SMALL), True),
    Row("the same, compiled", ">= 0.90", one_large_batch(**SMALL, compile="inductor"), True),
    Row("transformer, norms: parallel / plain at K*B", ">= 0.90", transformer("norm"), True),
    Row("transformer, LoRA: parallel / plain at K*B", ">= 0.90", transformer(latephase.LoRA(rank=8)), True),
    Row("peak memory, loop, bytes", "<= 1.02 x plain + stacks + base gradients; in place without these", loop_memory),
    Row("peak memory, parallel, bytes", "<= 1.05 x plain at K*B", parallel_memory),
    Row("WRN-10-1, B=64: K members in one pass / predict()", ">= 3", prediction, True),
    Row("time of a turn with one member / with K", "flat within 1%", growth),
    Row("in units of a plain step", "< 1 each", life),
]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--only", nargs="*", default=[""], help="parts of rows' names")
    parser.add_argument("--tiny", action="store_true", help="every row, at sizes whose figures mean nothing")
    parser.add_argument("--cpu-time", action="store_true", help="count the process's own seconds: for a busy machine")
    parser.add_argument("--json", help="file to write; by default results/speed/DEVICE.json, and none with --tiny")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    here = environment(torch.device(options.device))
    device = re.sub(r"\W+", "-", str(here["device"])).strip("-").lower()
    file = options.json or (None if options.tiny else f"results/speed/{device}.json")
    for row in ROWS:
        if any(part in row.work for part in options.only):
            skipped = row.accelerator and not options.device.startswith("cuda") and not options.tiny
            begun = time.perf_counter()
            found = ACCELERATOR if skipped else row.measure(options)
            print(f"{row.work}\n  target {row.target}\n  {found}", flush=True)
            if file:
                keep(Path(file), row, found, here, options, time.perf_counter() - begun)


if __name__ == "__main__":
    main()
