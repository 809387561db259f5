"""What users upload: model archives and datasets, checked before anything relies on them.

Nothing here trusts a header: reads are bounded, sizes are summed before they are read, and every byte is decompressed
once so that its checksum counts. `archives` checks and unpacks models, `datasets` checks rows; what both go by is here.
"""

from core.errors import InvalidInputError, shown
from core.jobs.records import Purpose

SUFFIXES: dict[Purpose, tuple[str, ...]] = {
    "model": (".zip", ".tar.gz", ".tgz"),
    "dataset": (".jsonl", ".csv", ".parquet", ".jsonl.gz", ".csv.gz", ".parquet.gz"),
}
"""File names that are accepted, by purpose."""

CHUNK_BYTES = 2**20


def suffix_of(filename: str, purpose: Purpose) -> str:
    """The accepted suffix that the name ends with.

    Raises:
        InvalidInputError: none; the message lists those that are accepted.
    """
    lowered = filename.lower()
    for suffix in sorted(SUFFIXES[purpose], key=len, reverse=True):
        if lowered.endswith(suffix) and len(lowered) > len(suffix):
            return suffix
    allowed = ", ".join(SUFFIXES[purpose])
    hint = ""
    if purpose == "model":
        hint = " Pack the model's folder (config.json, *.safetensors, tokenizer) into one archive; pickles are refused."
    raise InvalidInputError(f"{shown(filename)}: a file of purpose={purpose} must end in {allowed}.{hint}")
