"""Images in rows: every way they come in, and those that nobody should decode."""

import base64
import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from transformers import ViTConfig
from transformers.image_utils import load_image

from core.engine.data import Row, Source
from core.engine.images import decode, image_bytes
from core.engine.tasks import TASKS
from core.errors import InvalidDataError
from core.jobs import spec
from tests import tiny_tasks

PNG = tiny_tasks.image(0)


def row(value):
    return Row({"image": value, "label": 1}, Source("rows.jsonl", "/task/data/train"), 7)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def huge(width: int, height: int) -> bytes:
    """A PNG that says it is this large."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("value", [PNG, base64.b64encode(PNG).decode(), {"bytes": PNG, "path": None}])
def test_an_image_comes_as_bytes_or_in_base64(value):
    assert image_bytes(row(value), "image") == PNG


@pytest.mark.parametrize(("kind", "mode"), [("PNG", "RGB"), ("PNG", "L"), ("PNG", "RGBA"), ("PNG", "P"), ("JPEG", "L")])
def test_every_kind_is_read_as_rgb(kind, mode):
    assert np.asarray(decode(tiny_tasks.image(1, kind, mode))).shape == (9, 14, 3)


def test_a_photo_is_read_upright(tmp_path):
    """As transformers and datasets read it."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.open(io.BytesIO(PNG)).save(tmp_path / "portrait.jpg", exif=exif)
    read = np.asarray(decode((tmp_path / "portrait.jpg").read_bytes()))
    assert read.shape == (14, 9, 3)
    assert (read == np.asarray(load_image(str(tmp_path / "portrait.jpg")))).all()


def test_a_photo_whose_exif_is_spoilt_is_read_as_it_is_stored():
    file = io.BytesIO()
    Image.open(io.BytesIO(PNG)).save(file, "PNG", exif=b"Exif\0\0garbagegarbage")
    assert (np.asarray(decode(file.getvalue())) == np.asarray(decode(PNG))).all()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "must hold a PNG or JPEG image"),
        (3, "must hold a PNG or JPEG image"),
        ({"path": "/etc/passwd"}, "must hold a PNG or JPEG image"),
        ("no base64!", "holds text that is no base64"),
        (b"", "cannot be read"),
        (b"GIF89a" + bytes(50), "cannot be read"),
        (PNG[:-30], "cannot be read"),
        (PNG[:40] + b"xxxx" + PNG[44:], "cannot be read"),
        (huge(8_000, 8_000), "8000 by 8000 pixels, more than"),
        (huge(9_500, 9_500), "the image has more than 50000000 pixels"),
        (huge(60_000, 60_000), "the image has more than 50000000 pixels"),
    ],
    ids=["none", "number", "path", "text", "empty", "format", "cut", "damaged", "large", "larger", "bomb"],
)
def test_what_is_no_image_is_named_with_its_row(value, message):
    with pytest.raises(InvalidDataError, match=rf"^rows\.jsonl, line 7: .*{message}"):
        image_bytes(row(value), "image")


def test_a_batch_is_what_the_models_processor_makes():
    part = spec.ImageClassification.model_validate(
        {"name": "image-classification", "data": {"source": "path", "train": "/data/train.jsonl"}}
    )
    processor = tiny_tasks.processor("image-classification")
    ours = TASKS["image-classification"](part, spec.Training(), processor)
    rows = [row(tiny_tasks.image(seed)) | {"label": seed % 2} for seed in range(4)]
    rows = [Row(values, Source("rows.jsonl", "/task/data/train"), 1) for values in rows]
    ours.model_options(ViTConfig(num_labels=2), rows)
    features = ours.features(rows)
    batch = ours.collate([features[i] for i in range(4)])
    expected = processor(images=[decode(tiny_tasks.image(seed)) for seed in range(4)], return_tensors="pt")
    assert torch.equal(batch["pixel_values"], expected["pixel_values"])
    assert batch["labels"].tolist() == [0, 1, 0, 1]
    assert set(batch) == {"pixel_values", "row", "labels"}
