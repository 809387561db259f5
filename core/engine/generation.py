"""Settings of text generation that come with a model: made such that they can be written again."""

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from core.progress import Reporter, Warned

OF_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
OF_BEAMS = ("early_stopping", "length_penalty")


def mend_generation_config(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, report: Reporter) -> None:
    """Drop contradictions from a model's `generation_config`, with a warning: transformers reads but never writes them.

    Settings that have no effect are left out; where that does not suffice, all but the special tokens are.
    """
    config: GenerationConfig | None = getattr(model, "generation_config", None)
    if config is None or (reason := _contradiction(config)) is None:
        return
    sampling = () if config.do_sample else OF_SAMPLING
    beams = OF_BEAMS if (config.num_beams or 1) == 1 else ()
    for name in (*sampling, *beams):
        setattr(config, name, None)
    what = "settings without effect are"
    if _contradiction(config) is not None:
        what = "all but the special tokens is"
        tokens = ("bos_token_id", "eos_token_id", "pad_token_id")
        kept = {name: getattr(tokenizer, name) for name in tokens}
        kept["decoder_start_token_id"] = getattr(model.config, "decoder_start_token_id", None)
        model.generation_config = GenerationConfig(**kept)  # type: ignore[no-untyped-call]
    report(Warned(message=f"generation_config.json contradicts itself; {what} left out. {reason}"))


def _contradiction(config: GenerationConfig) -> str | None:
    try:
        config.validate(strict=True)
    except ValueError as error:
        return " ".join(str(error).partition(" -- ")[0].split())[:300]
    return None
