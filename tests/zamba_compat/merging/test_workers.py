"""Threads of torch's inside threads of ours, and memory that is used again."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from zamba_compat.merging.workers import Workers


def test_memory_that_is_used_again_is_not_what_somebody_still_holds() -> None:
    with Workers() as workers:
        kept = [workers.result(4, torch.float32).fill_(number) for number in range(20)]
        assert [float(one.sum()) for one in kept] == [4.0 * number for number in range(20)]
        places = {one.data_ptr() for one in kept}
        del kept
        assert workers.result(4, torch.float32).data_ptr() in places


def test_a_worker_computes_alone_and_the_process_keeps_its_number_of_threads() -> None:
    """Each thread that torch is new to takes the process's number once, whatever it was set to before."""
    own = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with Workers() as workers:
            assert set(workers.map(lambda _: torch.get_num_threads(), 20 * workers.count)) == {1}
            assert torch.get_num_threads() == 3
            with ThreadPoolExecutor(1) as other:
                assert other.submit(torch.get_num_threads).result() == 3
    finally:
        torch.set_num_threads(own)


def test_a_thread_that_cannot_start_leaves_none_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    own, workers, started = torch.get_num_threads(), Workers(), []
    start = threading.Thread.start

    def second_fails(thread: threading.Thread) -> None:
        if started:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    workers.count = 2
    monkeypatch.setattr(threading.Thread, "start", second_fails)
    with pytest.raises(RuntimeError, match="can't start"):
        workers.__enter__()
    started[0].join(20)
    assert not started[0].is_alive() and torch.get_num_threads() == own


def test_only_a_few_results_are_computed_ahead() -> None:
    """However slowly they are taken: results lie in memory until they are."""
    begun: list[int] = []
    with Workers() as workers:
        results = workers.map(lambda number: begun.append(number) or number, 1000)
        for taken in range(50):
            assert next(results) == taken
            time.sleep(0.002)
            assert len(begun) <= taken + 2 + 4 * workers.count
        results.close()
