import argparse
import resource
import socket
import subprocess
import sys

import pytest

from ivt_jax.common.errors import UserError
from ivt_jax.retrieval import searcher
from ivt_jax.serve import __main__ as command
from ivt_jax.serve import server
from tests.serve.conftest import StandIn


@pytest.fixture
def serve(monkeypatch, capsys):
    """serve(flags) -> the exit code, and what was printed; the server ends as soon as it has started."""

    def call(*flags):
        monkeypatch.setattr(searcher.Searcher, "open", classmethod(lambda cls, place, workdir: StandIn()))
        make = server.make_server

        async def end(counter):
            return True

        def make_short_lived(*given):
            made = make(*given)
            made.on_tick = end
            return made

        monkeypatch.setattr(server, "make_server", make_short_lived)
        code = command.main(["--index=people.index", "--port=0", *flags])
        return code, capsys.readouterr()

    return call


def test_it_says_what_it_serves_and_where(serve):
    code, said = serve()
    assert code == 0 and said.err == ""
    assert said.out.startswith("serving people.index (12 pictures) at http://127.0.0.1:") and said.out.count("\n") == 1


def test_it_says_that_the_index_is_unfinished(serve, monkeypatch):
    monkeypatch.setattr(StandIn, "unfinished", "the index is unfinished")
    code, said = serve()
    assert code == 0 and said.out.splitlines()[1:] == ["the index is unfinished"]


@pytest.mark.parametrize(
    ("flags", "at"), [(["--host=0.0.0.0"], "0.0.0.0"), (["--allow_host=Search.example"], "search.example")]
)
def test_who_can_be_reached_by_others_demands_a_token(serve, flags, at):
    tokens = []
    for _ in range(2):
        code, said = serve(*flags)
        first, second, *hint = said.out.splitlines()
        assert len(hint) == (at == "0.0.0.0")
        assert code == 0 and f" at http://{at}:" in first
        tokens.append(second.removeprefix("token: "))
    assert tokens[0] != tokens[1] and min(map(len, tokens)) >= 32


def test_behind_a_proxy_it_names_what_browsers_open(serve):
    code, said = serve("--public_url=https://Search.example.com:443/people/", "--proxy=127.0.0.1")
    first, second = said.out.splitlines()
    assert code == 0 and " at https://search.example.com/people/, listening at http://127.0.0.1:" in first
    assert second.startswith("token: ")
    _, said = serve("--public_url=https://search.example.com", "--host=0.0.0.0")
    assert len(said.out.splitlines()) == 2


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--public_url=search.example.com", "'search.example.com' is not a public URL: expected https://HOST"),
        ("--public_url=https://a/api", "may not begin with /api"),
        ("--proxy=nginx", "expected an address or a network"), ("--proxy=10.0.0.1/8", "expected an address or a"),
    ],
)  # fmt: skip
def test_a_proxy_that_cannot_be_is_one_line(capsys, flag, message):
    with pytest.raises(SystemExit) as ended:
        command.main(["--index=x", flag])
    assert ended.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_who_listens_to_all_is_told_that_it_needs_a_name(serve, host):
    _, said = serve(f"--host={host}")
    assert "--allow_host" in said.out.splitlines()[2]
    _, said = serve(f"--host={host}", "--allow_host=search.example")
    assert "--allow_host" not in said.out


def test_a_token_of_ones_own_is_not_printed(serve, monkeypatch):
    monkeypatch.setenv("IVT_SERVE_TOKEN", "0123456789abcdef")
    _, said = serve("--host=0.0.0.0")
    assert said.out.splitlines()[1] == "token: the value of IVT_SERVE_TOKEN" and "0123456789abcdef" not in said.out


@pytest.mark.parametrize("token", ["short", "0123456789abcde\n", "0123456789 abcdef", "0123456789;abcdef"])
def test_a_token_that_will_not_do_is_refused(serve, monkeypatch, token):
    monkeypatch.setenv("IVT_SERVE_TOKEN", token)
    code, said = serve()
    assert code == 2 and said.err.startswith("error: IVT_SERVE_TOKEN needs 16 characters or more")


def test_a_port_that_is_taken_is_one_line(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert command.main(["--index=x", f"--port={port}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: port {port} of 127.0.0.1 cannot be opened (") and error.count("\n") == 1


def test_an_index_that_is_none_is_one_line(tmp_path, capsys):
    assert command.main([f"--index={tmp_path}/nowhere", "--port=0"]) == 2
    error = capsys.readouterr().err
    assert "nowhere is not an index: make it with python -m ivt_jax.index" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "name"), [("Example.org", "example.org"), ("::1", "[::1]"), ("[::1]", "[::1]"), ("127.0.0.1", "127.0.0.1")]
)
def test_hosts_are_read_as_browsers_send_them(text, name):
    assert command.host_name(text) == name


@pytest.mark.parametrize("text", ["http://example.org", "example.org:80", "a b", ""])
def test_what_is_no_host_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="is not a host name"):
        command.host_name(text)


def test_a_token_is_needed_where_others_can_come():
    assert command.choose_token("", alone=True) == ""
    assert len(command.choose_token("", alone=False)) >= 32
    with pytest.raises(UserError):
        command.choose_token("short", alone=True)


@pytest.mark.parametrize(
    ("soft", "hard", "expected"),
    [(1024, 4096, [(2000, 4096)]), (1024, 1500, [(1500, 1500)]), (1024, resource.RLIM_INFINITY, [(2000, -1)]),
     (4096, 4096, []), (1024, 1024, []), (resource.RLIM_INFINITY, resource.RLIM_INFINITY, [])],
)  # fmt: skip
def test_files_for_all_connections_may_be_open(monkeypatch, soft, hard, expected):
    made = []
    monkeypatch.setattr(resource, "getrlimit", lambda what: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda what, limits: made.append(limits))
    command.allow_open_files(2000)
    assert made == expected


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from ivt_jax.serve import __main__ as command\n"
        "try: command.main(['--help'])\n"
        "finally: print([m for m in ('jax', 'fastapi', 'uvicorn', 'lance') if m in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.startswith("usage: python -m ivt_jax.serve") and said.endswith("[]\n")
