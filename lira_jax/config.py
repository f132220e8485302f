"""The experiment as frozen dataclasses: TOML in, TOML out.

The `Attributes:` blocks are also the text of `--help`, so each names its unit.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
import tomllib
import types
import typing
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from lira_jax.errors import InputError


@dataclass(frozen=True)
class DataConfig:
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
        leave_out: Classes whose images are left out before anything else, by name or number with
            commas, such as `ship, truck`: the others are numbered anew, and what was left out is
            an input that no model knows the class of (see [trust]).
        canaries: Points to insert at the end of the examples, each in the training set of some
            models like any other; attacks on them are reported apart [images].
        canary_kind: `mislabelled`: images with a wrong label, drawn from the test split if it has
            enough, else from the training images beyond `limit`, else the last training images,
            which are then no longer examples with their right label. `noise`: uniform random
            pixels with random labels.
    """

    name: str = "digits"
    path: str = ""
    skip: int = 0
    limit: int = 0
    leave_out: str = ""
    canaries: int = 0
    canary_kind: Literal["mislabelled", "noise"] = "mislabelled"


@dataclass(frozen=True)
class NetworkConfig:
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
    depth: int = 8
    width: int = 16
    norm: Literal["batch", "group"] = "batch"


@dataclass(frozen=True)
class TrainConfig:
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

    models: int = 64
    keep: str = "1/2"
    epochs: int = 100
    batch_size: int = 256
    optimizer: Literal["momentum", "nesterov", "sgd", "adam"] = "momentum"
    learning_rate: float = 0.1
    schedule: Literal["paper", "one_cycle", "constant"] = "paper"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.0
    ema: float = 0.999
    mirror: bool = True
    shift: int = 4
    cutout: int = 0
    dtype: Literal["float32", "bfloat16"] = "float32"
    eval_examples: int = 256
    checkpoint_minutes: float = 5.0
    group: int = 0
    width: int = 0
    conv_gradients: Literal["auto", "vmap", "grouped"] = "auto"


@dataclass(frozen=True)
class DefenceConfig:
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

    dropout: float = 0.0
    l1: float = 0.0
    early_stopping: int = 0
    transfer_from: str = ""
    transfer_tune: Literal["all", "last"] = "all"
    adversarial: float = 0.0
    dp_clip: float = 0.0
    dp_noise: float = 0.0
    dp_delta: float = 1e-5


@dataclass(frozen=True)
class ScoreConfig:
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
    batch_size: int = 0
    noisy_queries: int = 0
    noise: float = 0.02
    gradient_norm: bool = False
    memguard: bool = False


@dataclass(frozen=True)
class LabelOnlyConfig:
    """Queries of live models that answer with a label alone: `score.py --label-only`.

    Lists are text with commas; models may be ranges, such as `0, 2-5`. An empty list makes nothing.
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

    sources: str = "0"
    targets: str = ""
    examples: int = 0
    rotations: str = "1, 4, 8"
    translations: str = "1, 2"
    noise: str = "0.02, 0.05, 0.1"
    flips: str = ""
    copies: int = 50
    budget: int = 2500
    boundary_examples: int = 0
    combined: int = 0
    combined_budget: int = 1000
    carlini_wagner: int = 0
    features: bool = True


@dataclass(frozen=True)
class TrustConfig:
    """Inputs that no model trained on, and calibrated predictions: `score.py --trust`.

    Inputs of every kind have the size and channels of the run's images: other images are cropped
    about their centre to its aspect ratio, resized bilinearly with antialiasing, and then turned
    grey (ITU-R 601 luma) or given three equal channels.

    Attributes:
        inputs: Kinds made from the run's own data, with commas: `test` (held-out images: the test
            split or, where there is none, training images beyond `data.limit`), `permuted` (those
            with the pixels of each in an order of its own), `scaled` (those, times `scale`),
            `left_out` (images of the classes of `data.leave_out`), `uniform` noise, and `gaussian`
            noise with the mean and deviation of each channel of the candidates. `all`: those that
            the data allow.
        data_sets: Other data sets, as `name=source` with commas, such as `mnist=../mnist,
            digits=digits`. The source is what `data.path` takes if there is such a file or folder
            or it begins with `.`, `/` or `~`, else what `data.name` takes. Their test split is
            taken or, where there is none, their training images.
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

    inputs: str = "all"
    data_sets: str = ""
    same_classes: str = ""
    generated: str = ""
    examples: int = 2000
    scale: float = 255.0
    fit: int = 1000
    laplace: bool = True
    laplace_prior: float = 0.0
    laplace_samples: int = 100


@dataclass(frozen=True)
class AttackConfig:
    """Membership inference from saved scores.

    Attributes:
        queries: Use the first this many views [views]; 0 uses all.
        centre: Centre of each example's IN and OUT scores: mean (the paper's text) or median (its
            code).
        extra: An attack of your own to run beside the others, as `package.module:function`; empty
            for none.
        fpr: False-positive rate at which decisions about a target of your own are made, between 0
            and 1.
        temperatures: Temperatures by which logits are divided for the section on trust, with
            commas; `fit`: each model's own, of the least loss on held-out images.
    """

    queries: int = 0
    centre: Literal["mean", "median"] = "mean"
    extra: str = ""
    fpr: float = 0.001
    temperatures: str = "fit, 0.5, 2, 10"


@dataclass(frozen=True)
class Experiment:
    """One experiment: a run is a function of this and nothing else.

    Attributes:
        seed: Seed of masks, initial weights, data order, augmentation, canaries and noisy queries.
    """

    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    defence: DefenceConfig = field(default_factory=DefenceConfig)
    score: ScoreConfig = field(default_factory=ScoreConfig)
    label_only: LabelOnlyConfig = field(default_factory=LabelOnlyConfig)
    trust: TrustConfig = field(default_factory=TrustConfig)
    attack: AttackConfig = field(default_factory=AttackConfig)


# Fields that change no trained weight (at width 1) and so may differ when a run goes on. Where data
# lie may change too: a digest tells whether they are the same.
FREE_TO_CHANGE = frozenset(
    {
        "data.name",
        "data.path",
        "train.models",
        "train.checkpoint_minutes",
        "train.group",
        "train.eval_examples",
    }
)


def keep_fraction(keep: str) -> tuple[int, int]:
    """Parse `train.keep`, "m/B", into (m, B).

    Raises:
        InputError: not a fraction strictly between 0 and 1.
    """
    try:
        fraction = Fraction(keep)
    except (ValueError, ZeroDivisionError):
        fraction = Fraction(0)
    if not 0 < fraction < 1:
        raise InputError(f'train.keep = "{keep}": give a fraction between 0 and 1 such as "1/2"')
    return fraction.numerator, fraction.denominator


def temperatures(config: AttackConfig) -> tuple[float | Literal["fit"], ...]:
    """Parse `attack.temperatures`.

    Raises:
        InputError: an entry that is neither `fit` nor a number from 1e-6 to 1e6, or is there twice.
    """
    found: list[float | Literal["fit"]] = []
    for text in entries(config.temperatures):
        try:
            value = text if text == "fit" else float(text)
        except ValueError:
            value = math.nan
        # Beyond these, logits in float32 may overflow, or all be 0.
        if value != "fit" and not (isinstance(value, float) and 1e-6 <= value <= 1e6):
            raise InputError(
                f'attack.temperatures = "{config.temperatures}": {text} is no temperature; give '
                "positive numbers, 1e-6 to 1e6, or fit"
            )
        if value in found:
            raise InputError(
                f'attack.temperatures = "{config.temperatures}": {text} is there twice; leave one '
                "out"
            )
        found.append(value)  # type: ignore[arg-type]
    return tuple(found)


# What `trust.inputs` may name, in the order of the docstring.
INPUT_KINDS = ("test", "permuted", "scaled", "left_out", "uniform", "gaussian")


def input_kinds(config: TrustConfig) -> tuple[str, ...]:
    """Parse `trust.inputs`; `all` is every kind.

    Raises:
        InputError: an unknown kind, one that is there twice, or `all` beside another.
    """
    named = entries(config.inputs)
    if named == ["all"]:
        return INPUT_KINDS
    where = f'trust.inputs = "{config.inputs}"'
    for number, kind in enumerate(named):
        if kind == "all":
            raise InputError(f"{where}: all is every kind; leave the others out")
        if kind not in INPUT_KINDS:
            raise InputError(
                f"{where}: {kind} is no kind of input; give all, or some of "
                + ", ".join(INPUT_KINDS)
            )
        if kind in named[:number]:
            raise InputError(f"{where}: {kind} is there twice; leave one out")
    return tuple(named)


def other_data_sets(config: TrustConfig) -> dict[str, str]:
    """Parse `trust.data_sets` into names and sources, in their order.

    Names become file names, so they are plain and differ in more than upper and lower case.

    Raises:
        InputError: an entry that is no `name=source`, or a name that is not plain, is taken, or is
            there twice; or an entry of `trust.same_classes` that is none of the names.
    """
    found: dict[str, str] = {}
    where = f'trust.data_sets = "{config.data_sets}"'
    taken = {"all", "fit", "candidates", "generated", *INPUT_KINDS}
    for entry in entries(config.data_sets):
        name, _, source = (part.strip() for part in entry.partition("="))
        if not name or not source:
            raise InputError(f"{where}: {entry} is no name=source; write mnist=../mnist")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]{0,63}", name):
            raise InputError(
                f"{where}: {name} cannot name files; use letters, digits and -, at most 64"
            )
        if name.lower() in taken:
            raise InputError(f"{where}: the name {name} is taken; give the data set another")
        taken.add(name.lower())
        found[name] = source
    for name in entries(config.same_classes):
        if name not in found:
            raise InputError(
                f'trust.same_classes = "{config.same_classes}": {name} is no name in '
                f"trust.data_sets, which has {', '.join(found) or 'none'}"
            )
    return found


def same_classes(config: TrustConfig) -> frozenset[str]:
    """Parse `trust.same_classes`, names that `other_data_sets` has checked."""
    return frozenset(entries(config.same_classes))


def entries(text: str) -> list[str]:
    """What stands between commas, without blanks around it; nothing of nothing."""
    return [entry for part in text.split(",") if (entry := part.strip())]


def flatten(experiment: Experiment) -> dict[str, Any]:
    """Dotted field names to values, in the order of declaration."""
    flat: dict[str, Any] = {}
    for item in dataclasses.fields(experiment):
        value = getattr(experiment, item.name)
        if dataclasses.is_dataclass(value):
            for inner in dataclasses.fields(value):
                flat[f"{item.name}.{inner.name}"] = getattr(value, inner.name)
        else:
            flat[item.name] = value
    return flat


def load(path: Path) -> Experiment:
    """Read an experiment from a TOML file; fields left out take their defaults.

    Raises:
        InputError: missing file, broken TOML, an unknown key (named with the nearest valid one),
            a value of the wrong type or outside its choices.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{path}: no such file; configs/ holds examples") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path}: not readable as TOML: {error}") from None
    # `[run]` is written by training into a run's own config.toml: versions, not settings.
    table.pop("run", None)
    return _build(Experiment, table, path, "")


def _build(cls: type, table: dict[str, Any], path: Path, prefix: str) -> Any:
    hints = typing.get_type_hints(cls)
    values = {}
    for key, value in table.items():
        name = prefix + key
        if key not in hints:
            raise InputError(f"{path}: unknown key `{name}`; {_nearest(name)}")
        kind = hints[key]
        if dataclasses.is_dataclass(kind):
            if not isinstance(value, dict):
                raise InputError(f"{path}: `{name}` is a section: write [{name}]")
            values[key] = _build(typing.cast(type, kind), value, path, f"{name}.")
        else:
            values[key] = _check_value(name, value, kind, path)
    return cls(**values)


def _nearest(name: str) -> str:
    """The valid key that the user most likely meant: in the same section, in another, a section."""
    valid = list(flatten(Experiment()))
    section, _, word = name.rpartition(".")
    own = {key.rpartition(".")[2]: key for key in valid if key.rpartition(".")[0] == section}
    elsewhere = {key.rpartition(".")[2]: key for key in reversed(valid)}
    if not section:
        own |= {item.name: f"[{item.name}]" for item in dataclasses.fields(Experiment)[1:]}
    for keys, likeness in ((elsewhere, 1.0), (own, 0.5), (elsewhere, 0.7)):
        near = difflib.get_close_matches(word, keys, 1, likeness)
        if near:
            return f"did you mean `{keys[near[0]]}`?"
    return f"valid keys: {', '.join(own.values())}"


_KIND_IN_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text in quotes",
}


def _check_value(name: str, value: Any, kind: Any, path: Path | str) -> Any:
    origin = typing.get_origin(kind)
    if origin is Literal:
        choices = typing.get_args(kind)
        if value not in choices or type(value) is not type(choices[0]):
            listed = ", ".join(str(choice) for choice in choices)
            raise InputError(f"{path}: {name} = {value!r}: choose one of {listed}")
        return value
    assert not isinstance(kind, types.UnionType), "fields have one plain type each"
    if kind is float and type(value) is int and abs(value) < 2**53:
        return float(value)
    if type(value) is not kind:
        raise InputError(f"{path}: {name} = {value!r}: must be {_KIND_IN_WORDS[kind]}")
    return value


def check(experiment: Experiment) -> Experiment:
    """Refuse values that no stage could use; return the experiment unchanged.

    Raises:
        InputError: naming the field, its value and the values it may take.
    """
    flat = flatten(experiment)
    minimum = {
        "seed": 0, "data.skip": 0, "data.limit": 0, "data.canaries": 0, "network.depth": 1,
        "network.width": 1,
        "train.models": 1, "train.epochs": 1, "train.batch_size": 1, "train.weight_decay": 0,
        "train.shift": 0, "train.cutout": 0, "train.eval_examples": 1,
        "train.checkpoint_minutes": 0, "train.group": 0, "train.width": 0, "score.batch_size": 0,
        "score.noisy_queries": 0, "attack.queries": 0, "defence.l1": 0, "defence.early_stopping": 0,
        "defence.adversarial": 0, "defence.dp_clip": 0, "defence.dp_noise": 0,
        "label_only.examples": 0, "label_only.copies": 1, "label_only.budget": 0,
        "label_only.boundary_examples": 0, "label_only.combined": 0,
        "label_only.combined_budget": 0, "label_only.carlini_wagner": 0, "trust.examples": 0,
        "trust.fit": 0, "trust.laplace_prior": 0, "trust.laplace_samples": 1,
    }  # fmt: skip
    for name, least in minimum.items():
        if not flat[name] >= least:
            raise InputError(f"{name} = {flat[name]}: must be at least {least}")
    # Random keys repeat beyond this.
    if experiment.seed >= 2**32:
        raise InputError(f"seed = {experiment.seed}: must be below 2^32")
    for name, value in flat.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{name} = {value}: must be a finite number")
        if isinstance(value, str) and ("\0" in value or not _is_unicode(value)):
            raise InputError(f"{name} = {value!r}: must be Unicode text without NUL characters")
    for name in ("train.ema", "train.momentum", "train.label_smoothing", "defence.dropout"):
        if not 0 <= flat[name] < 1:
            raise InputError(f"{name} = {flat[name]}: must be at least 0 and below 1")
    _check_dp_sgd(experiment)
    for name in ("train.learning_rate", "score.noise", "trust.scale"):
        if not flat[name] > 0:
            raise InputError(f"{name} = {flat[name]}: must be above 0")
    if not 0 < experiment.attack.fpr < 1:
        raise InputError(f"attack.fpr = {experiment.attack.fpr}: must be above 0 and below 1")
    if experiment.score.memguard and experiment.score.noisy_queries:
        raise InputError(
            f"score.noisy_queries = {experiment.score.noisy_queries}: losses that score.memguard "
            "serves tell no more of a copy than its label, which label_only.noise asks for; leave "
            "one of them out"
        )
    temperatures(experiment.attack)
    other_data_sets(experiment.trust)
    input_kinds(experiment.trust)
    _, block = keep_fraction(experiment.train.keep)
    if experiment.train.models % block:
        raise InputError(
            f"train.models = {experiment.train.models}: models come in blocks of {block} with "
            f'train.keep = "{experiment.train.keep}"; give a multiple of {block}'
        )
    return experiment


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


def _is_unicode(text: str) -> bool:
    """Whether UTF-8 can hold it: file names that are not valid UTF-8 become what it cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def to_toml(experiment: Experiment, run: dict[str, str]) -> str:
    """The experiment as TOML that `load` reads back, with a [run] table of versions."""
    lines: list[str] = []
    section = ""
    tables = flatten(experiment) | {f"run.{key}": value for key, value in run.items()}
    for name, value in tables.items():
        head, _, key = name.rpartition(".")
        if head != section:
            lines += ["", f"[{head}]"]
            section = head
        lines.append(f"{key} = {_toml_value(value)}")
    return "\n".join(lines) + "\n"


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # JSON's escapes are TOML's, but for DEL, which only TOML forbids to stand for itself.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)


def differences(old: Experiment, new: Experiment) -> list[tuple[str, Any, Any]]:
    """Fields in which two experiments would train differently: of seed, data, network, train and
    defence."""
    before, after = flatten(old), flatten(new)
    return [
        (name, before[name], after[name])
        for name in before
        if before[name] != after[name]
        and not (name == "train.keep" and keep_fraction(before[name]) == keep_fraction(after[name]))
        and not (name == "data.canary_kind" and not before["data.canaries"])
        # A digest tells whether the weights are the same.
        and not (name == "defence.transfer_from" and before[name] and after[name])
        and name not in FREE_TO_CHANGE
        and not name.startswith(("score.", "label_only.", "trust.", "attack."))
    ]
