"""Processes that crash, hang or raise, and those that go on."""

import os
import signal
import time

import pytest

from timm_rs.data.children import in_children


def behave(item):
    if item == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    if item == 5:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        time.sleep(60)
    if item == 6:
        os._exit(7)
    return item * item


@pytest.mark.parametrize('workers', [0, 1, 3])
def test_a_crash_or_a_hang_is_the_answer_for_its_item_only(workers):
    start = time.monotonic()
    found = list(in_children(behave, 9, workers, seconds=1.5, failed=lambda reason: reason))
    assert found == [0, 1, 4, 'crashes what decodes it (SIGKILL)', 16, 'gives no answer in 1.5 s',
                     'crashes what decodes it (exit status 7)', 49, 64]
    assert time.monotonic() - start < 20


def test_nothing_to_do_and_an_exception():
    assert list(in_children(behave, 0, 2, 1, str)) == []
    with pytest.raises(ZeroDivisionError):
        list(in_children(lambda item: 1 // (1 - item), 4, 2, 10, str))
