"""What the command lines of this package say about errors that their user can mend."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from aqr_model.data.errors import DataError
from aqr_model.engine.plan import PlanError
from aqr_model.engine.weights.files import CheckpointError
from aqr_model.preflight.reading import ConfigError

USER_ERROR = 2


@contextmanager
def explained() -> Iterator[None]:
    """Print such an error as a sentence and end with code 2; all others keep their traceback.

    A context, and so a decorator as well.

    Raises:
        typer.Exit: In place of the error.
    """
    try:
        yield
    except (CheckpointError, ConfigError, DataError, PlanError, FileNotFoundError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(USER_ERROR) from None
