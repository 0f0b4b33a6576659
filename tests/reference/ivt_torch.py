"""The released recipe once more, in plain PyTorch: tower, CMPM over the stacked levels, token dropping, SGD.

Written from the paper and from the facts in docs/recipe.md alone, and independent of ivt_jax: nothing here imports it.
Parameters carry the names of the release's checkpoint (`encoder_vl.blocks.0.attn.qkv.weight`, ...), so that
ivt_jax.conversion translates a state dict in both directions. Dropout and stochastic depth are left out: two
frameworks never draw the same. Every function follows its inputs' dtype; float64 works.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

MASKED_SCORE = -10000.0  # added to the scores of padded keys


class TextEmbeddings(nn.Module):
    """Word + position + token type (always 0), then LayerNorm: ids (B, L) to (B, L, width)."""

    def __init__(self, vocab_size: int, positions: int, width: int):
        super().__init__()
        self.word_embeddings = nn.Embedding(vocab_size, width, padding_idx=0)
        self.position_embeddings = nn.Embedding(positions, width)
        self.token_type_embeddings = nn.Embedding(2, width)
        self.LayerNorm = nn.LayerNorm(width, eps=1e-12)
        self.register_buffer("position_ids", torch.arange(positions)[None])

    def forward(self, ids: Tensor) -> Tensor:
        positions = self.position_ids[:, : ids.shape[1]]
        types = self.token_type_embeddings(torch.zeros_like(ids))
        return self.LayerNorm(self.word_embeddings(ids) + self.position_embeddings(positions) + types)


class PatchEmbed(nn.Module):
    """A convolution over patches: images (B, 3, H, W) to (B, rows * columns, width), row by row."""

    def __init__(self, patch: int, stride: int, width: int):
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=patch, stride=stride)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Self-attention with one fused projection: tokens (B, N, width), mask (B, N) of 1 (token) and 0 (padding)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        batch, length, width = tokens.shape
        query, key, value = self.qkv(tokens).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = query @ key.transpose(-2, -1) / math.sqrt(width // self.heads)
        scores = scores + (1 - mask.to(scores.dtype))[:, None, None, :] * MASKED_SCORE
        mixed = scores.softmax(dim=-1) @ value
        return self.proj(mixed.transpose(1, 2).reshape(batch, length, width))


class Mlp(nn.Module):
    """Two layers with exact (erf) GELU between."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(functional.gelu(self.fc1(tokens)))


class Block(nn.Module):
    """Pre-norm block: norms and attention serve both modalities, each has an MLP of its own."""

    def __init__(self, width: int, heads: int, mlp_ratio: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp_vis = Mlp(width, mlp_ratio * width)
        self.mlp_txt = Mlp(width, mlp_ratio * width)

    def forward(self, tokens: Tensor, mask: Tensor, modality: str) -> Tensor:
        tokens = tokens + self.attn(self.norm1(tokens), mask)
        mlp = self.mlp_vis if modality == "image" else self.mlp_txt
        return tokens + mlp(self.norm2(tokens))


class Tower(nn.Module):
    """The one transformer for both modalities; `image_size` (height, width), `stride` <= `patch` may overlap."""

    def __init__(
        self,
        image_size: tuple[int, int],
        patch: int,
        stride: int,
        width: int,
        depth: int,
        heads: int,
        vocab_size: int,
        positions: int,
        mlp_ratio: int = 4,
    ):
        super().__init__()
        tokens = 1 + math.prod((side - patch) // stride + 1 for side in image_size)
        self.embeddings = TextEmbeddings(vocab_size, positions, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, width))
        self.type_embed = nn.Parameter(torch.zeros(1, tokens, width))
        self.patch_embed = PatchEmbed(patch, stride, width)
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, tokens: Tensor, mask: Tensor, modality: str, kept: Tensor | None) -> Tensor:
        """Embedded tokens (B, N, width) through the blocks; `kept` (K,) are the positions that are not dropped."""
        if kept is not None:
            tokens, mask = tokens[:, kept], mask[:, kept]
        for block in self.blocks:
            tokens = block(tokens, mask, modality)
        return self.norm(tokens)


class IVT(nn.Module):
    """The model as its checkpoint names it: everything under `encoder_vl`, no projection head."""

    def __init__(self, **sizes):
        super().__init__()
        self.encoder_vl = Tower(**sizes)

    def encode_image(self, images: Tensor, kept: Tensor | None = None) -> Tensor:
        """Normalised images (B, H, W, 3) to tokens (B, K, width), [CLS] first."""
        tower = self.encoder_vl
        patches = tower.patch_embed(images.permute(0, 3, 1, 2))
        tokens = torch.cat([tower.cls_token.expand(len(images), -1, -1), patches], dim=1)
        tokens = tokens + tower.pos_embed + tower.type_embed
        return tower(tokens, torch.ones(tokens.shape[:2]), "image", kept)

    def encode_text(self, ids: Tensor, mask: Tensor, kept: Tensor | None = None) -> Tensor:
        """Token ids (B, L) and mask (B, L) to tokens (B, K, width), [CLS] first."""
        return self.encoder_vl(self.encoder_vl.embeddings(ids), mask, "text", kept)


def cmpm(images: Tensor, texts: Tensor, persons: Tensor) -> Tensor:
    """Cross-modal projection matching of embeddings (n, width) with person ids (n,): image to text + text to image.

    The query side is not normalised, the other is; the target row is divided by its L2 norm, as the release does.
    """
    same = (persons[:, None] == persons[None]).to(images.dtype)
    target = same / same.norm(dim=1, keepdim=True)

    def one_way(queries: Tensor, keys: Tensor) -> Tensor:
        log_p = functional.log_softmax(queries @ functional.normalize(keys, dim=1).T, dim=1)
        return (log_p.exp() * (log_p - torch.log(target + 1e-8))).sum(dim=1).mean()

    return one_way(images, texts) + one_way(texts, images)


def stacked_loss(
    model: IVT,
    views: Sequence[Tensor],
    texts: Sequence[tuple[Tensor, Tensor]],
    persons: Tensor,
    image_kept: Tensor | None = None,
    text_kept: Tensor | None = None,
) -> Tensor:
    """One CMPM over all levels stacked: views (n, H, W, 3) each, texts (ids, mask), each (n, its length).

    The levels' texts are padded to the longest of all, and one draw of dropped positions serves every view, another
    every text.
    """
    longest = max(ids.shape[1] for ids, _ in texts)
    ids = torch.cat([functional.pad(ids, (0, longest - ids.shape[1])) for ids, _ in texts])
    mask = torch.cat([functional.pad(mask, (0, longest - mask.shape[1])) for _, mask in texts])
    image_cls = model.encode_image(torch.cat(list(views)), image_kept)[:, 0]
    text_cls = model.encode_text(ids, mask, text_kept)[:, 0]
    return cmpm(image_cls, text_cls, persons.repeat(len(views)))


def sgd(model: nn.Module) -> torch.optim.SGD:
    """Momentum 0.9, weight decay 1e-4 added to the gradient of everything; names with "bias" are the second group."""
    named = list(model.named_parameters())
    groups = [
        {"params": [value for name, value in named if "bias" not in name]},
        {"params": [value for name, value in named if "bias" in name]},
    ]
    return torch.optim.SGD(groups, lr=0.0, momentum=0.9, weight_decay=1e-4)


def set_rates(optimizer: torch.optim.SGD, weights: float, biases: float) -> None:
    """The rates of the two groups of `sgd`."""
    for group, rate in zip(optimizer.param_groups, (weights, biases), strict=True):
        group["lr"] = rate


def released_rate(epoch: int, peak: float, base: float = 0.005, warmup: int = 5, epochs: int = 120) -> float:
    """The rate throughout an epoch: a linear warm-up to `peak`, then a cosine over all epochs.

    Start and floor are 0.01 and 0.002 of `base`, the peak of the weights, for both groups of parameters.
    """
    start, floor = 0.01 * base, 0.002 * base
    if epoch < warmup:
        return start + epoch * (peak - start) / warmup
    return floor + 0.5 * (peak - floor) * (1 + math.cos(math.pi * epoch / epochs))
