"""What tests set because the machine may be busy."""

RAY_PATIENCE = {
    # Ray's own deadlines for the parts of a node; a busy machine exceeds the defaults.
    "RAY_raylet_start_wait_time_s": "180",
    "RAY_agent_register_timeout_ms": "180000",
    "RAY_worker_register_timeout_seconds": "480",
    # Ray gives way to everybody: beside tests that compute, its processes would stand still.
    "RAY_worker_niceness": "0",
}
