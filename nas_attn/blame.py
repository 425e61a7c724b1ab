"""The losses of a study's jobs, counted in its record: who is to blame, who runs alone from now on, and which losses are nobody's fault."""

from collections.abc import Callable

from nas_attn.losses import CROWDED, SPARED, sentence
from nas_attn.outcome import Failure, Job
from nas_attn.protocol import job_key
from nas_attn.record import Record
from nas_attn.work import Done


class Blame:
    """For one driver; `tell` takes a kind of event and its words."""

    def __init__(self, record: Record, tell: Callable[[str, str], None]) -> None:
        self._record, self._tell = record, tell

    def failure(self, number: int, key: str, done: Done) -> Failure | None:
        """Counts a loss for or against a job; the failure of one that was lost too often."""
        verdict = sentence(done.cause)
        if done.cause == "memory":
            self._record.count(number, CROWDED, key)
        return verdict.failure(self._record.count(number, verdict.counter, key), done.cause, str(done.lost))

    def spared(self, number: int, job: Job, outcome: object) -> bool:
        """Whether a training that lacked memory beside others is run once more, alone, instead of being a failure.

        At the same batch: half of it is another training (twice the steps), which could not be compared with those of all other trials,
        and to train all of them again would cost the whole study.
        """
        if not (isinstance(outcome, Failure) and outcome.stage == "memory") or job.alone:
            return False
        self._record.count(number, CROWDED, job_key(job))
        self._tell("lost", f"trial {number}: lacked memory beside others, so that it runs once more, alone")
        return True

    def alone(self, number: int, key: str) -> bool:
        """Whether a job has lacked memory beside others."""
        return self._record.times(number, CROWDED, key) > 0

    def begun(self, number: int, key: str) -> int:
        """How often a job was begun, but for the attempts that were lost through nobody's fault."""
        return self._record.times(number, "attempts", key) - self._record.times(number, SPARED, key)
