"""A bounded queue before the worker threads, which take what waits in batches, and ways to do a batch."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from ..errors import ConfigError, OvsError

JobT = TypeVar("JobT")
ResultT = TypeVar("ResultT")


class Busy(OvsError):  # noqa: N818
    """More requests wait than are allowed.

    Attributes:
        retry_after: seconds after which there should be room.
    """

    exit_code = 1

    def __init__(self, retry_after: int) -> None:
        super().__init__("Too many requests are waiting.", f"Try again in {retry_after} s.")
        self.retry_after = retry_after


@dataclass(eq=False)
class _Waiting(Generic[JobT, ResultT]):
    job: JobT
    future: asyncio.Future[ResultT]
    since: float


class Queue(Generic[JobT, ResultT]):
    """Jobs that wait for worker threads.

    A free worker takes the oldest job and those that wait with it, so batches grow with the load and a lone
    request waits for nobody, unless `window` says so.

    Args:
        run: does a batch in a worker thread: for each job a result, or the exception that it deserves. What it
            raises goes to all jobs of the batch.
        workers: threads.
        limit: jobs that may wait.
        patience: seconds that a job may wait; one that would have to wait longer, as far as those before it tell, is
            refused at once.
        max_batch: jobs of a batch.
        window: seconds that the oldest job waits for others.
        on_batch: is told the number of jobs of each batch, in the worker's thread.

    Raises:
        ConfigError: so many threads cannot be started.
    """

    def __init__(
        self,
        run: Callable[[Sequence[JobT]], Sequence[ResultT | BaseException]],
        *,
        workers: int = 1,
        limit: int = 128,
        patience: float = math.inf,
        max_batch: int = 1,
        window: float = 0.0,
        on_batch: Callable[[int], None] = lambda size: None,
    ) -> None:
        self._run, self._limit, self._patience = run, limit, patience
        self._max_batch, self._window = max_batch, window
        self._on_batch = on_batch
        self._waiting: deque[_Waiting[JobT, ResultT]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._seconds_per_job = 0.1
        self._threads: list[threading.Thread] = []  # those that run
        try:
            for _ in range(workers):
                thread = threading.Thread(target=self._work, daemon=True, name="ovs-worker")
                thread.start()
                self._threads.append(thread)
        except RuntimeError as error:  # out of memory or of what a user may have
            self.close()
            raise ConfigError(f"{workers} workers cannot be started: {error}.", "Give fewer --workers.") from error

    def __len__(self) -> int:
        """Jobs that wait."""
        return len(self._waiting)

    async def submit(self, job: JobT) -> ResultT:
        """Wait for the result of a job. One that is cancelled while it waits is never begun.

        Raises:
            Busy: as many jobs as allowed wait already, or it was not begun in time.
        """
        loop = asyncio.get_running_loop()
        waiting = _Waiting[JobT, ResultT](job, loop.create_future(), time.monotonic())
        with self._changed:
            if len(self._waiting) >= self._limit or self._seconds_to_wait() > self._patience:
                raise self._busy()
            self._waiting.append(waiting)
            self._changed.notify()
        expiry = loop.call_later(self._patience, self._expire, waiting) if self._patience < math.inf else None
        try:
            return await waiting.future
        finally:
            if expiry is not None:
                expiry.cancel()
            # A request that was given up must not keep its place, nor its picture in memory.
            if waiting.future.cancelled():
                with self._changed:
                    if waiting in self._waiting:
                        self._waiting.remove(waiting)

    def _seconds_to_wait(self) -> float:
        return len(self._waiting) * self._seconds_per_job / len(self._threads)

    def _busy(self) -> Busy:
        return Busy(min(60, max(1, math.ceil(self._seconds_to_wait()))))

    def _expire(self, waiting: _Waiting[JobT, ResultT]) -> None:
        """Give up a job that nobody has begun."""
        with self._changed:
            if waiting in self._waiting:
                self._waiting.remove(waiting)
                if not waiting.future.done():  # given up in this very moment
                    waiting.future.set_exception(self._busy())

    def close(self) -> None:
        """End the threads once all that waits is done."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while batch := self._next_batch():
            self._on_batch(len(batch))
            started = time.monotonic()
            results: Sequence[ResultT | BaseException]
            try:
                results = self._run([waiting.job for waiting in batch])
            except BaseException as error:
                results = [error] * len(batch)
            seconds = (time.monotonic() - started) / len(batch)
            self._seconds_per_job += 0.1 * (seconds - self._seconds_per_job)
            for waiting, result in zip(batch, results, strict=True):
                _deliver(waiting.future, result)
            # Nothing of a batch is kept while the next one is waited for.
            del batch, results, result, waiting

    def _next_batch(self) -> list[_Waiting[JobT, ResultT]]:
        """Wait for jobs and take them; an empty list once the queue is closed."""
        with self._changed:
            while True:
                while not self._waiting and not self._closed:
                    self._changed.wait()
                if not self._waiting:
                    return []
                left = self._waiting[0].since + self._window - time.monotonic()
                if self._closed or left <= 0 or len(self._waiting) >= self._max_batch:
                    break
                self._changed.wait(left)
            return [self._waiting.popleft() for _ in range(min(self._max_batch, len(self._waiting)))]


def _deliver(future: asyncio.Future[ResultT], result: ResultT | BaseException) -> None:
    def deliver() -> None:
        if future.done():  # the client has gone, or the time is up
            return
        if isinstance(result, BaseException):
            future.set_exception(result)
        else:
            future.set_result(result)

    loop = future.get_loop()
    if not loop.is_closed():
        loop.call_soon_threadsafe(deliver)


class Groupable(Protocol):
    """A job whose `options` say which others it may share a run with."""

    @property
    def options(self) -> Hashable:
        """What jobs of one run share."""
        ...


GroupableT = TypeVar("GroupableT", bound=Groupable)


def in_groups(
    run: Callable[[Sequence[GroupableT], Sequence[Any]], Iterable[ResultT]], prepare: Callable[[GroupableT], Any]
) -> Callable[[Sequence[GroupableT]], list[ResultT | BaseException]]:
    """Return the function of a queue that does jobs of the same options together.

    Args:
        run: gives the results, in order, of jobs and of what `prepare` made of each. Where it raises, they are tried
            again one by one, so that one's failure is its own.
        prepare: makes of a job what a run needs, such as its pixels; what it raises is that job's own.
    """

    def run_all(jobs: Sequence[GroupableT]) -> list[ResultT | BaseException]:
        results: dict[int, ResultT | BaseException] = {}
        groups: dict[Hashable, dict[int, Any]] = {}
        for i, job in enumerate(jobs):
            try:
                ready = prepare(job)
            except Exception as error:
                results[i] = error
            else:
                groups.setdefault(job.options, {})[i] = ready
        for members in groups.values():
            results |= attempt([jobs[i] for i in members], members)
        return [results[i] for i in range(len(jobs))]

    def attempt(group: Sequence[GroupableT], members: Mapping[int, Any]) -> dict[int, ResultT | BaseException]:
        try:
            return dict(zip(members, run(group, list(members.values())), strict=True))
        except Exception as error:
            if len(group) == 1:
                return dict.fromkeys(members, error)
        singles = (attempt([job], {i: members[i]}) for job, i in zip(group, members, strict=True))
        return {i: result for single in singles for i, result in single.items()}

    return run_all


def one_by_one(run: Callable[[JobT], ResultT]) -> Callable[[Sequence[JobT]], list[ResultT | BaseException]]:
    """Return the function of a queue that does each job alone, so that one's failure is its own."""

    def run_all(jobs: Sequence[JobT]) -> list[ResultT | BaseException]:
        results: list[ResultT | BaseException] = []
        for job in jobs:
            try:
                results.append(run(job))
            except Exception as error:
                results.append(error)
        return results

    return run_all
