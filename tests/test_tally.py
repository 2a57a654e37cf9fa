"""Counts behind the statistics extension."""

from concurrent.futures import ThreadPoolExecutor

from service.tally import Tally, Total


def test_a_new_tally_is_empty():
    counts = Tally().counts()
    assert (counts.last_inference_ms, counts.rows, counts.executions, counts.batches) == (0, 0, 0, {})
    assert {counts.success.count, counts.fail.count, counts.queue.ns, counts.compute.ns} == {0}


def test_everything_adds_up():
    tally = Tally()
    tally.success(queue_ns=5, compute_ns=7, rows=3)
    tally.success(queue_ns=1, compute_ns=2, rows=1)
    tally.fail(11)
    counts = tally.counts()
    assert (counts.success, counts.queue, counts.compute, counts.fail) == (
        Total(2, 15), Total(2, 6), Total(2, 9), Total(1, 11)
    )  # fmt: skip
    assert counts.rows == 4
    assert counts.last_inference_ms > 0


def test_executions_are_counted_by_the_power_of_two_that_holds_them():
    tally = Tally()
    for size in (0, 1, 2, 3, 4, 5, 1000):
        tally.execution(size, 10)
    assert tally.counts().batches == {1: Total(2, 20), 2: Total(1, 10), 4: Total(2, 20), 8: Total(1, 10),
                                      1024: Total(1, 10)}  # fmt: skip
    assert tally.counts().executions == 7


def test_counts_are_of_one_moment():
    tally = Tally()
    before = tally.counts()
    tally.success(1, 1, 1)
    assert before.success.count == 0


def test_threads_may_count_at_once():
    tally = Tally()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: tally.success(1, 1, 1), range(2000)))
    assert tally.counts().success == Total(2000, 4000)
