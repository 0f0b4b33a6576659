import pytest

from input_pipeline.synthetic.writer import Arguments, generate


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A PEDES-Synth of one person for training, one for validation and four for test, two images each."""
    folder = tmp_path_factory.mktemp("synth") / "data"
    arguments = Arguments(persons=6, seed=3, images_per_person=2, size=(96, 48), val_persons=1, test_persons=4)
    generate(folder, arguments, workers=1, report=lambda done, total: None)
    return folder
