"""One model's training in PyTorch, as `lira_jax.optimization` has it, for the comparisons.

Needs PyTorch; imports no JAX.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lira_jax.config import TrainConfig


def learning_rate(recipe: TrainConfig, step: int, steps: int) -> float:
    """The rate of a step (from 0) of a run of so many steps."""
    if recipe.schedule == "paper":
        t = step / steps
        return recipe.learning_rate * math.cos(7 * math.pi / 16 * t) * min(100 * t, 1.0)
    if recipe.schedule == "one_cycle":
        t = (step + 0.5) / steps
        return recipe.learning_rate * min(t / 0.2, (1 - t) / 0.8)
    return recipe.learning_rate


class Trainer:
    """A model with its optimiser, schedule and moving average.

    SGD with momentum, Nesterov's or none, in one kernel for many weights; weight decay on
    convolution and dense kernels only; an average of weights and BatchNorm statistics that begins
    at zero.
    """

    def __init__(self, model: nn.Module, recipe: TrainConfig, steps: int):
        self.model, self.recipe, self.steps, self.step_number = model, recipe, steps, 0
        kernels = [p for p in model.parameters() if p.ndim > 1]
        others = [p for p in model.parameters() if p.ndim == 1]
        groups = [
            {"params": kernels, "weight_decay": recipe.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        momentum, nesterov = recipe.momentum, recipe.optimizer == "nesterov"
        if recipe.optimizer not in ("momentum", "nesterov", "sgd"):
            raise ValueError(f"not written in PyTorch: {recipe.optimizer}")
        if recipe.optimizer == "sgd":
            momentum = 0.0
        self.optimizer = torch.optim.SGD(
            groups, lr=0.0, momentum=momentum, nesterov=nesterov, fused=True
        )
        self.averaged = [t for t in model.state_dict().values() if t.is_floating_point()]
        self.averages = [torch.zeros_like(t) for t in self.averaged]

    def update(self, loss: Tensor) -> None:
        """One step down the gradient of the loss of a batch."""
        rate = learning_rate(self.recipe, self.step_number, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.recipe.ema:
            with torch.no_grad():
                torch._foreach_lerp_(self.averages, self.averaged, 1 - self.recipe.ema)
        self.step_number += 1

    @torch.no_grad()
    def finish(self) -> nn.Module:
        """The network as it is evaluated: in that mode, and with a moving average, with its
        debiased value in place of the weights."""
        if self.recipe.ema:
            scale = 1 / (1 - self.recipe.ema**self.step_number)
            for tensor, average in zip(self.averaged, self.averages, strict=True):
                tensor.copy_(average * scale)
        return self.model.eval()
