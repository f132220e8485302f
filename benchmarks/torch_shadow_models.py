"""Shadow models trained one after another in plain PyTorch: what `end_to_end.py` compares with.

    python benchmarks/torch_shadow_models.py configs/digits.toml --models 8

Data, masks, network, recipe and number of steps are those of a configuration of this repository
that trains a `resnet` without augmentation: SGD with momentum, the paper's schedule, weight decay
on kernels only, a debiased moving average of weights and BatchNorm statistics. As fast as plain
eager PyTorch goes: images are float tensors in memory, channels last, all cores, optimiser and
average in multi-tensor form. One line of JSON per model: seconds, and the accuracy of the averaged
weights on all members and all non-members. Needs PyTorch; imports no JAX.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import replace
from pathlib import Path

import hardware
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lira_jax import config, datasets, membership
from lira_jax.config import Experiment


class Conv(nn.Conv2d):
    """Square convolution without bias, padded as JAX's SAME: the odd pixel after, not before."""

    def __init__(self, n_in: int, n_out: int, stride: int = 1):
        super().__init__(n_in, n_out, 3, stride, padding=1 if stride == 1 else 0, bias=False)
        nn.init.kaiming_normal_(self.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        if self.stride != (1, 1):
            pads = []
            for size in (x.shape[3], x.shape[2]):
                total = max((math.ceil(size / self.stride[0]) - 1) * self.stride[0] + 3 - size, 0)
                pads += [total // 2, total - total // 2]
            x = F.pad(x, pads)
        return super().forward(x)


def batch_norm(features: int) -> nn.BatchNorm2d:
    """With the paper's momentum 0.9, which PyTorch counts from the other end, and ε 1e-5."""
    return nn.BatchNorm2d(features, eps=1e-5, momentum=0.1)


class BasicBlock(nn.Module):
    """As `lira_jax.networks.resnet.BasicBlock`."""

    def __init__(self, n_in: int, n_out: int, stride: int):
        super().__init__()
        self.conv1, self.norm1 = Conv(n_in, n_out, stride), batch_norm(n_out)
        self.conv2, self.norm2 = Conv(n_out, n_out), batch_norm(n_out)
        self.stride, self.new_channels = stride, n_out - n_in

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        y = self.norm2(self.conv2(y))
        if self.stride != 1 or self.new_channels:
            before = self.new_channels // 2
            x = x[:, :, :: self.stride, :: self.stride]
            x = F.pad(x, (0, 0, 0, 0, before, self.new_channels - before))
        return F.relu(y + x, inplace=True)


class ResNet(nn.Module):
    """As `lira_jax.networks.resnet.ResNet`, on images [B, C, H, W]."""

    def __init__(self, channels: int, classes: int, depth: int, width: int):
        super().__init__()
        self.stem, self.norm = Conv(channels, width), batch_norm(width)
        blocks, n_in = [], width
        for group, stride in enumerate((1, 2, 2)):
            n_out = width * 2**group
            for index in range((depth - 2) // 6):
                blocks.append(BasicBlock(n_in, n_out, stride if index == 0 else 1))
                n_in = n_out
        self.blocks = nn.ModuleList(blocks)
        self.dense = nn.Linear(n_in, classes)
        nn.init.normal_(self.dense.weight, std=n_in**-0.5)
        nn.init.zeros_(self.dense.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)), inplace=True)
        for block in self.blocks:
            x = block(x)
        return self.dense(x.mean(dim=(2, 3)))


class Trainer:
    """One model in training: network, optimiser, schedule and moving average."""

    def __init__(self, model: ResNet, recipe: config.TrainConfig, steps: int):
        self.model, self.recipe, self.steps, self.step_number = model, recipe, steps, 0
        kernels = [p for p in model.parameters() if p.ndim > 1]
        others = [p for p in model.parameters() if p.ndim == 1]
        groups = [
            {"params": kernels, "weight_decay": recipe.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.SGD(groups, lr=0.0, momentum=recipe.momentum, foreach=True)
        self.averaged = [t for t in model.state_dict().values() if t.is_floating_point()]
        self.averages = [torch.zeros_like(t) for t in self.averaged]

    def step(self, images: Tensor, labels: Tensor) -> None:
        """One step of SGD on images [B, C, H, W] and labels [B]."""
        t = self.step_number / self.steps
        rate = self.recipe.learning_rate * math.cos(7 * math.pi / 16 * t) * min(100 * t, 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(self.model(images), labels).backward()
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(self.averages, self.averaged, 1 - self.recipe.ema)
        self.step_number += 1

    @torch.no_grad()
    def finish(self) -> ResNet:
        """The network with the debiased average in place of its weights, in evaluation mode."""
        scale = 1 / (1 - self.recipe.ema**self.step_number)
        for tensor, average in zip(self.averaged, self.averages, strict=True):
            tensor.copy_(average * scale)
        return self.model.eval()


def train(
    experiment: Experiment, images: Tensor, labels: Tensor, members: Tensor, classes: int
) -> ResNet:
    """One shadow model.

    Args:
        experiment: the recipe and the network.
        images: float32 [E, H, W, C] in [−1, 1].
        labels: int64 [E].
        members: indices of its training examples, [M].
        classes: K.
    """
    recipe, plan = experiment.train, experiment.network
    model = ResNet(images.shape[3], classes, plan.depth, plan.width)
    model = model.to(memory_format=torch.channels_last).train()
    batches = len(members) // recipe.batch_size
    trainer = Trainer(model, recipe, batches * recipe.epochs)
    for _ in range(recipe.epochs):
        order = members[torch.randperm(len(members))][: batches * recipe.batch_size]
        for index in order.view(batches, recipe.batch_size):
            trainer.step(images[index].permute(0, 3, 1, 2), labels[index])  # channels last
    return trainer.finish()


@torch.no_grad()
def right(model: ResNet, images: Tensor, labels: Tensor) -> Tensor:
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
    experiment = config.load(options.config)
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
