"""Published key layouts of further pathology encoders, and the numbers they give, against other formulations."""

import re

import pytest
import timm
import torch
from encoder_layouts import SMALL_RESNET, SMALL_SWIN, SMALL_VIT, close, loud, run, shrink, under
from test_backbones import noise
from torch import Tensor, nn
from torch.nn import functional as F

from runtime import eager, registry
from runtime.request import make_request


@pytest.mark.parametrize("projection", [False, True])
@torch.no_grad()
def test_conchs_published_tower_pools_with_one_query_of_multi_head_attention(
    monkeypatch: pytest.MonkeyPatch, projection: bool
) -> None:
    shrink(monkeypatch, **SMALL_VIT)
    trunk = loud(
        timm.create_model("vit_base_patch16_224", img_size=448, num_classes=0, global_pool="", init_values=None)
    )
    attention = loud(nn.MultiheadAttention(512, 8, kdim=48, vdim=48, batch_first=True))
    for weight in (attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight):
        weight.mul_((3 / weight.shape[1]) ** 0.5)
    nn.init.uniform_(attention.in_proj_bias, -0.5, 0.5)
    on_query, on_tokens, last = (loud(nn.LayerNorm(width)) for width in (512, 48, 512))
    query, matrix = noise(1, 512), noise(512, 512) / 512**0.5
    pooler = under("attn.", attention) | under("ln_q.", on_query) | under("ln_k.", on_tokens) | {"query": query}
    tower = under("trunk.", trunk) | under("ln_contrast.", last) | {"proj_contrast": matrix}
    tower |= {f"attn_pool_contrast.{key}": value for key, value in pooler.items()}
    tower |= {"attn_pool_caption.query": torch.zeros(256, 768), "ln_caption.weight": torch.zeros(768)}
    surplus = {"text.cls_emb": torch.zeros(768), "text_decoder.resblocks.0.ln_1.weight": torch.zeros(768)}
    checkpoint = {f"visual.{key}": value for key, value in tower.items()} | surplus | {"logit_scale": torch.zeros(())}
    # In float64: which formulation rounds how is up to the processor.
    images, query, matrix = noise(3, 3, 448, 448).double(), query.double(), matrix.double()
    for module in (trunk, attention, on_query, on_tokens, last):
        module.double()

    got = run("conch_v1", checkpoint, images, contrastive_projection=projection)

    tokens = on_tokens(trunk.forward_features(images))
    pooled = last(attention(on_query(query).expand(3, 1, 512), tokens, tokens)[0][:, 0])
    close(got, pooled @ matrix if projection else pooled)


@torch.no_grad()
def test_keeps_published_tower_is_projected_to_unit_length(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch, **SMALL_VIT)
    trunk = loud(timm.create_model("vit_large_patch16_224", num_classes=0, init_values=1e-5))
    head = loud(nn.Sequential(nn.Linear(48, 768), nn.GELU(), nn.Linear(768, 768)))
    published = {key.replace(".gamma", ".weight"): value for key, value in under("visual.", trunk).items()}
    checkpoint = published | under("visual_head.", head) | {"text.pooler.dense.bias": torch.zeros(768)}
    images = noise(3, 3, 224, 224)

    got = run("keep", checkpoint | {"logit_scale": torch.zeros(())}, images)

    assert "visual.blocks.1.ls2.weight" in checkpoint
    expected = head(trunk.forward_features(images)[:, 0])
    close(got, expected / expected.norm(dim=1, keepdim=True))


def beit3(depth: int, width: int) -> dict[str, Tensor]:
    """Return the tensors of torchscale's BEiT-3 as MUSK publishes them; B is the text branch."""
    linear = {f"self_attn.{part}_proj": (width, width) for part in ("q", "k", "v", "out")}
    norms = ("self_attn.inner_attn_ln", "self_attn_layer_norm", "final_layer_norm")
    shapes: dict[str, tuple[int, ...]] = {}
    for branch in "AB":
        layer = {f"{name}.{branch}.weight": shape for name, shape in linear.items()}
        layer |= {f"ffn.{branch}.fc1.weight": (4 * width, width), f"ffn.{branch}.fc2.weight": (width, 4 * width)}
        layer |= {f"{name}.{branch}.weight": (width,) for name in norms}
        layer |= {f"ffn.{branch}.ffn_layernorm.weight": (4 * width,)}
        layer |= {name.replace("weight", "bias"): shape[:1] for name, shape in layer.items()}
        shapes |= {f"encoder.layers.{i}.{name}": shape for i in range(depth) for name, shape in layer.items()}
        shapes |= {f"encoder.layer_norm.{branch}.{name}": (width,) for name in ("weight", "bias")}
    shapes |= {"encoder.embed_positions.A.weight": (24 * 24 + 3, width)}
    shapes |= {"encoder.embed_positions.B.weight": (64, width), "text_embed.weight": (64, width)}
    shapes |= {f"vision_embed.{token}_token": (1, 1, width) for token in ("cls", "mask")}
    shapes |= {"vision_embed.proj.weight": (width, 3, 16, 16), "vision_embed.proj.bias": (width,)}
    heads = {"vision_head.weight": torch.zeros(width, width), "logit_scale": torch.zeros(())}
    generator = torch.Generator().manual_seed(0)
    return heads | {f"beit3.{name}": 0.2 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def beit3_embedding(tensors: dict[str, Tensor], images: Tensor, depth: int, heads: int) -> Tensor:
    """Return the vision branch's CLS token, straight from the published tensors."""

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, tensors[f"beit3.{name}.weight"], tensors[f"beit3.{name}.bias"])

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], tensors[f"beit3.{name}.weight"], tensors[f"beit3.{name}.bias"], 1e-5)

    stem = F.conv2d(images, tensors["beit3.vision_embed.proj.weight"], tensors["beit3.vision_embed.proj.bias"], 16)
    cls = tensors["beit3.vision_embed.cls_token"].expand(len(images), -1, -1)
    x = torch.cat([cls, stem.flatten(2).mT], 1)
    x = x + tensors["beit3.encoder.embed_positions.A.weight"][torch.arange(2, x.shape[1] + 2)]
    for i in range(depth):
        layer = f"encoder.layers.{i}"
        y = norm(f"{layer}.self_attn_layer_norm.A", x)
        q, k, v = (
            torch.stack(linear(f"{layer}.self_attn.{part}_proj.A", y).chunk(heads, -1), 1) for part in ("q", "k", "v")
        )
        y = torch.cat(((q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v).unbind(1), -1)
        x = x + linear(f"{layer}.self_attn.out_proj.A", norm(f"{layer}.self_attn.inner_attn_ln.A", y))
        y = F.gelu(linear(f"{layer}.ffn.A.fc1", norm(f"{layer}.final_layer_norm.A", x)))
        x = x + linear(f"{layer}.ffn.A.fc2", norm(f"{layer}.ffn.A.ffn_layernorm", y))
    return norm("encoder.layer_norm.A", x)[:, 0]


def test_musks_vision_branch_gives_the_cls_token_of_beit3(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch, **SMALL_VIT)
    checkpoint, images = beit3(depth=2, width=48), noise(2, 3, 384, 384)

    close(run("musk", checkpoint, images), beit3_embedding(checkpoint, images, depth=2, heads=3))


@torch.no_grad()
def test_plip_is_the_clip_of_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")
    shrink(monkeypatch, **SMALL_VIT)
    sizes = {"hidden_size": 48, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 3}
    # vinid/plip states no more: the rest is the default, OpenAI's ViT-B/32.
    theirs = loud(transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**sizes)))
    surplus = {"text_model.embeddings.position_ids": torch.zeros(1, 77), "logit_scale": torch.zeros(())}
    surplus |= {"vision_model.embeddings.position_ids": torch.zeros(1, 50), "text_projection.weight": torch.zeros(512)}
    images = noise(2, 3, 224, 224)

    close(run("plip", theirs.state_dict() | surplus, images), theirs(images).image_embeds)


@torch.no_grad()
def test_isight_is_the_mean_of_clips_projected_last_hidden_state(monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")
    shrink(monkeypatch, **SMALL_VIT)
    sizes = {"hidden_size": 48, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 3}
    config = transformers.CLIPVisionConfig(**sizes, image_size=336, patch_size=14, projection_dim=768)
    theirs, projection = loud(transformers.CLIPVisionModelWithProjection(config)), loud(nn.Linear(48, 48))
    tensors = under("patch_encoder.", theirs) | under("visual_token_projection.", projection)
    tensors |= {"attention_net.0.weight": torch.zeros(1), "patch_encoder.text_projection.weight": torch.zeros(1)}
    images = noise(2, 3, 336, 336)

    got = run("isight", {"model_state_dict": tensors, "epoch": 3}, images)

    hidden = theirs(images, output_hidden_states=True).hidden_states[-1]
    close(got, projection(hidden).mean(1))


@pytest.mark.parametrize("counters", [True, False])
@torch.no_grad()
def test_the_resnets_are_torchvisions(monkeypatch: pytest.MonkeyPatch, counters: bool) -> None:
    from torchvision.models.resnet import Bottleneck, ResNet

    shrink(monkeypatch, **SMALL_RESNET)
    theirs = loud(ResNet(Bottleneck, list(SMALL_RESNET["layers"])))
    checkpoint = {k: v for k, v in theirs.state_dict().items() if counters or not k.endswith("num_batches_tracked")}
    images = noise(2, 3, 64, 64)
    expected = [theirs.relu(theirs.bn1(theirs.conv1(images)))]
    stages = (nn.Sequential(theirs.maxpool, theirs.layer1), theirs.layer2, theirs.layer3, theirs.layer4)
    for stage in stages:
        expected.append(stage(expected[-1]))

    close(run("lunit_resnet50_swav", checkpoint, images), expected[4].mean((2, 3)))
    close(run("pathology/resnet50", checkpoint, images), expected[3].mean((2, 3)))
    for name, count in (("lunit_resnet50_bt", 5), ("pathology/resnet50", 4)):
        for got, one in zip(run(name, checkpoint, images, out_indices=count), expected[:count], strict=True):
            close(got, one)
    assert torch.equal(run("pathology/resnet50", checkpoint, images, out_indices=(-1,))[0], expected[3])


@pytest.mark.parametrize("name", ["ctranspath", "chief"])
@torch.no_grad()
def test_ctranspaths_old_layout_is_read_stage_by_stage(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    shrink(monkeypatch, **SMALL_SWIN)
    swin = eager.build(make_request(registry.find(name), None, {"weights": "random"})).module.model
    # timm 0.5 kept the downsampling at the end of the stage before, and what is computed among the tensors.
    old = {re.sub(r"\d(?=\.downsample)", lambda i: str(int(i[0]) - 1), k): v for k, v in swin.state_dict().items()}
    old |= {"layers.0.blocks.1.attn_mask": torch.zeros(64, 49, 49)}
    old |= {"layers.0.blocks.1.attn.relative_position_index": torch.zeros(49, 49)}
    images = noise(2, 3, 224, 224)
    last = swin.layers(swin.patch_embed(images))

    assert {"layers.0.downsample.reduction.weight", "patch_embed.proj.6.bias", "norm.weight"} <= old.keys()
    close(run(name, {"model": old}, images), F.layer_norm(last, (192,), swin.norm.weight, swin.norm.bias).mean((1, 2)))
    maps = run(name, {"model": old}, images, out_indices=(0, -1))
    torch.testing.assert_close(maps[1], last.permute(0, 3, 1, 2))
    assert maps[0].shape == (2, 24, 56, 56)


@torch.no_grad()
def test_ctranspaths_stem_and_merging_are_those_of_its_authors(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch, **SMALL_SWIN)
    swin = eager.build(make_request(registry.find("ctranspath"), None, {"weights": "random"})).module.model
    images, tokens = noise(2, 3, 224, 224), noise(2, 8, 8, 24)
    stem, expected = swin.patch_embed.proj, images
    for i in (0, 3):
        norm = stem[i + 1]
        expected = F.conv2d(expected, stem[i].weight, stride=2, padding=1)
        expected = F.batch_norm(expected, norm.running_mean, norm.running_var, norm.weight, norm.bias).relu()
    expected = F.conv2d(expected, stem[6].weight, stem[6].bias).permute(0, 2, 3, 1)
    weights = swin.patch_embed.norm
    # (0, 0), (1, 0), (0, 1), (1, 1) of each two by two tokens, in this order.
    merged = torch.cat([tokens[:, row::2, column::2] for column in (0, 1) for row in (0, 1)], -1)
    down = swin.layers[1].downsample

    torch.testing.assert_close(swin.patch_embed(images), F.layer_norm(expected, (24,), weights.weight, weights.bias))
    torch.testing.assert_close(down(tokens), down.reduction(down.norm(merged)))


@torch.no_grad()
def test_openmidnights_dinov2_layout_is_read_with_its_position_embedding(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch, **SMALL_VIT)
    name = "vit_giant_patch14_reg4_dinov2"
    theirs = loud(timm.create_model(name, img_size=224, num_classes=0, init_values=1e-5))
    position, cls = noise(1, 1 + 16 * 16, 48), noise(1, 1, 48)
    theirs.cls_token.copy_(cls + position[:, :1])  # DINOv2 adds the first position to the CLS token
    theirs.pos_embed.copy_(position[:, 1:])
    renamed = {"reg_token": "register_tokens", "mlp.fc1": "mlp.w12", "mlp.fc2": "mlp.w3"}
    checkpoint = {
        re.sub("|".join(renamed), lambda found: renamed[found[0]], key): value
        for key, value in theirs.state_dict().items()
    }
    checkpoint |= {"cls_token": cls, "pos_embed": position, "mask_token": torch.zeros(1, 48)}
    images = noise(2, 3, 224, 224)

    assert {"register_tokens", "blocks.1.mlp.w12.weight", "blocks.0.ls1.gamma"} <= checkpoint.keys()
    close(run("openmidnight", checkpoint, images), theirs(images))
