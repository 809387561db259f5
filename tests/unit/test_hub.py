"""Models and data of the Hub, from a prepared cache: nothing here reaches the network."""

import datasets
import huggingface_hub
import pytest
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

from core.engine.data import Source
from core.engine.readers import read_rows
from core.errors import InvalidDataError, ModelNotFoundError
from core.jobs.sources import HubData, HubModel
from core.settings import Settings
from tests import hub_caches
from tests.hub_caches import COMMIT
from worker.hub import fetch_model, fetch_rows
from worker.supervisor import child_environment

ROWS = {"train": [("a cat", 0), ("the dog", 1)], "dev": [("the mat", 1)]}


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An offline worker's cache, with a dataset of two configurations."""
    home = tmp_path / "home"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", home / "datasets")
    for config in ("small", "other"):
        hub_caches.put_dataset(home, "owner/tiny", config, ROWS)
    return home


def hub_data(**changes):
    fields = {"source": "hub", "id": "owner/tiny", "config": "small", "validation_split": "dev"}
    return HubData.model_validate(fields | changes)


def hub_model(**changes):
    return HubModel.model_validate({"source": "hub", "id": "owner/model"} | changes)


@pytest.mark.parametrize("revision", [None, COMMIT])
def test_rows_come_with_the_names_of_their_classes(home, tmp_path, revision):
    files = fetch_rows(hub_data(revision=revision), tmp_path / "rows")
    assert set(files) == {"train", "validation"}
    rows = read_rows(files["train"], Source("tiny", "/task/data/train_split"))
    assert [(row["sentence"], row["label"]) for row in rows] == ROWS["train"]
    assert rows[0].source.class_names == {"label": ("bad", "good")}


@pytest.mark.parametrize(
    ("changes", "param", "message"),
    [
        (
            {"validation_split": "validation"},
            "validation_split",
            "no split 'validation'; it has train, dev.*null holds",
        ),
        ({"test_split": "test"}, "test_split", "no split 'test'; it has train, dev"),
        ({"id": "owner/absent"}, "id", "worker is offline: .*NEUROPRUNE_HUB_OFFLINE=false, or upload it"),
        ({"config": "absent"}, "id", "Available configs.*small"),
        ({"config": None}, "id", "multiple"),
        ({"revision": "main"}, "revision", "offline.*40 hexadecimal"),
        ({"revision": "f" * 40}, "revision", f"could not be fetched at f+; the cache holds {COMMIT}"),
    ],
)
def test_what_a_dataset_lacks_is_named(home, tmp_path, changes, param, message):
    with pytest.raises(InvalidDataError, match=message) as caught:
        fetch_rows(hub_data(**changes), tmp_path / "rows")
    assert caught.value.param == f"/task/data/{param}"


def test_a_folder_of_that_name_is_not_taken_for_a_dataset(home, tmp_path, monkeypatch):
    (tmp_path / "owner" / "absent").mkdir(parents=True)
    (tmp_path / "owner" / "absent" / "rows.csv").write_text("sentence,label\nsecret,0\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidDataError, match="not in the worker's cache"):
        fetch_rows(hub_data(id="owner/absent", config=None, validation_split=None), tmp_path / "rows")


def test_a_model_is_found_in_the_cache(home, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    hub_caches.put_model(home, "owner/model", tmp_path / "model")
    for revision in ("main", COMMIT):
        assert (fetch_model(hub_model(revision=revision)) / "config.json").read_text() == "{}"


@pytest.mark.parametrize("changes", [{}, {"id": "absent"}, {"revision": "v2"}, {"id": "a--b/c..d"}])
def test_an_absent_model_is_not_found(home, changes):
    with pytest.raises(ModelNotFoundError, match="not in the worker's cache, and the worker is offline: ") as caught:
        fetch_model(hub_model(**changes))
    assert "HF_HUB_OFFLINE" not in caught.value.message, "which the worker sets itself"
    assert (caught.value.code, caught.value.param) == ("model_not_found", "/model/id")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (GatedRepoError, "owner/model, revision main, is gated: .*HF_TOKEN"),
        (RepositoryNotFoundError, "is not on the Hub, or private"),
        (RevisionNotFoundError, "no such revision"),
        (ConnectionError, "cannot be fetched: refused"),
    ],
)
def test_the_hubs_refusals_say_what_to_do(monkeypatch, kind, message):
    def refuse(*args, **options):
        raise kind("refused") if kind is ConnectionError else kind.__new__(kind)

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(ModelNotFoundError, match=message):
        fetch_model(hub_model())


def test_no_pickle_and_no_code_is_fetched(monkeypatch, tmp_path):
    fetched = {}
    files = ["config.json", "model.safetensors", "vocab.txt", "spiece.model", "source.spm", "chat_template.jinja"]
    pooling = "1_Pooling/config.json"
    others = ["pytorch_model.bin", "modeling_own.py", "onnx/config.json", "model.pkl", "flax_model.msgpack"]
    others += ["2_Dense/config.json", "2_Dense/model.safetensors", "1_Pooling/model.pkl", "old/1_Pooling/config.json"]

    def fetch(name, revision, **patterns):
        fetched[revision] = list(huggingface_hub.utils.filter_repo_objects([*files, pooling, *others], **patterns))
        return tmp_path / COMMIT

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert fetch_model(hub_model()) == tmp_path / COMMIT
    assert fetched == {"main": files, COMMIT: ["config.json", pooling]}


@pytest.mark.parametrize("offline", [True, False])
def test_a_jobs_process_reaches_the_hub_only_where_that_is_configured(tmp_path, offline):
    settings = Settings(hub_offline=offline, hub_home=tmp_path)
    environment = child_environment({"HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_x"}, settings)
    assert environment["HF_HUB_OFFLINE"] == ("1" if offline else "0")
    assert (environment["HF_HOME"], environment["HF_TOKEN"]) == (str(tmp_path), "hf_x")
