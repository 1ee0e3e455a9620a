"""The eight reductions of the plain reference (METHOD.md, section 4): loops over tokens, Python lists, full sorting."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

# decide(location number, log-probabilities [n, 2]) -> straight-through keep decisions [n]
Decide = Callable[[int, Tensor], Tensor]


@dataclass
class Token:
    """One token: its vector [C], the patches that it holds, where it came from, and what follows it."""

    vector: Tensor
    kind: str  # prefix, patch or cache (CLR and whatever was recovered)
    patches: list[int] = field(default_factory=list)
    size: int = 1
    policy: Tensor | float = 1.0


@dataclass(frozen=True)
class Settings:
    """What the state dict cannot tell."""

    num_heads: int
    reduction: str = "none"
    keep_rate: float | tuple[float, ...] = 1.0
    locations: tuple[int, ...] = (3, 6, 9)
    cla: bool = True
    clc: bool = True
    num_clr: int = 1
    clc_gap: bool = True
    clc_recover_at_last: bool = True
    norm_eps: float = 1e-6
    pool: str = "token"

    def rate(self, j: int) -> float:
        """The keep rate of location j alone."""
        return self.keep_rate[j] if isinstance(self.keep_rate, tuple) else self.keep_rate

    def cumulative(self, j: int) -> float:
        """The share of the patches that is left after location j."""
        if not isinstance(self.keep_rate, tuple):
            return self.keep_rate ** (j + 1)
        product = 1.0
        for rate in self.keep_rate[: j + 1]:
            product *= rate
        return product


class PlainReductions:
    """A reduction takes a sequence and returns a shorter one; the embedding sets `num_prefix` and `num_patches`."""

    num_prefix: int
    num_patches: int

    def __init__(self, state: dict[str, Tensor], settings: Settings) -> None:
        self.w = state
        self.s = settings

    def linear(self, name: str, x: Tensor) -> Tensor:
        weight = self.w[name + ".weight"]
        return F.linear(x, weight.flatten(1), self.w.get(name + ".bias"))

    def layer_norm(self, name: str, x: Tensor, eps: float) -> Tensor:
        mean = x.mean(-1, keepdim=True)
        variance = ((x - mean) ** 2).mean(-1, keepdim=True)
        return (x - mean) / torch.sqrt(variance + eps) * self.w[name + ".weight"] + self.w[name + ".bias"]

    def split(self, x: list[Token]) -> tuple[list[Token], list[Token]]:
        return x[: self.num_prefix], x[self.num_prefix :]

    def static_count(self, j: int) -> int:
        return max(1, math.floor(self.num_patches * self.s.cumulative(j)))

    @staticmethod
    def descending(values: list[float]) -> list[int]:
        """Indices from the largest value to the smallest; of equal ones the lower index first."""
        return sorted(range(len(values)), key=lambda i: (-values[i], i))

    def class_scores(self, matrices: list[Tensor]) -> Tensor:
        """Mean over heads of the CLS row, for the candidates."""
        return (sum(matrix[0] for matrix in matrices) / len(matrices))[self.num_prefix :]

    def topk(self, j: int, x: list[Token], matrices: list[Tensor], values: Tensor) -> list[Token]:
        prefix, candidates = self.split(x)
        count = max(1, math.ceil(self.s.rate(j) * len(candidates)))
        if count >= len(candidates):
            return x
        order = self.descending(self.class_scores(matrices).tolist())
        return prefix + [candidates[i] for i in order[:count]]

    def evit(self, j: int, x: list[Token], matrices: list[Tensor], values: Tensor) -> list[Token]:
        kept = self.topk(j, x, matrices, values)
        if kept is x:
            return x
        _, candidates = self.split(x)
        scores = self.class_scores(matrices)
        fused, held = torch.zeros_like(x[0].vector), []
        for i, token in enumerate(candidates):
            if not any(token is k for k in kept):
                fused = fused + scores[i] * token.vector
                held.extend(token.patches)
        return [*kept, Token(fused, "patch", held)]

    def predictor(self, j: int, candidates: list[Token]) -> Tensor:
        """DynamicViT's log-probabilities [n, 2]; entry 0 is "keep"."""
        name = f"score_predictor.{j}"
        z = self.layer_norm(f"{name}.in_conv.0", torch.stack([t.vector for t in candidates]), 1e-5)
        z = F.gelu(self.linear(f"{name}.in_conv.1", z))
        half = z.shape[1] // 2
        total, weight = torch.zeros_like(z[0, half:]), 0.0
        for token, row in zip(candidates, z, strict=True):
            total, weight = total + token.policy * row[half:], weight + token.policy
        mean = total / (weight + 1e-6)
        z = torch.stack([torch.cat([row[:half], mean]) for row in z])
        z = F.gelu(self.linear(f"{name}.out_conv.0", z))
        z = F.gelu(self.linear(f"{name}.out_conv.2", z))
        return torch.log_softmax(self.linear(f"{name}.out_conv.4", z), dim=-1)

    def dynamicvit(self, j: int, x: list[Token], first_length: int) -> list[Token]:
        prefix, candidates = self.split(x)
        if self.s.clc:
            count = math.floor((len(candidates) - 1) * self.s.rate(j))
        else:
            count = math.floor(self.s.cumulative(j) * (first_length - self.num_prefix))
        order = self.descending(self.predictor(j, candidates)[:, 0].tolist())
        return prefix + [candidates[i] for i in order[: max(1, count)]]

    def dynamicvit_training(self, j: int, x: list[Token], decide: Decide) -> Tensor:
        """Multiplies the policies by this location's decisions; returns (kept share - asked share) squared."""
        _, candidates = self.split(x)
        decisions = decide(j, self.predictor(j, candidates))
        share = 0.0
        for token, decision in zip(candidates, decisions, strict=True):
            token.policy = token.policy * decision
            share = share + token.policy
        return (share / len(candidates) - self.s.cumulative(j)) ** 2

    def ats(self, j: int, x: list[Token], matrices: list[Tensor], values: Tensor) -> list[Token]:
        prefix, candidates = self.split(x)
        scores = []
        for i in range(self.num_prefix, len(x)):
            scores.append(sum(matrix[0, i].item() * values[h, i].norm().item() for h, matrix in enumerate(matrices)))
        total = sum(scores) + 1e-6
        cumulative, running = [], 0.0
        for score in scores:
            running += score / total
            cumulative.append(running)
        grid = max(1, math.floor(self.num_patches * self.s.cumulative(j))) + 1
        points = math.ceil(((2 * grid - 1) / (2 * grid) - 1 / (2 * grid)) / (1 / grid))
        taken = set()
        for i in range(points):
            point = (2 * i + 1) / (2 * grid)
            taken.add(min(range(len(candidates)), key=lambda c: (abs(cumulative[c] - point), c)))
        return prefix + [candidates[i] for i in sorted(taken)]

    def tome(self, j: int, x: list[Token], keys: Tensor) -> list[Token]:
        before = self.num_patches if j == 0 else math.floor(self.num_patches * self.s.cumulative(j - 1))
        removed = before - math.floor(self.num_patches * self.s.cumulative(j))
        removed = min(removed, (len(x) - self.num_prefix) // 2)
        if removed == 0:
            return x
        metric = keys.mean(0)
        metric = metric / metric.norm(dim=-1, keepdim=True)
        sources = [i for i in range(0, len(x), 2) if i >= self.num_prefix]
        targets = [i for i in range(1, len(x), 2) if i >= self.num_prefix]
        partner, similarity = {}, {}
        for a in sources:
            likeness = [(metric[a] @ metric[b]).item() for b in targets]
            best = self.descending(likeness)[0]
            partner[a], similarity[a] = targets[best], likeness[best]
        merging = [sources[i] for i in self.descending([similarity[a] for a in sources])[:removed]]
        result = x[: self.num_prefix] + [x[a] for a in sources if a not in merging]
        for b in targets:
            group = [x[b]] + [x[a] for a in merging if partner[a] == b]
            size = sum(t.size for t in group)
            vector = sum(t.size * t.vector for t in group) / size
            result.append(replace(x[b], vector=vector, size=size, patches=[p for t in group for p in t.patches]))
        return result

    def soft_merge(self, prefix: list[Token], candidates: list[Token], weights: Tensor, vectors: Tensor) -> list[Token]:
        """weights [M, n]: row m makes token m out of `vectors`; a patch goes where its token weighs most."""
        merged = [Token((w[:, None] * vectors).sum(0), "patch") for w in weights]
        for i, token in enumerate(candidates):
            merged[self.descending(weights[:, i].tolist())[0]].patches.extend(token.patches)
        return prefix + merged

    def patchmerger(self, j: int, x: list[Token]) -> list[Token]:
        prefix, candidates = self.split(x)
        name = f"cluster_layers.{j}"
        z = self.layer_norm(f"{name}.norm", torch.stack([t.vector for t in candidates]), 1e-5)
        queries = self.w[f"{name}.queries"]
        assert len(queries) == self.static_count(j)
        return self.soft_merge(prefix, candidates, torch.softmax(queries @ z.T, dim=1), z)

    def sit(self, j: int, x: list[Token]) -> list[Token]:
        prefix, candidates = self.split(x)
        name = f"cluster_layers.{j}"
        vectors = torch.stack([t.vector for t in candidates])
        z = self.layer_norm(f"{name}.weight.0", vectors, 1e-5)
        z = self.linear(f"{name}.weight.3", F.gelu(self.linear(f"{name}.weight.1", z)))
        weights = torch.softmax(self.w[f"{name}.scale"].flatten() * z, dim=0).T
        assert len(weights) == self.static_count(j)
        return self.soft_merge(prefix, candidates, weights, vectors)

    def dpcknn(self, j: int, x: list[Token]) -> list[Token]:
        patches = [t for t in x if t.kind == "patch"]
        passing = [t for t in x if t.kind == "cache"]
        n = len(patches)
        count = self.static_count(j)
        if j < len(self.s.locations) - 1:
            count = max(5, count)
        count = min(count, n)
        width = math.sqrt(len(x[0].vector))
        apart = [[(a.vector - b.vector).norm().item() / width for b in patches] for a in patches]
        density = []
        for i in range(n):
            nearest = sorted(d * d for d in apart[i])[: min(5, n)]
            density.append(math.exp(-sum(nearest) / len(nearest)))
        largest = max(max(row) for row in apart)
        products = []
        for i in range(n):
            denser = [apart[i][o] for o in range(n) if density[o] > density[i] or (density[o] == density[i] and o < i)]
            products.append(density[i] * (min(denser) if denser else largest))
        centres = self.descending(products)[:count]
        groups: list[list[Token]] = [[] for _ in centres]
        for i, token in enumerate(patches):
            if i in centres:
                groups[centres.index(i)].append(token)
            else:
                groups[min(range(count), key=lambda c: (apart[i][centres[c]], c))].append(token)
        merged = []
        for group in groups:
            weights = [torch.exp(self.linear(f"cluster_layers.{j}.score", t.vector)) for t in group]
            vector = sum(w * t.vector for w, t in zip(weights, group, strict=True)) / (sum(weights) + 1e-6)
            merged.append(Token(vector, "patch", [p for t in group for p in t.patches]))
        return self.split(x)[0] + merged + passing
