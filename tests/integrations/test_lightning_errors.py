"""What cannot work with LatePhaseCallback is refused at set-up, and leaves the module as it was."""

import copy
import doctest
import pickle
import re
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelPruning, StochasticWeightAveraging
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lit import (
    MEMBERS,
    OWN_WARNINGS,
    PER_EPOCH,
    QUIET,
    Lit,
    Manual,
    Resumable,
    assert_equal,
    assert_trained_as,
    batches,
    fit,
    network,
    plain_loop,
)

import latephase
from latephase.integrations import lightning as integration
from latephase.integrations import snapshots
from latephase.integrations._lightning_checks import NOT_STRATEGIES, STRATEGIES
from latephase.integrations.lightning import LatePhaseCallback

pytestmark = [pytest.mark.filterwarnings(warning) for warning in OWN_WARNINGS]


def refused(words: str, module: Lit | None = None, callback: LatePhaseCallback | None = None, **options) -> None:
    """`fit` raises before the first step, and neither the module nor its class keeps anything."""
    module = Lit() if module is None else module
    callback = LatePhaseCallback(MEMBERS, start=3) if callback is None else callback
    steps = []
    spy = pl.callbacks.LambdaCallback(on_train_batch_start=lambda *_: steps.append(1))
    with pytest.raises(latephase.LatePhaseError, match=words):
        fit(module, [callback, *options.pop("callbacks", []), spy], **options)
    assert not steps
    assert_equal(dict(module.net.state_dict()), dict(network(module.net[0].weight.dtype).state_dict()))
    assert not {"train", "configure_model"} & set(module.__dict__)
    assert not hasattr(module.net[3], "parametrizations")
    assert not module._load_state_dict_post_hooks


def strategy(name: str) -> SingleDeviceStrategy:
    """One of the strategies that need libraries or devices which tests do not have; told by its name."""
    return type(name, (SingleDeviceStrategy,), {})("cpu")


@pytest.mark.parametrize(
    ("name", "words"),
    [("DeepSpeedStrategy", "DeepSpeed"), ("SingleDeviceXLAStrategy", "XLA"), ("FSDPStrategy", "fully_shard")],
)
def test_strategies(name: str, words: str) -> None:
    refused(f"strategy: {name} .*{words}", strategy=strategy(name), accelerator="auto")


def test_names_of_strategies_are_lightnings() -> None:
    for name in (*STRATEGIES, *NOT_STRATEGIES):
        assert hasattr(pl.strategies, name), name


@pytest.mark.parametrize(
    "callback",
    [
        lambda: StochasticWeightAveraging(1e-2),
        lambda: EMAWeightAveraging(),
        lambda: type("MyEMA", (pl.Callback,), {})(),
        lambda: type("Swap", (pl.callbacks.WeightAveraging,), {})(),
    ],
    ids=["SWA", "EMA", "a name", "a base"],
)
def test_callbacks_that_swap_weights(callback) -> None:
    other = callback()
    for order in (0, 1):
        ours = LatePhaseCallback(MEMBERS, start=3)
        module = Lit()
        trainer = pl.Trainer(**QUIET, max_epochs=1, callbacks=[other, ours] if order else [ours, other])
        with pytest.raises(latephase.LatePhaseValueError, match=rf"callbacks: {type(other).__name__} .*swa="):
            trainer.fit(module, Resumable(batches()))
        assert_equal(dict(module.net.state_dict()), dict(network().state_dict()))


def test_pruning() -> None:
    refused("callbacks: ModelPruning", callbacks=[ModelPruning("l1_unstructured")])


def test_two_of_them() -> None:
    """Lightning refuses two of the same name by itself, when the trainer is made."""
    with pytest.raises(RuntimeError, match="more than one stateful callback"):
        pl.Trainer(**QUIET, callbacks=[LatePhaseCallback(), LatePhaseCallback()])

    class Second(LatePhaseCallback):
        pass

    refused("callbacks: two", callbacks=[Second()])


def test_start_after_the_end() -> None:
    for start in ("4e", 28, "9e"):
        refused("start: .*ends after", callback=LatePhaseCallback(MEMBERS, start=start))
        refused("swa: .*ends after", callback=LatePhaseCallback(MEMBERS, start=3, swa=start))
    refused(
        "start: 4 .*ends after 4", callback=LatePhaseCallback(MEMBERS, start=4), max_epochs=1, accumulate_grad_batches=2
    )
    refused("start: 0.5 .*length", max_epochs=-1, callback=LatePhaseCallback(MEMBERS, start=0.5))
    refused("start: '4e', and .*4 epochs", data=iter_only(), callback=LatePhaseCallback(MEMBERS, start="4e"))


class iter_only:  # noqa: N801
    """Data without a length."""

    def __iter__(self):
        yield from batches()


def test_a_trial_run_need_not_reach_the_start() -> None:
    for start in ("120e", 6000, 0.6, "auto"):
        module = Lit()
        callback = LatePhaseCallback(MEMBERS, start=start, swa="160e")
        fit(module, [callback], fast_dev_run=2)
        assert callback.late.phase == "collapsed"


def test_recomputation_of_statistics_without_data_to_do_it() -> None:
    refused(
        "statistics: .*length", data=iter_only(), callback=LatePhaseCallback(MEMBERS, start=3, statistics="recompute")
    )
    several = {"a": Resumable(batches()), "b": Resumable(batches())}
    refused("statistics: .*has 2", data=several, callback=LatePhaseCallback(MEMBERS, start=3, statistics="recompute"))


def test_data_without_a_length() -> None:
    """Epochs can be counted all the same."""
    module = Lit()
    fit(module, [LatePhaseCallback(MEMBERS, start="2e")], iter_only())
    assert_trained_as(module, *plain_loop(start=2 * PER_EPOCH))


def test_an_optimizer_without_the_weights() -> None:
    class Wrong(Lit):
        def configure_optimizers(self):
            return torch.optim.SGD(self.net[0].parameters(), 0.1)

    refused(r"configure_optimizers: .*net\.1\.weight, net\.1\.bias, net\.3", Wrong())

    class Copied(Lit):
        def configure_optimizers(self):
            return torch.optim.SGD(copy.deepcopy(self.net).parameters(), 0.1)

    refused("optimizer: SGD holds none of the parameters of Copied", Copied())

    class Second(Lit):
        def configure_optimizers(self):
            return torch.optim.LBFGS(self.parameters())

    refused("LBFGS", Second())

    class Sharding(Lit):
        def configure_optimizers(self):
            return ZeroRedundancyOptimizer(self.parameters(), lr=0.1)

    class ZeroRedundancyOptimizer(torch.optim.SGD):
        """The real one needs several processes."""

    refused("ZeroRedundancyOptimizer .*plain optimizer", Sharding())


def test_frozen_weights_need_no_optimizer() -> None:
    class Frozen(Lit):
        def configure_optimizers(self):
            self.net[1].requires_grad_(False)
            return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], 0.1)

    fit(Frozen(), [LatePhaseCallback(MEMBERS, start=3)], max_epochs=1)


def test_layers_that_are_replaced() -> None:
    class Replacing(pl.plugins.Precision):
        def convert_module(self, module):
            module.net[3] = torch.nn.Linear(6, 3, dtype=torch.float64)
            return module

    module = Lit()
    with pytest.raises(latephase.LatePhaseValueError, match=r"net\.3\.weight.*precision"):
        fit(module, [LatePhaseCallback(MEMBERS, start=3)], plugins=[Replacing()])


def test_an_optimizer_replaced_in_mid_run() -> None:
    """Not to be foreseen at set-up: at the next minibatch, before a step is made with it."""

    class Replacing(pl.Callback):
        def on_train_epoch_start(self, trainer, module) -> None:
            if trainer.current_epoch == 1:
                trainer.strategy.optimizers = [torch.optim.Adam(module.parameters())]

    module, callback = Lit(), LatePhaseCallback(MEMBERS, start=3)
    with pytest.raises(latephase.LatePhaseError, match="optimizers: Adam in place of"):
        fit(module, [callback, Replacing()])
    assert callback.late.rounds == 1


def test_in_place_where_gradients_change() -> None:
    def callback() -> LatePhaseCallback:
        return LatePhaseCallback(MEMBERS, start=3, accumulate="in_place")

    refused("accumulate: .*gradient_clip_val=0.1", callback=callback(), gradient_clip_val=0.1)

    class Own(Lit):
        def configure_gradient_clipping(self, *_, **__):
            pass

    refused(r"accumulate: .*Own\.configure_gradient_clipping", Own(), callback())
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    refused("accumulate: .*MixedPrecision", callback=callback(), plugins=[plugin])


def test_members_over_ranks_of_one_process() -> None:
    refused("torch.distributed", callback=LatePhaseCallback(MEMBERS, start=3, members_over_ranks=True))


def test_members_over_ranks_with_a_scaler() -> None:
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    refused(
        "precision: MixedPrecision.*bf16",
        callback=LatePhaseCallback(MEMBERS, start=3, members_over_ranks=True),
        plugins=[plugin],
    )


def test_a_module_in_eval_mode() -> None:
    module = Lit().eval()
    with pytest.warns(UserWarning, match="eval mode"):
        refused("Lit is in eval mode", module)


def test_auto_without_a_loss() -> None:
    class Silent(Manual):
        def training_step(self, batch, batch_idx):
            super().training_step(batch, batch_idx)

    with pytest.raises(latephase.LatePhaseError, match=r"Silent\.training_step returned NoneType"):
        fit(Silent(), [LatePhaseCallback(MEMBERS, start="auto")])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"start": "soon"}, "start: 'soon'"),
        ({"start": 1.5}, "start: 1.5"),
        ({"swa": True}, "swa: True"),
        ({"swa": "auto"}, "swa: 'auto'"),
        ({"swa": 0.5, "swa_every": 0}, "swa_every: 0"),
        ({"statistics": "exact"}, "statistics: 'exact'"),
    ],
)
def test_arguments_at_construction(options: dict, words: str) -> None:
    with pytest.raises(latephase.LatePhaseValueError, match=words):
        LatePhaseCallback(**options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"members": 0}, "members: 0"),
        ({"weights": "nothing"}, "nothing"),
        ({"weights": [latephase.Parameters("fc.*")]}, r"fc\.\*"),
        ({"noise": -1.0}, "noise: -1.0"),
        ({"base_gradient": "max"}, "base_gradient: 'max'"),
    ],
)
def test_arguments_of_the_phase(options: dict, words: str) -> None:
    refused(words, callback=LatePhaseCallback(**{"members": MEMBERS, "start": 3, **options}))


def test_after_a_refusal_the_callback_can_be_used() -> None:
    module, callback = Lit(), LatePhaseCallback(MEMBERS, start=9, weights="rank-one")
    with pytest.raises(latephase.LatePhaseValueError, match="ends after"):
        fit(module, [callback], max_epochs=1)
    fit(module, [callback])
    assert_trained_as(module, *plain_loop(start=9, weights="rank-one"))


def test_it_is_pickled_before_fit() -> None:
    """As launchers do that spawn processes."""
    callback = pickle.loads(pickle.dumps(LatePhaseCallback(5, start="3e", swa=0.8)))
    assert isinstance(callback, LatePhaseCallback)
    assert (callback.options["members"], callback.start, callback.swa) == (5, "3e", 0.8)
    assert copy.deepcopy(callback).start == "3e"


def test_pytorch_lightning_takes_it_too() -> None:
    """The same module code under the package's other name."""
    old = pytest.importorskip("pytorch_lightning")

    class Old(old.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        training_step = Lit.training_step

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.05, 0.9, 0, 5e-3, nesterov=True)

    module, callback = Old(), LatePhaseCallback(MEMBERS, start=9)
    assert isinstance(callback, LatePhaseCallback)
    assert callback.state_key == "LatePhaseCallback"
    old.Trainer(**QUIET, max_epochs=4, callbacks=[callback]).fit(module, Resumable(batches()))
    net, late = plain_loop(start=9)
    late.collapse()
    assert_equal(dict(module.net.state_dict()), dict(net.state_dict()))
    again = pickle.loads(pickle.dumps(LatePhaseCallback(5)))
    assert isinstance(again, old.Callback)
    assert isinstance(again, pl.Callback)


def test_post_local_sgd() -> None:
    from torch.distributed.algorithms.ddp_comm_hooks.post_localSGD_hook import PostLocalSGDState

    made = DDPStrategy(ddp_comm_state=PostLocalSGDState(None, None, 10), model_averaging_period=4)

    class OnePlace(SingleDeviceStrategy):
        _ddp_comm_state = made._ddp_comm_state

    refused("post-local SGD", strategy=OnePlace("cpu"), accelerator="auto")


def test_the_examples_run() -> None:
    for module in (integration, snapshots):
        assert doctest.testmod(module).failed == 0


def test_the_page_names_tests_that_exist() -> None:
    page = (Path(__file__).parents[2] / "docs" / "lightning.md").read_text()
    named = set(re.findall(r"`(test_\w+)`", page))
    sources = "".join(path.read_text() for path in Path(__file__).parent.glob("test_lightning_*.py"))
    assert len(named) > 20
    assert not {name for name in named if f"def {name}(" not in sources}
