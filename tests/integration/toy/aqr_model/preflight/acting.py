"""Every parameter of the toy may act."""


def trains_alike(one, other):
    return False


def says_no_effect(config, key):
    return None


def idle_here(config, key):
    return None
