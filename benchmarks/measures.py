"""What the rows of the table measure: pieces of work in turn, operators, bytes."""

import argparse
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

import language
import latephase
from latephase.experiments.config import Model
from latephase.experiments.models import build_text_model
from latephase.export import Ensemble
from memory import parked_bytes, resident_bytes
from naive import Naive
from paired import compare_instances
from throughput import Training, above, memory, synchronizer

Options = argparse.Namespace
Values = dict[str, object]
Build = Callable[[], Callable[[], object]]


def settings(options: Options, **changes: object) -> Options:
    """Those of one row: WRN-16-2, batch 32, channels-last, K = 10; with --tiny the smallest network."""
    own = {"depth": 16, "width": 2, "batch": 32, "members": 10, "channels_last": True, "bf16": False, "compile": None}
    own |= changes
    if options.tiny:
        own |= {"depth": 10, "width": 1, "batch": 2, "members": min(int(str(own["members"])), 4)}
        own["compile"] = own["compile"] and "eager"
    return Options(device=options.device, **own)


def paired(options: Options, reference: Build, work: Build, parts: int = 1) -> Values:
    """Samples per second of what `work` builds divided by those of `reference`; a pair is so many calls of each."""

    def build(reference_first: bool) -> tuple[Callable[[], object], Callable[[], object]]:
        if reference_first:
            one = reference()
            return one, work()
        other = work()
        return reference(), other

    clock = time.process_time if options.cpu_time else time.perf_counter
    times, sync = min(options.instances, options.pairs), synchronizer(options.device)
    return vars(compare_instances(build, times, options.pairs // times, sync, clock, parts))


def against_plain(kind: str, **changes: object) -> Callable[[Options], Values]:
    """Late-phase training against plain training."""

    def measure(options: Options) -> Values:
        own = settings(options, **changes)
        if kind.endswith("parallel"):
            return paired(options, lambda: Training(own, "plain").round, lambda: Training(own, kind).round)
        return paired(options, lambda: Training(own, "plain").step, lambda: Training(own, kind).step, own.members)

    return measure


def against_naive(channels_last: bool) -> Callable[[Options], Values]:
    """Late-phase training against K copies with K + 1 optimizers."""

    def measure(options: Options) -> Values:
        own, its = settings(options), settings(options, channels_last=channels_last)
        return paired(options, lambda: Naive(its).step, lambda: Training(own, "late-phase").step, own.members)

    return measure


def layout(options: Options) -> Values:
    """Plain training in channels-last memory against plain training in contiguous memory."""
    own, its = settings(options), settings(options, channels_last=False)
    return paired(options, lambda: Training(its, "plain").step, lambda: Training(own, "plain").step, own.members)


def lstm(options: Options) -> Values:
    """An LSTM with rank-1 members against plain training."""
    name = "lstm-128" if options.tiny else "lstm-500"
    own = Options(device=options.device, members=2 if options.tiny else 10, rank=8)

    def build(family: str | None) -> Callable[[], object]:
        return language.Training(name, own, family, own.members).step

    return paired(options, lambda: build(None), lambda: build("rank-one"), own.members)


def one_large_batch(**changes: object) -> Callable[[Options], Values]:
    """All members in one pass against plain training on as many samples in one minibatch."""

    def measure(options: Options) -> Values:
        own = settings(options, **changes)
        large = Options(**{**vars(own), "batch": own.batch * own.members})
        return paired(
            options, lambda: Training(large, "plain").step, lambda: Training(own, "late-phase, parallel").round
        )

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

        return paired(options, lambda: training(False), lambda: training(True))

    return measure


def loop_memory(options: Options) -> Values:
    """Peaks of the loop."""
    own = settings(options)
    plain = Training(own, "plain")
    plain.round()
    return dict(memory(own, plain)[0])


def parallel_memory(**changes: object) -> Callable[[Options], Values]:
    """Peak of all members in one pass against plain training on as many samples."""

    def measure(options: Options) -> Values:
        own = settings(options, **changes)
        large = Options(**{**vars(own), "batch": own.batch * own.members})
        plain, late = Training(large, "plain"), Training(own, "late-phase, parallel")
        for _ in range(2):
            plain.step(), late.round()
        at_once, parallel = (
            resident_bytes(each.model, each.optimizer) + above(work, torch.device(options.device))
            for each, work in ((plain, plain.step), (late, late.round))
        )
        parallel += parked_bytes(late.late)
        return {"plain at K*B": at_once, "parallel": parallel, "ratio": parallel / at_once}

    return measure


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
    for members in (1, 4) if options.tiny else (1, 4, 16, 64, 256):
        one, many = (partial(Training, settings(options, members=k), "late-phase") for k in (1, members))
        late = many()
        late.step(), late.step()
        count = operators(late.step, options.device)
        ratio = paired(options, lambda build=one: build().step, lambda build=many: build().step, 10)
        found[f"K={members}"] = {**ratio, "operators of a turn": count}
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
    late.model.eval()
    together, x = Ensemble(late), torch.randn(own.batch, 3, 32, 32, device=options.device)

    def at_once() -> torch.Tensor:
        with torch.no_grad():
            return together(x)

    torch.testing.assert_close(at_once(), late.predict(x), rtol=1e-3, atol=1e-3)
    return paired(options, lambda: lambda: late.predict(x), lambda: at_once)
