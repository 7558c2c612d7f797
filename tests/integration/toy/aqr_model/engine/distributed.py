"""What a training over several processes raises; the toy trains in one."""


class WorkerFailed(RuntimeError):
    """Never raised here."""
