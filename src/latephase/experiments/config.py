"""The fields of a recipe: what is trained on what, for how long, and compared with what."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Data:
    """Images or text, their split and what is done to them.

    Attributes:
        name: Source: `digits`, `parquet`, `folder`, `cifar10`, `cifar100` or `text`.
        train: File (parquet) or folder of training images, one folder for each class; also a folder inside an archive,
            as in `images.tar.xz/train`. For `cifar10` and `cifar100` the folder that torchvision downloads to, or the
            parquet file of a copy. For `text` the whole text (plain, `.zip` or `.xz`), which is split 90/5/5; null
            takes text that comes with Python.
        test: File or folder of test images; not needed for what torchvision downloads.
        image_size: Side in pixels of the images of a folder, which are centre-cropped to it.
        resize: Pixels that the shorter side of such an image is resized to before that; null takes `image_size`.
        resident: Whether the images of a folder are decoded once and kept in memory, or each time they are needed;
            `auto` decides by their number and size.
        decode_threads: Threads that decode what is not resident; null takes one for each core.
        images: Training images that the recipe is made for: what its cost is counted with until there are files.
        classes: Their classes.
        subset: Training images to keep, class-balanced; null keeps all.
        validation: Images taken from the training images, class-balanced, never trained on.
        test_images: Size of the test set where the source has none of its own; null takes a third.
        label_noise: Fraction of the training labels replaced by a class drawn uniformly from all classes.
        crop_padding: Pixels of padding before a random crop back to the image's own size.
        padding: What is there: `zero`, or `reflect` for the image mirrored at its edge.
        resized_crop: Train on random parts of an image, 8% to 100% of its area and of aspect 3/4 to 4/3, resized to the
            image's size.
        flip: Mirror each training image with probability one half; `alternate` does so in the first epoch alone and
            from then on turns every image round in every epoch, so that two in a row show each image both ways.
        cutout: Side in pixels of a square around a random pixel that is set to the mean colour; 0 for none.
        split_seed: Seed of split, subset and label noise; null takes the run's seed, a fresh split for each.
    """

    name: str = "digits"
    train: str | None = None
    test: str | None = None
    image_size: int | None = None
    resize: int | None = None
    resident: bool | str = "auto"
    decode_threads: int | None = None
    images: int | None = None
    classes: int | None = None
    subset: int | None = None
    validation: int = 0
    test_images: int | None = None
    label_noise: float = 0.0
    crop_padding: int = 0
    padding: str = "zero"
    resized_crop: bool = False
    flip: bool | str = False
    cutout: int = 0
    split_seed: int | None = None


@dataclass(frozen=True)
class Text:
    """How text is read, where `data.name` is `text`.

    Attributes:
        length: Characters of each row of a minibatch; gradients go no further back.
        order: `streams` reads the text in rows side by side, each going on where it stopped; `windows` reads random
            places.
        state: What a recurrent model's state is once there are members. `shared`: each member goes on from the state
            that the one before left, in the same streams; `own`: each reads streams of its own, from another place of
            the text, with a state of its own; `zero`: no state is carried from one minibatch to the next, from the
            beginning of training.
        window: Characters of held-out text that go through the model at a time, beginning without a state; null takes
            `length`. Every character but the first is scored once.
        context: Characters of a window that are read before those that are scored in it.
        bytes: Size of the whole text that the recipe is made for: what its cost is counted with, without a file.
        distinct: Number of distinct bytes in it.
    """

    length: int = 128
    order: str = "streams"
    state: str = "shared"
    window: int | None = None
    context: int = 64
    bytes: int | None = None
    distinct: int | None = None


@dataclass(frozen=True)
class Model:
    """The network.

    Attributes:
        name: `small-cnn`, `wrn-DEPTH-WIDTH`, `pyramidnet-DEPTH-ALPHA` or `torchvision:NAME`; for text `lstm-UNITS` or
            `transformer-DEPTH-WIDTH`.
        width: Channels of the small CNN.
        depth: Convolutions of the small CNN.
        pretrained: Start from torchvision's published weights, the newest (true) or those of a name such as
            `IMAGENET1K_V1`; their head is replaced if the classes differ.
        weights: Start from the weights of a safetensors file; its head is replaced if the classes differ.
    """

    name: str = "small-cnn"
    width: int = 8
    depth: int = 3
    pretrained: bool | str = False
    weights: str | None = None


@dataclass(frozen=True)
class Training:
    """Optimizer, learning rate and length.

    Attributes:
        epochs: Passes over the training data.
        batch_size: Images, or rows of text, in a minibatch; a last minibatch that is not full is left out.
        optimizer: `sgd` with momentum, `adam`, or `adamw`, whose weight decay is apart from the gradient.
        lr: Learning rate at the start, or after `warmup`.
        momentum: Momentum of SGD.
        nesterov: Nesterov's momentum, where there is any.
        betas: Adam's decay rates of the averages of the gradient and of its square.
        weight_decay: Weight decay of every weight.
        clip: Norm of the whole gradient above which it is scaled down to this norm; null never scales it.
        schedule: `linear` is constant, then linear, then constant; `cosine` half a cosine to `final_lr` at the end;
            `wsd` constant, then linear to `final_lr` at the end, of which T0 is best the beginning of the decay.
        warmup: Fraction of training in which the learning rate rises linearly from 0 to `lr`.
        constant_until: Fraction of training up to which the learning rate stays `lr` (`linear` and `wsd`).
        linear_until: Fraction of training at which it has fallen linearly to `final_lr` (`linear`).
        final_lr: Learning rate from then on, as a fraction of `lr`.
        lr_drops: Fractions of training at which the learning rate is multiplied by `drop_factor` (`linear`).
        drop_factor: What it is multiplied by.
    """

    epochs: int = 80
    batch_size: int = 16
    optimizer: str = "sgd"
    lr: float = 0.05
    momentum: float = 0.9
    nesterov: bool = True
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    weight_decay: float = 5e-4
    clip: float | None = None
    schedule: str = "linear"
    warmup: float = 0.0
    constant_until: float = 0.5
    linear_until: float = 0.9
    final_lr: float = 0.01
    lr_drops: list[float] = field(default_factory=list)
    drop_factor: float = 0.1


@dataclass(frozen=True)
class LatePhase:
    """Late-phase weights, and the controls that share their start and their number of members.

    Attributes:
        start: T0, the fraction of training after which the members come to life; `auto` leaves it to a signal that
            watches the training loss (`latephase.StartSignal`).
        members: K, the number of members.
        weights: Families of late-phase weights: `norm`, `head`, `rank-one`, `hypernetwork` or `full`.
        noise: sigma_0, the members' initial spread relative to each tensor's RMS.
        base_gradient: gamma, the factor on the sum of the members' base gradients: `sum` (1), `mean` (1/K) or a number.
        optimizer_state: `copy` gives every member the momentum at T0, `reset` none, as the authors' code does.
        weight_decay: Weight decay of the late-phase weights from T0 on; null keeps the training's.
    """

    start: float | str = 0.5
    members: int = 10
    weights: list[str] = field(default_factory=lambda: ["norm", "head"])
    noise: float = 0.0
    base_gradient: float | str = "sum"
    optimizer_state: str = "copy"
    weight_decay: float | None = None


@dataclass(frozen=True)
class SWA:
    """Stochastic weight averaging.

    Attributes:
        start: Fraction of training after which the weights at the end of every epoch enter the average.
        every: Minibatches after which they do instead, for trainings of few epochs; null takes epochs.
    """

    start: float = 0.8
    every: int | None = None


@dataclass(frozen=True)
class EMA:
    """Exponential moving average of the weights.

    Attributes:
        decay: What the average keeps of itself at each minibatch.
        every: Minibatches between two updates, each with the decay of all of them.
    """

    decay: float = 0.999
    every: int = 10


@dataclass(frozen=True)
class Lookahead:
    """Lookahead: slow weights that follow the fast ones.

    Attributes:
        every: Minibatches between two steps of the slow weights.
        rate: Fraction of the way to the fast weights that they go.
    """

    every: int = 5
    rate: float = 0.5


@dataclass(frozen=True)
class Dropout:
    """Dropout, in training or also in use.

    Attributes:
        rate: Probability that a value is dropped.
        passes: Forward passes that MC-dropout averages.
    """

    rate: float = 0.1
    passes: int = 32


@dataclass(frozen=True)
class DeepEnsemble:
    """Networks trained apart.

    Attributes:
        networks: How many.
    """

    networks: int = 10


@dataclass(frozen=True)
class Compute:
    """Where and how the arithmetic is done.

    Attributes:
        device: `auto` (an accelerator if there is one), `cpu`, `cuda`, `cuda:1`, ...
        precision: `float32`, or `bfloat16` for autocast.
        channels_last: Keep images and convolution weights channels-last.
        threads: CPU threads of each process.
        onednn: Let PyTorch use oneDNN on CPUs; on images of a few pixels its calls cost more than they save.
    """

    device: str = "auto"
    precision: str = "float32"
    channels_last: bool = False
    threads: int = 1
    onednn: bool = True


@dataclass(frozen=True)
class Recipe:
    """One setting: data, model, training, and the methods to compare on it.

    Attributes:
        title: One line that says what is special about it.
        method: The method that `latephase train` trains.
        methods: The methods that `latephase compare` compares.
        seed: The seed; of `compare`, the first one.
        seeds: Number of seeds that `compare` runs.
        data: Images or text, split and augmentation.
        text: How text is read.
        model: The network.
        training: Optimizer, learning rate and length.
        late_phase: Late-phase weights and their controls.
        swa: Stochastic weight averaging.
        ema: Exponential moving average of the weights.
        lookahead: Lookahead.
        dropout: Dropout and MC-dropout.
        deep_ensemble: Networks trained apart.
        compute: Device, precision and threads.
        evaluate_every: Epochs between two points of the learning curves.
        checkpoint_minutes: Minutes between two checkpoints.
    """

    title: str = ""
    method: str = "late-phase"
    methods: list[str] = field(default_factory=lambda: ["base", "swa", "late-phase", "late-phase+swa"])
    seed: int = 0
    seeds: int = 10
    data: Data = field(default_factory=Data)
    text: Text = field(default_factory=Text)
    model: Model = field(default_factory=Model)
    training: Training = field(default_factory=Training)
    late_phase: LatePhase = field(default_factory=LatePhase)
    swa: SWA = field(default_factory=SWA)
    ema: EMA = field(default_factory=EMA)
    lookahead: Lookahead = field(default_factory=Lookahead)
    dropout: Dropout = field(default_factory=Dropout)
    deep_ensemble: DeepEnsemble = field(default_factory=DeepEnsemble)
    compute: Compute = field(default_factory=Compute)
    evaluate_every: int = 1
    checkpoint_minutes: float = 5.0
