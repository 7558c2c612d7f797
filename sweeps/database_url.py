"""URLs of study databases: which ones can be used, by which driver, and how they are shown."""

import re

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

SQLITE, POSTGRESQL = "sqlite", "postgresql"
_SQLITE_PREFIX = f"{SQLITE}:///"
_DRIVER = "postgresql+psycopg"
_DRIVERS = {"postgres": _DRIVER, POSTGRESQL: _DRIVER, _DRIVER: _DRIVER, SQLITE: SQLITE}
_SECRETS = ("password", "sslpassword")
HIDDEN = "***"
_QUOTED = "%2A%2A%2A"  # the same in a query
# A user's part and a password, wherever a URL stands in a text.
_PASSWORD = re.compile(r"(?P<head>\b[a-z][a-z0-9+.-]*://[^\s:/@]*):[^\s/]+@")


def wrong_url(url: str) -> str | None:
    """What must hold of a study's URL and does not; None if it can be used."""
    forms = f"must be {_DRIVER}://USER@HOST/DATABASE or {_SQLITE_PREFIX}FILE, but got"
    parts = _parse(url)
    if parts is None:
        return f"{forms} {shown_url(url)!r}, which is no URL"
    if parts.drivername not in _DRIVERS:
        return f"{forms} {parts.drivername!r}, for which no driver is installed"
    if "@" in (parts.host or ""):
        return f"{forms} one whose password has an @, which a URL writes as %40"
    if not parts.database:
        return f"{forms} {shown_url(url)!r}, which names no database"
    return None


def is_postgresql(url: str) -> bool:
    """Whether a server keeps the study."""
    parts = _parse(url)
    return parts is not None and _DRIVERS.get(parts.drivername) == _DRIVER


def driver_url(url: str) -> str:
    """The same URL with the driver that is installed here, the password included."""
    parts = make_url(url)
    return parts.set(drivername=_DRIVERS[parts.drivername]).render_as_string(hide_password=False)


def query_names(url: str) -> frozenset[str]:
    """The settings that a URL brings along."""
    return frozenset(make_url(url).query)


def shown_url(url: str) -> str:
    """The URL as it may be shown: no password."""
    parts = _parse(url)
    if parts is None:
        return f"{url.partition('://')[0]}://{HIDDEN}" if "://" in url else url
    secrets = {name: HIDDEN for name in _SECRETS if name in parts.query}
    if not secrets and parts.password is None:
        return url
    hidden = parts.update_query_dict(secrets).render_as_string(hide_password=True)
    return masked(hidden).replace(_QUOTED, HIDDEN)


def is_masked(url: str) -> bool:
    """Whether a password was taken out of a URL, or out of one that had it."""
    parts = _parse(url)
    return parts is not None and HIDDEN in (parts.password, *map(parts.query.get, _SECRETS))


def has_password(url: str) -> bool:
    """Whether there is a password in a URL, and not its mask alone."""
    return is_masked(shown_url(url)) and not is_masked(url)


def masked(text: str) -> str:
    """A text with the passwords of its URLs taken out."""
    return _PASSWORD.sub(rf"\g<head>:{HIDDEN}@", text)


def _parse(url: str) -> URL | None:
    try:
        return make_url(url)
    except (ArgumentError, ValueError):
        return None
