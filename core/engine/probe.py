"""The rows that a bundle is checked with."""

import torch.nn.functional as F
from transformers import PreTrainedModel

from core.engine.data import Batch, Features
from core.engine.tasks import Task


def probe_inputs(task: Task, model: PreTrainedModel, held_out: Features) -> Batch:
    """A few held-out rows, two at least; short ones where there is an output for every token.

    At least two tokens wide, by padding if need be: what is one in an example, ONNX export takes for a constant.
    """
    wanted = 8 if task.outputs_per_row else 2
    rows = [held_out[i * len(held_out) // wanted] for i in range(wanted)]
    collated = {name: tensor.to(model.device) for name, tensor in task.collate(rows).items()}
    batch = {name: tensor.cpu() for name, tensor in task.inputs(model, collated).items()}
    for name in [name for name, tensor in batch.items() if tensor.ndim == 2 and tensor.shape[1] == 1]:
        fill = task.tokenizer.pad_token_id or 0 if name.endswith("input_ids") else 0
        batch[name] = F.pad(batch[name], (0, 1), value=fill)
    return batch if task.outputs_per_row else {name: tensor[:, :16].contiguous() for name, tensor in batch.items()}
