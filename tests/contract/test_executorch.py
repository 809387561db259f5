"""ExecuTorch: what is written answers as the model does. Needs the extra; without it, jobs are refused at once."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from core.engine.anatomy import bind
from core.engine.compact import compact
from core.engine.export import executorch
from core.engine.export.executorch import check_executorch, export_executorch, run_executorch
from core.engine.inputs import Inputs
from core.engine.preparation import prepare
from core.engine.tasks import TASKS
from core.engine.verify import TOLERANCE
from core.errors import InvalidInputError, VerificationError
from core.jobs.defaults import resolve
from core.jobs.spec import JobSpec
from tests import tiny, tiny_families
from tests.contract.test_families import inputs, ragged_plan

installed = pytest.mark.skipif(find_spec("executorch") is None, reason="the extra executorch is not installed")
LONGEST = 20


@installed
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("model_type", "task"),
    [("bert", "sentence-embedding"), ("llama", "sequence-classification"), ("gemma2", "causal-lm")],
)
def test_a_ragged_model_with_emptied_layers_agrees_at_any_length(model_type, task, tmp_path):
    """gemma2's activation is the GELU with tanh."""
    model, path = tiny_families.model(model_type, task), tmp_path / "model.pte"
    compact(bind(model), ragged_plan(model))
    export_executorch(TASKS[task], model, inputs(), LONGEST, path)
    ids = torch.randint(4, tiny.VOCABULARY, (2, LONGEST), generator=torch.Generator().manual_seed(0))
    for length in (2, 9, LONGEST):
        batch = {"input_ids": ids[:, :length], "attention_mask": torch.ones_like(ids[:, :length])}
        batch["attention_mask"][1, length // 2 + 1 :] = 0
        with torch.no_grad():
            expected = TASKS[task].outputs(model, batch)
        assert float((run_executorch(path, batch) - expected).abs().max()) <= TOLERANCE["executorch"]


@installed
@pytest.mark.filterwarnings("ignore")
def test_what_is_no_program_is_said(tmp_path):
    (tmp_path / "model.pte").write_bytes(bytes(100))
    with pytest.raises(VerificationError, match=r"ExecuTorch cannot run model\.pte"):
        run_executorch(tmp_path / "model.pte", inputs())


def test_a_worker_without_the_extra_refuses_at_once(monkeypatch):
    monkeypatch.setattr(executorch, "find_spec", lambda _: None)
    with pytest.raises(InvalidInputError, match="installed without the extra 'executorch'") as caught:
        check_executorch()
    assert caught.value.param == "/export/formats"
    nowhere = Path("/nowhere")
    spec = {
        "model": {"source": "path", "path": str(nowhere)},
        "task": {"name": "causal-lm", "data": {"source": "path", "train": str(nowhere)}},
        "target": {"sparsity": 0.3},
        "export": {"formats": ["executorch"]},
    }
    with pytest.raises(InvalidInputError, match="executorch"):
        prepare(resolve(JobSpec.model_validate(spec)), Inputs(nowhere, nowhere), pytest.fail)
