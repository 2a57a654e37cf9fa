"""What happens to jobs, told to the metrics and to the statistics of their models."""

from collections import deque
from collections.abc import Generator, Sequence

from mcdrop.answering.runs import Share
from mcdrop.prediction import Prediction
from service.jobs import Job
from service.metrics import Metrics
from service.nonfinite import count_nonfinite, each_array
from service.outcome import arrays

_MANY = 128  # answers that are looked at in one go, when the thread has had no rest before
_LARGE = 2**12  # numbers of an answer that does not wait to be looked at, since it would hold much memory
DRIFT = ("entropy", "mutual_information", "confidence")  # what shows whether inputs or answers change over time


class Watch:
    """Told by the scheduler and by whoever writes answers; cheap, and safe on any thread."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._unseen: deque[tuple[str, str, Prediction]] = deque()

    def submitted(self, job: Job) -> None:
        """It waits for the thread now."""
        self._metrics.arrived(job.model.name, job.model.version)

    def started(self, job: Job) -> None:
        """Its first slice begins."""
        self._metrics.started(job.model.name, job.model.version, job.queue_ms / 1000)

    def computed(self, jobs: Sequence[Job], *, passes: int, samples: int, seconds: float, reason: str) -> None:
        """A slice of `passes` passes was computed for these jobs, `samples` rows x passes in all."""
        model, rows = jobs[0].model, sum(job.run.rows for job in jobs)
        model.tally.execution(rows, int(seconds * 1e9))
        self._metrics.computed(model.name, model.version, rows, passes, len(jobs), samples, seconds, reason)

    def saved(self, job: Job) -> None:
        """Nobody waits for it any more."""
        if job.left:
            self._metrics.saved_samples(job.model.name, job.left)

    def answered(self, job: Job) -> None:
        """It has its answer. What several jobs share is looked at once, as a whole."""
        if job.answered is None:
            return
        (result, outcome), (name, version) = job.answered, (job.model.name, job.model.version)
        if (count := count_nonfinite(part for value in outcome.fields.values() for part in each_array(value))) > 0:
            self._metrics.nonfinite(name, count)
        if isinstance(result, Share):
            if "watched" in result.derived:
                return
            result.derived["watched"] = True
            result = result.whole
        self._unseen.append((name, version, result))
        if len(self._unseen) >= _MANY or result.mean.numel() > _LARGE:
            self.catch_up()

    @property
    def is_behind(self) -> bool:
        """Whether there are answers whose uncertainty has not been looked at yet."""
        return bool(self._unseen)

    def catch_up(self, most: int = _MANY) -> None:
        """Look at the uncertainty of answers, which takes longer than all else here: a tenth of a millisecond each."""
        for _ in range(most):
            try:
                name, version, prediction = self._unseen.popleft()
            except IndexError:
                return
            fields = [field for field in DRIFT if field in prediction.fields]
            if fields:
                self._metrics.uncertainty(name, version, arrays(prediction, fields))

    def look(self) -> Generator[None]:
        """`catch_up` as work for the scheduler."""
        while self.is_behind:
            self.catch_up()
            yield
