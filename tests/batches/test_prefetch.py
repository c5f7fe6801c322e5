"""Items computed ahead: in order, never more of them than was said, with their errors, and not for ever."""

import gc
import threading
import time
import weakref

import pytest
from helpers.waiting import until

from hepdask.batches.prefetch import ahead


class Item:
    """Something that can be seen to go."""

    def __init__(self, number):
        self.number = number


def test_order_and_end():
    assert list(ahead(iter(range(100)))) == list(range(100))
    assert list(ahead([])) == []


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_no_more_items_live_than_was_said(depth):
    """Besides the one in use: those that wait, and one that is being computed."""
    alive, most = weakref.WeakSet(), []

    def items():
        for number in range(30):
            made = Item(number)
            alive.add(made)
            most.append(len(alive))
            yield made
            del made

    for number, item in enumerate(ahead(items(), depth)):
        assert item.number == number
        time.sleep(0.01)  # as long as it takes: the thread goes as far as it may
        assert len(alive) <= depth + 2
        del item
    gc.collect()
    assert max(most) <= depth + 2
    assert len(most) == 30
    assert not alive


def test_the_next_item_is_computed_while_one_is_used():
    begun = [threading.Event() for _ in range(3)]

    def items():
        for one in begun:
            one.set()
            yield one

    running = ahead(items(), depth=0)
    next(running)
    assert begun[1].wait(30)
    assert not begun[2].wait(0.3)
    next(running)
    assert begun[2].wait(30)


def test_errors_come_in_their_place():
    def items():
        yield 1
        raise KeyError("second")

    running = ahead(items(), depth=0)
    assert next(running) == 1
    with pytest.raises(KeyError, match="second"):
        next(running)


def test_the_thread_ends_when_the_reader_stops():
    before = {thread for thread in threading.enumerate() if thread.name == "ahead"}

    def endless():
        while True:
            yield 0

    running = ahead(endless())
    next(running)
    running.close()
    until(lambda: not {thread for thread in threading.enumerate() if thread.name == "ahead"} - before, 30)
