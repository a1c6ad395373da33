from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest

from ovseg.errors import ConfigError
from ovseg.serve.batching import Busy, Queue, _Waiting


class Worker:
    """The function of a queue: doubles numbers, once it is let go."""

    def __init__(self) -> None:
        self.batches: list[list[Any]] = []
        self.go = threading.Event()
        self.go.set()

    def __call__(self, jobs: Sequence[Any]) -> list[Any]:
        self.batches.append(list(jobs))
        self.go.wait(10)
        return [ValueError("odd") if job == "odd" else job * 2 for job in jobs]


async def until(condition: Any) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never came to that")


def run(main: Any) -> None:
    asyncio.run(asyncio.wait_for(main, 20))


def test_what_waits_goes_together() -> None:
    worker = Worker()
    worker.go.clear()
    sizes: list[int] = []
    queue: Queue[int, int] = Queue(worker, max_batch=4, on_batch=sizes.append)

    async def main() -> None:
        first = asyncio.create_task(queue.submit(0))
        await until(lambda: worker.batches)
        rest = [asyncio.create_task(queue.submit(i)) for i in range(1, 7)]
        await until(lambda: len(queue) == 6)
        worker.go.set()
        assert await asyncio.gather(first, *rest) == [0, 2, 4, 6, 8, 10, 12]

    run(main())
    assert worker.batches == [[0], [1, 2, 3, 4], [5, 6]] and sizes == [1, 4, 2]
    queue.close()


def test_a_window_waits_for_others() -> None:
    worker = Worker()
    queue: Queue[int, int] = Queue(worker, max_batch=3, window=0.3)

    async def main() -> None:
        await asyncio.gather(*(queue.submit(i) for i in range(3)))
        await queue.submit(9)

    run(main())
    assert worker.batches == [[0, 1, 2], [9]]
    queue.close()


def test_more_than_allowed_is_refused() -> None:
    worker = Worker()
    worker.go.clear()
    queue: Queue[int, int] = Queue(worker, limit=2)

    async def main() -> None:
        tasks = [asyncio.create_task(queue.submit(0))]
        await until(lambda: worker.batches)
        tasks += [asyncio.create_task(queue.submit(i)) for i in (1, 2)]
        await until(lambda: len(queue) == 2)
        with pytest.raises(Busy) as caught:
            await queue.submit(3)
        assert caught.value.retry_after >= 1
        worker.go.set()
        assert await asyncio.gather(*tasks) == [0, 2, 4]
        assert await queue.submit(4) == 8

    run(main())
    queue.close()


def test_more_than_can_be_done_in_time_is_refused() -> None:
    def slow(jobs: Sequence[int]) -> list[int]:
        time.sleep(0.2)
        return list(jobs)

    queue: Queue[int, int] = Queue(slow, patience=0.5)

    async def main() -> None:
        for _ in range(10):  # from these it knows how long a job takes
            await queue.submit(0)
        found = await asyncio.gather(*(queue.submit(i) for i in range(12)), return_exceptions=True)
        refused = [one for one in found if isinstance(one, Busy)]
        assert 6 <= len(refused) < 12 and found[:3] == [0, 1, 2]

    run(main())
    queue.close()


def test_what_is_not_begun_in_time_is_refused() -> None:
    worker = Worker()
    worker.go.clear()
    queue: Queue[int, int] = Queue(worker, patience=0.1)

    async def main() -> None:
        begun = asyncio.create_task(queue.submit(0))
        await until(lambda: worker.batches)
        with pytest.raises(Busy):
            await queue.submit(1)
        assert len(queue) == 0
        worker.go.set()
        assert await begun == 0 and await queue.submit(2) == 4

    run(main())
    assert worker.batches == [[0], [2]]
    queue.close()


def test_what_is_given_up_is_never_begun() -> None:
    worker = Worker()
    worker.go.clear()
    queue: Queue[int, int] = Queue(worker, limit=1)

    async def main() -> None:
        begun = asyncio.create_task(queue.submit(0))
        await until(lambda: worker.batches)
        waiting = asyncio.create_task(queue.submit(1))
        await until(lambda: len(queue) == 1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert len(queue) == 0
        begun.cancel()
        worker.go.set()
        assert await queue.submit(2) == 4

    run(main())
    assert worker.batches == [[0], [2]]
    queue.close()


def test_a_failure_is_its_own() -> None:
    worker = Worker()
    queue: Queue[Any, Any] = Queue(worker, max_batch=2, window=0.2)

    async def main() -> None:
        found = await asyncio.gather(queue.submit("odd"), queue.submit(2), return_exceptions=True)
        assert isinstance(found[0], ValueError) and found[1] == 4

    run(main())
    queue.close()


def test_a_worker_outlives_what_it_raises() -> None:
    def fail(jobs: Sequence[int]) -> list[int]:
        raise MemoryError

    queue: Queue[int, int] = Queue(fail)

    async def main() -> None:
        for _ in range(2):
            with pytest.raises(MemoryError):
                await queue.submit(1)

    run(main())
    queue.close()


def test_close_ends_the_threads() -> None:
    queue: Queue[int, int] = Queue(Worker(), workers=3)
    queue.close()
    assert not any(thread.is_alive() for thread in queue._threads)


def test_a_job_that_is_given_up_as_its_time_ends() -> None:
    queue: Queue[int, int] = Queue(lambda jobs: list(jobs), workers=1)

    async def both() -> None:
        waiting = _Waiting[int, int](1, asyncio.get_running_loop().create_future(), 0.0)
        queue._waiting.append(waiting)
        waiting.future.cancel()
        queue._expire(waiting)
        assert len(queue) == 0

    asyncio.run(both())
    queue.close()


def test_workers_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    before, start = threading.active_count(), threading.Thread.start

    def short(thread: threading.Thread) -> None:
        if threading.active_count() >= before + 2:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", short)
    with pytest.raises(ConfigError, match=r"5 workers cannot be started: can't start new thread\. Give fewer"):
        Queue(Worker(), workers=5)
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before  # those that were started have ended
