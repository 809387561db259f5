"""Models and data from the Hugging Face Hub, or from its cache where the worker is offline.

Where the cache lies, whether the Hub may be reached and with which token is in the environment of the job's process
(HF_HOME, HF_HUB_OFFLINE, HF_TOKEN): the Hub's libraries read it when they are first imported.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from core.errors import InvalidDataError, InvalidInputError, ModelNotFoundError, NeuroPruneError
from core.jobs.sources import HubData, HubModel

MODEL_FILES = ("*.json", "*.safetensors", "*.model", "*.spm", "*.txt", "*.jinja")
"""Config, weights, vocabularies, preprocessors, chat templates; neither pickles nor code."""

POOLING_FILES = ("config.json", "*_Pooling/config.json")
"""How a sentence encoder pools; and what every model has, as the Hub's library warns where nothing matches."""

COMMIT = re.compile("[0-9a-f]{40}")
REASON_CHARACTERS = 300

_OFFLINE_ADVICE = (
    "start the service with NEUROPRUNE_HUB_OFFLINE=false, or upload it, a model as an archive of its folder, data as "
    "files of rows."
)


def fetch_model(model: HubModel) -> Path:
    """The folder of a model, in the cache.

    Raises:
        ModelNotFoundError: there is none for us.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import IncompleteSnapshotError

    with _explained(f"The model {model.id}, revision {model.revision},", ModelNotFoundError, "/model/id"):
        folder = snapshot_download(
            model.id, revision=model.revision, allow_patterns=list(MODEL_FILES), ignore_patterns=["*/*"]
        )
        # The cache names its folders by commit, which a branch may have left by now.
        commit = Path(folder).name
        with suppress(IncompleteSnapshotError):  # offline, with a cache that was filled before this was asked for
            snapshot_download(model.id, revision=commit, allow_patterns=list(POOLING_FILES), ignore_patterns=["*/*/*"])
    return Path(folder)


def fetch_rows(data: HubData, folder: Path) -> dict[str, Path]:
    """The splits of a dataset as Parquet files, which carry the names of its classes, in a new folder.

    Raises:
        InvalidDataError: there is no such dataset or split for us, or it cannot be read without running its code.
    """
    from datasets import load_dataset

    with _explained(f"The dataset {data.id}", InvalidDataError, "/task/data/id"):
        commit = _commit(data)
        # With the scheme, so that no folder of that name is taken for it.
        loaded = load_dataset(f"hf://datasets/{data.id}", name=data.config, revision=commit)
        _check_commit(loaded, data, commit)
        named = {"train": data.train_split, "validation": data.validation_split, "test": data.test_split}
        folder.mkdir(parents=True)
        files = {}
        for split, name in named.items():
            if name is None:
                continue
            if name not in loaded:
                problem = f"has no split {name!r}; it has {', '.join(map(str, loaded))}."
                hint = " null holds rows out of the training rows." if split == "validation" else ""
                raise InvalidDataError(f"The dataset {data.id} {problem}{hint}", param=f"/task/data/{split}_split")
            files[split] = folder / f"{split}.parquet"
            loaded[name].to_parquet(files[split])
    return files


def _commit(data: HubData) -> str | None:
    """The commit that the revision stands for; None offline, where the newest in the cache is meant."""
    from huggingface_hub import HfApi
    from huggingface_hub.constants import is_offline_mode

    if data.revision is not None and COMMIT.fullmatch(data.revision):
        return data.revision
    if not is_offline_mode():
        return HfApi().dataset_info(data.id, revision=data.revision).sha
    if data.revision is not None:
        raise InvalidDataError(
            "This worker is offline and cannot tell what a branch or tag stands for: leave revision out, or name a "
            "commit by its 40 hexadecimal digits.",
            param="/task/data/revision",
        )
    return None


def _check_commit(loaded: Any, data: HubData, commit: str | None) -> None:
    """The library falls back to whatever the cache holds; the cache names its folders by commit."""
    for rows in loaded.values():
        for file in rows.cache_files:
            found = Path(file["filename"]).parent.name
            if commit is not None and found != commit:
                raise InvalidDataError(
                    f"The dataset {data.id} could not be fetched at {commit}; the cache holds {found}.",
                    param="/task/data/revision",
                )


@contextmanager
def _explained(what: str, error: type[InvalidInputError], param: str) -> Iterator[None]:
    """Says of the many errors of the Hub's libraries what a user can do."""
    from huggingface_hub.constants import is_offline_mode
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except NeuroPruneError:
        raise
    except GatedRepoError as cause:
        problem = "is gated: its owner must grant access to the account whose HF_TOKEN the worker has."
        raise error(f"{what} {problem}", param=param) from cause
    except RevisionNotFoundError as cause:
        raise error(f"{what} has no such revision.", param=param) from cause
    except RepositoryNotFoundError as cause:
        problem = "is not on the Hub, or private and the worker's HF_TOKEN does not open it."
        raise error(f"{what} {problem}", param=param) from cause
    except Exception as cause:  # files of strangers, and the network: nearly anything
        problem, reason = "cannot be fetched", " ".join(str(cause).split())[:REASON_CHARACTERS] or type(cause).__name__
        if is_offline_mode():
            problem = "is not in the worker's cache, and the worker is offline"
            # What they advise of it themselves, HF_HUB_OFFLINE=0, cannot help: the worker sets that.
            if isinstance(cause, LocalEntryNotFoundError | ConnectionError):
                reason = _OFFLINE_ADVICE
        raise error(f"{what} {problem}: {reason}", param=param) from cause
