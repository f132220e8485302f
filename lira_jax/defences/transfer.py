"""Transfer learning: models begin with the weights of a model that was trained on other images.

Every model of a run begins with the variables of model 0 of another run, but for its last layer,
whose weights are drawn anew. `transfer_tune = "all"` then trains all of them. With `"last"` the
rest of the network stays as it is, BatchNorm statistics included, and no gradient is taken through
it: only the last layer is in a model's state, the rest is on each device once.

If the other run had seen an example that is a candidate here, every model would give it away,
members and non-members alike; so the candidates of the two runs must differ.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Key, UInt8

from lira_jax import foreign, networks
from lira_jax.config import DefenceConfig, Experiment, NetworkConfig, flatten, keep_fraction
from lira_jax.data import datasets
from lira_jax.errors import InputError
from lira_jax.networks import Network, Variables, last_layer
from lira_jax.run import checkpoints, run_dir

_KEY = "defence.transfer_from"


def begun_from(network: Network, initial: Variables | None, config: DefenceConfig) -> Network:
    """The network that a defended model trains.

    Args:
        network: of the run.
        initial: variables of one model to begin with, last layer left out; None leaves the network
            as it is.
        config: `transfer_tune` tells whether the network's variables are all of `network`'s or,
            with the others fixed, those of its last layer.
    """
    if initial is None:
        return network

    def init(key: Key[Array, ""]) -> Variables:
        drawn = network.init(key)["params"]
        new = {name: part for name, part in drawn.items() if name not in initial["params"]}
        if config.transfer_tune == "last":
            return {"params": new, "rest": {}}
        return {"params": initial["params"] | new, "rest": initial["rest"]}

    if config.transfer_tune == "all":
        return replace(network, init=init)

    def of_last(function: Callable[..., Array]) -> Callable[..., Array]:
        """The function of the last layer's variables instead of all."""
        return lambda variables, *inputs: function(whole(variables, initial, config), *inputs)

    tuned = of_last(network.apply_tuned)
    return replace(
        network,
        init=init,
        apply_train=lambda *inputs: (tuned(*inputs), {}),
        apply=of_last(network.apply),
        features=of_last(network.features),
        head_inputs=of_last(network.head_inputs),
    )


def whole(variables: Variables, initial: Variables | None, config: DefenceConfig) -> Variables:
    """All variables of the run's network, from those of `begun_from`'s."""
    if initial is None or config.transfer_tune == "all":
        return variables
    return {"params": initial["params"] | variables["params"], "rest": initial["rest"]}


def read(experiment: Experiment, network: Network, images: UInt8[np.ndarray, "E H W C"]) -> Any:
    """The variables that the models of an experiment begin with, their last layer left out.

    Args:
        network: of the experiment.
        images: candidates of the experiment.

    Raises:
        InputError: no run, model 0 not trained or damaged, a network that differs in more than its
            classes, changed data, or candidates that are also candidates of that run.
    """
    source = _run_folder(experiment.defence.transfer_from)
    theirs = run_dir.read_config(source)
    data = datasets.load(theirs.data, theirs.seed)
    if data.digest != run_dir.read_versions(source)["data_digest"]:
        raise InputError(f"{source}: the data have changed since training; restore them")
    seen, _ = datasets.in_equal_folds(data, keep_fraction(theirs.train.keep)[1])
    shape = (seen.shape[1], seen.shape[2], seen.shape[3])
    their_network = networks.build(theirs.network, shape, len(data.classes), theirs.train.dtype)
    like = jax.eval_shape(their_network.init, jax.random.key(0))
    _refuse_other_network(experiment, theirs, network, like, (images.shape[3], shape[2]))
    _refuse_overlap(source, images, seen)

    keep, _ = run_dir.read_membership(source, theirs)
    members = int(keep[0].sum())
    finished, _ = checkpoints.plan(source, len(keep), theirs.train.total_steps(members), len(keep))
    group = next((group for group in finished if 0 in group.models), None)
    if group is None:
        raise InputError(
            f"{source}: model 0, whose weights defence.transfer_from asks for, is not trained yet; "
            f"run python train.py --run {shlex.quote(str(source))}"
        )
    rows = jax.tree.map(lambda leaf: np.empty((group.size, *leaf.shape), leaf.dtype), like)
    variables = jax.tree.map(lambda leaf: leaf[0], checkpoints.restore(source, group, rows))
    del variables["params"][last_layer(variables, theirs.network.arch, _KEY)]
    return variables


def _run_folder(text: str) -> Path:
    """The other run's directory, in which there is nothing that would be read for ever."""
    advice = "give the run directory of the models to begin with"
    with foreign.reading(f'{_KEY} = "{text}"', advice, "no usable path"):
        source = Path(text).expanduser()
        contents = [*source.glob("*"), *source.glob(f"{run_dir.CHECKPOINTS}/*")]
    for path in contents:
        if not path.is_dir():
            foreign.check_regular(path, "remove it")
    return source


def _refuse_other_network(
    experiment: Experiment,
    theirs: Experiment,
    network: Network,
    like: Variables,
    channels: tuple[int, int],
) -> None:
    """Refuse a network that differs from the source's, whose variables are `like`, in more than its
    last layer."""
    where = f'defence.transfer_from = "{experiment.defence.transfer_from}"'
    ours = jax.eval_shape(network.init, jax.random.key(0))
    if theirs.network.arch == experiment.network.arch:
        last = last_layer(ours, experiment.network.arch, _KEY)
        if _body(ours, last) == _body(like, last):
            return
        if channels[0] != channels[1]:
            raise InputError(
                f"{where}: its images have {channels[1]} channel{'s' * (channels[1] > 1)}, those "
                f"of data.name and data.path here {channels[0]}; use images of one kind"
            )
    for key in (f"network.{item.name}" for item in fields(NetworkConfig)):
        there, here = flatten(theirs)[key], flatten(experiment)[key]
        if there != here:
            raise InputError(f"{where}: its {key} is {there!r}, not {here!r}; make them the same")
    raise InputError(f"{where}: its network has other weights than network.arch gives here")


def _body(like: Variables, last: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all variables but the last layer's."""
    body = like | {"params": {name: v for name, v in like["params"].items() if name != last}}
    return {
        jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree.leaves_with_path(body)
    }


def _refuse_overlap(source: Path, images: np.ndarray, seen: np.ndarray) -> None:
    if both := datasets.shared(images, seen):
        raise InputError(
            f"{source}: {len(both)} of its candidates are candidates here too, first example "
            f"{both[0]}; make the runs disjoint: there data.limit = n, here data.skip = n"
        )


def digest(variables: Any) -> str:
    """SHA-256 over the names, types, shapes and values of a tree's arrays, in hex."""
    total = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(variables):
        array = np.ascontiguousarray(leaf)
        total.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        total.update(array.tobytes())
    return total.hexdigest()
