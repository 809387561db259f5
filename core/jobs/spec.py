"""The contract: what a job may ask for.

Every model here refuses unknown fields, and every field says its unit and its default. Names follow the ecosystem
(`learning_rate`, `num_train_epochs`, `per_device_train_batch_size`, `seed`). A spec is frozen once it is accepted;
`core.jobs.defaults.resolve` fills what the user left to us.
"""

from collections import Counter
from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from core.errors import shown
from core.jobs.base import MAX_COLUMN_NAME, MisfitError, Spec, an_object
from core.jobs.methods import Method, NeuroPrune, check_masked, check_uniform, takes_target, trains
from core.jobs.sources import Data, LabelledData, Model, UploadedData, UploadedModel
from core.jobs.targets import MetricDropTarget, Target, check_drop, check_target

Column = Annotated[str, Field(min_length=1, max_length=MAX_COLUMN_NAME)]
"""Name of a column of the data."""


def _distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    for name, count in Counter(names).items():
        if count > 1:
            raise ValueError(f"no two classes may have one name; {shown(name)} is there {count} times")
    return names


# ---- task ----------------------------------------------------------------------------------------------------------


HEADLINE = "The metric that a budget is set in and that is shown first; all of the task's are reported."


ANSWERS = ("label_column", "target_column")
"""Fields of columns that a model does not read, but is to tell."""


class _Task(Spec):
    def columns(self) -> dict[str, str]:
        """The columns that every row must have, by the field that names them."""
        return {field: name for field, name in self if field.endswith("_column") and name is not None}

    def input_columns(self) -> tuple[str, ...]:
        """What the model reads of a row."""
        return tuple(name for field, name in self.columns().items() if field not in ANSWERS)


class SentenceEmbedding(_Task):
    """Keep the model's sentence embeddings (mean-pooled, normalised); needs no labels.

    Metrics: mean cosine to the dense model's embedding, and Spearman correlation of pairwise similarities.
    """

    name: Literal["sentence-embedding"]
    data: Data
    metric: Literal["cosine_to_dense", "similarity_spearman"] = Field("cosine_to_dense", description=HEADLINE)
    text_column: Column = Field("text", description="Column that holds one sentence or paragraph a row.")


class _Classification(_Task):
    metric: Literal["accuracy", "macro_f1", "matthews"] = Field("accuracy", description=HEADLINE)
    label_column: Column = Field("label", description="Column of the label: an integer or a string.")
    label_names: (
        Annotated[tuple[Column, ...], Field(min_length=2, max_length=10_000), AfterValidator(_distinct)] | None
    ) = Field(
        None,
        description="Names of the classes 0, 1, …, in this order; the labels are these numbers or names, and integers "
        "are names if all of them are some. Default: what the data says of itself (Parquet and hub data with class "
        "labels), else the model's own if the labels are its, else the labels as they are, sorted. Where "
        "they do not fit into the 64 KiB that a request may have, let the data or the labels say them.",
    )


class SequenceClassification(_Classification):
    """Assign one label to a text or a pair of texts. Metrics: accuracy, macro F1, Matthews' correlation."""

    name: Literal["sequence-classification"]
    data: LabelledData
    text_column: Column = Field("text", description="Column of the (first) text.")
    text_pair_column: Column | None = Field(None, description="Column of the second text, for pairs.")


class Regression(_Task):
    """Assign one number to a text or a pair of texts. Metrics: Pearson and Spearman correlation."""

    name: Literal["regression"]
    data: LabelledData
    metric: Literal["pearson", "spearman"] = Field("pearson", description=HEADLINE)
    text_column: Column = Field("text", description="Column of the (first) text.")
    text_pair_column: Column | None = Field(None, description="Column of the second text, for pairs.")
    label_column: Column = Field("label", description="Column of the number.")


class CausalLM(_Task):
    """Predict the next token. Metrics: nats per token, perplexity, nats per character of the text."""

    name: Literal["causal-lm"]
    data: Data
    metric: Literal["nats_per_token", "perplexity", "nats_per_character"] = Field(
        "nats_per_token", description=HEADLINE
    )
    text_column: Column = Field("text", description="Column that holds one document a row.")


class MaskedLM(_Task):
    """Guess hidden tokens, 15 % of each text. Metrics: nats per hidden token, perplexity, accuracy of the guesses."""

    name: Literal["masked-lm"]
    data: Data
    metric: Literal["nats_per_token", "perplexity", "accuracy"] = Field("nats_per_token", description=HEADLINE)
    text_column: Column = Field("text", description="Column that holds one text a row.")


Seq2SeqMetric = Literal[
    "bleu", "chrf", "rouge_1", "rouge_2", "rouge_l", "nats_per_token", "perplexity", "nats_per_character"
]


class Seq2Seq(_Task):
    """Write a text from a text: translate or summarise it, with an encoder-decoder.

    Metrics: of what the model writes, BLEU and chrF for translations, ROUGE-1, 2 and L for summaries; of the
    references, nats per token, perplexity and nats per character.
    """

    name: Literal["seq2seq"]
    data: LabelledData
    kind: Literal["translation", "summarisation"] = Field(
        description="What is written. translation: measured by BLEU and chrF. summarisation: by ROUGE."
    )
    metric: Seq2SeqMetric | None = Field(
        None, description=f"{HEADLINE} Default: bleu for translation, rouge_l for summarisation."
    )
    source_column: Column = Field("source", description="Column of the text that is read.")
    target_column: Column = Field(
        "target",
        description="Column of the text that is to be written, or of a list of texts: all of them are references, the "
        "first is learnt.",
    )
    source_prefix: str = Field(
        "", max_length=200, description='Put before every source, as in "translate German to English: " for T5.'
    )
    max_target_length: int = Field(
        64, ge=2, le=4096, description="Tokens of a target; longer ones are cut, and the model writes no more."
    )
    num_beams: int = Field(1, ge=1, le=16, description="Beams in evaluation; 1 takes the likeliest token.")

    @model_validator(mode="after")
    def _metric_fits_kind(self) -> "Seq2Seq":
        other = {"translation": ("rouge_1", "rouge_2", "rouge_l"), "summarisation": ("bleu", "chrf")}[self.kind]
        if self.metric in other:
            raise MisfitError(f"metric {self.metric} is not measured for {self.kind}", "/metric")
        return self


class ImageClassification(_Classification):
    """Assign one label to an image. Metrics: accuracy, macro F1, Matthews' correlation."""

    name: Literal["image-classification"]
    data: LabelledData
    image_column: Column = Field(
        "image", description="Column of the PNG or JPEG file: base64 text or, in Parquet, bytes or {bytes: …}."
    )


Task = Annotated[
    SentenceEmbedding | SequenceClassification | Regression | CausalLM | MaskedLM | Seq2Seq | ImageClassification,
    Field(discriminator="name"),
    an_object('{"name": "sentence-embedding", "data": {"source": "builtin", "name": "python-docs"}}'),
]


SEQ2SEQ_METRICS: dict[str, Seq2SeqMetric] = {"translation": "bleu", "summarisation": "rouge_l"}
"""The headline by what is written, unless another is named."""


def headline_of(task: Task) -> str:
    """The metric that a budget is set in and that is shown first."""
    if isinstance(task, Seq2Seq):
        return task.metric or SEQ2SEQ_METRICS[task.kind]
    return task.metric


# ---- structure, training, export -----------------------------------------------------------------------------------


Structure = Literal["ragged", "uniform", "masked"]
"""What becomes of the layers' shapes."""


class Training(Spec):
    """How the model is trained while and after it is pruned. What is left out takes the task's default."""

    num_train_epochs: float | None = Field(
        None,
        ge=0,
        le=1000,
        description="Passes over the training rows, pruning included. Default: by task, and above a sparsity of 0.5 "
        "more, twice as many at 0.9; 0 for methods that prune at "
        "once, where more is training under the held mask. The others need more than 0.",
    )
    dense_epochs: float | None = Field(
        None,
        ge=0,
        le=1000,
        description="Passes of plain fine-tuning before, which make the dense baseline and the teacher. "
        "Default: 1 for a model without a trained head for the task, else 0.",
    )
    learning_rate: float | None = Field(None, gt=0, le=1, description="Peak of AdamW's. Default: by task.")
    weight_decay: float = Field(0.01, ge=0, le=1, description="AdamW's decoupled weight decay.")
    per_device_train_batch_size: int = Field(32, ge=1, le=4096, description="Rows a step.")
    gradient_accumulation_steps: int = Field(
        1, ge=1, le=1024, description="Batches whose gradients are averaged before the weights change."
    )
    per_device_eval_batch_size: int = Field(64, ge=1, le=4096, description="Rows a batch in evaluation.")
    max_length: int = Field(
        128,
        ge=8,
        le=32768,
        description="Tokens a row; longer rows are cut. causal-lm cuts all texts, one after the other, into blocks of "
        "so many.",
    )
    warmup_fraction: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Share of the steps before gradual pruning starts. Without effect on wanda, sparsegpt and mode "
        "faithful.",
    )
    recovery_fraction: float = Field(
        0.4,
        ge=0,
        le=1,
        description="Share of the steps after gradual pruning, with what was removed held. Without effect on "
        "wanda, sparsegpt and mode faithful.",
    )
    recovery_epochs: float = Field(
        0.0,
        ge=0,
        le=1000,
        description="Further passes over the training rows after pruning, with what was removed held and the learning "
        "rate risen anew.",
    )
    distillation: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Weight of the dense model's outputs in the loss, 0 … 1; the labels have the rest. Default: 0.5, "
        "for causal-lm 0.8. Not for sentence-embedding, which has no labels.",
    )
    hidden_distillation: float = Field(
        0.0,
        ge=0,
        le=100,
        description="Weight in the loss of the distance between the hidden states of both models, after every layer; "
        "0 leaves them out. Costs a forward pass of the dense model a step.",
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="auto: bf16 autocast where the hardware multiplies bf16, else fp32."
    )
    seed: int = Field(42, ge=0, lt=2**32, description="Seed of every random choice.")

    @property
    def trains(self) -> bool:
        """Whether the model is trained after or while it is pruned; of a resolved spec."""
        return bool(self.num_train_epochs or self.recovery_epochs)

    @model_validator(mode="after")
    def _phases_fit(self) -> "Training":
        if self.warmup_fraction + self.recovery_fraction > 1:
            raise ValueError("warmup_fraction + recovery_fraction must not exceed 1")
        return self


class Export(Spec):
    """What the bundle holds beside its report."""

    formats: tuple[Literal["safetensors", "onnx", "gguf", "executorch"], ...] = Field(
        ("safetensors", "onnx"),
        description="safetensors: always part of it. onnx: for ONNX Runtime, any batch and length. gguf: for "
        "llama.cpp, fp32, tokenizer included; only causal-lm, and only families whose `export_formats` name it. "
        "executorch: a .pte for phones by XNNPACK, one row at a time, up to `max_length` tokens; the worker needs the "
        "extra `executorch`, and refuses the job at its start without.",
    )


class JobSpec(Spec):
    """A pruning job: a model, a task with its data, a method, a target.

    Only methods that leave the amount to the user take a target, and need one: not `neuroprune` in faithful mode, nor
    a pattern N:M.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={
            "examples": [
                {
                    "model": {"source": "builtin", "name": "all-MiniLM-L6-v2"},
                    "task": {
                        "name": "sentence-embedding",
                        "data": {"source": "builtin", "name": "python-docs"},
                    },
                    "target": {"sparsity": 0.5},
                }
            ]
        },
    )

    model: Model
    task: Task
    method: Method = Field(default_factory=lambda: NeuroPrune(name="neuroprune"))
    target: Target | None = None
    structure: Structure = Field(
        "ragged",
        description="ragged: every layer gets its own width, the smallest for a given quality; loads with the bundle's "
        "own modelling file, or through our client. uniform: one width for all layers, loads in the stock class; GET "
        "/v1/families says for which architectures, and whether heads can go. masked: what was pruned is zero and "
        "stays, loads in the stock class, and is offered compressed as well.",
    )
    training: Annotated[Training, an_object('{"num_train_epochs": 3}')] = Field(default_factory=Training)
    export: Annotated[Export, an_object('{"formats": ["onnx"]}')] = Field(default_factory=Export)

    @model_validator(mode="after")
    def _embeddings_have_no_labels(self) -> "JobSpec":
        if isinstance(self.task, SentenceEmbedding):
            if self.training.dense_epochs:
                raise MisfitError("must be 0 for sentence-embedding, which has no labels", "/training/dense_epochs")
            if self.training.distillation is not None:
                raise MisfitError(
                    "must be left out for sentence-embedding, which has no labels", "/training/distillation"
                )
        return self

    @model_validator(mode="after")
    def _target_fits_method(self) -> "JobSpec":
        if takes_target(self.method) and self.target is None:
            raise MisfitError(f'method {self.method.name} needs one, such as {{"sparsity": 0.5}}', "/target")
        if not takes_target(self.method) and self.target is not None:
            raise MisfitError(
                f"must be left out: with these options of {self.method.name} it follows from them", "/target"
            )
        if self.target is not None:
            check_target(self.target, self.method, self.structure, self.export.formats)
        if isinstance(self.target, MetricDropTarget):
            check_drop(self.target, headline_of(self.task))
        if trains(self.method) and self.training.num_train_epochs == 0:
            raise MisfitError(
                f"must be above 0: {self.method.name} prunes while it trains", "/training/num_train_epochs"
            )
        if isinstance(self.method, NeuroPrune) and self.method.mode == "faithful" and self.training.recovery_epochs:
            raise MisfitError(
                "must be 0 in mode faithful, whose connections go at the very end", "/training/recovery_epochs"
            )
        return self

    @model_validator(mode="after")
    def _structure_fits_method(self) -> "JobSpec":
        if self.structure == "uniform":
            check_uniform(self.method)
        if self.structure == "masked":
            check_masked(self.method)
        return self

    @model_validator(mode="after")
    def _formats_fit_task(self) -> "JobSpec":
        if "gguf" in self.export.formats and not isinstance(self.task, CausalLM):
            raise MisfitError(f"gguf is for causal-lm, not for {self.task.name}", "/export/formats")
        if "executorch" in self.export.formats and isinstance(self.task, Seq2Seq | ImageClassification):
            raise MisfitError(
                f"executorch is for models that read one text, not for {self.task.name}", "/export/formats"
            )
        return self

    def columns(self) -> dict[str, str]:
        """The columns that every row must have: JSON pointer of the field → column."""
        return {f"/task/{field}": name for field, name in self.task.columns().items()}

    def file_ids(self) -> dict[str, str]:
        """The uploads this job reads: JSON pointer of the field → file id."""
        found = {}
        if isinstance(self.model, UploadedModel):
            found["/model/file"] = self.model.file
        data = self.task.data
        if isinstance(data, UploadedData):
            named = {"train": data.train, "validation": data.validation, "test": data.test}
            found |= {f"/task/data/{split}": file for split, file in named.items() if file is not None}
        return found
