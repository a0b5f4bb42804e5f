"""A comparison shows how far its jobs are."""

from contextlib import nullcontext

from tas.pipeline.comparison import watch
from tas.pipeline.comparison.plan import Job


class Shown:
    def __init__(self):
        self.steps, self.notes = [], []

    def advance(self, note="", steps=1):
        self.steps.append(steps)
        self.notes.append(note)


def test_what_a_job_reports_is_not_counted_again_at_its_end():
    bar, job = Shown(), Job("cell", "tas-seed0", 0, work=200)
    seen = watch.Watch(bar)
    for share in (0.25, 0.5, 0.1):  # a second part begins anew
        seen.report(job, share, "train epoch 1/2")
    seen.until_done([(job, None)])
    assert bar.steps == [50, 50, 0, 100]
    assert bar.notes[0] == "cell tas-seed0, train epoch 1/2"
    assert seen.failed == []


def test_a_job_that_fails_is_noted():
    seen = watch.Watch(Shown())
    seen.until_done([(Job("search", "tas-seed0", 0), "no memory left")])
    assert seen.failed == [{"job": "search tas-seed0", "error": "no memory left"}]


def test_jobs_of_an_earlier_run_are_done(monkeypatch):
    jobs, given = [Job("clock", "seed0", 0, work=5), Job("cell", "l2", 0, work=200)], []
    monkeypatch.setattr(watch, "progress_bar", lambda *values: given.append(values) or nullcontext(Shown()))
    with watch.watched(jobs, {jobs[0].file}):
        pass
    assert given == [("compare", 205, 5)]
