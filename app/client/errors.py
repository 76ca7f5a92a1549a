"""What a call can end in besides its result.

Owns the exceptions and the words they have for people. Knows no HTTP.

    ClientError              its text is a sentence for people
    ├── Refused              the server answered with a problem: status, code, detail, errors, request_id, retry_after_s
    ├── Unreachable          no answer, or none of ours
    ├── JobFailed            the job ended without pictures: job, code
    ├── WaitTimeout          the job had not ended in time, and goes on: job
    └── PictureDamaged       what came is not what the job's document promises
"""

from __future__ import annotations

from app.client.values import Job, Problem


class ClientError(Exception):
    """The text is a sentence for people."""


class Refused(ClientError):
    """The server refused, and said why."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.status = problem.status
        self.code = problem.code
        self.detail = problem.detail
        self.errors = problem.errors
        self.request_id = problem.request_id
        self.retry_after_s = problem.retry_after_s

    def __str__(self) -> str:
        """The detail, and what it does not say itself about single fields."""
        fields = (
            f" [{each.pointer.lstrip('/')}: {each.detail}]" for each in self.errors if each.detail not in self.detail
        )
        return self.detail + "".join(fields)


class Unreachable(ClientError):
    """Nobody answers, or somebody who is not denoised."""


class JobFailed(ClientError):
    """The job failed or was canceled; `code` is that of its `error`, else its status."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.job = job
        self.code = job.error.code if job.error else job.status

    def __str__(self) -> str:
        return self.job.error.detail if self.job.error else f"The job was {self.job.status}."


class WaitTimeout(ClientError):
    """`timeout_s` is over. The job goes on: wait again, or cancel it. `job` is how it stood last."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.job = job

    def __str__(self) -> str:
        return f"The job {self.job.id} has not ended in time; it is {self.job.status} and goes on."


class PictureDamaged(ClientError):
    """The bytes of a picture have another SHA-256 than the document says, each time it was fetched."""
