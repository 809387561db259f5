"""The Hub's caches as its libraries leave them, made on the spot: nothing is downloaded."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from datasets import ClassLabel, Dataset, DatasetInfo, Features, SplitDict, SplitInfo, Value
from datasets.arrow_writer import ArrowWriter

COMMIT = "0123456789" * 4


def put_model(home: Path, name: str, folder: Path) -> None:
    """Lay a model's folder into the cache as `owner/name`, at `COMMIT`, which `main` stands for."""
    cache = home / "hub" / f"models--{name.replace('/', '--')}"
    shutil.copytree(folder, cache / "snapshots" / COMMIT)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(COMMIT)


def put_dataset(home: Path, name: str, config: str, splits: Mapping[str, Sequence[tuple[str, int]]]) -> None:
    """Lay texts and their labels, bad or good, into the cache as `owner/name`, at `COMMIT`."""
    plain = name.rpartition("/")[2]
    cache = home / "datasets" / name.replace("/", "___") / config / "0.0.0" / COMMIT
    cache.mkdir(parents=True)
    features = Features({"sentence": Value("string"), "label": ClassLabel(names=["bad", "good"])})
    found = SplitDict(dataset_name=plain)
    for split, rows in splits.items():
        texts, labels = zip(*rows, strict=True)
        rows_of_split = Dataset.from_dict({"sentence": list(texts), "label": list(labels)}, features=features)
        with ArrowWriter(path=str(cache / f"{plain}-{split}.arrow"), features=features) as writer:
            writer.write_table(rows_of_split.data.table)
            writer.finalize()
        found.add(SplitInfo(split, num_examples=len(rows), dataset_name=plain))
    info = DatasetInfo(features=features, dataset_name=plain, config_name=config, version="0.0.0", splits=found)
    info.write_to_directory(cache)
