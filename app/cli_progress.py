"""How a job looks while it is drawn: one live line on a terminal, few plain lines anywhere else.

Owns the output stream of progress. Knows only the job document.
"""

from __future__ import annotations

import shutil
from typing import Any, TextIO

_CLEAR = "\r\x1b[2K"
_QUARTERS = 4


class Progress:
    """Shows job documents as they come. `stream` is stderr, so that stdout has only the results."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._is_live = stream.isatty()
        self._said: tuple[object, ...] | None = None
        self._has_line = False

    def show(self, document: dict[str, Any]) -> None:
        """The job as it stands now."""
        if self._is_live:
            width = shutil.get_terminal_size().columns
            self._write(_CLEAR + sentence(document, bar_width=min(30, max(0, width - 50)))[: width - 1])
            self._has_line = True
            return
        news = _milestone(document)
        if news != self._said:
            self._said = news
            self._write(sentence(document, bar_width=0) + "\n")

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


def sentence(document: dict[str, Any], bar_width: int) -> str:
    """One line about a job: "running  [####....] step 12 of 25, 1.2 s left"."""
    status = document["status"]
    words = []
    if status == "queued" and document.get("queue_position") is not None:
        words.append("next" if document["queue_position"] == 0 else f"{document['queue_position']} before this one")
    step = document.get("progress")
    if status == "running" and step and step["steps"]:
        done = bar_width * step["step"] // step["steps"]
        bar = f"[{'#' * done}{'.' * (bar_width - done)}] " if bar_width else ""
        words.append(f"{bar}step {step['step']} of {step['steps']}")
    if document.get("eta_s") is not None and status in ("queued", "running"):
        words.append(f"{duration(document['eta_s'])} left")
    return f"{status:<9} {', '.join(words)}".rstrip()


def _milestone(document: dict[str, Any]) -> tuple[object, ...]:
    """Changes with the status, the place in the queue, and each quarter of the way."""
    step = document.get("progress")
    quarter = _QUARTERS * step["step"] // step["steps"] if step and step["steps"] else 0
    return (document["status"], document.get("queue_position"), quarter)


def duration(seconds: float) -> str:
    """Short, in the unit that fits: "0.3 s", "12 s", "4 min"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min"
