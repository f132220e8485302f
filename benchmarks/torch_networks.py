"""The networks of `lira_jax.networks` in PyTorch, attribute by attribute, for the comparisons.

On images float [B, C, H, W]; as fast as plain PyTorch has them in channels-last layout. They are
the same functions, with the same distribution of initial weights and the same parts in float32
under `torch.autocast`: normalisation's statistics, the whitening of SpeedNet and the last layer,
for which `head` is to be called outside of autocast. Needs PyTorch; imports no JAX.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lira_jax.config import NetworkConfig

BIAS_SCALE, HEAD_SCALE, WHITEN_EPSILON = 8.0, 1 / 9, 1e-3


def build(config: NetworkConfig, image_shape: tuple[int, int, int], classes: int) -> Any:
    """The network of a configuration for images [H, W, C] and K classes.

    Raises:
        ValueError: an architecture or a normalisation that is not written here.
    """
    networks = {"resnet": ResNet, "wide_resnet": WideResNet, "speed_net": SpeedNet}
    if config.arch not in networks or config.norm != "batch":
        raise ValueError(f"not written in PyTorch: {config.arch} with {config.norm} normalisation")
    return networks[config.arch](image_shape, classes, config.depth, config.width)


def scale_variance(weight: Tensor, scale: float) -> None:
    """Fill kernels [O, I, …] with normal values cut at two standard deviations, of variance
    scale / inputs; as `jax.nn.initializers.variance_scaling`."""
    # The standard deviation of a standard normal variable between −2 and 2.
    deviation = math.sqrt(scale / weight[0].numel()) / 0.87962566103423978
    nn.init.trunc_normal_(weight, 0.0, deviation, -2 * deviation, 2 * deviation)


class Conv(nn.Conv2d):
    """Square convolution without bias, padded as JAX's SAME: the odd pixel after, not before."""

    def __init__(self, n_in: int, n_out: int, kernel: int = 3, stride: int = 1):
        padding = kernel // 2 if stride == 1 else 0
        super().__init__(n_in, n_out, kernel, stride, padding, bias=False)
        scale_variance(self.weight, 2.0)

    def forward(self, x: Tensor) -> Tensor:
        stride, kernel = self.stride[0], self.kernel_size[0]
        if kernel != 1 and self.padding == (0, 0):
            pads = []
            for size in (x.shape[3], x.shape[2]):
                total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
                pads += [total // 2, total - total // 2]
            x = F.pad(x, pads)
        return super().forward(x)


def pad_all_sides(model: nn.Module) -> None:
    """Have strided convolutions pad all sides alike, as people write it in PyTorch.

    At even sizes that is another function. On a CPU it saves up to some 6 % of a ResNet-8's step,
    for SAME padding is a copy of the image here.
    """
    for layer in model.modules():
        if isinstance(layer, Conv):
            layer.padding = (layer.kernel_size[0] // 2,) * 2


class BatchNorm(nn.BatchNorm2d):
    """With the paper's momentum 0.9, which PyTorch counts from the other end; counts no batches."""

    def __init__(self, features: int, eps: float = 1e-5, affine: bool = True):
        super().__init__(features, eps, momentum=0.1, affine=affine)
        self.num_batches_tracked = None


def dense(n_in: int, classes: int) -> nn.Linear:
    """The last layer."""
    layer = nn.Linear(n_in, classes)
    scale_variance(layer.weight, 1.0)
    nn.init.zeros_(layer.bias)
    return layer


class BasicBlock(nn.Module):
    """As `lira_jax.networks.resnet.BasicBlock`: [B, I, H, W] to [B, O, h, w]."""

    def __init__(self, n_in: int, n_out: int, stride: int):
        super().__init__()
        self.conv1, self.norm1 = Conv(n_in, n_out, stride=stride), BatchNorm(n_out)
        self.conv2, self.norm2 = Conv(n_out, n_out), BatchNorm(n_out)
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
    """As `lira_jax.networks.resnet.ResNet`: images [B, C, H, W] to logits [B, K]."""

    def __init__(self, image_shape: tuple[int, int, int], classes: int, depth: int, width: int):
        super().__init__()
        self.stem, self.norm = Conv(image_shape[2], width), BatchNorm(width)
        blocks, n_in = [], width
        for group, stride in enumerate((1, 2, 2)):
            n_out = width * 2**group
            for index in range((depth - 2) // 6):
                blocks.append(BasicBlock(n_in, n_out, stride if index == 0 else 1))
                n_in = n_out
        self.blocks = nn.ModuleList(blocks)
        self.dense = dense(n_in, classes)

    def features(self, x: Tensor) -> Tensor:
        """The last layer's inputs, float32 [B, F]."""
        x = F.relu(self.norm(self.stem(x)), inplace=True)
        for block in self.blocks:
            x = block(x)
        return x.mean(dim=(2, 3), dtype=torch.float32)

    def head(self, features: Tensor) -> Tensor:
        """The last layer: [B, F] to [B, K]."""
        return self.dense(features)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


class PreActivationBlock(nn.Module):
    """As `lira_jax.networks.wide_resnet.PreActivationBlock`: [B, I, H, W] to [B, O, h, w]."""

    def __init__(self, n_in: int, n_out: int, stride: int):
        super().__init__()
        self.norm1, self.conv1 = BatchNorm(n_in), Conv(n_in, n_out, stride=stride)
        self.norm2, self.conv2 = BatchNorm(n_out), Conv(n_out, n_out)
        self.project = n_in != n_out or stride != 1
        if self.project:
            self.projection = Conv(n_in, n_out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(x), inplace=True)
        shortcut = self.projection(y) if self.project else x
        y = F.relu(self.norm2(self.conv1(y)), inplace=True)
        return shortcut + self.conv2(y)


class WideResNet(nn.Module):
    """As `lira_jax.networks.wide_resnet.WideResNet`: images [B, C, H, W] to logits [B, K]."""

    def __init__(self, image_shape: tuple[int, int, int], classes: int, depth: int, width: int):
        super().__init__()
        self.stem = Conv(image_shape[2], 16)
        blocks, n_in = [], 16
        for group, stride in enumerate((1, 2, 2)):
            n_out = 16 * width * 2**group
            for index in range((depth - 4) // 6):
                blocks.append(PreActivationBlock(n_in, n_out, stride if index == 0 else 1))
                n_in = n_out
        self.blocks = nn.ModuleList(blocks)
        self.norm = BatchNorm(n_in)
        self.dense = dense(n_in, classes)

    def features(self, x: Tensor) -> Tensor:
        """The last layer's inputs, float32 [B, F]."""
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return F.relu(self.norm(x), inplace=True).mean(dim=(2, 3), dtype=torch.float32)

    def head(self, features: Tensor) -> Tensor:
        """The last layer: [B, F] to [B, K]."""
        return self.dense(features)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def cosine_patches(channels: int) -> Tensor:
    """As `lira_jax.networks.speed_net.cosine_patches`, as PyTorch has kernels: [4·I, I, 2, 2]."""

    def basis(n: int) -> np.ndarray:
        position, frequency = np.arange(n)[:, None] + 0.5, np.arange(n)
        waves = np.cos(np.pi / n * position * frequency)
        return waves / np.linalg.norm(waves, axis=0)

    kernels = np.einsum("ha,wb,ic->abcihw", basis(2), basis(2), basis(channels))
    return torch.from_numpy(kernels.reshape(-1, channels, 2, 2).astype(np.float32))


class PassOn(Conv):
    """A convolution that begins as `lira_jax.networks.speed_net.pass_on`: the first filters pass on
    one input channel each."""

    def __init__(self, n_in: int, n_out: int):
        super().__init__(n_in, n_out)
        bound = (9 * n_in) ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.dirac_(self.weight.detach()[: min(n_in, n_out)])


class Activation(nn.Module):
    """As `lira_jax.networks.speed_net.Activation`: x ↦ gelu(norm(x) + 8 b)."""

    def __init__(self, features: int):
        super().__init__()
        self.norm = BatchNorm(features, affine=False)
        self.bias = nn.Parameter(torch.zeros(features))
        self.register_buffer("scale", torch.ones(features), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        norm, bias = self.norm, BIAS_SCALE * self.bias
        # The bias within the normalisation, which then is one kernel.
        x = F.batch_norm(
            x,
            norm.running_mean,
            norm.running_var,
            self.scale,
            bias,
            self.training,
            norm.momentum,
            norm.eps,
        )
        return F.gelu(x, approximate="tanh")


def max_pool(x: Tensor) -> Tensor:
    """Maximum over 2×2 windows, odd borders left out; a side of one pixel stays."""
    return F.max_pool2d(x, (min(2, x.shape[2]), min(2, x.shape[3])))


class Block(nn.Module):
    """As `lira_jax.networks.speed_net.Block`: [B, I, H, W] to [B, O, H/2, W/2]."""

    def __init__(self, n_in: int, n_out: int):
        super().__init__()
        self.conv1, self.norm1 = PassOn(n_in, n_out), Activation(n_out)
        self.conv2, self.norm2 = PassOn(n_out, n_out), Activation(n_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm2(self.conv2(self.norm1(max_pool(self.conv1(x)))))


class SpeedNet(nn.Module):
    """As `lira_jax.networks.speed_net.SpeedNet`: images [B, C, H, W] to logits [B, K]."""

    def __init__(self, image_shape: tuple[int, int, int], classes: int, depth: int, width: int):
        del depth
        super().__init__()
        patches = 4 * image_shape[2]
        self.register_buffer("patches", cosine_patches(image_shape[2]), persistent=False)
        self.whiten = BatchNorm(patches, WHITEN_EPSILON, affine=False)
        blocks, n_in = [], 2 * patches
        for n_out in (width, 2 * width, 4 * width):
            blocks.append(Block(n_in, n_out))
            n_in = n_out
        self.blocks = nn.ModuleList(blocks)
        self.dense = dense(n_in, classes)

    def features(self, x: Tensor) -> Tensor:
        """The last layer's inputs, float32 [B, F]."""
        with torch.autocast(x.device.type, enabled=False):
            x = self.whiten(F.conv2d(x, self.patches))
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        x = F.gelu(torch.cat([x, -x], dim=1), approximate="tanh")
        for block in self.blocks:
            x = block(x)
        return x.amax(dim=(2, 3)).float()

    def head(self, features: Tensor) -> Tensor:
        """The last layer: [B, F] to [B, K]."""
        return self.dense(features) * HEAD_SCALE

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))
