"""Other people's models: a table like that of networks.py, of transformers' architectures with tiny random weights.

Nothing is downloaded. A name reads "family, task, attention"; attention is "eager" (written out) or "sdpa" (fused).
GRAPH are captured; EAGER cannot be a graph and run on the eager engine, for the reason that stands beside them.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from networks import Network, by_name, floats, integers, padding

ATTENTION = ("eager", "sdpa")
LENGTH, SAMPLES = 7, 160
PAD, END = 0, 2  # token ids

TEXT = {
    "vocab_size": 32, "pad_token_id": PAD, "bos_token_id": 1, "eos_token_id": END, "num_labels": 3,
}  # fmt: skip
LAYERS = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 20}
BART = {
    "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 20,
    "decoder_attention_heads": 2, "decoder_ffn_dim": 20, "max_position_embeddings": 24, "decoder_start_token_id": END,
    "dropout": 0.1, "attention_dropout": 0.1, "activation_dropout": 0.1, "classifier_dropout": 0.1,
}  # fmt: skip
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 20, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": PAD,
      "classifier_dropout": 0.1}  # fmt: skip
WAVE = {
    **LAYERS, "vocab_size": 12, "conv_dim": (8, 8), "conv_stride": (4, 2), "conv_kernel": (8, 4), "num_labels": 3,
    "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2,
    "classifier_proj_size": 8, "attention_dropout": 0.1, "hidden_dropout": 0.1, "activation_dropout": 0.1,
    "feat_proj_dropout": 0.1, "final_dropout": 0.1, "layerdrop": 0.0, "apply_spec_augment": False,
}  # fmt: skip
SIZES: Mapping[str, Mapping[str, Any]] = {
    "Bert": {**TEXT, **LAYERS, "max_position_embeddings": 24},
    "GPT2": {**TEXT, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 24},
    "ViT": {
        **LAYERS, "image_size": 8, "patch_size": 4, "num_channels": 2, "num_labels": 3, "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
    },
    "Bart": {**TEXT, **BART},
    "T5": {**TEXT, **T5},
    "Llama": {**TEXT, **LAYERS, "num_key_value_heads": 1, "attention_dropout": 0.1, "max_position_embeddings": 24},
    "Wav2Vec2": WAVE,
}  # fmt: skip


def transformer(family: str, head: str, attention: str, **settings: Any) -> Callable[[], nn.Module]:
    """The class `family` + `head` of transformers under its tiny configuration, changed by `settings`."""

    def make() -> nn.Module:
        import transformers

        config = getattr(transformers, family + "Config")(
            **{**SIZES[family], "attn_implementation": attention, **settings}
        )
        made: nn.Module = getattr(transformers, family + head)(config)
        return made

    return make


def attended(length: int, fewest: int) -> Callable[[int], Tensor]:
    """Masks (batch, length), 1 where there is something: row i has `fewest` + i."""
    return lambda batch: (~padding(length, fewest)(batch)).to(torch.int64)


def sentences(batch: int) -> Tensor:
    """Token ids (batch, LENGTH): one end token each, then padding."""
    ids, kept = integers(3, 32, LENGTH)(batch), attended(LENGTH, 3)(batch)
    last = kept * (kept.cumsum(1) == kept.sum(1, keepdim=True))
    return (ids * kept).where(last == 0, END)


SENTENCES = by_name(input_ids=sentences, attention_mask=attended(LENGTH, 3))
WAVES = by_name(input_values=floats(SAMPLES), attention_mask=attended(SAMPLES, 120))
IMAGES = by_name(pixel_values=floats(2, 8, 8))


def rows(
    name: str, family: str, head: str, example: Callable[[int], Any], sites: int, **keywords: Any
) -> tuple[Network, ...]:
    settings, task = keywords.pop("settings", {}), keywords.pop("task", "classification")
    return tuple(
        Network(
            f"{name}, {attention}",
            transformer(family, head, attention, **settings),
            example,
            sites=sites,
            task=task,
            **keywords,
        )
        for attention in ATTENTION
    )


STATES = {"output": "last_hidden_state"}
SEQUENCE, TOKENS = "ForSequenceClassification", "ForTokenClassification"

GRAPH: tuple[Network, ...] = (
    *rows("BERT, sequence classification", "Bert", SEQUENCE, SENTENCES, 8),
    *rows("BERT, token classification", "Bert", TOKENS, SENTENCES, 8),
    *rows("GPT-2, sequence classification", "GPT2", SEQUENCE, SENTENCES, 7),
    *rows("GPT-2, token classification", "GPT2", TOKENS, SENTENCES, 8),
    *rows("ViT, image classification", "ViT", "ForImageClassification", IMAGES, 7),
    *rows("BART, hidden states", "Bart", "Model", SENTENCES, 22, task="raw", keywords=STATES),
    *rows("T5, token classification", "T5", TOKENS, SENTENCES, 11),
    *rows("Llama, sequence classification", "Llama", SEQUENCE, SENTENCES, 2),
    *rows("Llama, token classification", "Llama", TOKENS, SENTENCES, 3),
    *rows("wav2vec2, sequence classification", "Wav2Vec2", SEQUENCE, WAVES, 10),
    *rows("wav2vec2, frame classification", "Wav2Vec2", "ForAudioFrameClassification", WAVES, 10),
)

VALUES = "depends on the values of the inputs"
BRANCH = "data-dependent"
OUTSIDE = r"outside of PyTorch \(Python or NumPy\)"
SPEC_AUGMENT = {"apply_spec_augment": True, "mask_time_prob": 0.3, "mask_time_length": 2}

EAGER: tuple[Network, ...] = (
    *rows("BART, sequence classification", "Bart", SEQUENCE, SENTENCES, 24, message=VALUES),
    *rows("T5, sequence classification", "T5", SEQUENCE, SENTENCES, 26, message=VALUES),
    *rows(
        "BART with LayerDrop, hidden states", "Bart", "Model", SENTENCES, 26, task="raw", message=BRANCH,
        keywords=STATES, settings={"encoder_layerdrop": 0.4, "decoder_layerdrop": 0.4},
    ),
    *rows(
        "wav2vec2 with LayerDrop, sequence classification", "Wav2Vec2", SEQUENCE, WAVES, 12, message=BRANCH,
        settings={"layerdrop": 0.4},
    ),
    *rows(
        "wav2vec2 with SpecAugment, sequence classification", "Wav2Vec2", SEQUENCE, WAVES, 10, message=OUTSIDE,
        settings=SPEC_AUGMENT, alone=True,
    ),
)  # fmt: skip
