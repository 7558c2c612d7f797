"""A local Ray without the processes that no sweep needs: three of the seven that it starts.

They load Python for seconds each, on the same cores as the test. The tests of the command line have
a whole one.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray._private import parameter, services


@contextmanager
def lean_ray() -> Iterator[None]:
    """Let `ray.init` start neither autoscaler, nor log monitor, nor the dashboard's server."""
    params: Any = parameter.RayParams
    serve: Any = services.start_api_server

    def few(*args: Any, **named: Any) -> Any:
        made = params(*args, **named)
        made.update(no_monitor=True, include_log_monitor=False)
        return made

    parameter.RayParams = few
    services.start_api_server = lambda *args, **named: (None, None)
    try:
        yield
    finally:
        parameter.RayParams, services.start_api_server = params, serve
