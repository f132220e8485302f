from __future__ import annotations

import pytest

from benchmarks.flops import forward_flops
from lira_jax.config import NetworkConfig


def test_flops_are_the_multiply_adds_of_convolutions_and_dense_layers():
    adds = 9 * 3 * 16 * 32**2 + 64 * 10
    for n_in, n_out, side in [(16, 16, 32), (16, 32, 16), (32, 64, 8)]:
        adds += 9 * (n_in + n_out) * n_out * side**2
    assert forward_flops(NetworkConfig("resnet", 8, 16), (32, 32, 3)) == 2 * adds


def test_flops_are_those_of_the_paper():
    # He et al. 2016 give ResNet-20 as 40.8 million multiplications (with additions) an image.
    flops = forward_flops(NetworkConfig("resnet", 20, 16), (32, 32, 3))
    assert flops == pytest.approx(2 * 40.8e6, rel=0.01)


def test_the_fast_network_takes_what_its_configuration_says():
    flops = forward_flops(NetworkConfig("speed_net", 8, 64), (32, 32, 3))
    assert flops == pytest.approx(1.31e8, rel=0.01)
