"""Dotted keys, whose parts hold no dots here."""


def keys_of(config):
    return ()


def has_key(config, key):
    node = config
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            return False
        node = node[part]
    return True


def addressed(overrides, config):
    return dict(overrides)
