"""Serves an index: a page to search it with, and REST endpoints for programs.

    python -m ivt_jax.serve --index=INDEX

By default it is open to this machine only. With another --host, another name (--allow_host) or a proxy (--public_url)
it requires a token: the value of the environment variable IVT_SERVE_TOKEN, or one that it generates and prints.
"""

import argparse
import ipaddress
import os
import re
import resource
import secrets
import socket
import sys
from pathlib import Path
from typing import Any

from ivt_jax.common.command import filled, filled_path, number
from ivt_jax.common.errors import UserError
from ivt_jax.common.files import printable
from ivt_jax.common.startup import run_command
from ivt_jax.serve import limits
from ivt_jax.serve.settings import Settings, read_public_url

THIS_MACHINE = frozenset({"127.0.0.1", "localhost", "[::1]"})
VARIABLE = "IVT_SERVE_TOKEN"

# JAX, FastAPI and uvicorn are imported where they are used: `--help` and a mistyped flag answer at once.


def run(args: argparse.Namespace) -> None:
    """Opens the port and the index, and serves until interrupted."""
    public, named = args.public_url, bool(args.allow_host or args.public_url)
    given = os.environ.get(VARIABLE, "")
    token = choose_token(given, alone=args.host in THIS_MACHINE and not named)
    with listen(args.host, args.port) as listener:
        from ivt_jax.retrieval.searcher import Searcher
        from ivt_jax.serve.app import create_app
        from ivt_jax.serve.server import make_server

        allow_open_files(2 * limits.MAX_CONNECTIONS)
        searcher = Searcher.open(args.index, args.workdir)
        hosts = THIS_MACHINE | {args.host, *args.allow_host} | ({public.origin.host} if public else set())
        index = printable(Path(args.index).name or args.index)
        settings = Settings(index, hosts, token, args.log_queries, public, tuple(args.proxy))
        server = make_server(create_app(searcher, settings), settings.proxies)
        address = f"http://{[args.host, *args.allow_host][-1]}:{listener.getsockname()[1]}"
        if public:
            address = f"{public.origin.url}{public.path}/, listening at {address}"
        pictures = searcher.count()
        print(f"serving {printable(args.index)} ({pictures:,} pictures) at {address}", flush=True)
        if unfinished := searcher.about.describe_unfinished(pictures):
            print(unfinished, flush=True)
        if token:
            print(f"token: the value of {VARIABLE}" if given else f"token: {token}", flush=True)
        if args.host in ("0.0.0.0", "[::]") and not named:  # all addresses of this machine; browsers cannot open these
            print("other machines cannot open it yet: set --allow_host to this machine's name", flush=True)
        server.run(sockets=[listener])


def allow_open_files(count: int) -> None:
    """Raises this process's limit of open files, often 1024, to `count` or the highest that the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def listen(host: str, port: int) -> socket.socket:
    """Returns a socket that listens. Raises UserError if the host is not this machine's, or the port is taken."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        reason = str(error.strerror).partition(" (")[0]
        fault = f"port {port} of {host} cannot be opened ({reason})"
        raise UserError(f"{fault}: choose another with --port or --host") from None


def choose_token(given: str, alone: bool) -> str:
    """Returns the token to require: the one given, else "" if only this machine has access, else a new one.

    Raises UserError if the token is too short, or has characters that a header cannot carry.
    """
    if given and not re.fullmatch(rf"[A-Za-z0-9._~-]{{{limits.LEAST_TOKEN},}}", given):
        raise UserError(f"{VARIABLE} needs {limits.LEAST_TOKEN} characters or more: letters, digits and . _ ~ -")
    return given or ("" if alone else secrets.token_urlsafe())


def host_name(text: str) -> str:
    """Returns a name or address as browsers send it: lower case, IPv6 in brackets. For argparse's `type`."""
    try:
        address = ipaddress.ip_address(text.strip("[]"))
    except ValueError:
        if not re.fullmatch(r"[A-Za-z0-9._-]+", text):
            raise argparse.ArgumentTypeError(f"{text!r} is not a host name: leave out http:// and the port") from None
        return text.lower()
    return f"[{address}]" if address.version == 6 else str(address)


def proxy_address(text: str) -> str:
    """Parses an address, or a network such as 172.18.0.0/16. For argparse's `type`."""
    try:
        return str(ipaddress.ip_network(text.strip("[]")))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected an address or a network: {error}") from None


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m ivt_jax.serve",
        description="Serve an index: a page to search it with, and REST endpoints, which /openapi.json describes.",
        epilog="exit code: 130 after Ctrl-C; 2 after a mistake",
    )
    add, many = parser.add_argument, dict[str, Any](action="append", default=[])
    add("--index", type=filled, required=True, help="folder or address of an index (python -m ivt_jax.index)")
    add("--workdir", type=filled_path, help="folder of the model, if it has moved since the index was built")
    add("--host", type=host_name, default="127.0.0.1", help="address to listen on (default 127.0.0.1)")
    port = number(int, 0, 65535, "a whole number from 0 to 65535")
    add("--port", type=port, default=8765, help="0 for any free port (default 8765)")
    add("--allow_host", type=host_name, metavar="NAME", help="name by which browsers reach it; may be repeated", **many)
    proxied = "URL that browsers open if a proxy is in front of the server, such as https://search.example.com/people"
    add("--public_url", type=read_public_url, metavar="URL", help=proxied)
    proxies = "address or network of a proxy whose X-Forwarded-For is trusted; may be repeated"
    add("--proxy", type=proxy_address, metavar="ADDRESS", help=proxies, **many)
    add("--log_queries", action="store_true", help="log each query and its client's address on stderr")
    args = parser.parse_args(argv)
    return run_command(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
