"""The method written a second time, as plainly as possible: an image, a token at a time, full attention matrices.

Nothing here is shared with the package. A sequence is a Python list of `Token`, so that who holds which patch, what was
merged and what was recovered is plain bookkeeping. Weights are read from a state dict in the names of the published
checkpoints. Slow on purpose; differentiable, so gradients can be compared as well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from plain_reductions import Decide, PlainReductions, Settings, Token
from torch import Tensor


@dataclass
class Outcome:
    """What one image gives: logits [K], tokens and owners after each block, and each location's kept share."""

    tokens: list[int]
    owner: list[list[int]]
    collected: list[Tensor]
    final: list[Token]
    ratio_terms: list[Tensor]
    logits: Tensor | None = None


class PlainViT(PlainReductions):
    """A pre-norm ViT with token reduction and CLCA.

    Args:
        state: State dict in the published names.
        settings: See `Settings`.
    """

    def __init__(self, state: dict[str, Tensor], settings: Settings) -> None:
        super().__init__(state, settings)
        self.depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
        self.num_clr = settings.num_clr if settings.clc else 0
        self.recover = set()
        if settings.clc:
            self.recover = set(settings.locations)
            if settings.clc_recover_at_last and self.depth >= 2:
                self.recover.add(self.depth - 2)
        self.last = max(self.recover, default=-1)

    # ------------------------------------------------------------------ section 1: token layout

    def embed(self, image: Tensor) -> list[Token]:
        """image: [3, S, S] -> [CLS, DIST or REG | patches | CLR]."""
        weight = self.w["patch_embed.proj.weight"]
        side = weight.shape[-1]
        patches = []
        for top in range(0, image.shape[1], side):
            for left in range(0, image.shape[2], side):
                window = image[:, top : top + side, left : left + side]
                vector = weight.flatten(1) @ window.reshape(-1)
                if "patch_embed.proj.bias" in self.w:
                    vector = vector + self.w["patch_embed.proj.bias"]
                patches.append(Token(vector, "patch", [len(patches)]))
        prefix = [Token(row, "prefix") for name in ("cls_token", "dist_token", "reg_token") for row in self.rows(name)]
        carriers = [Token(row, "cache") for row in self.rows("clr")] if self.num_clr else []
        assert len(carriers) == self.num_clr
        self.num_prefix, self.num_patches = len(prefix), len(patches)
        tokens = prefix + patches + carriers
        table = self.rows("pos_embed")
        if len(table) == len(tokens):
            places = tokens
        elif len(table) == len(patches):
            places = patches
        else:
            assert not table
            places = []
        for token, position in zip(places, table, strict=True):
            token.vector = token.vector + position
        if "norm_pre.weight" in self.w:
            for token in tokens:
                token.vector = self.layer_norm("norm_pre", token.vector, self.s.norm_eps)
        return tokens

    def rows(self, name: str) -> list[Tensor]:
        return list(self.w[name][0]) if name in self.w else []

    # ------------------------------------------------------------------ blocks

    def scaled(self, name: str, x: Tensor) -> Tensor:
        gamma = self.w.get(name + ".gamma")
        return x if gamma is None else x * gamma

    def attention(
        self, i: int, x: list[Token], merged: bool, masked: bool
    ) -> tuple[Tensor, list[Tensor], Tensor, Tensor]:
        """Block i's attention over x: (update [N, C], one matrix [N, N] a head, keys and values [H, N, d])."""
        name = f"blocks.{i}.attn"
        normed = self.layer_norm(f"blocks.{i}.norm1", torch.stack([t.vector for t in x]), self.s.norm_eps)
        count, heads = len(x), self.s.num_heads
        q, k, v = self.linear(name + ".qkv", normed).reshape(count, 3, heads, -1).permute(1, 2, 0, 3)
        if name + ".q_norm.weight" in self.w:
            q = self.layer_norm(name + ".q_norm", q, self.s.norm_eps)
            k = self.layer_norm(name + ".k_norm", k, self.s.norm_eps)
        matrices, outputs = [], []
        for h in range(heads):
            scores = q[h] @ k[h].T / math.sqrt(q.shape[-1])
            if merged:
                scores = scores + torch.tensor([math.log(t.size) for t in x], dtype=scores.dtype)
            policy = [t.policy for t in x]
            matrices.append(self.masked_softmax(scores, policy) if masked else torch.softmax(scores, dim=-1))
            outputs.append(matrices[h] @ v[h])
        update = self.linear(name + ".proj", torch.cat(outputs, dim=-1))
        return self.scaled(f"blocks.{i}.ls1", update), matrices, k, v

    @staticmethod
    def masked_softmax(scores: Tensor, policy: list[Tensor | float]) -> Tensor:
        """DynamicViT's attention in training: a key weighs as its policy says, a token's own key always 1."""
        count = len(policy)
        rows = []
        for i in range(count):
            weights = torch.exp(scores[i] - scores[i].max())
            allowed = torch.stack(
                [torch.as_tensor(1.0 if j == i else policy[j], dtype=scores.dtype) for j in range(count)]
            )
            weights = weights * allowed
            rows.append((weights + 1e-6 / count) / (weights.sum() + 1e-6))
        return torch.stack(rows)

    def mlp(self, i: int, x: list[Token]) -> None:
        normed = self.layer_norm(f"blocks.{i}.norm2", torch.stack([t.vector for t in x]), self.s.norm_eps)
        hidden = F.gelu(self.linear(f"blocks.{i}.mlp.fc1", normed))
        update = self.scaled(f"blocks.{i}.ls2", self.linear(f"blocks.{i}.mlp.fc2", hidden))
        for token, row in zip(x, update, strict=True):
            token.vector = token.vector + row

    # ------------------------------------------------------------------ the forward pass of one image

    def run(self, image: Tensor, decide: Decide | None = None) -> Outcome:
        """image [3, S, S]. With `decide`, DynamicViT as it runs in training."""
        x = self.embed(image)
        first_length = len(x)
        cache: list[Tensor] = []
        n_pool = len(x) - self.num_clr
        merged = masked = False
        out = Outcome([], [], [], [], [])
        for i in range(self.depth):
            j = self.s.locations.index(i) if i in self.s.locations else None
            if j is not None and self.s.reduction == "dynamicvit":
                if decide is None:
                    x = self.dynamicvit(j, x, first_length)
                else:
                    out.ratio_terms.append(self.dynamicvit_training(j, x, decide))
                    masked = True
            elif j is not None and self.s.reduction in ("patchmerger", "sit", "dpcknn"):
                x = getattr(self, self.s.reduction)(j, x)
            update, matrices, keys, values = self.attention(i, x, merged, masked)
            for token, row in zip(x, update, strict=True):
                token.vector = token.vector + row
            if j is not None and self.s.reduction in ("topk", "evit", "ats"):
                x = getattr(self, self.s.reduction)(j, x, matrices, values)
            if j is not None and self.s.reduction == "tome":
                before = len(x)
                x = self.tome(j, x, keys)
                merged = merged or len(x) < before
            self.mlp(i, x)
            out.tokens.append(len(x))
            owner = [-1] * self.num_patches
            for place, token in enumerate(x):
                for patch in token.patches:
                    owner[patch] = place
            out.owner.append(owner)
            # section 2: the cross-layer cache
            if i in self.recover:
                n_pool = len(x)
                policy = 1.0 if decide is not None else 0.0
                x = x + [Token(vector, "cache", policy=policy) for vector in cache]
                cache = []
            if i < self.last:
                if self.s.clc_gap:
                    cache.append(self.gap(x[self.num_prefix : n_pool], weighted=decide is not None))
                if self.num_clr:
                    cache.extend(token.vector for token in x[-self.num_clr :])
            if j is not None:
                out.collected.append(x[0].vector)
        out.collected.append(x[0].vector)
        out.final = x
        return out

    @staticmethod
    def gap(pooled: list[Token], weighted: bool) -> Tensor:
        total, weight = torch.zeros_like(pooled[0].vector), 0.0
        for token in pooled:
            share = token.policy if weighted else 1.0
            total, weight = total + share * token.vector, weight + share
        return total / weight

    def __call__(self, images: Tensor, training: bool = False, decide: list[Decide] | None = None) -> list[Outcome]:
        """images [B, 3, S, S]; `training` is the BatchNorm of the CLA head, `decide` one function an image."""
        outcomes = [self.run(image, decide[b] if decide else None) for b, image in enumerate(images)]
        if self.s.cla:
            logits = self.aggregation_head(torch.stack([torch.stack(o.collected, dim=-1) for o in outcomes]), training)
        else:
            logits = torch.stack([self.own_head(o.final) for o in outcomes])
        for outcome, row in zip(outcomes, logits, strict=True):
            outcome.logits = row
        return outcomes

    def ratio_loss(self, outcomes: list[Outcome]) -> Tensor:
        """DynamicViT's addition to the loss, from outcomes of a training pass."""
        terms = [term for outcome in outcomes for term in outcome.ratio_terms]
        return 2 * sum(terms) / len(terms)

    # ------------------------------------------------------------------ heads

    def own_head(self, x: list[Token]) -> Tensor:
        vectors = torch.stack([t.vector for t in x])
        if "norm.weight" in self.w:
            vectors = self.layer_norm("norm", vectors, self.s.norm_eps)
        if "head_dist.weight" in self.w:
            return (self.linear("head", vectors[0]) + self.linear("head_dist", vectors[1])) / 2
        pooled = vectors[0] if self.s.pool == "token" else vectors[self.num_prefix :].mean(0)
        if "fc_norm.weight" in self.w:
            pooled = self.layer_norm("fc_norm", pooled, self.s.norm_eps)
        return self.linear("head", pooled)

    def batch_norm(self, name: str, x: Tensor, training: bool) -> Tensor:
        """x [B, C, G], statistics over B and G."""
        if training:
            mean, variance = x.mean((0, 2)), x.var((0, 2), unbiased=False)
        else:
            mean, variance = self.w[name + ".running_mean"], self.w[name + ".running_var"]
        scale = self.w[name + ".weight"] / torch.sqrt(variance + 1e-5)
        return (x - mean[None, :, None]) * scale[None, :, None] + self.w[name + ".bias"][None, :, None]

    def aggregation_head(self, x: Tensor, training: bool) -> Tensor:
        """x [B, C, G] -> [B, K]."""
        x = self.batch_norm("ifa_head.0.0", x, training)
        weight, bias = self.w["ifa_head.0.1.weight"], self.w["ifa_head.0.1.bias"]
        width = weight.shape[0] // x.shape[1]
        # output channel o of a depth-wise convolution reads input channel o // width
        x = torch.stack([x[:, o // width] @ weight[o, 0] + bias[o] for o in range(len(weight))], dim=1)
        x = F.gelu(self.batch_norm("ifa_head.0.2", x[:, :, None], training))
        return self.linear("ifa_head.0.4", x[:, :, 0])
