"""Other layouts of the weights of timm's networks: other authors' names and shapes of the same tensors."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from kdbench.errors import BadInput, reason_of


def in_timms_layout(net: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """The tensors of a file under the names and with the shapes that one of timm's networks has for them.

    Known are what timm itself converts (open_clip's, OpenAI's and Meta's files, position embeddings for images of another
    size), and the vision transformers, DINOv2 and SigLIP of Hugging Face's transformers. None for a network that is not
    timm's. Raises BadInput where timm cannot convert what is there.
    """
    convert = getattr(sys.modules.get(type(net).__module__), "checkpoint_filter_fn", None)
    if convert is None or not type(net).__module__.startswith("timm."):
        return None
    try:
        converted = convert({name: tensor.float() for name, tensor in _from_hugging_face(tensors).items()}, net)
    except Exception as error:
        raise BadInput(f"timm cannot convert them: {reason_of(error)}") from None
    return {name: tensor for name, tensor in dict(converted).items() if isinstance(tensor, Tensor)}


_RENAMED = [
    (r"^(vit|deit|dinov2|vision_model)\.", ""),
    (r"^embeddings\.(cls_token|mask_token|register_tokens)$", r"\1"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.position_embedding\.weight$", "pos_embed"),
    (r"^embeddings\.(patch_embeddings\.projection|patch_embedding)\.", "patch_embed.proj."),
    (r"^(encoder\.)?layers?\.(\d+)\.", r"blocks.\2."),
    (r"\.(layernorm_before|layer_norm1)\.", ".norm1."),
    (r"\.(layernorm_after|layer_norm2)\.", ".norm2."),
    (r"\.(attention\.attention|attention|self_attn)\.(query|q_proj)\.", ".attn.q."),
    (r"\.(attention\.attention|attention|self_attn)\.(key|k_proj)\.", ".attn.k."),
    (r"\.(attention\.attention|attention|self_attn)\.(value|v_proj)\.", ".attn.v."),
    (r"\.(attention\.output\.dense|attention\.o_proj|self_attn\.out_proj)\.", ".attn.proj."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"^(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
    (r"\.mlp\.weights_in\.", ".mlp.w12."),
    (r"\.mlp\.weights_out\.", ".mlp.w3."),
    (r"^(layernorm|post_layernorm)\.", "norm."),
    (r"^head\.probe$", "attn_pool.latent"),
    (r"^head\.attention\.in_proj_", "attn_pool.in_proj_"),
    (r"^head\.attention\.out_proj\.", "attn_pool.proj."),
    (r"^head\.layernorm\.", "attn_pool.norm."),
    (r"^head\.mlp\.", "attn_pool.mlp."),
    (r"^classifier\.", "head."),
]
"""Patterns of names in Hugging Face's layout, and what stands for them in timm's; each name goes through all in order."""


def _from_hugging_face(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors with Hugging Face's names under timm's; those of other layouts unchanged."""
    if not any("embeddings.patch_embedding" in name for name in tensors):
        return dict(tensors)
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        for pattern, replacement in _RENAMED:
            name = re.sub(pattern, replacement, name)
        found[name] = tensor
    for name in [name for name in found if ".attn.q." in name]:
        parts = [found.pop(name.replace(".attn.q.", f".attn.{part}.")) for part in "qkv"]
        found[name.replace(".attn.q.", ".attn.qkv.")] = torch.cat(parts)
    if (positions := found.get("pos_embed")) is not None and positions.dim() == 2:
        found["pos_embed"] = positions.unsqueeze(0)
    for kind in ("weight", "bias"):
        if (both := found.pop(f"attn_pool.in_proj_{kind}", None)) is not None:
            width = len(both) // 3
            found[f"attn_pool.q.{kind}"], found[f"attn_pool.kv.{kind}"] = both[:width], both[width:]
    return found
