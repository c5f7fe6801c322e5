"""Which of several failures is the first cause: decided by what was raised, and not by what was said."""

from __future__ import annotations

import signal
import sys
import time

import cloudpickle
import pytest
from helpers.ranks import rank

from hepdask.distributed import RankFailed, RankOptions, run
from hepdask.distributed.rank_events import Failure, Raised

cloudpickle.register_pickle_by_value(sys.modules[__name__])

LOST = "Horovod has been shut down. [gloo/transport/tcp/pair.cc:589] Connection closed by peer"


class Trouble(ValueError):
    pass


def lose_touch(how):
    """Raise what follows from the loss of another rank."""
    from hepdask.distributed.local_allreduce import NeighbourLost

    if how == "itself":
        raise NeighbourLost("a rank of this host is gone")
    try:
        raise NeighbourLost("a rank of this host is gone")
    except NeighbourLost as error:
        if how == "because of it":
            raise RuntimeError("the step failed") from error
        if how == "hidden":
            raise RuntimeError("the step failed") from None
        raise KeyError("while it was handled")  # noqa: B904


@pytest.mark.parametrize("how", ["itself", "because of it", "hidden", "while it was handled"])
def test_a_lost_neighbour_is_a_consequence_though_it_came_first(client, stub, mark, how):
    def fail(how):
        if rank() == 0:
            lose_touch(how)
        time.sleep(0.5)
        raise Trouble(LOST)  # words of a consequence in an error of one's own

    with pytest.raises(
        RankFailed, match=r"rank 1 of 2 .* raised Trouble: Horovod has been shut down"
    ) as caught:
        run(fail, how, client=client, ranks=2, options=RankOptions(env=stub | mark))
    assert isinstance(caught.value.__cause__, Trouble)


def test_a_barrier_that_nobody_else_comes_to_is_a_consequence(client, stub, mark):
    def fail():
        from hepdask.distributed import rank_addresses

        if rank() == 0:
            rank_addresses.barrier("together", 0.5)
        time.sleep(1.5)
        raise Trouble("why it did not come")

    options = RankOptions(env=stub | mark, backend="tf.distribute")
    with pytest.raises(RankFailed, match=r"rank 1 of 2 .* why it did not come"):
        run(fail, client=client, ranks=2, options=options)


def test_words_in_an_error_of_ones_own_mean_nothing(client, stub, mark):
    """Otherwise the other rank, which still works, would be said to hang."""

    def fail():
        if rank() == 0:
            raise Trouble(LOST)
        time.sleep(600)

    with pytest.raises(RankFailed, match=r"rank 0 of 2 .* raised Trouble"):
        run(fail, client=client, ranks=2, options=RankOptions(env=stub | mark))


@pytest.mark.parametrize(
    ("name", "message", "expected"),
    [
        ("horovod.common.exceptions.HorovodInternalError", "", True),
        ("tensorflow.python.framework.errors_impl.UnknownError", LOST, True),
        ("tensorflow.python.framework.errors_impl.UnknownError", "cuDNN cannot be initialised", False),
        ("xgboost.core.XGBoostError", "[../src/collective/result.cc:78] recv failed", True),
        ("xgboost.core.XGBoostError", "[../src/data/data.cc] label must be in [0, num_class)", False),
        ("builtins.ConnectionResetError", "Connection closed by peer", False),
        ("mine.HorovodInternalError", "", False),
    ],
)
def test_errors_of_libraries(name, message, expected):
    """Horovod's losses come as TensorFlow's UnknownError, as its other troubles do: there the words must tell."""
    assert Failure("raised", exit_status=1, raised=(Raised(name, message),)).is_consequence() == expected
    chain = (Raised("builtins.RuntimeError", "the step failed"), Raised(name, message))
    assert Failure("raised", exit_status=1, raised=chain).is_consequence() == expected


@pytest.mark.parametrize(
    ("ended", "lines", "expected"),
    [
        ({"signal": signal.SIGABRT}, ("step 1", f"terminate called: {LOST}"), True),
        ({"exit_status": 255}, ("[../src/collective/comm.cc:78] recv failed",), True),
        ({"signal": signal.SIGABRT}, ("malloc(): corrupted top size",), False),
        ({"signal": signal.SIGKILL}, (LOST,), False),
        ({"exit_status": 0}, (LOST,), False),
    ],
)
def test_processes_that_end_themselves(ended, lines, expected):
    """What compiled code prints before it ends the process is all there is."""
    assert Failure("ended", last_lines=lines, **ended).is_consequence() == expected
