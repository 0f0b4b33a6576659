"""The server under load: many clients, expensive uploads, endless connections, generated requests."""

import base64
import contextlib
import io
import re
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from ivt_jax import index
from ivt_jax.retrieval.indexing.build import Options, build
from ivt_jax.retrieval.indexing.sources import read_folder
from ivt_jax.retrieval.searcher import Searcher
from tests.faults.conftest import Process
from tests.gallery.conftest import picture
from tests.serve.conftest import served
from tests.serve.test_decoder import png_of_chunks
from tests.serve.test_guard import as_multi_picture, connect, from_another_address

SECONDS = 60
PATIENCE = 10  # seconds for a search beside the load; without limits it took 30


def resident():
    """MB of this process's memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 1e6


@pytest.mark.faults
def test_two_hundred_clients_for_a_minute(workdir, tmp_path, monkeypatch):
    (tmp_path / "pictures").mkdir()
    for seed in range(12):
        (tmp_path / f"pictures/{seed}.png").write_bytes(picture(seed))
    build(tmp_path / "index", read_folder(tmp_path / "pictures"), Options(workdir))
    monkeypatch.setattr("ivt_jax.serve.limits.RATE", 1e9)  # they come from one address, as no two hundred people do
    with served(Searcher.open(tmp_path / "index")) as address:
        end, statuses, memory = time.monotonic() + SECONDS, [], []

        def ask(number):
            with httpx.Client(base_url=address, timeout=60) as client:
                while time.monotonic() < end:
                    asked = {"terms": [{"text": "a red coat"}], "top": 12}
                    statuses.append(client.post("/api/search", json=asked).status_code)
                    statuses.append(client.get(f"/api/thumbnails/{number % 12}").status_code)

        clients = [threading.Thread(target=ask, args=(number,)) for number in range(200)]
        for client in clients:
            client.start()
        while time.monotonic() < end:
            time.sleep(1)
            memory.append(resident())
        for client in clients:
            client.join(90)
    assert {*statuses} == {200} and len(statuses) > 2000
    quarter = len(memory) // 4
    assert np.mean(memory[-quarter:]) - np.mean(memory[quarter : 2 * quarter]) < 20, memory


@pytest.fixture(scope="module")
def server(workdir, tmp_path_factory):
    """Yields the address and the process id of `python -m ivt_jax.serve` over twelve pictures with fields."""
    with serving(workdir, tmp_path_factory.mktemp("server"), "-m", "ivt_jax.serve") as started:
        yield started


@contextlib.contextmanager
def serving(workdir, folder, *program):
    """Runs the program, `python -m ivt_jax.serve` or one like it, over twelve pictures with fields."""
    lines = ["path,camera,zone,seen"]
    for seed in range(12):
        (folder / f"{seed}.png").write_bytes(picture(seed))
        lines.append(f"{seed}.png,{seed % 3},{'gate' if seed % 2 else ''},2024-01-{seed + 1:02}")
    (folder / "list.csv").write_text("\n".join(lines))
    place = folder / "index"
    assert index.main([f"--workdir={workdir}", f"--list={folder}/list.csv", f"--index={place}", "--batch=1"]) == 0
    command = [sys.executable, *program, f"--index={place}", "--port=0"]
    process = Process(folder / "log", command, {"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "2"})
    try:
        process.wait_for("serving ")
        address = re.search(r"http://[0-9.:]+", process.said())[0]
        assert {search(address)[0], upload(address, picture(0))[0]} == {200}  # model and decoder are ready
        yield address, process._process.pid
    finally:
        process.kill()


def search(address):
    """Returns the status and the seconds of a search by a sentence, sent from another address."""
    start = time.monotonic()
    with from_another_address(address) as client:
        status = client.post("/api/search", json={"terms": [{"text": "a red coat"}]}).status_code
    return status, time.monotonic() - start


def upload(address, content):
    """Returns the status, the answer and the seconds of a search by an image."""
    start, image = time.monotonic(), base64.b64encode(content).decode()
    response = httpx.post(f"{address}/api/search", json={"image": image}, timeout=120)
    return response.status_code, response.json(), time.monotonic() - start


def family(pid):
    """Returns the memory of a process and its children, in MB."""
    process = Path(f"/proc/{pid}")
    children = " ".join(thread.read_text() for thread in process.glob("task/*/children")).split()
    own = int((process / "statm").read_text().split()[1]) * resource.getpagesize() / 1e6
    return own + sum(map(family, children))


def searches_beside(address, contents):
    """Uploads all contents at once and searches until they are answered; returns the searches and the uploads."""
    uploads = []
    threads = [threading.Thread(target=lambda c=c: uploads.append(upload(address, c))) for c in contents]
    for thread in threads:
        thread.start()
    searches = [search(address)]
    while any(thread.is_alive() for thread in threads):
        searches.append(search(address))
    return searches, uploads


@pytest.mark.faults
def test_a_search_does_not_wait_for_an_image_that_takes_long(workdir, tmp_path):
    """With a limit of half a second, which the image exceeds on any machine."""
    code = "from ivt_jax.serve import __main__, limits; limits.DECODE_SECONDS = 0.5; raise SystemExit(__main__.main())"
    with serving(workdir, tmp_path, "-c", code) as (address, _):
        searches, ((status, answer, seconds),) = searches_beside(address, [png_of_chunks(480_000)])
        assert status == 422 and "takes more than 0.5 s to decode" in answer["error"] and 0.5 <= seconds < 30
        assert len(searches) > 2 and {status for status, _ in searches} == {200}, searches
        assert max(seconds for _, seconds in searches) < PATIENCE
        assert upload(address, picture(3))[1]["results"][0]["path"] == "3.png"  # the decoder has been started again


@pytest.mark.faults
def test_a_multi_picture_jpeg_of_many_scans_is_refused_at_once(server):
    address, _ = server
    file = io.BytesIO()
    Image.new("RGB", (4000, 4000), "teal").save(file, "JPEG", progressive=True)
    content = file.getvalue()
    last = content.rindex(b"\xff\xda")
    bomb = as_multi_picture(content[:last] + content[last:-2] * 1800 + content[-2:])
    assert len(bomb) < 200_000 and Image.open(io.BytesIO(bomb)).format == "MPO"
    searches, ((status, answer, seconds),) = searches_beside(address, [bomb])
    assert (status, answer) == (422, {"error": "the image has more than 100 scans: save it again"})
    assert max(seconds, *(seconds for _, seconds in searches)) < PATIENCE


@pytest.mark.faults
def test_a_search_does_not_wait_for_twenty_large_images(server):
    address, pid = server
    pixels = np.random.default_rng(0).integers(0, 256, (500, 500, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((4000, 4000)).save(file, "JPEG", quality=90)
    before, most, ended = family(pid), [0.0], threading.Event()

    def watch():
        while not ended.wait(0.05):
            with contextlib.suppress(OSError):  # a process that has just ended
                most.append(family(pid))

    watching = threading.Thread(target=watch)
    watching.start()
    searches, uploads = searches_beside(address, [file.getvalue()] * 20)
    ended.set()
    watching.join()
    statuses = [status for status, _, _ in uploads]
    assert {*statuses} <= {200, 503} and 200 in statuses, statuses
    assert {status for status, _ in searches} == {200} and max(seconds for _, seconds in searches) < PATIENCE, searches
    assert max(most) - before < 400, (before, max(most))  # MB; the images alone are 960 MB when decoded


@pytest.mark.faults
def test_a_search_does_not_wait_for_a_thousand_connections_of_another(server):
    address, _ = server
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard) if hard > 0 else 4096, hard))
    head = b"POST /api/search HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000\r\n\r\n{"
    searches = []
    try:
        with contextlib.ExitStack() as stack:
            for number in range(1100):
                with contextlib.suppress(ConnectionError):
                    connection = stack.enter_context(connect(address))
                    connection.sendall(head if number % 2 else head[:20])
                if number % 100 == 99:
                    searches.append(search(address))
            searches += [search(address) for _ in range(5)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert {status for status, _ in searches} == {200} and max(seconds for _, seconds in searches) < PATIENCE, searches


@pytest.mark.faults
def test_no_request_that_openapi_describes_fails(server, tmp_path):
    """Schemathesis makes requests from /openapi.json, valid and not, and compares the answers with it."""
    address, _ = server
    # Without positive_data_acceptance: not every text is a filter, nor every Base64 an image, which no schema can say.
    result = subprocess.run(
        [sys.executable, "-m", "schemathesis.cli", "run", f"{address}/openapi.json", "--max-examples=60",
         "--generation-deterministic", "--continue-on-failure", "--exclude-checks=positive_data_acceptance"],
        cwd=tmp_path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert "8 selected / 8 total" in result.stdout
