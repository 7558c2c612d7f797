"""The toy reads every key."""


def refusal(key, config, *, known=()):
    return None
