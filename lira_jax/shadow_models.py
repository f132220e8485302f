"""A group of shadow models in training, as jitted programs over the devices of a mesh.

One dispatch is some steps of one group, at most an epoch: every model shuffles its own members and
loops over its batches; after each epoch it is evaluated on a fixed sample of its members and
non-members. Model n is a function of (configuration, seed, n), never of its group, its device, its
shard or the point of resume.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Bool

from lira_jax import ensemble, optimization, random_streams
from lira_jax.candidates import Candidates, build_network, place
from lira_jax.config import Experiment
from lira_jax.data import membership
from lira_jax.data.views import augmented, plain
from lira_jax.defences import adversarial, dp_sgd, early_stopping, transfer
from lira_jax.ensemble import Program
from lira_jax.networks import Network, Variables
from lira_jax.optimization import State
from lira_jax.random_streams import ADVERSARY, AUGMENT, DROPOUT, HELD_OUT, INIT, ORDER
from lira_jax.run.checkpoints import Group


def init_model(
    experiment: Experiment, network: Network, steps: int, classes: int
) -> Callable[[Array], State]:
    """The function n ↦ state of model n before training."""

    def init(number: Array) -> State:
        key = jax.random.fold_in(jax.random.key(experiment.seed), number)
        state = optimization.new_state(
            jax.random.fold_in(key, INIT), network, experiment.train, steps, experiment.defence
        )
        if experiment.defence.adversarial:
            adversary = adversarial.begin(jax.random.fold_in(key, ADVERSARY), classes)
            state = replace(state, adversary=adversary)
        if experiment.defence.early_stopping:
            state = replace(state, early_stopping=early_stopping.begin(state.variables))
        return state

    return init


def steps_of_model(experiment: Experiment, network: Network, steps: int) -> Callable[..., Any]:
    """The function of some steps of one model, all within one epoch.

    It maps ((state, model), start, stop, images, labels) to (state, model) after steps `start` …
    `stop` − 1, counted from 0 over all epochs. `model` holds `number` [] and `members` [M]. Bounds
    are arguments, so that one program serves any number of steps. Adversarial regularisation also
    takes held-out images and labels.
    """
    config, defence = experiment.train, experiment.defence
    step = optimization.train_step(network, config, steps, defence)

    def advance(
        state_and_model: Any,
        start: Array,
        stop: Array,
        images: Array,
        labels: Array,
        held_out: tuple[Array, Array] | None = None,
    ) -> Any:
        state, model = state_and_model
        members = model["members"]
        batches = config.steps_per_epoch(members.shape[0])
        epoch = start // batches
        key = jax.random.fold_in(jax.random.key(experiment.seed), model["number"])
        key_order = jax.random.fold_in(jax.random.fold_in(key, ORDER), epoch + 1)
        key_augment = jax.random.fold_in(key, AUGMENT)
        key_dropout = jax.random.fold_in(key, DROPOUT)
        order = jax.random.permutation(key_order, members)[: batches * config.batch_size]
        order = order.reshape(batches, config.batch_size)
        augment = functools.partial(
            augmented, mirror=config.mirror, shift=config.shift, cutout=config.cutout
        )
        if state.early_stopping is not None:
            stop = state.early_stopping.last_step(start, stop)

        def of_held_out(number: Array) -> tuple[Array, Array, Array] | None:
            """A batch of held-out images, as those of members, labels and a key for dropout."""
            if held_out is None:
                return None
            key_index, key_views, key_step = jax.random.split(
                jax.random.fold_in(jax.random.fold_in(key, HELD_OUT), number), 3
            )
            index = jax.random.randint(key_index, (config.batch_size,), 0, len(held_out[1]))
            return augment(held_out[0], index, key_views), held_out[1][index], key_step

        def take_step(number: Array, state: State) -> State:
            position = number - epoch * batches
            state = replace(state, loss=jnp.where(position == 0, 0.0, state.loss))
            index, padding = order[position], list[Array]()
            if defence.dp_clip:
                key_batch = jax.random.fold_in(key_order, position)
                index, *padding = dp_sgd.poisson_batch(key_batch, members, config.batch_size)
            batch = augment(images, index, jax.random.fold_in(key_augment, number))
            key_step = jax.random.fold_in(key_dropout, number)
            others = of_held_out(number)
            return step(state, batch, labels[index], key_step, *padding, held_out=others)[0]

        # `model` goes through unchanged, so that its memory can be given away with the state's.
        return lax.fori_loop(start, stop, take_step, state), model

    return advance


def metrics_of_model(
    experiment: Experiment, network: Network, held_out: int = 0
) -> Callable[..., Any]:
    """The function ((state, model), images, labels) ↦ what is logged after an epoch: mean `loss`,
    `member_accuracy` and `nonmember_accuracy` on `model["probe"]` [2, P], and what early stopping
    tells, which judges by so many held-out images."""

    def metrics(state_and_model: Any, images: Array, labels: Array) -> dict[str, Array]:
        state, model = state_and_model
        variables = optimization.evaluated_variables(state, experiment.train)

        def accuracy(_: None, index: Array) -> Any:
            logits = network.apply(variables, plain(images, index))
            return None, jnp.mean(jnp.argmax(logits, 1) == labels[index])

        _, (member, nonmember) = lax.scan(accuracy, None, model["probe"])
        logged = {
            "loss": state.loss / experiment.train.steps_per_epoch(model["members"].shape[0]),
            "member_accuracy": member,
            "nonmember_accuracy": nonmember,
        }
        if state.early_stopping is not None:
            logged |= state.early_stopping.logged(held_out)
        return logged

    return metrics


def losses_of_model(experiment: Experiment, network: Network) -> Callable[..., Any]:
    """The function ((state, index [S, B]), images, labels) ↦ loss [S, B]: each example's
    cross-entropy under the identity view, by the variables whose accuracy is logged."""

    def losses(state_and_index: Any, images: Array, labels: Array) -> Array:
        state, index = state_and_index
        variables = optimization.evaluated_variables(state, experiment.train)

        def of_batch(rows: Array) -> Array:
            logits = network.apply(variables, plain(images, rows))
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels[rows])

        return lax.map(of_batch, index)

    return losses


def group_inputs(
    experiment: Experiment, keep: Bool[np.ndarray, "N E"], group: Group, mesh: Mesh
) -> dict[str, Array]:
    """What each model of a group needs beside the data: number, members, examples to evaluate."""
    rows = keep[group.first : group.last + 1]
    numbers = np.arange(group.first, group.last + 1, dtype=np.int32)
    members = membership.member_indices(rows)
    natural = keep[:, : keep.shape[1] - experiment.data.canaries]  # accuracy is of these
    counts = natural.sum(axis=1)
    size = min(experiment.train.eval_examples, counts.min(), natural.shape[1] - counts.max())
    probes = []
    for number in numbers:
        inside, outside = (np.flatnonzero(side[number]) for side in (natural, ~natural))
        random = random_streams.probes(experiment.seed, int(number))
        probes.append([random.choice(inside, size, False), random.choice(outside, size, False)])
    arrays = {"number": numbers, "members": members, "probe": np.array(probes, np.int32)}
    return ensemble.put_padded(arrays, mesh)


@dataclass(frozen=True)
class Programs:
    """The jitted programs that train a group of models on a mesh.

    Attributes:
        mesh: devices.
        begin: numbers [G] ↦ states.
        advance: ((states, inputs), start, stop) ↦ (states, inputs) after those steps; takes the
            memory of its first argument.
        judge: ((states, inputs), epoch) ↦ (states, inputs) after that epoch, counted from 1; what
            early stopping does, if anything. Likewise.
        metrics: (states, inputs) ↦ what is logged after an epoch.
        losses: (states, index) ↦ losses of those examples, of `losses_of_model`; one model at a
            time on each device. Of the states it needs what `evaluated_variables` looks at.
        finish: states ↦ the variables that are scored.
    """

    mesh: Mesh
    begin: Program
    advance: Program
    judge: Callable[[Any, np.int32], Any]
    metrics: Program
    losses: Program
    finish: Program

    def shapes(self, inputs: dict[str, Array]) -> Any:
        """What `advance` takes first for a group of these inputs: shapes, types and places, to
        compile programs for before there is such a group."""
        places = ensemble.over_devices(self.mesh)
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=places),
            (jax.eval_shape(self.begin, inputs["number"]), inputs),
        )

    def stored(self, group: Group, steps: int) -> Any:
        """Shapes and types of what the checkpoint of a group holds: states, or once all steps are
        made the variables that are scored."""
        numbers = jax.ShapeDtypeStruct((ensemble.slots(group.size, self.mesh),), np.int32)
        held = jax.eval_shape(self.begin, numbers)
        if group.step >= steps:
            held = jax.eval_shape(self.finish, held)
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((group.size, *leaf.shape[1:]), leaf.dtype), held
        )


def programs(
    experiment: Experiment,
    data: Candidates,
    mesh: Mesh,
    initial: Variables | None = None,
    placed: tuple[Array, Array] | None = None,
) -> Programs:
    """The programs of an experiment, with the data placed on the mesh.

    Args:
        initial: of `transfer.read`.
        placed: of `place`, where that has been done.
    """
    config, defence = experiment.train, experiment.defence
    own_network = build_network(experiment, data)
    steps = config.total_steps(int(data.keep[0].sum()))
    initial = ensemble.put_shared(initial, mesh)
    placed = place(data, mesh) if placed is None else placed

    def over_models(
        make: Callable[[Network], Callable[..., Any]],
        *shared: Any,
        donate: bool = False,
        width: int = config.width,
    ) -> Program:
        """The program of the function that `make` makes of the network in use."""

        def function(models: Any, *others: Any) -> Any:
            network = transfer.begun_from(own_network, others[-1], defence)
            return make(network)(models, *others[:-1])

        lifted = ensemble.over_models(function, mesh, width, donate=donate)
        return Program(lifted, (*shared, initial))

    def judge_of_model(network: Network) -> Callable[..., Any]:
        def judge(state_and_model: Any, epoch: Array, *held_out: Array) -> Any:
            state, model = state_and_model
            variables = optimization.evaluated_variables(state, config)
            before, patience = state.early_stopping, defence.early_stopping
            after = early_stopping.judge(network, before, variables, epoch, patience, *held_out)
            return replace(state, early_stopping=after), model

        return judge

    def finish(state: State, initial: Any) -> Variables:
        scored = optimization.evaluated_variables(state, config)
        if state.early_stopping is not None:
            scored = state.early_stopping.variables
        return transfer.whole(scored, initial, defence)

    # Held-out images are on the devices where they are needed, and only then.
    for_steps: tuple[Any, ...] = ()
    for_judge: tuple[Any, ...] = ()
    judged_by = 0
    if data.held_out and defence.adversarial:
        for_steps = (ensemble.put_shared(tuple(map(np.asarray, data.held_out)), mesh),)
    if data.held_out and defence.early_stopping:
        index = early_stopping.held_out_index(experiment.seed, len(data.held_out[1]))
        judged_by = len(index)
        for_judge = ensemble.put_shared(tuple(part[index] for part in data.held_out), mesh)
    judge = over_models(judge_of_model, *for_judge, donate=True)
    return Programs(
        mesh=mesh,
        begin=over_models(lambda network: init_model(experiment, network, steps, data.classes)),
        advance=over_models(
            lambda network: steps_of_model(experiment, network, steps),
            *placed,
            *for_steps,
            donate=True,
        ),
        judge=judge if for_judge else lambda group, epoch: group,
        metrics=over_models(
            lambda network: metrics_of_model(experiment, network, judged_by), *placed
        ),
        losses=over_models(lambda network: losses_of_model(experiment, network), *placed, width=1),
        finish=Program(ensemble.over_models(finish, mesh, config.width), (initial,)),
    )
