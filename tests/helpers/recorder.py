"""A report that remembers."""

from pathlib import Path


class Recorder:
    """Keeps what is reported."""

    def __init__(self) -> None:
        self.logs: dict[int, dict[str, float]] = {}
        self.files: list[Path] = []

    def log(self, values, *, step):
        self.logs[step] = dict(values)

    def artifact(self, path):
        self.files.append(path)
