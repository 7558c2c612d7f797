import socket
from pathlib import Path

from launch.ports import LOCALHOST, free_port


def test_a_free_port_is_none_that_the_kernel_gives_out() -> None:
    lowest, _ = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    found = {free_port() for _ in range(200)}
    assert len(found) > 150
    assert 20_000 <= min(found)
    assert max(found) < max(int(lowest), 21_000)


def test_a_port_in_use_is_not_free(monkeypatch) -> None:
    with socket.create_server((LOCALHOST, free_port())) as server:
        taken = server.getsockname()[1]
        drawn = iter([taken, taken, taken + 1, taken + 2, taken + 3])
        monkeypatch.setattr("launch.ports._dice.randrange", lambda *_: next(drawn))
        assert taken < free_port() <= taken + 3
