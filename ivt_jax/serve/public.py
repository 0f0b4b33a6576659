"""The URL that browsers open, which behind a proxy differs from the address that the server listens on."""

import re
from typing import NamedTuple

NAME = r"\[[0-9a-f:.]+\]|[a-z0-9._-]+"  # in small letters, an IPv6 address in brackets
_PORTS = {"http": 80, "https": 443}
_ORIGIN = re.compile(rf"(https?)://({NAME})(?::(\d{{1,5}}))?")
_SEGMENT = r"[A-Za-z0-9_~-][A-Za-z0-9._~-]*"  # no "." or "..": browsers resolve these
_PATH = re.compile(rf"((?:/{_SEGMENT})*)/?")
_OWN = ("api", "login")  # a path that begins like this is ambiguous: proxies may remove it or keep it


class Origin(NamedTuple):
    """What identifies a site in a browser; `port` is that of the scheme if the URL names none."""

    scheme: str
    host: str
    port: int

    @property
    def url(self) -> str:
        """As browsers write it: without the port of the scheme."""
        port = "" if self.port == _PORTS[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{self.host}{port}"


class PublicUrl(NamedTuple):
    """An origin and a path, "" or such as "/search"."""

    origin: Origin
    path: str


def read_origin(text: str) -> Origin | None:
    """Returns the origin that a header names; None for "null" and any other text that is no origin."""
    found = _ORIGIN.fullmatch(text.lower())
    if not found:
        return None
    scheme, host, port = found.groups()
    return Origin(scheme, host, int(port or _PORTS[scheme]))


def read_public_url(text: str) -> PublicUrl:
    """Parses the URL of a site, with an optional path. Raises ValueError, with the reason, for any other text."""
    start, _, rest = text.partition("://")
    host, slash, path = rest.partition("/")
    origin, found = read_origin(f"{start}://{host}"), _PATH.fullmatch(slash + path)
    if not origin or origin.port > 65535:
        raise ValueError("expected https://HOST, https://HOST:PORT or https://HOST/PATH")
    if not found:
        raise ValueError("its path may have only letters, digits and - . _ ~, and no query")
    if found[1].split("/")[1:2] and found[1].split("/")[1] in _OWN:
        raise ValueError(f"its path may not begin with /{found[1].split('/')[1]}, which the server uses itself")
    return PublicUrl(origin, found[1])
