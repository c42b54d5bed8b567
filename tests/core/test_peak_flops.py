"""The measured peak of a device."""

import math

from jaxlab.core import peak_flops


def test_the_measured_peak_is_positive_and_said_to_be_measured():
    assert 0 < peak_flops.measure(size=64, repeats=1) < math.inf
    flops, source = peak_flops.flops_per_second()
    assert flops > 1e8
    assert source == "measured f32 matmul"
