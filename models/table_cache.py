"""The step tables of one checkpoint, kept.

Owns which tables and schedulers exist, and that threads share them. Knows nothing of how a table is read off.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from models.samplers import build_scheduler
from models.step_table import StepTable
from models.table_compiler import compile_table
from models.table_plan import TablePlan, plan_table

T = TypeVar("T")


class StepTables:
    """The step tables of one checkpoint, compiled when first asked for; the least recently used are forgotten.

    Safe to share between threads: a table is compiled once however many want it, and holds up nobody who wants another.
    Strengths that keep the same number of steps share one table.
    """

    def __init__(self, scheduler_config: Mapping[str, Any], capacity: int = 256) -> None:
        """`scheduler_config` is the checkpoint's `scheduler_config.json`; a table of 50 rows takes about 10 kB."""
        self._scheduler_config = dict(scheduler_config)
        self._capacity = capacity
        self._schedulers: dict[tuple[str, str], _Once[Any]] = {}
        self._tables: OrderedDict[TablePlan, _Once[StepTable]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, sampler: str, noise_schedule: str, num_inference_steps: int, strength: float | None) -> StepTable:
        """The table for a request.

        `strength` None is text-to-image; a number in (0, 1] keeps the last `int(num_inference_steps * strength)`
        steps, as diffusers' image-to-image pipelines do. Raises SamplerRefused where the name, the step count, the
        strength or the checkpoint's scheduler configuration does not allow a table, AssertionError where the table
        does not agree with diffusers.
        """
        plan = plan_table(self._scheduler_config, (sampler, noise_schedule), num_inference_steps, strength)
        with self._lock:
            table = self._tables.setdefault(plan, _Once())
            self._tables.move_to_end(plan)
            while len(self._tables) > self._capacity:
                self._tables.popitem(last=False)
        return table.get(lambda: compile_table(self._scheduler(plan.sampler, plan.noise_schedule), plan))

    def _scheduler(self, sampler: str, noise_schedule: str) -> Any:
        """One never stepped scheduler per name, to be copied: building kdpm2 takes longer than compiling it."""
        name = (sampler, noise_schedule)
        with self._lock:
            scheduler = self._schedulers.setdefault(name, _Once())
        return scheduler.get(lambda: build_scheduler(self._scheduler_config, *name))


class _Once(Generic[T]):
    """A value that the first caller makes while others who want it wait; one who fails leaves it to the next."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._value: T | None = None

    def get(self, make: Callable[[], T]) -> T:
        with self._lock:
            if self._value is None:
                self._value = make()
            return self._value
