"""What the server refuses, each provoked over a real connection."""

import asyncio
import base64
import contextlib
import http.client
import io
import json
import re
import socket
import threading
import time
import zlib

import httpx
import pytest
from PIL import Image
from starlette.exceptions import HTTPException

from ivt_jax.common.errors import UserError
from ivt_jax.retrieval.stores.store import StoreError
from ivt_jax.serve import clients, guard, limits
from ivt_jax.serve.decoder import check_upload, decode
from ivt_jax.serve.logins import Logins
from tests.serve.conftest import LOOPBACK, StandIn, jpeg, served

ASKED = {"terms": [{"text": "a red coat"}], "top": 2}


def post(address, path="/api/search", **more):
    return httpx.post(address + path, **{"json": ASKED, **more})


def refused(response, status, message):
    assert response.status_code == status and message in response.json()["error"]
    assert response.headers["content-security-policy"].startswith("default-src 'self'; ")
    return True


def test_every_answer_is_guarded(client):
    for path in ("/", "/app.js", "/api/about", "/api/thumbnails/0", "/nowhere"):
        headers = client.get(path).headers
        assert headers["content-security-policy"] == (
            "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'none'; "
            "frame-ancestors 'none'"
        )
        assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == "no-store"
        assert headers["cross-origin-resource-policy"] == headers["cross-origin-opener-policy"] == "same-origin"
        assert "server" not in headers and not [name for name in headers if name.startswith("access-control")]


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:80", "evil.example:127.0.0.1", "", "[::2]"])
def test_a_name_that_was_made_to_point_here_is_refused(address, host):
    assert refused(httpx.get(address, headers={"host": host}), 421, "does not answer to this host name")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8765", "127.0.0.1", "[::1]:80"])
def test_the_names_of_this_machine_are_answered(address, host):
    assert httpx.get(address, headers={"host": host}).status_code == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:1", "http://localhost"])
def test_a_page_of_another_site_cannot_post(address, origin):
    assert refused(post(address, headers={"origin": origin}), 403, "the page of another site")


def test_the_page_itself_can_post(address):
    assert post(address, headers={"origin": address}).status_code == 200
    assert post(address).status_code == 200  # a program, which sends no origin
    options = httpx.options(f"{address}/api/search", headers={"access-control-request-method": "POST"})
    assert options.status_code == 405


def test_a_body_that_says_to_be_too_large_is_not_read(address):
    connection = http.client.HTTPConnection(address.removeprefix("http://"))
    connection.putrequest("POST", "/api/search")
    connection.putheader("content-length", str(limits.MAX_BODY + 1))
    connection.endheaders()  # and no byte of it
    assert connection.getresponse().status == 413


def test_a_body_without_a_length_is_cut_off(address, monkeypatch):
    monkeypatch.setattr(limits, "MAX_BODY", 100_000)
    sent = []

    def parts():
        for number in range(100):
            sent.append(number)
            yield b"x" * 10_000

    try:
        assert refused(httpx.post(f"{address}/api/search", content=parts()), 413, "larger than 100,000 bytes")
    except httpx.WriteError:  # the server had closed the connection
        assert len(sent) < 100


def test_a_body_that_does_not_come_is_not_waited_for(address, monkeypatch):
    monkeypatch.setattr(limits, "BODY_SECONDS", 0.2)
    connection = http.client.HTTPConnection(address.removeprefix("http://"))
    connection.putrequest("POST", "/api/search")
    connection.putheader("content-length", "10")
    connection.endheaders()
    assert connection.getresponse().status == 408


def test_what_would_take_long_to_be_parsed_is_refused(address):
    many = b"{" + b",".join(b'"%d":0' % number for number in range(10_000)) + b"}"
    json = {"content-type": "application/json"}
    assert refused(httpx.post(f"{address}/api/search", content=many, headers=json), 413, "too many parts")
    assert refused(post(address, "/login", json={"token": "x" * 100_000}), 413, "larger than 100,000 bytes")
    wordy = {"terms": [{"text": "hat" + '", ' * 160}] * 16}  # as much as is allowed, all of it quotes and commas
    assert post(address, json=wordy).status_code == 200


def test_a_head_that_does_not_come_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(limits, "HEAD_SECONDS", 0.3)
    with served(StandIn()) as address:
        host, _, port = address.removeprefix("http://").partition(":")
        for begun in (b"", b"GET / HTTP/1.1\r\nhost: "):
            with socket.create_connection((host, int(port)), timeout=10) as connection:
                connection.sendall(begun)
                assert connection.recv(1) == b""  # closed
        monkeypatch.setattr(limits, "HEAD_SECONDS", 10.0)  # for the head that does come, however slow the machine is
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            whole = f"GET /icon.svg HTTP/1.1\r\nhost: {host}\r\n\r\n".encode()
            connection.sendall(whole)
            assert connection.recv(100_000).startswith(b"HTTP/1.1 200")
            monkeypatch.setattr(limits, "HEAD_SECONDS", 0.3)
            connection.sendall(whole[:10])  # of the next request
            while part := connection.recv(100_000):
                assert not part.startswith(b"HTTP/1.1")


def test_bodies_that_do_not_come_take_no_slot(monkeypatch):
    monkeypatch.setattr(limits, "MAX_UNDER_WAY", 1)
    with served(StandIn()) as address:
        slow = http.client.HTTPConnection(address.removeprefix("http://"))
        slow.putrequest("POST", "/login")
        slow.putheader("content-length", "10")
        slow.endheaders()
        assert post(address).status_code == 200
        slow.close()


def test_refused_clients_do_not_use_the_rate_of_others(monkeypatch):
    monkeypatch.setattr(limits, "BURST", 3.0)
    monkeypatch.setattr(limits, "RATE", 0.001)
    token = "0123456789abcdef"
    with served(StandIn(), token=token) as address:
        statuses = [httpx.get(f"{address}/api/about").status_code for _ in range(2)]
        with httpx.Client(base_url=address) as one, httpx.Client(base_url=address) as other:
            statuses += [client.post("/login", json={"token": token}).status_code for client in (one, other)]
            assert statuses == [401, 401, 204, 429]
            assert [one.get("/api/about").status_code for _ in range(4)] == [200, 200, 200, 429]
            known = {"authorization": f"Bearer {token}"}
            assert other.get("/api/about", headers=known).status_code == 200


def test_a_client_that_asks_too_often_is_sent_away(monkeypatch):
    monkeypatch.setattr(limits, "BURST", 5.0)
    monkeypatch.setattr(limits, "RATE", 0.001)
    with served(StandIn()) as address:
        statuses = [httpx.get(f"{address}/api/about").status_code for _ in range(8)]
        assert statuses == [200] * 5 + [429] * 3
        assert httpx.get(address).headers["retry-after"] == "2"


def test_a_session_ends():
    known = Logins("")
    first = known.open(0.0)
    assert known.holds(first, 43_199.0) and not known.holds(first, 43_200.0) and not known.holds("", 0.0)
    names = {known.open(1.0) for _ in range(limits.MAX_SESSIONS)}
    assert len(names) == limits.MAX_SESSIONS and not known.holds(first, 1.0)


def test_a_bucket_fills_again():
    rates = clients.Rates()
    assert [rates.admits("a", 0.0) for _ in range(1001)] == [True] * 1000 + [False]
    assert rates.admits("b", 0.0)
    assert [rates.admits("a", 0.1) for _ in range(6)] == [True] * 5 + [False]  # 50 a second


def test_a_bucket_overflows_and_the_client_seen_longest_ago_is_forgotten(monkeypatch):
    monkeypatch.setattr(limits, "BURST", 2.0)
    monkeypatch.setattr(limits, "RATE", 1.0)
    monkeypatch.setattr(limits, "MAX_CLIENTS", 2)
    rates = clients.Rates()
    assert [rates.admits("a", 0.0) for _ in range(3)] == [True, True, False]
    assert [rates.admits("a", 100.0) for _ in range(3)] == [True, True, False]  # two, not a hundred
    assert [rates.admits("b", 100.0) for _ in range(3)] == [True, True, False]
    assert not rates.admits("a", 100.0) and rates.admits("c", 100.0)  # b was seen longest ago: its bucket is gone
    assert not rates.admits("a", 100.0) and rates.admits("b", 100.0)


def received(body, path="/login", **headers):
    """Returns what the application receives of a body sent in these parts; None is the end of the connection."""
    messages = [
        {"type": "http.disconnect"} if part is None else {"type": "http.request", "body": part, "more_body": more}
        for part, more in zip(body, [True] * (len(body) - 1) + [False], strict=True)
    ]
    scope = {"type": "http", "path": path, "headers": [(k.encode(), v.encode()) for k, v in headers.items()]}

    async def receive():
        return messages.pop(0)

    async def whole():
        guard._body_length(scope)
        again = await guard._receive_whole(scope, receive)
        return await again()

    return asyncio.run(whole())


def test_a_body_arrives_whole_up_to_its_largest_size(monkeypatch):
    monkeypatch.setattr(limits, "MAX_SMALL_BODY", 6)
    monkeypatch.setattr(limits, "MAX_MARKS", 3)
    assert received([b"abc", b"", b"def"]) == {"type": "http.request", "body": b"abcdef"}
    for body, headers, status in (
        ([b"abc", b"defg"], {}, 413), ([b"abcdef"], {"content-length": "7"}, 413),
        ([b"a"], {"content-length": "-1"}, 413), ([b"abc", None], {}, 400), ([b'{[,"'], {}, 413),
    ):  # fmt: skip
        with pytest.raises(HTTPException) as refusal:
            received(body, **headers)
        assert refusal.value.status_code == status
    assert received([b"abcdef"], **{"content-length": "6"})["body"] == b"abcdef"
    assert received([b'{,"'])["body"] == b'{,"'  # three marks
    assert received([b"abcdefg"], path="/api/search")["body"] == b"abcdefg"  # pictures are larger


def test_reading_is_not_refused_to_the_page_of_another_site(address):
    foreign = {"origin": "https://other.example"}
    assert httpx.get(address, headers=foreign).status_code == 200
    assert httpx.head(address, headers=foreign).status_code == 200


class Slow(StandIn):
    """Its searches set `begun` and wait until `go_on` is set."""

    def __init__(self):
        super().__init__()
        self.begun, self.go_on = threading.Event(), threading.Event()

    def search(self, *args, **more):
        self.begun.set()
        assert self.go_on.wait(10)
        return super().search(*args, **more)


def test_requests_beyond_the_limit_get_503(monkeypatch):
    monkeypatch.setattr(limits, "MAX_UNDER_WAY", 1)
    slow, statuses = Slow(), []
    with served(slow) as address:
        assert httpx.get(address).status_code == 200  # this request has ended and given back its place
        client = threading.Thread(target=lambda: statuses.append(post(address).status_code))
        client.start()
        assert slow.begun.wait(10)
        second = post(address)
        slow.go_on.set()
        client.join(10)
        assert refused(second, 503, "too many requests are under way") and second.headers["retry-after"] == "2"
        assert statuses == [200] and post(address).status_code == 200


def test_a_token_is_demanded_for_all_but_the_page(monkeypatch):
    token = "0123456789abcdef"
    with served(StandIn(), token=token, hosts=LOOPBACK | {"search.example"}) as address:
        assert httpx.get(address).status_code == 200 and httpx.get(f"{address}/app.js").status_code == 200
        for path in ("/api/about", "/api/thumbnails/0", "/openapi.json", "/nowhere"):
            answer = httpx.get(address + path)
            assert refused(answer, 401, "the token is missing or wrong")
            assert answer.headers["www-authenticate"] == "Bearer"
        for wrong in ("", "Bearer", "Bearer 0123456789abcdeX", f"Basic {token}", "Bearer \N{LATIN SMALL LETTER E}"):
            assert post(address, headers={"authorization": wrong}).status_code == 401
        for scheme in ("Bearer", "bearer", "BEARER"):  # RFC 9110: schemes are case-insensitive
            assert post(address, headers={"authorization": f"{scheme} {token}"}).status_code == 200
        with httpx.Client(base_url=address) as client:
            assert client.post("/login", json={"token": "0123456789abcdeX"}).status_code == 401
            assert client.get("/api/about").status_code == 401
            given = client.post("/login", json={"token": token})
            assert given.status_code == 204
            cookie = given.headers["set-cookie"].lower()
            assert "httponly" in cookie and "samesite=strict" in cookie and token not in cookie
            assert cookie.startswith(f"ivt_serve_{httpx.URL(address).port}=")
            assert client.get("/api/about").status_code == 200


def test_a_token_that_a_proxy_adds_for_itself_does_not_close_the_page():
    """Proxies with a sign-on of their own may send `Authorization: Bearer` with every request of a browser."""
    token, proxys = "0123456789abcdef", {"authorization": "Bearer of-the-proxy"}
    with served(StandIn(), token=token) as address, httpx.Client(base_url=address, headers=proxys) as client:
        for path in ("/", "/app.js") * 20:
            assert client.get(path).status_code == 200
        assert client.get("/api/about").status_code == 401
        assert client.post("/login", json={"token": token}).status_code == 204
        assert client.get("/api/about").status_code == 200


def test_where_no_token_is_demanded_none_is_taken(address):
    assert post(address, "/login", json={"token": ""}).status_code == 401


def png(width, height):
    """A few kilobytes that say to be a picture of this size."""

    def chunk(kind, content):
        body = kind + content
        return len(content).to_bytes(4) + body + zlib.crc32(body).to_bytes(4)

    header = width.to_bytes(4) + height.to_bytes(4) + bytes([8, 2, 0, 0, 0])
    rows = zlib.compress(bytes(1_000_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("width", "height"), [(4_001, 4_000), (1, 16_000_001), (50_000, 50_000)])
def test_a_decompression_bomb_is_not_decoded(client, monkeypatch, width, height):
    monkeypatch.setattr(Image.Image, "load", lambda image: pytest.fail("it is decoded"))
    assert refused(upload(client, png(width, height)), 422, "pixels: at most 16,000,000 are allowed")
    with pytest.raises(UserError, match="pixels: at most 16,000,000"):
        decode(png(width, height), (8, 4))  # what the decoding process does
    check_upload(png(4_000, 4_000))


def jpeg_of_scans(count):
    """A progressive JPEG whose last scan is repeated until there are so many."""
    file = io.BytesIO()
    Image.effect_noise((32, 64), 50).save(file, "JPEG", progressive=True)
    content = file.getvalue()
    last = content.rindex(b"\xff\xda")
    return content[:last] + content[last:-2] * (count - content[:last].count(b"\xff\xda")) + content[-2:]


def test_a_jpeg_of_scans_without_end_is_not_decoded(client, monkeypatch):
    check_upload(jpeg_of_scans(100))
    too_many = jpeg_of_scans(101)
    monkeypatch.setattr(Image.Image, "load", lambda image: pytest.fail("it is decoded"))
    assert refused(upload(client, too_many), 422, "more than 100 scans: save it again")
    with pytest.raises(UserError, match="more than 100 scans"):
        decode(too_many, (8, 4))  # what the decoding process does


def upload(client, content):
    return client.post("/api/search", json={"image": base64.b64encode(content).decode()})


@pytest.mark.parametrize("format", ["JPEG2000", "PPM", "TGA", "PCX"])
def test_no_other_formats_are_taken(client, format):
    file = io.BytesIO()
    Image.new("RGB", (8, 16)).save(file, format)
    assert refused(upload(client, file.getvalue()), 422, "send a JPEG, PNG or WEBP")


@pytest.mark.parametrize("content", [b"", b"no picture", b"<svg xmlns='http://www.w3.org/2000/svg'/>"])
def test_what_is_no_picture_is_refused(client, content):
    assert refused(upload(client, content), 422, "")


@pytest.mark.parametrize(
    "path",
    ["/api/thumbnails/..%2f..%2fetc%2fpasswd", "/../../etc/passwd", "/%2e%2e/app.py", "/page/../app.py", "//etc/passwd",
     "/api/thumbnails/-1", "/api/thumbnails/0x10", "/api/thumbnails/99999999999999999999", "/api/thumbnails/12",
     "/api/thumbnails/1;2", "/settings.py", "/index.html/../settings.py"],
)  # fmt: skip
def test_no_path_and_no_guess_leads_to_a_file(address, path):
    connection = http.client.HTTPConnection(address.removeprefix("http://"))
    connection.request("GET", path)  # as it is: httpx would tidy it
    response = connection.getresponse()
    assert response.status in (404, 422) and response.getheader("content-type") == "application/json"
    assert b"root:" not in response.read()


def test_two_hundred_clients_are_served(address):
    """For a moment; tests/faults does it for a minute."""
    statuses = []

    def ask():
        with httpx.Client(base_url=address, timeout=30) as client:
            statuses.extend(client.post("/api/search", json=ASKED).status_code for _ in range(2))

    clients = [threading.Thread(target=ask) for _ in range(200)]
    for client in clients:
        client.start()
    for client in clients:
        client.join(60)
    assert statuses == [200] * 400


def test_a_fault_of_the_index_is_told_here_and_not_there(capfd):
    class Gone(StandIn):
        def search(self, *args, **more):
            raise StoreError("/data/people: Not found")

    with served(Gone()) as address:
        assert refused(post(address), 503, "the index cannot be read; the server's log says why")
    assert capfd.readouterr().err.endswith("Z error: /data/people: Not found\n")


def test_a_fault_of_ours_tells_nothing_of_the_query(capfd):
    class Broken(StandIn):
        def search(self, *args, **more):
            raise RuntimeError("secret words")

    with served(Broken()) as address:
        assert refused(post(address, json={"terms": [{"text": "secret words"}]}), 500, "the server has failed")
    output = capfd.readouterr()
    assert (
        f"RuntimeError in {__file__}, line " in output.err
        and "secret" not in output.err + output.out
        and output.err.count("\n") == 1
    )


def test_a_warning_of_uvicorn_is_a_line_with_a_time(address, capfd):
    with connect(address) as connection:
        connection.sendall(b"secret words\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 400 ")
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ warning: Invalid HTTP request received\.\n", capfd.readouterr().err
    )


@pytest.mark.parametrize(("log_queries", "logged"), [(True, True), (False, False)])
def test_queries_are_logged_only_if_asked_for(capfd, log_queries, logged):
    with served(StandIn(), log_queries=log_queries) as address:
        assert post(address, json={"terms": [{"text": "a secret\nhat"}]}).status_code == 200
    output = capfd.readouterr()
    assert ("a secret\\nhat" in output.err) == logged and output.out == "" and output.err.count("\n") == logged


def as_multi_picture(content):
    """Returns the JPEG with a segment that lists several pictures (MPF), which makes Pillow call it MPO."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))])
    whole = file.getvalue()
    start = whole.index(b"\xff\xe2")
    return content[:2] + whole[start : start + 2 + int.from_bytes(whole[start + 2 : start + 4])] + content[2:]


def test_a_multi_picture_jpeg_has_the_limits_of_a_jpeg(client, monkeypatch):
    few, many = as_multi_picture(jpeg_of_scans(100)), as_multi_picture(jpeg_of_scans(101))
    assert Image.open(io.BytesIO(many)).format == "MPO"
    check_upload(few)
    monkeypatch.setattr(Image.Image, "load", lambda image: pytest.fail("it is decoded"))
    with pytest.raises(UserError, match="more than 100 scans"):
        decode(many, (8, 4))
    assert refused(upload(client, many), 422, "more than 100 scans: save it again")


@pytest.mark.parametrize("path", ["/", "/app.js", "/icon.svg", "/api/about", "/api/thumbnails/0", "/openapi.json"])
def test_head_is_answered_as_get_without_the_body(client, path):
    head, get = client.head(path), client.get(path)
    assert head.status_code == 200 and head.content == b"" and get.content
    without_date = [{**response.headers, "date": ""} for response in (head, get)]
    assert without_date[0] == without_date[1] and head.headers["content-length"] == str(len(get.content))


def test_head_of_other_paths_is_refused(client):
    assert client.head("/api/thumbnails/99").status_code == client.head("/nowhere").status_code == 404
    assert client.head("/api/search").status_code == client.head("/login").status_code == 405


def from_another_address(address):
    """Returns a client that the server takes for another one, by its address."""
    return httpx.Client(base_url=address, timeout=30, transport=httpx.HTTPTransport(local_address="127.0.0.2"))


def test_wrong_tokens_are_logged_and_slowed(capfd, monkeypatch):
    monkeypatch.setattr(limits, "WRONG_TOKENS", 5)
    token = "0123456789abcdef"
    with served(StandIn(), token=token) as address, httpx.Client(base_url=address) as client:
        wrong = {"authorization": "Bearer wrong-wrong-wrong"}
        statuses = [client.get("/api/about", headers=wrong).status_code for _ in range(3)]
        statuses += [client.post("/login", json={"token": "wrong-wrong-wrong"}).status_code for _ in range(4)]
        assert statuses == [401] * 5 + [429] * 2
        slowed = client.get("/api/about", headers=wrong)
        assert refused(slowed, 429, "too many wrong tokens") and 1 <= int(slowed.headers["retry-after"]) <= 60
        assert client.get("/api/about").status_code == 401  # a missing token does not count as wrong
        assert client.get("/api/about", headers={"authorization": f"Bearer {token}"}).status_code == 200
        assert client.post("/login", json={"token": token}).status_code == 204
        with from_another_address(address) as other:
            assert other.get("/api/about", headers=wrong).status_code == 401
    logged = capfd.readouterr().err
    assert [line.split()[2] for line in logged.splitlines()] == ["127.0.0.1", "127.0.0.2"]
    assert "wrong-wrong" not in logged and token not in logged


def test_wrong_tokens_are_forgotten_after_a_minute(capfd):
    tokens = Logins("0123456789abcdef")
    statuses = [tokens.count_wrong("a", float(second)).status_code for second in range(12)]
    assert statuses == [401] * 10 + [429] * 2
    assert tokens.count_wrong("a", 59.9).status_code == 429 and tokens.count_wrong("b", 59.9).status_code == 401
    assert tokens.count_wrong("a", 60.0).status_code == 401
    assert capfd.readouterr().err.count("a has sent a wrong token") == 2


def connect(address):
    host, _, port = address.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)), timeout=10)


@pytest.mark.parametrize("begun", [b"", b"GET / HTTP/1.1\r\nhost: ", b"POST /login HTTP/1.1\r\nhost: localhost\r\n"])
def test_the_oldest_of_too_many_connections_is_closed(monkeypatch, begun):
    monkeypatch.setattr(limits, "MAX_CLIENT_CONNECTIONS", 4)
    if begun.startswith(b"POST"):
        begun += b"content-length: 10\r\n\r\n{"
    with served(StandIn()) as address, contextlib.ExitStack() as stack:
        connections = [stack.enter_context(connect(address)) for _ in range(6)]
        for connection in connections:
            with contextlib.suppress(ConnectionError):  # the first ones are closed already, perhaps
                connection.sendall(begun)
        assert httpx.get(f"{address}/icon.svg").status_code == 200  # from the same address, a newer one
        with from_another_address(address) as other:
            assert other.get("/icon.svg").status_code == 200
        for connection in connections[:3]:
            with contextlib.suppress(ConnectionResetError):
                assert connection.recv(1) == b""
        connections[-1].setblocking(False)
        with pytest.raises(BlockingIOError):  # it is still open
            connections[-1].recv(1)


def test_a_connection_that_is_answered_is_not_closed_for_others(monkeypatch):
    monkeypatch.setattr(limits, "MAX_CONNECTIONS", 3)
    slow, statuses = Slow(), []
    with served(slow) as address, contextlib.ExitStack() as stack:
        client = threading.Thread(target=lambda: statuses.append(post(address, timeout=30).status_code))
        client.start()
        assert slow.begun.wait(10)
        for _ in range(6):
            stack.enter_context(connect(address))
        assert httpx.get(f"{address}/icon.svg").status_code == 200
        slow.go_on.set()
        client.join(10)
    assert statuses == [200]


def test_a_proxy_has_the_connections_of_all_its_clients(monkeypatch):
    monkeypatch.setattr(limits, "MAX_CLIENT_CONNECTIONS", 2)
    with served(StandIn(), proxies=("127.0.0.0/30",)) as address, contextlib.ExitStack() as stack:
        connections = [stack.enter_context(connect(address)) for _ in range(6)]
        assert httpx.get(f"{address}/icon.svg").status_code == 200
        connections[0].setblocking(False)
        with pytest.raises(BlockingIOError):
            connections[0].recv(1)


def test_an_answer_that_is_not_read_is_given_up(monkeypatch):
    monkeypatch.setattr(limits, "WRITE_SECONDS", 0.5)

    class Large(StandIn):
        def thumbnail(self, id):
            return bytes(30_000_000)  # more than the buffers of a connection hold

    with served(Large()) as address, connect(address) as connection:
        connection.sendall(b"GET /api/thumbnails/0 HTTP/1.1\r\nhost: localhost\r\n\r\n")
        connection.recv(1)
        time.sleep(1.5)
        received = 0
        with contextlib.suppress(ConnectionResetError):
            while part := connection.recv(1_000_000):
                received += len(part)
        assert received < 30_000_000


def test_a_client_has_a_bounded_number_of_requests_under_way(monkeypatch):
    monkeypatch.setattr(limits, "MAX_CLIENT_UNDER_WAY", 2)
    with served(StandIn()) as address, contextlib.ExitStack() as stack:
        for _ in range(2):
            slow = stack.enter_context(connect(address))
            slow.sendall(b"POST /login HTTP/1.1\r\nhost: localhost\r\ncontent-length: 10\r\n\r\n{")
        with from_another_address(address) as other:
            for _ in range(100):  # until the slow ones have arrived
                assert other.get("/icon.svg").status_code == 200
                busy = httpx.get(f"{address}/icon.svg")
                if busy.status_code != 200:
                    break
        assert refused(busy, 503, "too many of your requests") and busy.headers["retry-after"] == "2"


def test_large_bodies_are_taken_a_few_at_a_time(monkeypatch):
    monkeypatch.setattr(limits, "SLOT_SECONDS", 0.3)
    large = b"POST /api/search HTTP/1.1\r\nhost: localhost\r\ncontent-length: 200000\r\n\r\n{"
    with served(StandIn()) as address, contextlib.ExitStack() as stack, from_another_address(address) as other:
        for _ in range(limits.MAX_CLIENT_BODIES):
            stack.enter_context(connect(address)).sendall(large)
        image = base64.b64encode(jpeg(Image.effect_noise((500, 800), 90), quality=95)).decode()
        assert len(image) > limits.MAX_SMALL_BODY
        full = post(address, json={"image": image})
        assert refused(full, 503, "too many large requests at once: wait a moment")
        assert full.headers["retry-after"] == "2"
        assert post(address).status_code == 200  # a small one of the same client
        assert other.post("/api/search", json={"image": image}).status_code == 200  # a large one of another


def test_only_a_body_above_the_small_size_needs_a_slot(monkeypatch):
    monkeypatch.setattr(limits, "MAX_CLIENT_BODIES", 0)
    monkeypatch.setattr(limits, "SLOT_SECONDS", 0.1)
    headers = {"content-type": "application/json"}
    with served(StandIn()) as address:
        for size, status in ((limits.MAX_SMALL_BODY, 200), (limits.MAX_SMALL_BODY + 1, 503)):
            content = json.dumps(ASKED).encode().ljust(size)
            assert httpx.post(f"{address}/api/search", content=content, headers=headers).status_code == status
        chunks = iter([json.dumps(ASKED).encode()])  # a body without a length may become large
        assert httpx.post(f"{address}/api/search", content=chunks, headers=headers).status_code == 503


def test_a_slot_is_given_to_clients_in_turn():
    async def ask():
        slots, order = clients.Slots(1, 1, 10.0, "full"), []

        async def hold(client):
            async with slots.taken(client):
                order.append(client)
                await asyncio.sleep(0.01)

        await asyncio.gather(*(hold(client) for client in "aaaab"))
        return order

    assert asyncio.run(ask()) == ["a", "b", "a", "a", "a"]
