"""A progress bar: how many latents were put into a queue, and how many of them are decoded."""

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


class Bar:
    """Its total grows with every latent that is put; it is drawn if there is a terminal."""

    def __init__(self) -> None:
        self._progress = Progress(TextColumn("decoded"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._task = self._progress.add_task("decoded", total=0)
        self._expected = 0
        self._progress.start()

    def expect(self, n: int) -> None:
        self._expected += n
        self._progress.update(self._task, total=self._expected)

    def update(self, n: int) -> None:
        self._progress.advance(self._task, n)

    def close(self) -> None:
        self._progress.stop()
