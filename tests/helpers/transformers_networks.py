"""Tiny networks of transformers, one of each kind, and inputs for them."""

from __future__ import annotations

import torch


def make(name: str) -> torch.nn.Module:
    """Build a network of random weights, the same every time, by the name of its class."""
    import transformers

    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    wide = {"intermediate_size": 64, "vocab_size": 96}
    config = {
        "LlamaForCausalLM": lambda: transformers.LlamaConfig(
            **small, **wide, tie_word_embeddings=True
        ),
        "BertForMaskedLM": lambda: transformers.BertConfig(**small, **wide),
        "ViTForImageClassification": lambda: transformers.ViTConfig(
            **small, intermediate_size=64, image_size=16, patch_size=8, num_labels=5
        ),
        "WhisperForConditionalGeneration": lambda: transformers.WhisperConfig(
            vocab_size=96, d_model=32, encoder_layers=2, decoder_layers=2, num_mel_bins=8,
            encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=64,
            decoder_ffn_dim=64, max_source_positions=20, max_target_positions=16,
            pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
        ),
        "T5ForConditionalGeneration": lambda: transformers.T5Config(
            vocab_size=96, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2,
            decoder_start_token_id=0,
        ),
    }[name]()  # fmt: skip
    torch.manual_seed(0)
    return getattr(transformers, name)(config).eval()


LOADERS = {
    "LlamaForCausalLM": "AutoModelForCausalLM",
    "BertForMaskedLM": "AutoModelForMaskedLM",
    "ViTForImageClassification": "AutoModelForImageClassification",
    "WhisperForConditionalGeneration": "AutoModelForSpeechSeq2Seq",
    "T5ForConditionalGeneration": "AutoModelForSeq2SeqLM",
}


def inputs(name: str) -> dict[str, torch.Tensor]:
    """Return a batch for the network of that class."""
    draw = torch.Generator().manual_seed(1)
    ids = torch.arange(3, 11).reshape(1, 8)
    if name.startswith("ViT"):
        return {"pixel_values": torch.randn(1, 3, 16, 16, generator=draw)}
    if name.startswith("Whisper"):
        features = torch.randn(1, 8, 40, generator=draw)
        return {"input_features": features, "decoder_input_ids": ids}
    return {"input_ids": ids, **({"decoder_input_ids": ids} if name.startswith("T5") else {})}
