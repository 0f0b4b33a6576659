"""The server behind a proxy: what it compares, redirects and trusts."""

import argparse
import contextlib
import http.client

import httpx
import pytest

from ivt_jax.serve import limits
from ivt_jax.serve.settings import Origin, read_origin, read_public_url
from tests.serve.conftest import LOOPBACK, StandIn, served

TOKEN = "0123456789abcdef"


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("https://search.example.com", Origin("https", "search.example.com", 443)),
        ("https://Search.example.com:443", Origin("https", "search.example.com", 443)),
        ("http://search.example.com", Origin("http", "search.example.com", 80)),
        ("https://search.example.com:8443", Origin("https", "search.example.com", 8443)),
        ("http://[::1]:8765", Origin("http", "[::1]", 8765)),
        ("null", None), ("", None), ("ftp://search.example.com", None), ("https://a/b", None), ("https://a:b", None),
        ("https://user@search.example.com", None), ("https://search.example.com:443:443", None),
    ],
)  # fmt: skip
def test_origins(text, origin):
    assert read_origin(text) == origin


@pytest.mark.parametrize(
    ("text", "url", "path"),
    [
        ("https://search.example.com", "https://search.example.com", ""),
        ("https://search.example.com/", "https://search.example.com", ""),
        ("HTTPS://Search.Example.com:443/People/", "https://search.example.com", "/People"),
        ("http://[2001:db8::1]:8080/a/b-c_d.e", "http://[2001:db8::1]:8080", "/a/b-c_d.e"),
    ],
)
def test_public_urls(text, url, path):
    public = read_public_url(text)
    assert (public.origin.url, public.path) == (url, path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("search.example.com", "expected https://HOST"), ("ftp://search.example.com", "expected https://HOST"),
        ("https://", "expected https://HOST"), ("https://user:word@search.example.com", "expected https://HOST"),
        ("https://search.example.com:70000", "expected https://HOST"),
        ("https://search.example.com/a?b", "its path may have"), ("https://search.example.com/a/../b", "its path"),
        ("https://search.example.com//a", "its path may have"), ("https://search.example.com/a b", "its path may have"),
        ("https://search.example.com/api", "may not begin with /api"),
        ("https://search.example.com/login/b", "may not begin with /login"),
    ],
)  # fmt: skip
def test_what_is_no_public_url_is_refused(text, message):
    with pytest.raises(argparse.ArgumentTypeError, match=message):
        read_public_url(text)


@contextlib.contextmanager
def behind(url, **more):
    """Gives a client of a server that was started with this --public_url and TOKEN."""
    public = read_public_url(url)
    settings = {"public": public, "hosts": LOOPBACK | {public.origin.host}, "token": TOKEN, **more}
    with served(StandIn(), **settings) as address, httpx.Client(base_url=address) as client:
        client.headers["authorization"] = f"Bearer {TOKEN}"
        yield client


# What browsers and common proxies send: the Host as it came, without its port, with the port of the scheme, or the
# address that the proxy connects to.
@pytest.mark.parametrize(
    ("url", "host", "origin", "status"),
    [
        ("https://search.example.com", "127.0.0.1:8974", "https://search.example.com", 200),
        ("https://search.example.com", "search.example.com", "https://search.example.com", 200),
        ("https://search.example.com", "search.example.com:443", "https://search.example.com", 200),
        ("https://search.example.com", "search.example.com", "https://search.example.com:443", 200),
        ("https://search.example.com:8443", "search.example.com", "https://search.example.com:8443", 200),
        ("https://search.example.com:8443", "localhost", "https://search.example.com:8443", 200),
        ("https://search.example.com:8443", "search.example.com:8443", "https://search.example.com:8443", 200),
        ("https://search.example.com", "127.0.0.1:8974", "http://127.0.0.1:8974", 200),  # its own address, no proxy
        ("https://search.example.com", "127.0.0.1:80", "http://127.0.0.1", 200),
        ("https://search.example.com", "search.example.com", "", 200),  # a program
        ("https://search.example.com", "search.example.com", "http://search.example.com", 403),  # not encrypted
        ("https://search.example.com", "search.example.com:8443", "https://search.example.com:8443", 403),
        ("https://search.example.com:8443", "search.example.com", "https://search.example.com", 403),
        ("https://search.example.com", "search.example.com", "https://evil.example.com", 403),
        ("https://search.example.com", "127.0.0.1:8974", "https://evil.example.com", 403),
        ("https://search.example.com", "127.0.0.1:8974", "null", 403),
        ("https://search.example.com", "evil.example.com", "https://evil.example.com", 421),
    ],
)  # fmt: skip
def test_the_origin_is_compared_with_the_public_url(url, host, origin, status):
    with behind(url) as client:
        headers = {"host": host} | ({"origin": origin} if origin else {})
        asked = {"terms": [{"text": "a red coat"}]}
        assert client.post("/api/search", json=asked, headers=headers).status_code == status


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("localhost:443", "https://localhost", 200), ("localhost", "http://localhost:80", 200),
        ("localhost:443", "http://localhost", 403), ("localhost", "https://localhost:8443", 403),
        ("127.0.0.1:8765", "http://127.0.0.1", 403),
    ],
)  # fmt: skip
def test_ports_of_the_scheme_are_as_good_as_none(address, host, origin, status):
    response = httpx.post(f"{address}/api/phrases", json={"text": "hat"}, headers={"host": host, "origin": origin})
    assert response.status_code == status


@pytest.mark.parametrize("prefix", ["", "/people"], ids=["proxy removes the path", "proxy leaves it"])
def test_below_a_path(prefix):
    with behind("https://search.example.com/people") as client:
        page = client.get(f"{prefix}/")
        assert page.status_code == 200 and 'src="app.js"' in page.text and 'href="/' not in page.text
        assert client.get(f"{prefix}/app.js").status_code == client.get(f"{prefix}/api/about").status_code == 200
        del client.headers["authorization"]
        assert client.get(f"{prefix}/api/about").status_code == 401 and client.get(f"{prefix}/").status_code == 200
        large = client.post(f"{prefix}/login", json={"token": "x" * 100_001})
        assert large.status_code == 413


def test_the_path_without_a_slash_leads_to_the_page():
    with behind("https://search.example.com/people") as client:
        del client.headers["authorization"]
        answer = client.get("/people")
        assert answer.status_code == 307 and answer.headers["location"] == "/people/"
        assert client.get("/peopleandmore").status_code == 401  # as any other path


@pytest.mark.parametrize(
    ("url", "origin", "path", "secure"),
    [
        ("https://search.example.com/people", "https://search.example.com", "/people/", True),
        ("https://search.example.com/people", "", "/people/", True),
        ("https://search.example.com", "https://search.example.com", "/", True),
        ("http://search.example.com/people", "http://search.example.com", "/people/", False),
        ("https://search.example.com/people", "http://127.0.0.1", "/", False),  # its own address, no proxy
    ],
)  # fmt: skip
def test_the_cookie_is_for_the_public_url(url, origin, path, secure):
    with behind(url) as client:
        headers = {"host": "127.0.0.1"} | ({"origin": origin} if origin else {})
        given = client.post("/login", json={"token": TOKEN}, headers=headers)
        attributes = given.headers["set-cookie"].split("; ")[1:]
        assert f"Path={path}" in attributes and ("Secure" in attributes) == secure and "HttpOnly" in attributes


def test_openapi_names_the_public_url():
    with behind("https://search.example.com/people") as client:
        assert client.get("/openapi.json").json()["servers"] == [{"url": "https://search.example.com/people"}]


def ask_as(client, forwarded):
    return client.get("/icon.svg", headers={"x-forwarded-for": forwarded}).status_code


@pytest.mark.parametrize(
    ("proxies", "statuses"),
    [
        (("127.0.0.1/32",), [200, 200, 429, 200, 429]),  # the last address counts: the one that the proxy has seen
        (("127.0.0.0/8", "::1/128"), [200, 200, 429, 200, 429]),
        (("10.0.0.1/32",), [200, 200, 429, 429, 429]),
        ((), [200, 200, 429, 429, 429]),
    ],
)
def test_forwarded_addresses_are_believed_from_the_proxy_alone(monkeypatch, proxies, statuses):
    monkeypatch.setattr(limits, "BURST", 2.0)
    monkeypatch.setattr(limits, "RATE", 0.001)
    with served(StandIn(), proxies=proxies) as address, httpx.Client(base_url=address) as client:
        asked = ["203.0.113.1", "203.0.113.1", "203.0.113.1", "203.0.113.2", "203.0.113.2, 203.0.113.1"]
        assert [ask_as(client, forwarded) for forwarded in asked] == statuses


def test_a_path_that_is_no_text_is_no_fault():
    with behind("https://search.example.com/people") as client:
        connection = http.client.HTTPConnection(client.base_url.netloc.decode())
        connection.request("OPTIONS", "*", headers={"authorization": f"Bearer {TOKEN}"})
        assert connection.getresponse().status in (404, 405)
