"""Vision transformers' weights under other authors' names, and for images of another size."""

import sys

import pytest
import torch

from kdbench.models import build, load_checkpoint
from kdbench.models.layouts import _from_hugging_face, in_timms_layout
from kdbench.suite.components import NetworkSpec


SMALL = {"embed_dim": 64, "depth": 2, "num_heads": 2}


def network(name, **arguments):
    torch.manual_seed(1)
    return build(NetworkSpec(build=f"timm:{name}", arguments={**SMALL, **arguments}), 5).eval()


def test_position_embeddings_for_images_of_another_size(tmp_path):
    """What fits but for these is resampled by timm; the file's classifier is for other classes."""
    large, small = network("vit_small_patch14_dinov2", img_size=56), network("vit_small_patch14_dinov2", img_size=28)
    state = {key: value for key, value in large.net.state_dict().items() if not key.startswith("head")}
    torch.save(state, tmp_path / "dinov2.pth")
    load_checkpoint(small, tmp_path / "dinov2.pth", classifier=False)
    assert torch.equal(small.net.blocks[1].mlp.fc1.weight, large.net.blocks[1].mlp.fc1.weight)
    grid = large.net.pos_embed[:, 1:].reshape(1, 4, 4, 64).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(grid, (2, 2), mode="bicubic", antialias=True)
    torch.testing.assert_close(small.net.pos_embed[:, 1:], resized.flatten(2).transpose(1, 2))


def hugging_face(state):
    """DINOv2's tensors as Hugging Face's transformers name them."""
    pairs = {
        "embeddings.cls_token": state["cls_token"],
        "embeddings.mask_token": torch.zeros(1, 64),
        "embeddings.position_embeddings": state["pos_embed"],
        "layernorm.weight": state["norm.weight"],
        "layernorm.bias": state["norm.bias"],
    }
    for kind in ("weight", "bias"):
        pairs[f"embeddings.patch_embeddings.projection.{kind}"] = state[f"patch_embed.proj.{kind}"]
        for layer in range(2):
            ours, theirs = f"blocks.{layer}", f"encoder.layer.{layer}"
            parts = state[f"{ours}.attn.qkv.{kind}"].chunk(3)
            for name, part in zip(("query", "key", "value"), parts, strict=True):
                pairs[f"{theirs}.attention.attention.{name}.{kind}"] = part
            pairs[f"{theirs}.attention.output.dense.{kind}"] = state[f"{ours}.attn.proj.{kind}"]
            for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                pairs[f"{theirs}.{name}.{kind}"] = state[f"{ours}.{name}.{kind}"]
    for layer in range(2):
        for scale in (1, 2):
            pairs[f"encoder.layer.{layer}.layer_scale{scale}.lambda1"] = state[f"blocks.{layer}.ls{scale}.gamma"]
    return pairs


def test_dinov2_from_hugging_face(tmp_path):
    trained, fresh = (network("vit_small_patch14_dinov2", img_size=28) for _ in range(2))
    for parameter in trained.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    torch.save(hugging_face(trained.net.state_dict()), tmp_path / "model.bin")
    load_checkpoint(fresh, tmp_path / "model.bin", classifier=False)
    images = torch.randn(2, 3, 28, 28)
    torch.testing.assert_close(fresh(images).embedding, trained(images).embedding)


def test_siglips_names_and_those_of_its_pooling():
    own = "vision_model.encoder.layers.1.self_attn"
    shapes = {
        "vision_model.embeddings.patch_embedding.weight": (4, 3, 2, 2),
        "vision_model.embeddings.position_embedding.weight": (9, 4),
        **{f"{own}.{part}_proj.weight": (4, 4) for part in "qkv"},
        f"{own}.out_proj.bias": (4,),
        "vision_model.post_layernorm.bias": (4,),
        "vision_model.head.probe": (1, 1, 4),
        "vision_model.head.attention.in_proj_weight": (12, 4),
        "vision_model.head.attention.in_proj_bias": (12,),
    }
    given = {name: torch.randn(*shape) for name, shape in shapes.items()}
    patch, positions, *three, out, norm, probe, weight, bias = given.values()
    expected = {
        "patch_embed.proj.weight": patch, "pos_embed": positions[None], "blocks.1.attn.qkv.weight": torch.cat(three),
        "blocks.1.attn.proj.bias": out, "norm.bias": norm, "attn_pool.latent": probe,
        "attn_pool.q.weight": weight[:4], "attn_pool.kv.weight": weight[4:],
        "attn_pool.q.bias": bias[:4], "attn_pool.kv.bias": bias[4:],
    }  # fmt: skip
    found = _from_hugging_face(given)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("kind", ["Dinov2", "Dinov2WithRegisters", "ViT", "SiglipVision"])
def test_transformers_own_networks(kind):
    """Runs where the package transformers is installed."""
    transformers = pytest.importorskip("transformers", reason="needs the package transformers")
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    extra = {} if "Dinov2" in kind else {"intermediate_size": 256}
    theirs = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**sizes, **extra)).eval()
    names = {
        "Dinov2": ("vit_small_patch14_dinov2", {}),
        "Dinov2WithRegisters": ("vit_small_patch14_reg4_dinov2", {}),
        "ViT": ("vit_tiny_patch16_224", {"patch_size": 14}),
        "SiglipVision": ("vit_base_patch16_siglip_224", {"patch_size": 14}),
    }
    name, arguments = names[kind]
    ours = network(name, img_size=28, **arguments)
    ours.net.load_state_dict(in_timms_layout(ours.net, theirs.state_dict()), strict=False)
    images = torch.randn(2, 3, 28, 28)
    output = theirs(images)
    expected = output.pooler_output if kind == "SiglipVision" else output.last_hidden_state[:, 0]
    torch.testing.assert_close(ours(images).embedding, expected, rtol=1e-2, atol=2e-3)


def test_what_is_in_no_known_layout_keeps_its_names():
    given = {"classifier.weight": torch.zeros(2, 3), "layernorm.bias": torch.zeros(3)}
    assert _from_hugging_face(given) == given


def test_networks_that_are_not_timms_or_that_timm_does_not_convert_have_no_layouts():
    timm = pytest.importorskip("timm")

    class Elsewhere(torch.nn.Module):
        """A network beside which there is a function of timm's name."""

    here = sys.modules[__name__]
    assert in_timms_layout(timm.layers.DropPath(), {}) is None
    assert in_timms_layout(Elsewhere(), {}) is None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(here, "checkpoint_filter_fn", lambda tensors, net: tensors, raising=False)
        assert in_timms_layout(Elsewhere(), {}) is None
