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
