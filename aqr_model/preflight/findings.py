"""What was found in a config: what refuses it, what of it does nothing, what its parts say."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from aqr_model.preflight.reading import ConfigError
from aqr_model.preflight.source import Places


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing to say about a config.

    Attributes:
        key: The dotted key it is about; empty for the config as a whole.
        text: What must hold, what came, and what to do.
        at: File and line of the key; empty where they cannot be told.
    """

    key: str
    text: str
    at: str = ""

    def __str__(self) -> str:
        where = f"{self.key} ({self.at})" if self.key and self.at else self.key or self.at
        return f"{where}: {self.text}" if where else self.text


@dataclass(kw_only=True)
class Findings:
    """All that is to be said about a config.

    Attributes:
        errors: Why a training cannot start from it.
        warnings: Settings that change nothing, or less than they seem to.
        notes: What the parts of the model say of their settings when they are built.
    """

    errors: list[Finding] = field(default_factory=list)
    warnings: list[Finding] = field(default_factory=list)
    notes: list[Finding] = field(default_factory=list)

    def refuse(self, key: str, text: str) -> None:
        """Add an error."""
        _add(self.errors, key, text)

    def warn(self, key: str, text: str) -> None:
        """Add a warning."""
        _add(self.warnings, key, text)

    def note(self, key: str, text: str) -> None:
        """Add what a part says."""
        _add(self.notes, key, text)

    def placed(self, places: Places) -> "Findings":
        """The same with file and line, where the key stands in a file."""

        def with_place(finding: Finding) -> Finding:
            return replace(finding, at=places.of(finding.key)) if finding.key else finding

        lists = (self.errors, self.warnings, self.notes)
        errors, warnings, notes = (list(map(with_place, each)) for each in lists)
        return Findings(errors=errors, warnings=warnings, notes=notes)

    def require_none(self, source: str) -> None:
        """Refuse a config that cannot start a training.

        Args:
            source: The config's name.

        Raises:
            ConfigError: With all errors, a paragraph each.
        """
        if self.errors:
            count = "a reason" if len(self.errors) == 1 else f"{len(self.errors)} reasons"
            raise ConfigError(
                f"{source} cannot be used, for {count}:\n" + "\n".join(paragraphs(self.errors))
            )


def paragraphs(findings: Iterable[Finding]) -> Iterator[str]:
    """A paragraph for each finding, indented."""
    for finding in findings:
        yield "  " + str(finding).replace("\n", "\n    ")


def _add(findings: list[Finding], key: str, text: str) -> None:
    finding = Finding(key=key, text=text)
    if finding not in findings:
        findings.append(finding)
