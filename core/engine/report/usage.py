"""How a bundle's model is loaded and used: the lines of Python that its card shows."""

import json
from collections.abc import Mapping
from typing import Any

_NO_TYPES = "return_token_type_ids=False"
_LABEL = ["label = model.config.id2label[model(**inputs).logits.argmax(-1).item()]"]


def usage(report: Mapping[str, Any]) -> list[str]:
    """A program that loads the model of a report from its folder, and lets it answer once."""
    names, task = report["model"], report["spec"]["task"]
    processor = "processor" if names["processor_class"] == "AutoImageProcessor" else "tokenizer"
    trust = ", trust_remote_code=True" if report["structure"] == "ragged" else ""
    return [
        *_imports(task["name"]),
        f"from transformers import {names['auto_class']}, {names['processor_class']}",
        "",
        'folder = "path/to/this/folder"',
        f"model = {names['auto_class']}.from_pretrained(folder{trust})",
        f"{processor} = {names['processor_class']}.from_pretrained(folder)",
        "",
        *_answer(task),
    ]


def _imports(task: str) -> list[str]:
    match task:
        case "sentence-embedding":
            return ["from torch.nn.functional import normalize"]
        case "image-classification":
            return ["from PIL import Image"]
        case _:
            return []


def _answer(task: Mapping[str, Any]) -> list[str]:
    """Of a model, and a tokenizer or processor, to the answer."""
    match task["name"]:
        case "sentence-embedding":
            return [
                'inputs = tokenizer(["One text.", "Another."], padding=True, return_tensors="pt")',
                "hidden = model(**inputs).last_hidden_state",
                'mask = inputs["attention_mask"].unsqueeze(-1)',
                "embeddings = normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)",
            ]
        case "sequence-classification":
            return [_tokenized(task), *_LABEL]
        case "regression":
            return [_tokenized(task), "number = model(**inputs).logits.item()"]
        case "image-classification":
            return ['inputs = processor(Image.open("photo.jpg").convert("RGB"), return_tensors="pt")', *_LABEL]
        case "causal-lm":
            # As the model was trained: its own start, no end, and no token types, which decoders do not know.
            prompt, as_trained = '(tokenizer.bos_token or "") + "One text."', f"add_special_tokens=False, {_NO_TYPES}"
            return [
                f'inputs = tokenizer({prompt}, {as_trained}, return_tensors="pt")',
                "text = tokenizer.decode(model.generate(**inputs, max_new_tokens=40)[0], skip_special_tokens=True)",
            ]
        case "masked-lm":
            return [
                'inputs = tokenizer(f"A text with a {tokenizer.mask_token}.", return_tensors="pt")',
                "guesses = model(**inputs).logits.argmax(-1)",
                'word = tokenizer.decode(guesses[inputs["input_ids"] == tokenizer.mask_token_id])',
            ]
        case _:
            options = f"max_new_tokens={task['max_target_length']}, num_beams={task['num_beams']}, do_sample=False"
            return [
                _tokenized(task, _NO_TYPES),
                f"written = model.generate(**inputs, {options})",
                "text = tokenizer.decode(written[0], skip_special_tokens=True)",
            ]


def _tokenized(task: Mapping[str, Any], *options: str) -> str:
    """The line that makes a model's inputs, of one text or of a pair."""
    texts = [f"{task.get('source_prefix', '')}One text.", *(["Another."] if task.get("text_pair_column") else [])]
    given = ", ".join([*(json.dumps(text, ensure_ascii=False) for text in texts), *options])
    return f'inputs = tokenizer({given}, return_tensors="pt")'
