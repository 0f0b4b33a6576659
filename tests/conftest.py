import os

# Before anything imports jax: tests run on eight fake CPU devices, whatever the machine has.
# They compile without optimisation, six times as fast; what is computed is the same to rounding.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false",
)
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import json

import pytest
from PIL import Image


@pytest.fixture(scope="session")
def pedes_root(tmp_path_factory):
    """A tiny dataset in the raw layout of CUHK-PEDES: 6 train, 2 val and 2 test persons, 3 images of one colour each.

    Image i of person p is an 48 x 24 JPEG of colour (25 p, 80 i, 128), with two captions that no other image has.
    """
    root = tmp_path_factory.mktemp("pedes")
    (root / "imgs").mkdir()
    records = []
    for person in range(10):
        for image in range(3):
            name = f"{person:02d}_{image}.jpg"
            Image.new("RGB", (24, 48), (25 * person, 80 * image, 128)).save(root / "imgs" / name, quality=95)
            first = f"Person {person} has black hair, wears a red shirt with stripes, and holds bag {image}."
            second = f"This is person {person} in view {image}. The trousers are blue, the shoes are white."
            split = "train" if person < 6 else "val" if person < 8 else "test"
            records.append({"id": person, "file_path": name, "captions": [first, second], "split": split})
    (root / "reid_raw.json").write_text(json.dumps(records))
    return root
