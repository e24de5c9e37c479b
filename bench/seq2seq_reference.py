"""Reference encoder-decoders of the benchmarks, each with the weights of a Glassformer model.

torch.nn.Transformer between an embedding and a head, and transformers' MarianMTModel.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glassformer.nn.model import EncoderDecoder

TORCH_NAMES = {
    "attn": "self_attn", "attn.o": "self_attn.out_proj", "mlp.up": "linear1", "mlp.down": "linear2",
    "cross": "multihead_attn", "cross.o": "multihead_attn.out_proj",
}  # fmt: skip
MARIAN_NAMES = {
    "mlp.up": "fc1", "mlp.down": "fc2", "attn_post_norm": "self_attn_layer_norm",
    "cross_post_norm": "encoder_attn_layer_norm", "mlp_post_norm": "final_layer_norm",
} | {
    f"{ours}.{a}": f"{theirs}.{b}_proj" for ours, theirs in (("attn", "self_attn"), ("cross", "encoder_attn"))
    for a, b in zip("qkvo", ("q", "k", "v", "out"), strict=True)
}  # fmt: skip


class TorchSeq2Seq(nn.Module):
    """torch.nn.Transformer between an embedding and a tied head."""

    def __init__(self, ours: EncoderDecoder):
        super().__init__()
        config = ours.config
        attention, mlp, depth = config.layers[0].attention, config.layers[0].mlp, config.n_layers
        self.embed, self.scale = nn.Embedding(config.vocab_size, config.d_model), config.embed_scale
        self.core = nn.Transformer(
            config.d_model, attention.n_heads, depth, depth, mlp.d_ff, dropout=0.0, batch_first=True
        )
        self.core.encoder.norm = self.core.decoder.norm = None  # post-norm models have no final norms
        self.register_buffer("position_table", position_table(ours), persistent=False)
        found = {"embed.weight": ours.embed.weight}
        for side, stack in (("encoder", ours.encoder), ("decoder", ours)):
            norms = ["attn_post_norm", "cross_post_norm", "mlp_post_norm"]
            norms = norms if side == "decoder" else norms[::2]
            names = TORCH_NAMES | {norm: f"norm{i}" for i, norm in enumerate(norms, 1)}
            for i, block in enumerate(stack.blocks):
                own = block.state_dict()
                for kind in ("attn", "cross"):
                    for end in ("weight", "bias") if f"{kind}.q.weight" in own else ():
                        found[f"core.{side}.layers.{i}.{names[kind]}.in_proj_{end}"] = torch.cat(
                            [own.pop(f"{kind}.{part}.{end}") for part in "qkv"]
                        )
                found |= renamed(own, names, f"core.{side}.layers.{i}.")
        self.load_state_dict(found)

    def forward(self, source: Tensor, padding: Tensor, ids: Tensor) -> Tensor:
        """Return logits [B, T, V] for source [B, S], padding [B, S] (True at padding) and ids [B, T]."""
        source, target = (self.embed(x) * self.scale + self.position_table[: x.shape[1]] for x in (source, ids))
        causal = self.core.generate_square_subsequent_mask(ids.shape[1])
        hidden = self.core(
            source, target, tgt_mask=causal, tgt_is_causal=True, src_key_padding_mask=padding,
            memory_key_padding_mask=padding,
        )  # fmt: skip
        return F.linear(hidden, self.embed.weight)


def marian_model(ours: EncoderDecoder, begin: int) -> nn.Module:
    """Return transformers' model with our weights; it starts with the token `begin` and has no end token."""
    import transformers as hf

    config = ours.config
    attention, mlp, depth = config.layers[0].attention, config.layers[0].mlp, config.n_layers
    model = hf.MarianMTModel(
        hf.MarianConfig(
            vocab_size=config.vocab_size,
            max_position_embeddings=config.context_length,
            d_model=config.d_model,
            encoder_layers=depth,
            decoder_layers=depth,
            encoder_attention_heads=attention.n_heads,
            decoder_attention_heads=attention.n_heads,
            encoder_ffn_dim=mlp.d_ff,
            decoder_ffn_dim=mlp.d_ff,
            activation_function=mlp.activation,
            scale_embedding=True,
            dropout=0.0,
            decoder_start_token_id=begin,
            pad_token_id=begin,
            eos_token_id=None,
            forced_eos_token_id=None,
            attn_implementation="sdpa",
        )
    )
    found = {"model.shared.weight": ours.embed.weight}
    for side, stack in (("encoder", ours.encoder), ("decoder", ours)):
        for i, block in enumerate(stack.blocks):
            found |= renamed(block.state_dict(), MARIAN_NAMES, f"model.{side}.layers.{i}.")
        found[f"model.{side}.embed_positions.weight"] = position_table(ours)
    missing, unexpected = model.load_state_dict(found, strict=False)
    assert not unexpected, unexpected
    assert all(name.endswith(("final_logits_bias", "embed_tokens.weight", "lm_head.weight")) for name in missing), (
        missing
    )
    model.tie_weights()
    return model.eval()


def renamed(own: Mapping[str, Tensor], names: Mapping[str, str], to: str) -> dict[str, Tensor]:
    """Return a block's weights under the names of another library."""
    parts = ((*name.rpartition("."), value) for name, value in own.items())
    return {f"{to}{names[module]}.{end}": value for module, _, end, value in parts}


@torch.no_grad()
def position_table(ours: EncoderDecoder) -> Tensor:
    """Return our position embeddings, [context, D]; other libraries order sines and cosines differently."""
    assert ours.positions is not None
    return ours.positions(torch.arange(ours.config.context_length))
