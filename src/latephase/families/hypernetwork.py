"""A linear hypernetwork: weights are combinations of shared templates, every member has combinations of its own."""

from collections.abc import Mapping
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from ..errors import LatePhaseValueError
from ._factors import Factors, install_factors
from ._family import Family, Installation, first_names, listing, refuse_parametrized, refuse_unusable
from ._templates import Target, TemplateSet, fresh, kept, sets_of

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_WEIGHTED: tuple[type[nn.Module], ...] = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)


class TemplateBank(nn.Module):
    """Templates (J, ...), shared by all weights of a set."""

    def __init__(self, like: Tensor, templates: int, shape: torch.Size) -> None:
        super().__init__()
        self.templates = nn.Parameter(like.new_zeros(templates, *shape))


class Combination(Factors):
    """One weight as combinations of templates, beside a residual.

    Args:
        weight: the weight; what is in it at any time is the residual.
        bank: the templates.
        axis: the weight's dimension of input channels.
        blocks: B, the blocks that make up the weight.
    """

    base = ("bank.templates",)

    def __init__(self, weight: Tensor, bank: TemplateBank, axis: int, blocks: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(weight.new_zeros(blocks, len(bank.templates)))
        self.bank, self.axis = bank, axis
        self.initial: Tensor
        self.register_buffer("initial", weight.new_zeros(self.embedding.shape), persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        """Residual plus combination."""
        return weight + self.combine(self.embedding)

    def combine(self, embedding: Tensor) -> Tensor:
        """The blocks sum_j phi_bj T_j side by side along the input channels."""
        templates = self.bank.templates
        # Autocast would make the weights themselves in half precision, and others than those that collapse makes.
        with torch.autocast(templates.device.type, enabled=False):
            blocks: Tensor = (embedding @ templates.flatten(1)).unflatten(1, templates.shape[1:])
        return blocks.movedim(0, self.axis).flatten(self.axis, self.axis + 1)

    def neutral(self) -> dict[str, Tensor]:
        """The embedding of the attachment, and the templates as they are."""
        return {"embedding": self.initial.clone(), "bank.templates": self.bank.templates.detach().clone()}

    def beside_neutral(self, weight: Tensor) -> Tensor:
        """The residual of a weight beside the embedding of the attachment."""
        made = self.combine(self.initial)
        # Another shape is for load_state_dict to refuse.
        return weight.to(made) - made if weight.shape == made.shape else weight


class Hypernetwork(Family):
    r"""A linear hypernetwork makes the weights; every member has an embedding of its own.

    Block b of a weight is a combination of templates, which all blocks of equal shape share:

    .. math:: W_k^{(b)} = R^{(b)} + \sum_{j=1}^{J} \phi_{kj}^{(b)} \, T_j

    The templates T are base weights, the embeddings \(\phi_k\), a handful of numbers a layer, are the late-phase
    weights. The composition is linear in them: the average of the members' embeddings makes exactly the average of
    the members' weights, and at collapse it is folded into the plain weight. Embeddings begin orthogonal; until the
    members come to life they train as ordinary shared weights.

    *Blocks.* Weights are cut along their input channels into blocks of `split` channels, so that layers of different
    width share templates. By default a block is half the widest of the weights with equal output channels and kernel,
    so that in a Wide ResNet the first layer of a stage, half as wide, is one block beside the others' two; weights
    whose channels are no multiple of that share among themselves.

    *Attachment.* With `keep` (the default) the model's function stays, to rounding: embeddings and templates are
    solved from its weights. With at least as many templates as blocks (the default) that needs no residual: R holds
    rounding errors only and does not train, the model is a hypernetwork as if it had been one from the first step, and
    templates of a freshly initialised model are as random as its weights. With fewer templates the residual is
    what they cannot make; it is the user's Parameter and trains on as a base weight. With `keep=False` the model
    starts anew: random templates, at which every layer has the scale that its weights have at attachment, and no
    residual, whatever the number of templates. Weights that are loaded after the attachment go into the residual
    (to rounding too), so load a checkpoint first and attach then.

    Templates and embeddings join the optimizer group of their (first) weight, weight decay included. Frozen weights
    get frozen templates.

    Args:
        types: which modules; of `nn.Linear`, `nn.Conv1d`, `nn.Conv2d`, `nn.Conv3d` and the transposed convolutions (the
            default: all of them).
        names: `fnmatch` patterns over the dotted names of the modules. None takes every module of the types but the
            model's first and last (stem and head stay plain, as in the paper), and with `split` leaves out
            those with input channels that are no multiple of it.
        templates: J, for each set of blocks; None takes as many as there are blocks.
        split: input channels of a block; None is the rule above.
        keep: keep the function of the model; False starts anew.
        seed: of the private generator that draws orthogonal matrices and templates; the same on all ranks.

    Raises:
        LatePhaseValueError: a type, or a number of templates or channels, that cannot work.

    Source: "Neural networks with late-phase weights" (ICLR 2021), hypernetwork weights: there blocks are half a layer,
    14 templates make the 15 blocks of a stage of WRN-28-10. The linear hypernetwork is that of Savarese and Maire,
    "Learning implicitly recurrent CNNs through parameter sharing" (ICLR 2019).

    Example:
        >>> import torch, latephase
        >>> model = torch.nn.Sequential(*(torch.nn.Conv2d(c, 8, 3) for c in (3, 8, 8)), torch.nn.Linear(8, 2))
        >>> late = latephase.LatePhase(model, members=4, weights=[latephase.Hypernetwork(templates=3)])
        >>> [tuple(embedding.shape) for embedding in late.late_parameters()]
        [(2, 3), (2, 3)]
        >>> list(late.collapse().state_dict())[:3]
        ['0.weight', '0.bias', '1.weight']
    """

    def __init__(
        self,
        *types: type[nn.Module],
        names: str | list[str] | None = None,
        templates: int | None = None,
        split: int | None = None,
        keep: bool = True,
        seed: int = 0,
    ) -> None:
        for kind in types:
            if not (isinstance(kind, type) and issubclass(kind, _WEIGHTED)):
                shown = kind.__name__ if isinstance(kind, type) else repr(kind)
                raise LatePhaseValueError(
                    f"Hypernetwork({shown}): supported are {listing(t.__name__ for t in _WEIGHTED)}"
                )
        for name, value in (("templates", templates), ("split", split)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise LatePhaseValueError(f"Hypernetwork({name}={value!r}); use a whole number of at least 1, or None")
        self.types = types or _WEIGHTED
        self.names = [names] if isinstance(names, str) else names
        self.templates, self.split, self.keep, self.seed = templates, split, keep, seed

    def targets(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """See `Family.targets`."""
        found: dict[str, nn.Parameter] = {}
        for name, module in self._modules(model).items():
            weight = f"{name}.weight" if name else "weight"
            refuse_parametrized(name, module)
            refuse_unusable(weight, module.weight)  # type: ignore[arg-type]
            found[weight] = module.weight  # type: ignore[assignment]
            if found[weight].is_complex():
                raise LatePhaseValueError(f"Hypernetwork: {weight!r} is complex; choose real weights with names=...")
        return {first_names(model)[weight]: weight for weight in found.values()}

    def _modules(self, model: nn.Module) -> dict[str, nn.Module]:
        """The modules by dotted name."""
        every = {name: module for name, module in model.named_modules() if isinstance(module, _WEIGHTED)}
        modules = {name: module for name, module in every.items() if isinstance(module, self.types)}
        kinds = "/".join(t.__name__ for t in self.types)
        if self.names is None:
            inner = [name for name in list(every)[1:-1] if name in modules]
            if not inner:
                raise LatePhaseValueError(
                    f"Hypernetwork() leaves the first and the last layer plain, and nothing else is there: the {kinds} "
                    f"modules are {listing(modules)}; choose with names=..."
                )
            chosen = {name: modules[name] for name in inner if self._divides(modules[name])}
            if not chosen:
                widths = [f"{name} ({_channels(modules[name])})" for name in inner]
                raise LatePhaseValueError(
                    f"Hypernetwork(split={self.split}) divides the input channels of no layer: {listing(widths)}"
                )
            return chosen
        chosen = {n: m for n, m in modules.items() if any(fnmatchcase(n, pattern) for pattern in self.names)}
        if not chosen:
            raise LatePhaseValueError(
                f"Hypernetwork(names={self.names}) matches nothing; the {kinds} modules are {listing(modules)}"
            )
        for name, module in chosen.items():
            if not self._divides(module):
                channels = _channels(module)
                divisors = [str(d) for d in range(1, channels + 1) if channels % d == 0]
                raise LatePhaseValueError(
                    f"Hypernetwork(split={self.split}): {name!r} has {channels} input channels, no multiple of "
                    f"{self.split}; use one of {listing(divisors)}, or leave the layer out of names=..."
                )
        return chosen

    def _divides(self, module: nn.Module) -> bool:
        return self.split is None or _channels(module) % self.split == 0

    def install(self, model: nn.Module, targets: Mapping[str, nn.Parameter]) -> Installation:
        """See `Family.install`."""
        owners = {name: model.get_submodule(name.rpartition(".")[0]) for name in targets}
        wanted = [Target(name, weight, _axis(owners[name])) for name, weight in targets.items()]
        sets = sets_of(wanted, self.split)
        factors: dict[str, Combination] = {}
        for made in sets:
            first = made.targets[0]
            block = first.weight.detach().narrow(first.axis, 0, made.width)
            bank = TemplateBank(block, self.templates or made.blocks, block.shape)
            bank.templates.requires_grad_(any(target.weight.requires_grad for target in made.targets))
            for target in made.targets:
                blocks = target.channels // made.width
                factors[target.name] = Combination(target.weight.detach(), bank, target.axis, blocks)
        whole = install_factors(model, targets, factors)
        fold, remove = whole.fold, whole.remove
        trained = {weight: weight.requires_grad for weight in targets.values()}

        def thaw() -> None:
            for weight, requires_grad in trained.items():
                weight.requires_grad_(requires_grad)

        def fold_and_thaw() -> None:
            fold()
            thaw()

        def remove_and_thaw() -> None:
            remove()
            thaw()

        def commit() -> None:
            generator = torch.Generator().manual_seed(self.seed)
            for made in sets:
                self._fill(made, factors, generator)

        whole.fold, whole.remove, whole.commit = fold_and_thaw, remove_and_thaw, commit
        return whole

    @torch.no_grad()
    def _fill(self, made: TemplateSet, factors: Mapping[str, Combination], generator: torch.Generator) -> None:
        """Write the first values of embeddings, templates and residuals of one set."""
        templates = self.templates or made.blocks
        parts = [target.blocks(made.width) for target in made.targets]
        blocks = torch.cat(parts).flatten(1)
        if self.keep:
            embeddings, bank = kept(blocks, templates, generator)
        else:
            scales = torch.cat([part.square().mean().sqrt().expand(len(part)) for part in parts])
            embeddings, bank = fresh(scales, blocks.shape[1], templates, generator)
        shared = factors[made.targets[0].name].bank.templates
        shared.copy_(bank.view_as(shared))
        for target, rows in zip(made.targets, embeddings.split([len(part) for part in parts]), strict=True):
            combination = factors[target.name]
            combination.embedding.copy_(rows)
            combination.initial.copy_(rows)
            residual = combination.beside_neutral(target.weight) if self.keep else torch.zeros_like(target.weight)
            target.weight.copy_(residual)
            if not self.keep or templates >= made.blocks:
                target.weight.requires_grad_(False)


def _axis(module: nn.Module) -> int:
    return 0 if isinstance(module, _TRANSPOSED) else 1


def _channels(module: nn.Module) -> int:
    weight = module.weight
    assert isinstance(weight, Tensor)
    # A lazy module has no shape yet, and is refused later, by name.
    return 0 if nn.parameter.is_lazy(weight) else weight.shape[_axis(module)]
