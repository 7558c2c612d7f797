"""Files that another process is writing."""

from pathlib import Path


def whole_lines(path: Path) -> list[str]:
    """The lines that are there to their ends; one that is being written is not there yet."""
    text = path.read_text()
    return text[: text.rfind("\n") + 1].splitlines()
