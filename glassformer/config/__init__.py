"""Model configurations as frozen dataclasses. Imports no torch; knows no model families."""

from glassformer.config.attention import AttentionConfig, RelativeConfig
from glassformer.config.fields import as_dict, change
from glassformer.config.latent import LatentConfig
from glassformer.config.layer import LayerConfig
from glassformer.config.mlp import Activation, MLPConfig
from glassformer.config.model import EncoderConfig, ModelConfig, Positions
from glassformer.config.moe import MoEConfig
from glassformer.config.norm import NormConfig
from glassformer.config.pooling import DenseActivation, DenseConfig, Pool, PoolingConfig, Similarity
from glassformer.config.recurrent import RecurrentConfig
from glassformer.config.rope import RopeConfig
from glassformer.config.rope_scaling import BandScaling, LinearScaling, LongScaling, Scaling, YarnScaling
from glassformer.config.text_encoder import MaskedHeadConfig, TextEncoderConfig

__all__ = [
    "Activation",
    "AttentionConfig",
    "BandScaling",
    "DenseActivation",
    "DenseConfig",
    "EncoderConfig",
    "LatentConfig",
    "LayerConfig",
    "LinearScaling",
    "LongScaling",
    "MLPConfig",
    "MaskedHeadConfig",
    "MoEConfig",
    "ModelConfig",
    "NormConfig",
    "Pool",
    "PoolingConfig",
    "Positions",
    "RecurrentConfig",
    "RelativeConfig",
    "RopeConfig",
    "Scaling",
    "Similarity",
    "TextEncoderConfig",
    "YarnScaling",
    "as_dict",
    "change",
]
