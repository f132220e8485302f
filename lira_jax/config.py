"""The experiment as frozen dataclasses, with the limits of each field beside it.

The `Attributes:` blocks are also the text of `--help`, so each names its unit. Files are read and
written by `config_file`.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_args

from lira_jax.errors import InputError
from lira_jax.fields import Limits, as_text, as_tuple, fields_of, refusal, shown
from lira_jax.fields import keep_fraction as keep_fraction

# The upper limits are beyond any honest use, and within what 32 bits hold of it.
Whole = Annotated[int, Limits(least=0, most=10**9)]
Count = Annotated[int, Limits(least=1, most=10**9)]
SmallWhole = Annotated[int, Limits(least=0, most=10**6)]
SmallCount = Annotated[int, Limits(least=1, most=10**6)]
Layers = Annotated[int, Limits(least=1, most=10_000)]
Pixels = Annotated[int, Limits(least=0, most=10_000)]
NotNegative = Annotated[float, Limits(least=0, most=1e9)]
Positive = Annotated[float, Limits(above=0, most=1e9)]
Share = Annotated[float, Limits(least=0, below=1)]
Rate = Annotated[float, Limits(above=0, below=1)]
# What `trust.inputs` may name.
InputKind = Literal["test", "permuted", "scaled", "left_out", "uniform", "gaussian"]
INPUT_KINDS: tuple[InputKind, ...] = get_args(InputKind)


class _Section:
    """A section of the experiment. Its lists may be given as text with commas too, as the command
    line and the TOML files of older runs have them; a wrong entry raises InputError."""

    def __post_init__(self) -> None:
        for key, declared in fields_of(type(self)).items():
            if declared.entry is not None:
                name = f"{_name_of(type(self))}.{key}"
                entries = as_tuple(name, getattr(self, key), declared.entry)
                object.__setattr__(self, key, entries)
            elif declared.kind is float and getattr(self, key) == 0:
                object.__setattr__(self, key, 0.0)  # and not -0


@dataclass(frozen=True)
class DataConfig(_Section):
    """Images and labels whose membership is in question.

    Attributes:
        name: `digits` (1,797 images in scikit-learn), a TFDS name such as `cifar10`,
            or `package.module:function` returning arrays. With `path`, only a title.
        path: File or folder to read instead
            of `name`: `cifar-10-binary.tar.gz`, `cifar-100-binary.tar.gz`, a folder of Parquet
            files (Hugging Face image layout), or an `.npz` with x_train, y_train, x_test, y_test.
            Empty: use `name`.
        skip: Leave the first this many training images out [images], as when another run, from
            which weights are transferred, was trained on these.
        limit: Of the others, take the first this many training images [images]; 0 takes all.
        leave_out: Classes whose images are left out before anything else, by name or number, such
            as `["ship", "truck"]`: the others are numbered anew, and what was left out is an input
            that no model knows the class of (see [trust]).
        canaries: Points to insert at the end of the examples, each in the training set of some
            models like any other; attacks on them are reported apart [images].
        canary_kind: `mislabelled`: images with a wrong label, drawn from the test split if it has
            enough, else from the training images beyond `limit`, else the last training images,
            which are then no longer examples with their right label. `noise`: uniform random
            pixels with random labels.
    """

    name: str = "digits"
    path: str = ""
    skip: Whole = 0
    limit: Whole = 0
    leave_out: tuple[str, ...] = ()
    canaries: SmallWhole = 0
    canary_kind: Literal["mislabelled", "noise"] = "mislabelled"


@dataclass(frozen=True)
class NetworkConfig(_Section):
    """The architecture that every model shares.

    Attributes:
        arch: `wide_resnet`, `resnet`, `convnet`, `speed_net`, or `package.module:function`
            returning a Flax NNX module.
        depth: Layers with weights: 6n+2 for resnet (8, 20, …), 6n+4 for wide_resnet (16, 28, …);
            convnet and speed_net ignore it [layers].
        width: resnet, convnet and speed_net: filters of the first convolution (16, 32, 64);
            wide_resnet: widening factor k (1, 2, 10).
        norm: Normalisation of resnet, wide_resnet and speed_net: `batch`, or `group`, whose
            statistics are of one image alone, as DP-SGD needs; convnet has none.
    """

    arch: str = "resnet"
    depth: Layers = 8
    width: Layers = 16
    norm: Literal["batch", "group"] = "batch"


@dataclass(frozen=True)
class TrainConfig(_Section):
    """Shadow training: how many models, on what share of the examples, and how.

    Attributes:
        models: Shadow models, a multiple of the denominator of `keep` [models].
        keep: Share of the examples that each model trains on, as m/B. Models come in blocks of B.
        epochs: Passes over a model's own training examples [epochs].
        batch_size: Training examples per step and model [examples].
        optimizer: SGD with momentum, with Nesterov's momentum, plain SGD, or Adam.
        learning_rate: Peak learning rate [1/step].
        schedule: `paper`: learning_rate · cos(7π/16·t) · clip(100t, 0, 1), t the share of training
            done. `one_cycle`: linear from 0 to learning_rate over the first fifth of training,
            then linear to 0.
        momentum: Momentum of `optimizer = "momentum"` and `"nesterov"`.
        weight_decay: L2 penalty weight_decay · ½‖w‖² on convolution and dense kernels only.
        label_smoothing: Share of each label that is spread over all classes evenly, in [0, 1).
        ema: Decay per step of the moving average of weights that is evaluated and scored; 0 turns
            it off.
        mirror: Augmentation: mirror each image left to right with probability ½.
        shift: Augmentation: reflect-pad by this and crop at random [pixels]; 0 turns it off.
        cutout: Augmentation: grey out a square of this side at a random place [pixels]; 0 turns it
            off.
        dtype: Type of activations and convolutions; weights, loss and scores stay float32.
        eval_examples: Members, and as many non-members, on which accuracy is logged after each
            epoch [examples].
        checkpoint_minutes: A group in training is checkpointed at least this often, 0 after every
            step [minutes]. Does not change results.
        group: Models trained together; 0 picks one per device on CPU, 16 per device
            elsewhere [models]. Does not change results at width 1.
        width: Models vectorised together on one device; 0 is 1 on CPU, and elsewhere what is found
            fastest by measuring a few for a second or two each, which is then remembered
            [models]. Other widths than 1 change results by rounding.
        conv_gradients: How the gradients of vectorised models' convolutions are written on GPUs and
            TPUs: `vmap`, each by JAX's rule, or `grouped`, as those of one grouped convolution;
            `auto` measures both with `width = 0`, and else is `grouped`. Changes results by
            rounding.
    """

    models: SmallCount = 64
    keep: str = "1/2"
    epochs: Count = 100
    batch_size: Count = 256
    optimizer: Literal["momentum", "nesterov", "sgd", "adam"] = "momentum"
    learning_rate: Positive = 0.1
    schedule: Literal["paper", "one_cycle", "constant"] = "paper"
    momentum: Share = 0.9
    weight_decay: NotNegative = 5e-4
    label_smoothing: Share = 0.0
    ema: Share = 0.999
    mirror: bool = True
    shift: Pixels = 4
    cutout: Pixels = 0
    dtype: Literal["float32", "bfloat16"] = "float32"
    eval_examples: Count = 256
    checkpoint_minutes: NotNegative = 5.0
    group: SmallWhole = 0
    width: SmallWhole = 0
    conv_gradients: Literal["auto", "vmap", "grouped"] = "auto"

    def steps_per_epoch(self, members: int) -> int:
        """Whole batches in a model's own examples; the remainder of each shuffle is left out."""
        return members // self.batch_size

    def total_steps(self, members: int) -> int:
        """Optimiser steps of one model.

        Raises:
            InputError: more than 32 bits count.
        """
        if (steps := self.steps_per_epoch(members) * self.epochs) >= 2**31:
            raise InputError(
                f"train.epochs = {self.epochs}: are {steps:,} steps; give fewer than "
                f"{2**31 // self.steps_per_epoch(members):,} epochs, or a larger train.batch_size"
            )
        return steps


@dataclass(frozen=True)
class DefenceConfig(_Section):
    """Defences in training, which combine freely. L2 is train.weight_decay, augmentation is
    train.mirror, train.shift and train.cutout, and MemGuard, a defence at serving time, is
    score.memguard.

    Attributes:
        dropout: Share of the last layer's inputs that each training step drops, in [0, 1).
        l1: L1 penalty l1 · ‖w‖₁ on convolution and dense kernels.
        early_stopping: Stop a model after this many epochs without a better accuracy on held-out
            images, and keep the weights of its best epoch [epochs]; 0 trains to the end.
        transfer_from: Run directory whose model 0 gives every model its initial weights, but for
            the last layer; empty for random ones.
        transfer_tune: With transfer_from, train `all` layers, or the `last` alone.
        adversarial: Adversarial regularisation: weight λ of the gain of an inference network that
            is trained along to tell members from held-out images; 0 turns it off.
        dp_clip: DP-SGD: L2 norm to which each example's gradient is clipped; 0 turns DP-SGD off.
        dp_noise: DP-SGD: standard deviation of the noise on the sum of clipped gradients, in
            units of dp_clip.
        dp_delta: DP-SGD: δ for which ε is reported.
    """

    dropout: Share = 0.0
    l1: NotNegative = 0.0
    early_stopping: SmallWhole = 0
    transfer_from: str = ""
    transfer_tune: Literal["all", "last"] = "all"
    adversarial: NotNegative = 0.0
    dp_clip: NotNegative = 0.0
    dp_noise: NotNegative = 0.0
    dp_delta: Rate = 1e-5


@dataclass(frozen=True)
class ScoreConfig(_Section):
    """Inference of every model on every example.

    Attributes:
        views: Fixed views per example: 1 identity, 2 with mirror, 18 mirror × 9 shifts of ±1
            pixel, 162 mirror × 81 shifts up to ±4 pixels. Each set begins with the smaller
            ones [views].
        batch_size: Images (examples × views) per inference step and model; 0 picks 72 on CPU, 4,096
            elsewhere [images]. Changes scores by rounding only.
        noisy_queries: Copies of each image with Gaussian noise on which the loss is compared with
            the image's own, for the Merlin attack; 0 makes none, its paper has 100 [copies]. As
            many views more to compute.
        noise: Standard deviation of that noise, in units of the network's input, [−1, 1]: 0.02 is
            the 0.01 of images in [0, 1], or 2.55 of 255.
        gradient_norm: Also compute the norm of each example's loss gradient by all weights, which
            an attacker needs the weights for.
        memguard: Scores as a model guarded by MemGuard in its strongest form gives them: 1/K +
            0.001 for the predicted class, the rest even among the others. Labels are the same.
    """

    views: Literal[1, 2, 18, 162] = 18
    batch_size: Whole = 0
    noisy_queries: SmallWhole = 0
    noise: Positive = 0.02
    gradient_norm: bool = False
    memguard: bool = False


@dataclass(frozen=True)
class LabelOnlyConfig(_Section):
    """Queries of live models that answer with a label alone: `score.py --label-only`.

    Models may be ranges, such as `[0, "2-5"]`. An empty list makes nothing.
    Distances and noise are in units of images in [0, 1], half those of the network's input.

    Attributes:
        sources: Source models, on which the attacker tunes every threshold [models].
        targets: Models to attack; empty: all that share no block with a source model [models].
        examples: Ask about the first this many examples [examples]; 0 asks about all.
        rotations: Angles r; for each, the views rotated by −r and r are asked for [degrees].
        translations: Distances d; for each, the 4d views shifted by (i, j), |i| + |j| = d, are
            asked for [pixels].
        noise: Standard deviations of Gaussian noise [images in [0, 1]].
        flips: Probabilities of flipping each feature, for images of two values only.
        copies: Noisy copies of each example, for each of `noise` and `flips` [copies].
        budget: Label queries for each example's distance to the decision boundary, by HopSkipJump
            [queries]; 0 for none.
        boundary_examples: Ask for distances of the first this many examples only [examples]; 0: as
            many as `examples`.
        combined: Distance d of the translated copies whose distances to the boundary are asked for
            too [pixels]; 0 for none.
        combined_budget: Label queries for each of these copies [queries].
        carlini_wagner: Gradient steps of the white-box attack by Carlini and Wagner [steps]; 0 for
            none.
        features: Also keep the last layer's inputs under the source models, which tell outliers.
    """

    sources: Annotated[tuple[int, ...], Limits(least=0, most=10**6)] = (0,)
    targets: Annotated[tuple[int, ...], Limits(least=0, most=10**6)] = ()
    examples: Whole = 0
    rotations: Annotated[tuple[float, ...], Limits(above=0, most=180)] = (1.0, 4.0, 8.0)
    translations: Annotated[tuple[int, ...], Limits(least=1, most=10_000)] = (1, 2)
    noise: Annotated[tuple[float, ...], Limits(above=0, most=100)] = (0.02, 0.05, 0.1)
    flips: Annotated[tuple[float, ...], Limits(above=0, most=1)] = ()
    copies: SmallCount = 50
    budget: SmallWhole = 2500
    boundary_examples: Whole = 0
    combined: Pixels = 0
    combined_budget: SmallWhole = 1000
    carlini_wagner: SmallWhole = 0
    features: bool = True


@dataclass(frozen=True)
class TrustConfig(_Section):
    """Inputs that no model trained on, and calibrated predictions: `score.py --trust`.

    Inputs of every kind have the size and channels of the run's images: other images are cropped
    about their centre to its aspect ratio, resized bilinearly with antialiasing, and then turned
    grey (ITU-R 601 luma) or given three equal channels.

    Attributes:
        inputs: Kinds made from the run's own data: `test` (held-out images: the test
            split or, where there is none, training images beyond `data.limit`), `permuted` (those
            with the pixels of each in an order of its own), `scaled` (those, times `scale`),
            `left_out` (images of the classes of `data.leave_out`), `uniform` noise, and `gaussian`
            noise with the mean and deviation of each channel of the candidates. `all`: those that
            the data allow.
        data_sets: Other data sets, as `name=source`, such as `["mnist=../mnist",
            "digits=digits"]`. The source is what `data.path` takes if there is such a file or
            folder or it begins with `.`, `/` or `~`, else what `data.name` takes. Their test split
            is taken or, where there is none, their training images.
        same_classes: Those of `data_sets` whose classes all are classes of the run, matched by
            name: their labels count. The labels of others mean nothing to the run's models.
        generated: Folder of generated images, PNG, JPEG or whatever Pillow reads, also in folders
            below, without labels; empty for none.
        examples: Inputs of each kind, at most [images]; 0 takes all there are, and of noise as many
            as of `test` or, where there are none, as there are candidates.
        scale: Factor on the network's input for `scaled`.
        fit: Held-out images on which temperatures are fitted; they are then not among `test`, of
            which at least half are left [images]; 0 for none.
        laplace: Also predict with a Laplace approximation of the last layer, Kronecker-factored
            over each model's own members; once by sampling, once by the probit approximation.
        laplace_prior: Precision of the Gaussian prior on the last layer's weights; 0 takes what
            maximises each model's marginal likelihood.
        laplace_samples: Draws of the last layer behind each sampled prediction [draws].
    """

    inputs: tuple[Literal["all", InputKind], ...] = ("all",)
    data_sets: tuple[str, ...] = ()
    same_classes: tuple[str, ...] = ()
    generated: str = ""
    examples: Whole = 2000
    scale: Positive = 255.0
    fit: Whole = 1000
    laplace: bool = True
    laplace_prior: NotNegative = 0.0
    laplace_samples: SmallCount = 100


@dataclass(frozen=True)
class AttackConfig(_Section):
    """Membership inference from saved scores.

    Attributes:
        queries: Use the first this many views [views]; 0 uses all.
        centre: Centre of each example's IN and OUT scores: mean (the paper's text) or median (its
            code).
        centred: Take what a model gives to all examples, and to a class, off all scores.
        extra: An attack of your own to run beside the others, as `package.module:function`; empty
            for none.
        fpr: False-positive rate at which decisions about a target of your own are made, between 0
            and 1.
        calibrate: That rate is aimed at over all examples (pooled), or on each (per-example).
        temperatures: Temperatures by which logits are divided for the section on trust; `fit`: each
            model's own, of the least loss on held-out images.
    """

    queries: Whole = 0
    centre: Literal["mean", "median"] = "mean"
    centred: bool = False
    extra: str = ""
    fpr: Rate = 0.001
    calibrate: Literal["pooled", "per-example"] = "pooled"
    # Beyond these limits, logits in float32 may overflow, or all be 0.
    temperatures: Annotated[tuple[float | Literal["fit"], ...], Limits(least=1e-6, most=1e6)] = (
        "fit", 0.5, 2.0, 10.0,
    )  # fmt: skip


@dataclass(frozen=True)
class Experiment:
    """One experiment: a run is a function of this and nothing else.

    Attributes:
        seed: Seed of masks, initial weights, data order, augmentation, canaries and noisy queries.
    """

    seed: Annotated[int, Limits(least=0, below=2**32)] = 0  # random keys repeat beyond
    data: DataConfig = field(default_factory=DataConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    defence: DefenceConfig = field(default_factory=DefenceConfig)
    score: ScoreConfig = field(default_factory=ScoreConfig)
    label_only: LabelOnlyConfig = field(default_factory=LabelOnlyConfig)
    trust: TrustConfig = field(default_factory=TrustConfig)
    attack: AttackConfig = field(default_factory=AttackConfig)


def other_data_sets(config: TrustConfig) -> dict[str, str]:
    """The names and sources in `trust.data_sets`, in their order."""
    pairs = (entry.partition("=") for entry in config.data_sets)
    return {name.strip(): source.strip() for name, _, source in pairs}


def _sections(experiment: Experiment) -> Iterator[tuple[str, Any]]:
    """The experiment itself and its sections, each with the beginning of its fields' names."""
    yield "", experiment
    for item in dataclasses.fields(experiment)[1:]:
        yield f"{item.name}.", getattr(experiment, item.name)


def _name_of(section: type) -> str:
    return next(key for key, declared in fields_of(Experiment).items() if declared.kind is section)


def flatten(experiment: Experiment) -> dict[str, Any]:
    """Dotted field names to values, in the order of declaration; lists as text with commas."""
    return {
        prefix + item.name: as_text(getattr(section, item.name))
        for prefix, section in _sections(experiment)
        for item in dataclasses.fields(section)
        if not dataclasses.is_dataclass(getattr(section, item.name))
    }


def check(experiment: Experiment) -> Experiment:
    """Refuse values that no stage could use; return the experiment unchanged.

    Raises:
        InputError: naming the field, its value and the values it may take.
    """
    for prefix, section in _sections(experiment):
        for key, declared in fields_of(type(section)).items():
            _check_field(prefix + key, getattr(section, key), declared.limits)
    _check_dp_sgd(experiment)
    _check_other_data_sets(experiment.trust)
    if experiment.score.memguard and experiment.score.noisy_queries:
        raise InputError(
            f"score.noisy_queries = {experiment.score.noisy_queries}: losses that score.memguard "
            "serves tell no more of a copy than its label, which label_only.noise asks for; leave "
            "one of them out"
        )
    if "all" in experiment.trust.inputs and len(experiment.trust.inputs) > 1:
        reason = "all is every kind; leave the others out"
        raise refusal("trust.inputs", experiment.trust.inputs, reason)
    _, block = keep_fraction(experiment.train.keep)
    if (models := experiment.train.models) % block:
        raise InputError(
            f"train.models = {models}: models come in blocks of {block} with train.keep = "
            f'"{experiment.train.keep}"; give a multiple of {block}'
        )
    return experiment


def _check_field(name: str, value: Any, limits: Limits | None) -> None:
    for entry in value if isinstance(value, tuple) else (value,):
        if isinstance(entry, str):
            # File names that are not valid UTF-8 become what it cannot hold.
            if "\0" in entry or entry.encode(errors="ignore").decode() != entry:
                raise InputError(
                    f"{name} = {shown(repr(entry))}: must be Unicode text without NUL characters"
                )
        elif isinstance(entry, float) and not math.isfinite(entry):
            raise refusal(name, value, "must be a finite number")
        elif limits is not None and entry not in limits:
            raise refusal(name, value, f"must be {limits}")


def _check_dp_sgd(experiment: Experiment) -> None:
    """Refuse what would not be differentially private although DP-SGD is asked for."""
    defence, network = experiment.defence, experiment.network
    if not 0 < defence.dp_delta < 1:
        raise InputError(f"defence.dp_delta = {defence.dp_delta}: must be above 0 and below 1")
    if not defence.dp_clip:
        if defence.dp_noise:
            raise InputError(
                f"defence.dp_noise = {defence.dp_noise}: noise hides only gradients that are "
                "clipped; give defence.dp_clip too"
            )
        return
    if network.arch in ("resnet", "wide_resnet", "speed_net") and network.norm == "batch":
        raise InputError(
            'network.norm = "batch": with DP-SGD (defence.dp_clip) no statistic may join the '
            'examples of a batch; set network.norm = "group"'
        )
    if defence.adversarial:
        raise InputError(
            f"defence.adversarial = {defence.adversarial}: what its inference network learns of "
            "members is not counted in the ε of DP-SGD; use one of the two"
        )


def _check_other_data_sets(config: TrustConfig) -> None:
    """Names become file names, so they are plain and differ in more than upper and lower case."""
    names: list[str] = []
    taken: set[str] = {"all", "fit", "candidates", "generated", *INPUT_KINDS}
    for entry in config.data_sets:
        name, _, source = (part.strip() for part in entry.partition("="))
        reason = ""
        if not name or not source:
            reason = f"{entry} is no name=source; write mnist=../mnist"
        elif not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]{0,63}", name):
            reason = f"{name} cannot name files; use letters, digits and -, at most 64"
        elif name.lower() in taken:
            reason = f"the name {name} is taken; give the data set another"
        if reason:
            raise refusal("trust.data_sets", config.data_sets, reason)
        taken.add(name.lower())
        names.append(name)
    for name in config.same_classes:
        if name not in names:
            reason = f"{name} is no name in trust.data_sets, which has {', '.join(names) or 'none'}"
            raise refusal("trust.same_classes", config.same_classes, reason)
