"""Low-rank adapters: every member adds a product of two thin matrices to a shared weight."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..arguments import choice
from ..averaging import exact_mean, wide
from ..errors import LatePhaseValueError
from ._factors import Factors, install_factors
from ._family import Family, Installation, listing
from ._matrices import matrices

if TYPE_CHECKING:
    from ..phase import LatePhase


class LowRank(Factors):
    """The factors B ("up", zero at first) and A ("down", random) of one weight of shape (out, in, ...).

    Args:
        weight: the weight.
        rank: r.
        scale: what the product is multiplied by.
        generator: draws A.
    """

    def __init__(self, weight: Tensor, rank: int, scale: float, generator: torch.Generator) -> None:
        super().__init__()
        self.scale = scale
        drawn = torch.empty(rank, weight[0].numel(), dtype=torch.float64)
        nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator)
        self.up = nn.Parameter(weight.new_zeros(len(weight), rank))
        self.down = nn.Parameter(drawn.to(weight))

    def forward(self, weight: Tensor) -> Tensor:
        """`weight + scale * up @ down`, with the kernel of a convolution beside its input channels."""
        # Autocast would make the weights themselves in half precision, and others than those that collapse makes.
        with torch.autocast(weight.device.type, enabled=False):
            made = torch.addmm(weight.flatten(1), self.up, self.down, alpha=self.scale)
        return made.view(weight.shape)

    def neutral(self) -> dict[str, Tensor]:
        """Zeros for B; A as it is, since with zeros for both neither would ever move."""
        return {"up": torch.zeros_like(self.up), "down": self.down.detach().clone()}


@dataclass(frozen=True)
class MeanOfProducts:
    r"""Average of one weight over the members' products: \(W + s \, \overline{B_k A_k}\), with no factors left.

    K different products of rank r make one of rank K r, which no factors of rank r can hold: the weight takes it up.

    Args:
        weight: name of the shared weight.
        up: name of B.
        down: name of A.
        scale: s.
    """

    weight: str
    up: str
    down: str
    scale: float

    def __call__(self, stacks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Average this weight.

        Args:
            stacks: B (K, out, r) and A (K, r, in) by name; the weight, which all members share, as (1, out, in, ...).

        Returns:
            Weight, B and A in float64; equal members stay what they are, bit for bit.
        """
        weight, up, down = (stacks[name].to(wide(stacks[name].dtype)) for name in (self.weight, self.up, self.down))
        if bool((up == up[0]).all()) and bool((down == down[0]).all()):
            return {self.weight: weight[0], self.up: up[0], self.down: down[0]}
        total = torch.zeros_like(weight[0].flatten(1))
        # A float64 sum rounds; in an order that the values decide it does not depend on that of the members.
        for k in (up.flatten(1).sum(1) + math.pi * down.flatten(1).sum(1)).argsort():
            total.addmm_(up[k], down[k])
        whole = weight[0] + (total * (self.scale / len(up))).view_as(weight[0])
        return {self.weight: whole, self.up: torch.zeros_like(up[0]), self.down: exact_mean(stacks[self.down])}


class LoRA(Family):
    r"""Low-rank adapters \(W_k = W + \frac{\alpha}{r} B_k A_k\), K of them trained together and merged into one model.

    B starts at zero and A at random (Kaiming uniform), so attachment to a trained model leaves its function unchanged,
    bit for bit. Until the members come to life the factors train as one shared adapter; `start()` right after
    attachment is the fine-tuning path. Members that start equal (B is zero, and noise is relative to a tensor's size)
    grow apart by their minibatches.

    *The average.* `average="products"` averages the effective weights exactly: \(W + \frac{\alpha}{r} \overline{B_k
    A_k}\). That is a matrix of rank up to K r, other than what the averaged factors \(\bar B \bar A\) make;
    in the averaged model the weight itself holds it. `average="factors"` takes the mean of the factors, as averages of
    adapter checkpoints do. `LoRA.difference(late)` tells how far the two are apart.

    *The base.* With `train_base` the weights under the adapters train on, as base weights do in every family. Without,
    all weights of the model but the members' own are frozen until `collapse()`, as is usual for adapters; set
    `requires_grad` of others to True afterwards to train them too. Running statistics of BatchNorm move all the same.

    Every matrix that a module stores has one adapter, as in `RankOne`: all gates of `nn.LSTM` share one, and the packed
    projection of `nn.MultiheadAttention` too. Kernels of convolutions count as inputs. Tied weights stay tied. The
    factors join the optimizer group of their weight.

    Args:
        rank: r, at least 1 and at most the smaller side of each matrix.
        alpha: numerator of the scale; None means `rank`, a scale of 1.
        targets: `fnmatch` patterns over the dotted names of modules (linear, convolutional, recurrent, attention,
            embedding). None takes all of them but embeddings, what is tied to one, and matrices with a side below the
            rank.
        train_base: whether the shared weights train.
        average: "products" or "factors".
        seed: of the private generator that draws A; the same on all ranks.

    Raises:
        LatePhaseValueError: a rank, alpha or average that cannot work.

    Source: LoRA (Hu et al., ICLR 2022) for the adapter; "Neural networks with late-phase weights" (ICLR 2021) for the
    members.

    Example:
        >>> import torch, latephase
        >>> model = torch.nn.Sequential(torch.nn.Linear(32, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
        >>> lora = latephase.LoRA(rank=4, targets="0", train_base=False)
        >>> late = latephase.LatePhase(model, members=3, weights=[lora])
        >>> [tuple(p.shape) for p in model.parameters() if p.requires_grad]
        [(16, 4), (4, 32)]
        >>> list(late.collapse().state_dict())
        ['0.weight', '0.bias', '2.weight', '2.bias']
    """

    def __init__(
        self,
        rank: int = 8,
        alpha: float | None = None,
        targets: str | list[str] | None = None,
        *,
        train_base: bool = True,
        average: str = "products",
        seed: int = 0,
    ) -> None:
        if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
            raise LatePhaseValueError(f"LoRA(rank={rank!r}); use a whole number of at least 1")
        if alpha is not None and not (isinstance(alpha, int | float) and math.isfinite(alpha) and alpha > 0):
            raise LatePhaseValueError(f"LoRA(alpha={alpha!r}); use a number above 0, or None for the rank")
        self.rank, self.alpha = rank, alpha
        self.names = [targets] if isinstance(targets, str) else targets
        self.train_base, self.seed = train_base, seed
        self.average = choice("average", average, ("products", "factors"))

    def targets(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """See `Family.targets`."""
        found = matrices(model, f"LoRA(targets={self.names})", names=self.names)
        sides = {name: (len(weight), weight[0].numel()) for name, weight in found.items()}
        small = {name: f"{name} ({out} x {into})" for name, (out, into) in sides.items() if min(out, into) < self.rank}
        if small and (self.names is not None or len(small) == len(found)):
            raise LatePhaseValueError(
                f"LoRA(rank={self.rank}): larger than the smaller side of {listing(small.values())}; use a rank of at "
                f"most {min(min(sides[name]) for name in small)}, or choose other weights with targets=..."
            )
        for name, weight in found.items():
            if weight.is_complex():
                raise LatePhaseValueError(f"LoRA: {name!r} is complex; choose real weights with targets=...")
        return {name: weight for name, weight in found.items() if name not in small}

    def install(self, model: nn.Module, targets: Mapping[str, nn.Parameter]) -> Installation:
        """See `Family.install`."""
        generator = torch.Generator().manual_seed(self.seed)
        scale = 1.0 if self.alpha is None else self.alpha / self.rank
        factors = {name: LowRank(w.detach(), self.rank, scale, generator) for name, w in targets.items()}
        installation = install_factors(model, targets, factors)
        installation.freezes = not self.train_base
        if self.average == "products":
            originals = [name for name in installation.plain if name.endswith("original")]
            for name in originals:
                prefix = f"{name.removesuffix('original')}0."
                rule = MeanOfProducts(name, f"{prefix}up", f"{prefix}down", scale)
                installation.rules.append(((rule.weight, rule.up, rule.down), rule))
                installation.shared[name] = installation.plain[name]
        return installation

    @staticmethod
    def difference(late: "LatePhase") -> dict[str, float]:
        r"""How far the product of the averaged factors is from the average of the members' products.

        Args:
            late: a phase with this family whose members live: after `start()`, before `collapse()`.

        Returns:
            \(\lVert \bar B \bar A - \overline{B_k A_k} \rVert / \lVert \overline{B_k A_k} \rVert\), Frobenius norms in
            float64, by the name of the weight; 0 where nothing has moved.

        Raises:
            LatePhaseError: before `start()` or after `collapse()`.
            LatePhaseValueError: the phase has no low-rank adapters.
        """
        adapters = {name: module for name, module in late.model.named_modules() if isinstance(module, LowRank)}
        if not adapters:
            raise LatePhaseValueError("LoRA.difference: the phase has no low-rank adapters; use weights=[LoRA(...)]")
        held: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in adapters}
        for k in range(late.members):
            with late.member(k):
                for name, adapter in adapters.items():
                    held[name].append((adapter.up.detach().double().clone(), adapter.down.detach().double().clone()))
        found = {}
        for name, pairs in held.items():
            products = torch.stack([up @ down for up, down in pairs]).mean(0)
            factors = torch.stack([up for up, _ in pairs]).mean(0) @ torch.stack([down for _, down in pairs]).mean(0)
            norm = products.norm()
            plain = name.removesuffix(".0").replace("parametrizations.", "")
            found[plain] = ((factors - products).norm() / norm).item() if norm > 0 else 0.0
        return found
