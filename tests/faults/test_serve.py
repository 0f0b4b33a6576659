"""Two hundred clients for a minute: no error, and no growth of memory."""

import threading
import time

import httpx
import numpy as np
import pytest

from ivt_jax.retrieval.build import build
from ivt_jax.retrieval.searcher import Searcher
from ivt_jax.retrieval.sources import read_folder
from tests.gallery.conftest import picture
from tests.serve.conftest import served

SECONDS = 60


def resident():
    """MB of this process's memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 1e6


@pytest.mark.faults
def test_two_hundred_clients_for_a_minute(workdir, tmp_path, monkeypatch):
    (tmp_path / "pictures").mkdir()
    for seed in range(12):
        (tmp_path / f"pictures/{seed}.png").write_bytes(picture(seed))
    build(tmp_path / "index", read_folder(tmp_path / "pictures"), workdir)
    monkeypatch.setattr("ivt_jax.serve.guard.RATE", 1e9)  # they come from one address, as no two hundred people do
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
