import math

import pytest

from timm_rs.benchmark.rows import GIB
from timm_rs.errors import UserError
from timm_rs.tpu.chips import TPUS, find_tpu


@pytest.mark.parametrize('tpu', TPUS.values(), ids=TPUS)
def test_shapes_have_as_many_chips_as_they_say(tpu):
    for num_chips, shape in tpu.topologies.items():
        assert math.prod(map(int, shape.split('x'))) == num_chips
        assert num_chips == 1 or num_chips % tpu.chips_per_host(num_chips) == 0


def test_v3_has_two_devices_per_chip_each_with_half_of_it():
    assert find_tpu('v3').devices_per_chip == 2
    assert 2 * find_tpu('v3').peak_flops == 123e12
    assert find_tpu('v3').hbm_bytes < 16 * GIB


def test_unknown_tpus_and_slices_name_what_there_is():
    with pytest.raises(UserError, match='unknown TPU v9: --tpu takes v3, v4, v5e, v5p, v6e'):
        find_tpu('v9')
    with pytest.raises(UserError, match='v5e has no slice of 3 chips: --chips takes 1, 4, 8'):
        find_tpu('v5e').topology(3)
