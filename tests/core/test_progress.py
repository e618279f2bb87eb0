"""How far a run is."""

from remote_vae.core.progress import MOST_KEPT, Progress


def run(progress: Progress, kind: str, *, checkpoints: int, rows: int = 8) -> None:
    progress.begin(kind, rows)
    for _ in range(checkpoints):
        progress.checkpoint()
    progress.finish(rows)
    progress.end()


def test_rows_are_counted_first_and_checkpoints_from_then_on() -> None:
    """The first run of a kind is counted in rows; the next one in checkpoints, which are told one by one."""
    told: list[tuple[int, int]] = []
    progress = Progress(lambda done, total: told.append((done, total)))
    run(progress, "a", checkpoints=3)
    assert told == [(0, 8), (8, 8), (8, 8)]
    told.clear()
    run(progress, "a", checkpoints=3)
    assert told == [(0, 3), (1, 3), (2, 3), (3, 3), (3, 3)]


def test_a_run_that_takes_more_checkpoints_than_the_last_one() -> None:
    """What is done is never more than all."""
    told: list[tuple[int, int]] = []
    progress = Progress(lambda done, total: told.append((done, total)))
    run(progress, "a", checkpoints=1)
    run(progress, "a", checkpoints=4)
    assert all(done <= total for done, total in told)
    assert [done for done, _ in told[3:]] == sorted(done for done, _ in told[3:])


def test_few_kinds_are_kept() -> None:
    """The oldest kind is forgotten, so that clients cannot make the table grow."""
    progress = Progress()
    for number in range(2 * MOST_KEPT):
        run(progress, str(number), checkpoints=1)
    assert len(progress._known) == MOST_KEPT
