"""The settings of a server, from its command line."""

import dataclasses

from ivt_jax.serve.public import PublicUrl


@dataclasses.dataclass(frozen=True)
class Settings:
    """See `python -m ivt_jax.serve --help`."""

    index: str  # its name, as the page shows it
    hosts: frozenset[str]  # names that the server answers to, in lower case, an IPv6 address in brackets
    token: str = ""  # "" if none is required
    log_queries: bool = False
    public: PublicUrl | None = None  # the URL that browsers open, if a proxy is in front of the server
    proxies: tuple[str, ...] = ()  # addresses and networks (10.0.0.0/8) whose X-Forwarded-For is trusted
