"""How a job looks while it is drawn: one live line on a terminal, few plain lines anywhere else.

Owns the output stream of progress. Knows only the job.
"""

from __future__ import annotations

import shutil
from typing import TextIO

from app.client import Job

_CLEAR = "\r\x1b[2K"
_QUARTERS = 4


class Progress:
    """Shows jobs as they come. `stream` is stderr, so that stdout has only the results."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._is_live = stream.isatty()
        self._said: tuple[object, ...] | None = None
        self._has_line = False

    def show(self, job: Job) -> None:
        """The job as it stands now."""
        if self._is_live:
            width = shutil.get_terminal_size().columns
            self._write(_CLEAR + sentence(job, bar_width=min(30, max(0, width - 50)))[: width - 1])
            self._has_line = True
            return
        news = _milestone(job)
        if news != self._said:
            self._said = news
            self._write(sentence(job, bar_width=0) + "\n")

    def say(self, line: str) -> None:
        """A line of its own that stays; a repeat of the one before is left out."""
        if ("say", line) == self._said:
            return
        self.end()
        self._said = ("say", line)
        self._write(line + "\n")

    def end(self) -> None:
        """Takes the live line away."""
        if self._has_line:
            self._write(_CLEAR)
            self._has_line = False

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


def sentence(job: Job, bar_width: int) -> str:
    """One line about a job: "running  [####....] step 12 of 25, 1.2 s left"."""
    words = []
    if job.status == "queued" and job.queue_position is not None:
        words.append("next" if job.queue_position == 0 else f"{job.queue_position} before this one")
    progress = job.progress
    if job.status == "running" and progress and progress.steps:
        done = bar_width * progress.step // progress.steps
        bar = f"[{'#' * done}{'.' * (bar_width - done)}] " if bar_width else ""
        words.append(f"{bar}step {progress.step} of {progress.steps}")
    if job.eta_s is not None and not job.is_ended:
        words.append(f"{duration(job.eta_s)} left")
    return f"{job.status:<9} {', '.join(words)}".rstrip()


def _milestone(job: Job) -> tuple[object, ...]:
    """Changes with the status, the place in the queue, and each quarter of the way."""
    progress = job.progress
    quarter = _QUARTERS * progress.step // progress.steps if progress and progress.steps else 0
    return (job.status, job.queue_position, quarter)


def duration(seconds: float) -> str:
    """Short, in the unit that fits: "0.3 s", "12 s", "4 min"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min"
