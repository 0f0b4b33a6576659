"""Which datasets a config names: one by `data.name` and `data.root`, or several by `data.sources`; names for them."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from input_pipeline.annotations import DATASETS, dataset_name, title_of
from input_pipeline.statistics import training_persons
from ivt_jax.common.errors import UserError
from ivt_jax.common.tables import SUFFIXES

JOINT = "joint"  # the data.name of a training on `data.sources`
SOURCES = {**DATASETS, "pairs": "pairs"}  # what data.sources may name: also an index of image-text pairs
_MSMT17 = {"icfg_pedes", "rstp_reid"}
_SHARED = (
    "ICFG-PEDES and RSTPReid take their pictures from MSMT17 and number the persons each in its own way: the test of "
    "one may show persons that the run trained on in the other. "
    "`python -m input_pipeline.doctor --dataset=icfg --root=DIR --against=rstp:DIR` finds pictures that both have"
)


class Dataset(NamedTuple):
    """A dataset that a config or a flag names.

    label: the short name, numbered if it is given again ("cuhk", "cuhk-2"), for folders and the names of scores; "" for
    the dataset of a config without `data.sources`. name: a key of LAYOUTS. title: for tables and reports.
    """

    label: str
    name: str
    root: str
    title: str


def parse_datasets(given: Sequence[str], flag: str, known: Mapping[str, str] = DATASETS) -> list[Dataset]:
    """Parses texts such as "icfg:data/ICFG-PEDES". Raises UserError if one has another form.

    flag: for the error. known: short name -> key of LAYOUTS.
    """
    numbers, parsed = Counter[str](), []
    for text in given:
        short, _, root = text.partition(":")
        if short not in known or not root:
            own = f"; for a table, own:{root or text}" if text.lower().endswith(SUFFIXES) else ""
            raise UserError(f"{flag}={text}: expected DATASET:DIR with one of {', '.join(known)}{own}")
        numbers[short] += 1
        label = f"{short}-{numbers[short]}" if numbers[short] > 1 else short
        data = {"name": known[short], "root": root}
        parsed.append(Dataset(label, known[short], root, title_of(dataset_name(data))))
    titles = Counter(dataset.title for dataset in parsed)
    return [d._replace(title=f"{d.title} ({d.label})") if titles[d.title] > 1 else d for d in parsed]


def datasets_of(data: Mapping[str, Any]) -> list[Dataset]:
    """Returns the datasets of a config's `data`, of a ConfigDict or of JSON. Raises UserError if a source is wrong."""
    if data.get("sources"):
        return parse_datasets(data["sources"], "data.sources", SOURCES)
    return [Dataset("", data["name"], data.get("root", ""), title_of(dataset_name(data)))]


def title_of_data(data: Mapping[str, Any]) -> str:
    """Returns data.title, or the titles of the datasets of a config's `data`, such as "CUHK-PEDES + ICFG-PEDES"."""
    return data.get("title") or " + ".join(dataset.title for dataset in datasets_of(data))


def source_names(sources: Iterable[str]) -> list[str]:
    """Returns the names of `data.sources` without their roots, which may differ when a run resumes."""
    return [source.partition(":")[0] for source in sources]


def folder_of(split: str, label: str) -> str:
    """Returns the folder of a dataset's results in a workdir: "test", or "test-cuhk" with several datasets."""
    return f"{split}-{label}" if label else split


def count_training_persons(data: Mapping[str, Any]) -> int:
    """Returns the published number of training persons of a config's datasets; reads no data."""
    return sum(training_persons(dataset.name, data["val_persons"]) for dataset in datasets_of(data))


def shared_warning(trained: Iterable[str], tested: Iterable[str]) -> str:
    """Returns a warning if a test could be of persons that the run trained on under another dataset; else "".

    trained, tested: names of datasets, keys of LAYOUTS.
    """
    known = {*trained} & _MSMT17
    return _SHARED if any(known - {name} for name in tested if name in _MSMT17) else ""
