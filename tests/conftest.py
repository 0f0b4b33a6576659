import os

# Before anything imports jax: tests run on the CPU, whatever the machine has.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import gc
import importlib.util
import json
import subprocess
import sys
import tempfile
import types

import jax  # before the variable below: it is for the programs that tests start
import numpy as np
import pytest
from PIL import Image

from ivt_jax.common import startup

# Programs are compiled without optimisation, six times as fast, and each in one part, since the tests keep all cores
# busy anyway; what is computed is the same to rounding. jaxlib 0.11 does not know the second flag any more. The
# commands that tests start get them too.
QUICKLY = " ".join(
    startup.known_flags([
        "--xla_backend_optimization_level=0", "--xla_cpu_use_fusion_emitters=false",
        "--xla_cpu_parallel_codegen_split_count=1",
    ])
)  # fmt: skip
# Before anything uses a device: tests have eight fake ones.
os.environ.setdefault("XLA_FLAGS", f"--xla_force_host_platform_device_count=8 {QUICKLY}")
FLAGS = os.environ["XLA_FLAGS"]
jax.devices()  # starts JAX with these flags, whichever test comes first; a command that a test calls would add its own

gc.set_threshold(50_000)  # Python's 700 costs a twelfth of the time

if "PYTEST_XDIST_WORKER" not in os.environ:  # workers share the folder of the process that started them
    COMPILED = tempfile.TemporaryDirectory(prefix="ivt_jax-tests-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = COMPILED.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

# Tests that import TensorFlow, or clu, which imports it. All others run without (tests/requirements-core.txt).
NEED_TENSORFLOW = [
    "conversion/test_convert.py", "cost/test_dry_run.py", "evaluation/test_cross_domain.py", "evaluation/test_run.py",
    "faults/test_checkpoints.py", "faults/test_lifecycle.py", "input_pipeline/test_augment.py",
    "input_pipeline/pairs/test_benchmark.py", "input_pipeline/pairs/test_pairs.py",
    "input_pipeline/pairs/test_training.py",
    "input_pipeline/test_benchmark.py", "input_pipeline/test_builders.py", "input_pipeline/test_joint.py",
    "input_pipeline/test_pipeline.py", "input_pipeline/test_pictures.py", "input_pipeline/test_prepare.py",
    "test_configs.py", "test_main.py", "test_own.py", "test_starts.py", "test_variants.py", "training/test_heads.py",
    "training/test_hyperparameters.py", "training/test_init_from.py", "training/test_joint.py", "training/test_loop.py",
]  # fmt: skip
WITHOUT_TENSORFLOW = importlib.util.find_spec("tensorflow") is None
collect_ignore = NEED_TENSORFLOW if WITHOUT_TENSORFLOW else []
needs_tensorflow = pytest.mark.skipif(WITHOUT_TENSORFLOW, reason="TensorFlow is not installed")


def pytest_report_header():
    return f"TensorFlow is not installed: {len(NEED_TENSORFLOW)} files are left out" if WITHOUT_TENSORFLOW else None


@pytest.fixture(autouse=True)
def flags_as_before():
    """Commands called in a test settle XLA's flags; programs that other tests start must not see them."""
    yield
    os.environ["XLA_FLAGS"] = FLAGS
    os.environ.pop("JAX_DEFAULT_MATMUL_PRECISION", None)


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


@pytest.fixture(scope="session")
def workdir(tmp_path_factory):
    """The folder of a tiny tower with random parameters."""
    from tests.gallery.conftest import write_model

    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def other_workdir(tmp_path_factory):
    """A model of the same sizes with other parameters."""
    from tests.gallery.conftest import write_model

    return write_model(tmp_path_factory.mktemp("other"), seed=1)


SIDE_BY_SIDE = {"stride": 6}
OVERLAPPING = {"stride": 4, "image_norm": True, "image_activation": "quick_gelu", "norm_epsilon": 0.01}


AS_VLMO = {"stride": 3, "relative_positions": True, "projection": 16}
TEXT_TOWER = {
    "width": 12, "depth": 3, "num_heads": 3, "activation": "quick_gelu", "causal": True, "pooling": "end",
    "projection_bias": True,
}  # fmt: skip
TWO_TOWERS = {
    "stride": 5, "towers": 2, "pooling": "attention", "projection": 16, "image_activation": "gelu_tanh",
    "text": TEXT_TOWER,
}  # fmt: skip


@pytest.fixture(
    scope="session",
    params=[SIDE_BY_SIDE, OVERLAPPING, AS_VLMO, TWO_TOWERS],
    ids=["side by side", "overlapping, as CLIP", "overlapping, as VLMo", "two towers"],
)
def given_away(request):
    """A small random model to export, with 64 crops, 64 texts of 3 to 16 tokens, and the embeddings it has of them."""
    from configs import default
    from input_pipeline.tokenizer import load_tokenizer
    from ivt_jax.encoding.embedding import embed_images, embed_texts
    from ivt_jax.export.manifest import Trained
    from ivt_jax.models.build import build_model

    config = default.get_config()
    config.text.tokenizer, config.text.length["sentence"] = "", 16
    config.model.update({"image_size": (24, 12), "patch_size": 6, "width": 16, "depth": 2, **request.param})
    config.model.update({"num_heads": 2, "vocab_size": 2726, "max_text_length": 20, "dtype": "float32"})
    model, rng = build_model(config.model), np.random.default_rng(request.param["stride"])

    def draw(path, leaf):
        return rng.normal(path[-1].key == "scale", 0.3, leaf.shape).astype(np.float32)

    params = jax.tree_util.tree_map_with_path(draw, jax.eval_shape(model.init, jax.random.key(0))["params"])
    images = rng.integers(0, 256, (64, 4, 2, 3), np.uint8).repeat(6, 1).repeat(6, 2)
    ids = rng.integers(5, 2726, (64, 16), np.int32)
    ids[np.arange(16) >= np.r_[3, rng.integers(3, 17, 63)][:, None]] = 0
    others = ids.copy()  # the first six rows are not valid; the seventh has the last id of the vocabulary
    others[[0, 1, 2, 3, 6], 1] = [2726, -1, 99999, np.iinfo(np.int32).min, 2725]
    others[4], others[5] = 0, np.roll(others[5], 1) * (np.arange(16) > 0)  # padding alone, and padding at the left
    return types.SimpleNamespace(
        trained=Trained(model, params, config, load_tokenizer()),
        images=images,
        ids=ids,
        others=others,
        image_embeddings=embed_images(model, params, [images]),
        text_embeddings=embed_texts(model, params, ids, ids > 0, 64),
        other_embeddings=np.concatenate(
            [np.full((6, 16), np.nan), embed_texts(model, params, others[6:], others[6:] > 0, 64)]
        ),
    )


LOADED_ELSEWHERE = """
import json, sys
import numpy as np
{load}
given = np.load("given.npz")
images, ids, others = given["images"], given["ids"], given["others"]
encode_ids = lambda ids: np.asarray(encode_texts(ids, ids != 0))
got = {{f"images_{{n}}": np.asarray(encode_images(images[:n])) for n in (1, 3, 64)}}
got |= {{f"ids_{{n}}": encode_ids(ids[:n, :l]) for n, l in ((1, 3), (3, ids[:3].any(0).sum()), (64, 16))}}
got["others"] = encode_ids(others)
if json.load(open("manifest.json"))["smallest_batch"] == 0:
    got |= {{"images_0": np.asarray(encode_images(images[:0])), "ids_0": encode_ids(ids[:0])}}
np.savez("got.npz", **got)
print(*sorted({{name.split(".")[0] for name in sys.modules}}))
"""


@pytest.fixture
def assert_same_elsewhere(tmp_path, given_away):
    """check(load): a fresh process, where the code `load` defines encode_images and encode_texts, embeds as the model.

    It runs in tmp_path, beside a manifest.json, where this project cannot be imported. Returns the top-level modules
    that it loaded. A row with an id outside of the vocabulary, or that begins with padding, must
    give NaN, and no other row.
    """

    def check(load):
        np.savez(tmp_path / "given.npz", images=given_away.images, ids=given_away.ids, others=given_away.others)
        environment = {**os.environ, "PYTHONPATH": "", "TF_ENABLE_ONEDNN_OPTS": "0"}
        code = LOADED_ELSEWHERE.format(load=load)
        command = [sys.executable, "-c", code]
        run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
        assert run.returncode == 0, run.stderr[-3000:]
        loaded = set(run.stdout.split())
        assert "numpy" in loaded and not loaded & {"ivt_jax", "input_pipeline", "configs"}
        with np.load(tmp_path / "got.npz") as got:
            for n in (1, 3, 64):  # to 1e-5, which a cosine below 0.9999 would exceed by far
                np.testing.assert_allclose(got[f"images_{n}"], given_away.image_embeddings[:n], atol=1e-5)
                np.testing.assert_allclose(got[f"ids_{n}"], given_away.text_embeddings[:n], atol=1e-5)
            np.testing.assert_allclose(got["others"], given_away.other_embeddings, atol=1e-5)
            for name in {"images_0", "ids_0"} & {*got}:
                assert (got[name].shape, got[name].dtype) == ((0, 16), np.float32)
            scores = got["ids_64"] @ got["images_64"].T
        expected = given_away.text_embeddings @ given_away.image_embeddings.T
        assert expected.std() > 0.05  # they are not all alike
        # Whoever is put in the top ten had, by the model, the score that belongs there: near-ties may trade places.
        found = np.take_along_axis(expected, np.argsort(-scores, axis=1)[:, :10], axis=1)
        np.testing.assert_allclose(found, -np.sort(-expected, axis=1)[:, :10], atol=1e-5)
        return loaded

    return check
