"""Progress shows the time left, on a terminal and in a log."""

import io
import sys

from tas import progress


def test_a_log_gets_a_line_with_the_time_left(monkeypatch):
    clock = iter([0.0, 0.0, 20.0, 40.0, 50.0])
    log = io.StringIO()
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(sys, "stderr", log)
    with progress.progress_bar("search", 10, done=5) as bar:
        bar.advance("loss 3")
        bar.advance()
        bar.advance("loss 2")
    # two steps took 40 s, three are left
    assert log.getvalue() == "search: step 7/10, 1 min left  loss 3\n"


def test_a_terminal_gets_a_bar(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress.progress_bar("train", 2) as bar:
        bar.advance("loss 1.5")
        bar.advance()
    text = terminal.getvalue()
    assert "train" in text
    assert "2/2" in text
    assert "loss 1.5" in text


def test_a_part_of_something_tells_how_far_it_is(monkeypatch):
    clock, told, log = iter([0.0, 1.0, 3.0, 4.0]), [], io.StringIO()
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(sys, "stderr", log)
    with progress.reported(lambda *given: told.append(given)), progress.progress_bar("train", 4) as bar:
        bar.advance("epoch 1/2")
        bar.advance()
        bar.advance("epoch 2/2")
    assert told == [(0.5, "train epoch 1/2")]
    assert not log.getvalue()


def test_steps_that_take_no_time_are_no_measure(monkeypatch):
    clock = iter([0.0, 0.0, 40.0])
    log = io.StringIO()
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(sys, "stderr", log)
    with progress.progress_bar("compare", 10) as bar:
        bar.advance("search", steps=0)
    assert not log.getvalue()
