"""What members cost a large model: bytes of a rank and of a step, by the formulae of docs/scale.md. Pure arithmetic."""

import argparse
from dataclasses import dataclass


@dataclass(frozen=True)
class Decoder:
    """A decoder-only transformer with gated feed-forward layers and no biases.

    Args:
        layers: blocks.
        width: of the residual stream.
        hidden: of the feed-forward layer.
        vocabulary: tokens; input and output embeddings are two matrices.
    """

    layers: int = 32
    width: int = 4096
    hidden: int = 11008
    vocabulary: int = 32000

    @property
    def matrices(self) -> list[tuple[int, int]]:
        """Shapes of a block's matrices."""
        return [(self.width, self.width)] * 4 + [(self.width, self.hidden)] * 3

    @property
    def norms(self) -> int:
        """Weights of all norms: two a block, and the last."""
        return (2 * self.layers + 1) * self.width

    @property
    def parameters(self) -> int:
        """All weights."""
        return self.layers * sum(a * b for a, b in self.matrices) + 2 * self.vocabulary * self.width + self.norms

    def factors(self, rank: int) -> int:
        """Weights of low-rank adapters of all matrices."""
        return self.layers * rank * sum(a + b for a, b in self.matrices)


@dataclass(frozen=True)
class Cost:
    """Bytes of one rank.

    Args:
        base: shared weights that train.
        late: late-phase weights of one member.
        members: K.
        world: ranks.
        weight: bytes of a weight, and of its gradient.
        state: bytes of its optimizer state.
    """

    base: int
    late: int
    members: int
    world: int
    weight: int
    state: int

    @property
    def parked(self) -> int:
        """Members' values and optimizer states; the state of the member in the model is one of them."""
        return self.members * self.late * self.weight + (self.members - 1) * self.late * self.state

    @property
    def sum(self) -> int:
        """The round's sum of base gradients."""
        return self.base * self.weight

    @property
    def turn(self) -> int:
        """Memory traffic of a turn beyond forward, backward and optimizer: park, bring in, add up."""
        return 4 * self.late * self.weight + 3 * self.base * self.weight

    @property
    def sent_ddp(self) -> float:
        """Sent under DistributedDataParallel in as many minibatches as a round has, all late-phase weights included."""
        turns, ring = self.members / self.world, 2 * (self.world - 1) / self.world
        return turns * ring * (self.base + self.late) * self.weight

    @property
    def sent_spread(self) -> float:
        """Sent in a round of members over ranks: one sum of base gradients, one exchange of members a turn."""
        turns, ring = self.members / self.world, 2 * (self.world - 1) / self.world
        return ring * self.base * self.weight + turns * (self.world - 1) * self.late * self.weight


def size(number: float) -> str:
    """Bytes for reading."""
    for unit in ("B", "kB", "MB"):
        if abs(number) < 999.5:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} GB"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--worlds", type=int, nargs="*", default=[2, 8])
    parser.add_argument("--weight", type=int, default=2, help="bytes of a weight and of its gradient")
    parser.add_argument("--state", type=int, default=8, help="bytes of a weight's optimizer state; AdamW in float32: 8")
    parser.add_argument("--rank", type=int, default=16, help="of the adapters")
    options = parser.parse_args()
    model = Decoder()
    print(f"{model.parameters / 1e9:.3f} billion weights, {options.members} members")
    families = {
        "norms": (model.parameters - model.norms, model.norms),
        f"LoRA, rank {options.rank}, base trained": (model.parameters, model.factors(options.rank)),
        f"LoRA, rank {options.rank}, base frozen": (0, model.factors(options.rank)),
    }
    print("| family | late-phase weights | parked | sum of base gradients | moved a turn |")
    print("|---|---|---|---|---|")
    for name, (base, late) in families.items():
        cost = Cost(base, late, options.members, 1, options.weight, options.state)
        print(f"| {name} | {late / 1e6:.3g} M | {size(cost.parked)} | {size(cost.sum)} | {size(cost.turn)} |")
    print("| family | ranks | sent a round: DDP | members over ranks |")
    print("|---|---|---|---|")
    for name, (base, late) in families.items():
        for world in options.worlds:
            cost = Cost(base, late, options.members, world, options.weight, options.state)
            print(f"| {name} | {world} | {size(cost.sent_ddp)} | {size(cost.sent_spread)} |")


if __name__ == "__main__":
    main()
