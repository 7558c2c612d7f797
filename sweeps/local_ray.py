"""Starting the processes of a Ray node on a machine that may be busy.

`python -m sweeps.local_ray start ...` is `ray start ...` with that.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray._private import parameter, services
from ray._private.ray_constants import PROCESS_TYPE_RAYLET

from sweeps.ports import free_port

_LISTEN_PORT = "dashboard_agent_listen_port"
AGENT_PORTS = (
    _LISTEN_PORT,
    "metrics_agent_port",
    "metrics_export_port",
    "runtime_env_agent_port",
)


@contextmanager
def agents_have_ports() -> Iterator[None]:
    """Tell the agents of a node that starts their ports, and its raylet that it knows them.

    Reason: Ray 2.60 lets the agents choose, and its raylet aborts if it has not heard the choice
    within 15 s. On a busy machine they have not even loaded by then, and the driver dies.
    Goes when: the raylet waits longer, or `ray.init` takes the ports and tells them to the raylet.
    """
    ports = {name: free_port() for name in AGENT_PORTS}
    params: Any = parameter.RayParams
    start: Any = services.start_ray_process

    def with_ports(*args: Any, **named: Any) -> Any:
        made = params(*args, **named)
        made.update(**ports)
        return made

    def start_with_port(command: list[str], process_type: str, *args: Any, **named: Any) -> Any:
        if process_type == PROCESS_TYPE_RAYLET:  # the one port that Ray does not pass on to it
            command = [*command, f"--{_LISTEN_PORT}={ports[_LISTEN_PORT]}"]
        return start(command, process_type, *args, **named)

    parameter.RayParams = with_ports  # pyright: ignore[reportAttributeAccessIssue]
    services.start_ray_process = start_with_port
    try:
        yield
    finally:
        parameter.RayParams = params
        services.start_ray_process = start


def main() -> None:
    """Run Ray's own command line."""
    from ray.scripts import scripts

    with agents_have_ports():
        scripts.main()


if __name__ == "__main__":
    main()
