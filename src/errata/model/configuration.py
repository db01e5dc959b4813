"""Which part of a transformers configuration describes the language model, and which class makes it."""

from typing import Any


def text_config(config: Any) -> Any:
    """The configuration of the language model: a part of it in models that also read images, else the whole.

    Sizes, the limit of positions and special tokens stand there.
    """
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def auto_class(config: Any) -> Any:
    """The class of transformers that makes the model of a configuration: with its eyes, where it also reads images."""
    from transformers import (
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        AutoModelForSeq2SeqLM,
    )

    if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return AutoModelForImageTextToText
    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
