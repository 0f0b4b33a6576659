"""The settings of a server, from its command line: among them the public URL, which browsers open behind a proxy."""

import argparse
import dataclasses
import re
from typing import NamedTuple

_PORTS = {"http": 80, "https": 443}
_ORIGIN = re.compile(r"(https?)://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::(\d{1,5}))?")
_PATH = re.compile(r"((?:/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)*)/?")  # without "." and "..", which browsers resolve


class Origin(NamedTuple):
    """Scheme, host and port, by which browsers distinguish sites. `host` is in lower case; `port` is always set."""

    scheme: str
    host: str
    port: int

    @property
    def url(self) -> str:
        """The URL as browsers write it: without the default port of the scheme."""
        port = "" if self.port == _PORTS[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{self.host}{port}"


class PublicUrl(NamedTuple):
    """An origin and a path, which is "" or begins with a slash, such as "/search"."""

    origin: Origin
    path: str


@dataclasses.dataclass(frozen=True)
class Settings:
    """See `python -m ivt_jax.serve --help`."""

    index: str  # its name, as the page shows it
    hosts: frozenset[str]  # names that the server answers to, in lower case, an IPv6 address in brackets
    token: str = ""  # "" if none is required
    log_queries: bool = False
    public: PublicUrl | None = None  # the URL that browsers open, if a proxy is in front of the server
    proxies: tuple[str, ...] = ()  # addresses and networks (10.0.0.0/8) whose X-Forwarded-For is trusted


def read_origin(text: str) -> Origin | None:
    """Parses an Origin header; returns None for "null" and any other text that is not an origin."""
    if not (found := _ORIGIN.fullmatch(text.lower())):
        return None
    scheme, host, port = found.groups()
    return Origin(scheme, host, int(port or _PORTS[scheme]))


def read_public_url(text: str) -> PublicUrl:
    """Parses the URL of a site, with an optional path. For argparse's `type`: raises ArgumentTypeError."""
    scheme, _, rest = text.partition("://")
    host, slash, path = rest.partition("/")
    origin, found = read_origin(f"{scheme}://{host}"), _PATH.fullmatch(slash + path)
    if not origin or origin.port > 65535:
        reason = "expected https://HOST, https://HOST:PORT or https://HOST/PATH"
    elif not found:
        reason = "its path may have only letters, digits and - . _ ~, and no query"
    elif (first := path.partition("/")[0]) in ("api", "login"):  # proxies may remove or keep the public URL's path
        reason = f"its path may not begin with /{first}, which the server uses itself"
    else:
        return PublicUrl(origin, found[1])
    raise argparse.ArgumentTypeError(f"{text!r} is not a public URL: {reason}")
