"""Shadow models trained one after another in plain PyTorch: what `end_to_end.py` compares with.

    python benchmarks/torch_shadow_models.py configs/digits.toml --models 8

Data, masks, network, recipe and number of steps are those of a configuration of this repository
that trains a `resnet` without augmentation: SGD with momentum, the paper's schedule, weight decay
on kernels only, a debiased moving average of weights and BatchNorm statistics. As fast as plain
eager PyTorch goes: images are float tensors in memory, channels last, all cores, fused optimiser,
average in multi-tensor form. One line of JSON per model: seconds, and the accuracy of the averaged
weights on all members and all non-members. Needs PyTorch; imports no JAX.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import hardware
import numpy as np
import torch
import torch.nn.functional as F
import torch_networks
from torch import Tensor, nn
from torch_training import Trainer

from lira_jax import config, config_file
from lira_jax.config import Experiment
from lira_jax.data import datasets, membership


def train(
    experiment: Experiment, images: Tensor, labels: Tensor, members: Tensor, classes: int
) -> nn.Module:
    """One shadow model.

    Args:
        experiment: the recipe and the network.
        images: float32 [E, H, W, C] in [−1, 1].
        labels: int64 [E].
        members: indices of its training examples, [M].
        classes: K.
    """
    recipe = experiment.train
    height, width, channels = images.shape[1:]
    model = torch_networks.build(experiment.network, (height, width, channels), classes)
    model = model.to(memory_format=torch.channels_last).train()
    batches = len(members) // recipe.batch_size
    trainer = Trainer(model, recipe, batches * recipe.epochs)
    for _ in range(recipe.epochs):
        order = members[torch.randperm(len(members))][: batches * recipe.batch_size]
        for index in order.view(batches, recipe.batch_size):
            logits = model(images[index].permute(0, 3, 1, 2))  # channels last
            trainer.update(F.cross_entropy(logits, labels[index]))
    return trainer.finish()


@torch.no_grad()
def right(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Which examples the model gets right, bool [E]."""
    parts = zip(images.split(256), labels.split(256), strict=True)
    return torch.cat([model(x.permute(0, 3, 1, 2)).argmax(1) == y for x, y in parts])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", type=Path, help="such as configs/digits.toml")
    parser.add_argument("--models", type=int, help="shadow models to train; default the config's")
    parser.add_argument("--epochs", type=int, help="default the config's")
    parser.add_argument("--path", default="", help="in place of the config's data.path")
    options = parser.parse_args()
    experiment = config_file.load(options.config)
    recipe = experiment.train
    wanted = (experiment.network.arch, recipe.optimizer, recipe.schedule, recipe.dtype)
    if wanted != ("resnet", "momentum", "paper", "float32") or not recipe.ema:
        parser.error(f"{options.config}: only float32 resnets trained by the paper's recipe")
    if recipe.mirror or recipe.shift or recipe.cutout:
        parser.error(f"{options.config}: augmentation is not written here")
    if options.epochs:
        experiment = replace(experiment, train=replace(recipe, epochs=options.epochs))
    if options.path:
        experiment = replace(experiment, data=replace(experiment.data, path=options.path))
    torch.set_num_threads(hardware.cores())
    torch.manual_seed(experiment.seed)

    data = datasets.load(experiment.data)
    kept, block = config.keep_fraction(recipe.keep)
    examples = membership.usable_examples(len(data.x_train), block)
    count = options.models or recipe.models
    keep = membership.blocked_masks(experiment.seed, count, examples, kept, block)
    images = torch.from_numpy(np.array(data.x_train[:examples])).float() / 127.5 - 1
    labels = torch.from_numpy(data.y_train[:examples]).long()
    for members in torch.from_numpy(keep):
        start = time.perf_counter()
        model = train(experiment, images, labels, members.nonzero()[:, 0], len(data.classes))
        seconds = time.perf_counter() - start
        correct = right(model, images, labels).float()
        line = {
            "seconds": round(seconds, 3),
            "member_accuracy": correct[members].mean().item(),
            "nonmember_accuracy": correct[~members].mean().item(),
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
