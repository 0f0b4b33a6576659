"""Serve an index: a page to search it with, and the same for programs.

    python -m ivt_jax.serve --index=INDEX

By default it listens to this machine only. With another --host, another name (--allow_host) or a proxy (--public_url)
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

from ivt_jax.common.errors import UserError
from ivt_jax.common.files import printable
from ivt_jax.common.startup import run_command
from ivt_jax.serve.public import PublicUrl, read_public_url
from ivt_jax.serve.settings import LEAST_TOKEN, MAX_CONNECTIONS, Settings

THIS_MACHINE = frozenset({"127.0.0.1", "localhost", "[::1]"})
ANY = frozenset({"0.0.0.0", "[::]"})  # every address of this machine, which is no name to call it by
VARIABLE = "IVT_SERVE_TOKEN"

# JAX, FastAPI and uvicorn are imported where they are used: `--help` and a mistyped flag answer at once.


def run(args: argparse.Namespace) -> None:
    """Listens, opens the index, serves it until it is interrupted."""
    given = os.environ.get(VARIABLE, "")
    public, named = args.public_url, bool(args.allow_host or args.public_url)
    token = choose_token(given, alone=args.host in THIS_MACHINE and not named)
    with listen(args.host, args.port) as listener:
        from ivt_jax.retrieval.searcher import Searcher
        from ivt_jax.serve.app import create_app
        from ivt_jax.serve.server import make_server

        allow_open_files(2 * MAX_CONNECTIONS)
        searcher = Searcher.open(args.index, args.workdir)
        hosts = THIS_MACHINE | {args.host, *args.allow_host} | ({public.origin.host} if public else set())
        index = printable(Path(args.index).name or args.index)
        settings = Settings(index, hosts, token, args.log_queries, public, tuple(args.proxy))
        server = make_server(create_app(searcher, settings), settings.proxies)
        address = f"http://{[args.host, *args.allow_host][-1]}:{listener.getsockname()[1]}"
        if public:
            address = f"{public.origin.url}{public.path}/, listening at {address}"
        pictures = searcher.store.count()
        print(f"serving {printable(args.index)} ({pictures:,} pictures) at {address}", flush=True)
        if unfinished := searcher.about.describe_unfinished(pictures):
            print(unfinished, flush=True)
        if token:
            print(f"token: that of {VARIABLE}" if given else f"token: {token}", flush=True)
        if args.host in ANY and not named:
            print("to be reached from other machines it needs --allow_host, the name that they call it by", flush=True)
        server.run(sockets=[listener])


def allow_open_files(count: int) -> None:
    """Raises this process's limit of open files to `count`, as far as the system allows; 1024 is common."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def listen(host: str, port: int) -> socket.socket:
    """An open socket. Raises UserError where the host is not this machine's, or the port is taken."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        reason = str(error.strerror).partition(" (")[0]
        told = f"port {port} of {host} cannot be opened ({reason})"
        raise UserError(f"{told}: choose another with --port or --host") from None


def choose_token(given: str, alone: bool) -> str:
    """The token to demand: the one given, or else none for whoever is on this machine alone, or a new one.

    Raises UserError for one that is easily guessed, or that a cookie cannot hold.
    """
    if given and not re.fullmatch(rf"[A-Za-z0-9._~-]{{{LEAST_TOKEN},}}", given):
        raise UserError(f"{VARIABLE} is to have {LEAST_TOKEN} characters or more, of letters, digits and . _ ~ -")
    return given or ("" if alone else secrets.token_urlsafe())


def host_name(text: str) -> str:
    """A name or address as browsers send it: in small letters, IPv6 in brackets. For argparse's `type`."""
    try:
        address = ipaddress.ip_address(text.strip("[]"))
    except ValueError:
        if not re.fullmatch(r"[A-Za-z0-9._-]+", text):
            raise argparse.ArgumentTypeError(f"{text!r} is no host; name it without http:// and port") from None
        return text.lower()
    return f"[{address}]" if address.version == 6 else str(address)


def public_url(text: str) -> PublicUrl:
    """Parses a URL as `read_public_url` does; for argparse's `type`."""
    try:
        return read_public_url(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a public URL: {error}") from None


def proxy_address(text: str) -> str:
    """Parses an address, or a network such as 172.18.0.0/16; for argparse's `type`."""
    try:
        return str(ipaddress.ip_network(text.strip("[]")))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected an address or a network: {error}") from None


def port_number(text: str) -> int:
    """0 to 65535; for argparse's `type`."""
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 65535")
    return int(text)


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m ivt_jax.serve",
        description="Serve an index: a page to search it with, and REST endpoints, described in /openapi.json.",
        epilog="exit code: 130 after Ctrl-C; 2 on a mistake in the call",
    )
    parser.add_argument("--index", required=True, help="folder or address of an index (python -m ivt_jax.index)")
    parser.add_argument("--workdir", type=Path, help="folder of the model, where it is not where the index says")
    parser.add_argument("--host", type=host_name, default="127.0.0.1", help="address to listen on (default 127.0.0.1)")
    parser.add_argument("--port", type=port_number, default=8765, help="0 for any that is free (default 8765)")
    parser.add_argument(
        "--allow_host", type=host_name, action="append", default=[], metavar="NAME",
        help="a name that browsers reach the server by; may be given more than once",
    )  # fmt: skip
    parser.add_argument(
        "--public_url", type=public_url, metavar="URL",
        help="URL that browsers open if a proxy is in front of the server, such as https://search.example.com/people",
    )  # fmt: skip
    parser.add_argument(
        "--proxy", type=proxy_address, action="append", default=[], metavar="ADDRESS",
        help="address or network of a proxy whose X-Forwarded-For is trusted; may be given more than once",
    )  # fmt: skip
    parser.add_argument("--log_queries", action="store_true", help="log each query with its address on stderr")
    args = parser.parse_args(argv)
    return run_command(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
