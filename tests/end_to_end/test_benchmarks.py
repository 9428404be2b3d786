"""The timings: the textbook's loop runs, and so does every job of the table."""

from pathlib import Path

from benchmarks import speed
from tests.conftest import LITE, Capture, slow


def test_the_textbook_loop_is_timed(trained_project: Path) -> None:
    assert speed.baseline_loop(speed.Task(trained_project / "data", LITE[1], "cpu", 1)) > 0


@slow
def test_the_table_has_a_line_for_every_job(capsys: Capture) -> None:
    speed.main(["--data_root", "nowhere", "--images", "24", "--repeats", "1", *LITE])
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line]
    seconds = {line[0]: float(line[1]) for line in lines if hasattr(speed, line[0])}
    assert seconds.keys() == {job.__name__ for job in speed.JOBS}
    assert min(seconds.values()) > 0
