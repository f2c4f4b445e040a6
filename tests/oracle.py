"""The plain formulation of every computation, one position at a time: slow, but easy to check."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from hdmnet import MatchingAttention, PyramidPooling, ShotWeighting


def masked_average_pool(features: Tensor, mask: Tensor) -> Tensor:
    """Compute Σ s·m / (Σ m + 5e-4), one shot of one episode at a time."""
    out = torch.zeros(features.shape[:3])
    for b in range(features.shape[0]):
        for k in range(features.shape[1]):
            m = F.interpolate(
                mask[b, k][None, None], features.shape[-2:], mode="bilinear", align_corners=True
            )[0, 0]
            for c in range(features.shape[2]):
                out[b, k, c] = (features[b, k, c] * m).sum() / (m.sum() + 5e-4)
    return out


def cosine_prior(query: Tensor, support: Tensor, mask: Tensor) -> Tensor:
    """Compute the largest cosine over all N support positions. Background positions are zeros."""
    batch, _, h, w = query.shape
    out = torch.zeros(batch, support.shape[1], h, w)
    for b in range(batch):
        for k in range(support.shape[1]):
            m = F.interpolate(mask[b, k][None, None], support.shape[-2:], mode="nearest")[0]
            s = (support[b, k] * m).flatten(1)
            for i in range(h):
                for j in range(w):
                    q = query[b, :, i, j]
                    out[b, k, i, j] = ((q @ s) / (q.norm() * s.norm(dim=0) + 1e-7)).max()
    return out.mean(1)


def matching_attention(
    module: MatchingAttention, query: Tensor, support: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute all N × N scores. The softmax of each support position is over query positions."""
    batch, channels, h, w = query.shape
    shots = support.shape[1]
    d = channels // module.heads
    out = torch.zeros(batch, h * w, channels, dtype=query.dtype)
    correlation = torch.zeros(batch, h * w, dtype=query.dtype)
    for b in range(batch):
        q = query[b].flatten(1).T @ module.query.weight.T
        tokens = support[b].transpose(0, 1).flatten(1).T
        k, v = tokens @ module.key.weight.T, tokens @ module.value.weight.T
        m = mask[b].flatten()
        for head in range(module.heads):
            part = slice(head * d, (head + 1) * d)
            qn = q[:, part] / q[:, part].norm(dim=1, keepdim=True).clamp(min=1e-12)
            kn = k[:, part] / k[:, part].norm(dim=1, keepdim=True).clamp(min=1e-12)
            score = qn @ kn.T / module.temperature
            attention = score.exp() / score.exp().sum(0, keepdim=True)
            out[b, :, part] = attention @ (m[:, None] * v[:, part]) * (module.shots / shots)
            correlation[b] += (score * m).sum(1) / (m.sum() + 1e-9) / module.heads
    out = (out @ module.out.weight.T).transpose(1, 2).reshape(batch, channels, h, w)
    return out, correlation.reshape(batch, h, w)


def gram_distance(query: Tensor, support: Tensor) -> Tensor:
    """Compute distances (B, K) of features (B, C, h, w) and (B, K, C, h, w), entry by entry."""
    batch, shots, channels = support.shape[:3]

    def gram(f: Tensor) -> Tensor:
        f = f.flatten(1)
        g = torch.zeros(channels, channels)
        for i in range(channels):
            for j in range(channels):
                g[i, j] = f[i] @ f[j] / (f[i].norm() * f[j].norm() + 1e-7)
        return g

    return torch.tensor(
        [
            [
                math.sqrt(((gram(query[b]) - gram(support[b, k])) ** 2).sum()) / channels
                for k in range(shots)
            ]
            for b in range(batch)
        ]
    )


def shot_weighting(module: ShotWeighting, distances: Tensor) -> Tensor:
    """Compute the weights from sorted distances, but multiply them with unsorted distances."""
    out = []
    for row in distances:
        ordered = torch.tensor(sorted(row.tolist()))
        weight = module.weight(ordered.view(1, -1, 1, 1)).flatten().softmax(0)
        out.append((weight * row).sum())
    return torch.stack(out)


def distillation(correlations: list[Tensor], target: Tensor) -> Tensor:
    """Compute the mean of the KL divergences, one episode at a time."""
    teacher = torch.full(target.shape, -1e9, dtype=correlations[0].dtype)
    teacher[target == 1] = 1
    total = torch.zeros((), dtype=correlations[0].dtype)
    for student in correlations:
        for b in range(len(student)):
            t = F.interpolate(
                teacher[b][None, None], student.shape[-2:], mode="bilinear", align_corners=False
            )
            p, q = t.flatten().softmax(0), student[b].flatten().softmax(0)
            for pi, qi in zip(p, q, strict=True):
                total = total + pi * (torch.log(pi + 1e-12) - torch.log(qi + 1e-12)) / len(student)
        teacher = student.detach()
    return total / len(correlations)


def pyramid_pooling(module: PyramidPooling, x: Tensor) -> Tensor:
    """Upsample every pooled channel to the whole grid, then convolve all channels."""
    pooled = [
        F.interpolate(branch(x), x.shape[-2:], mode="bilinear", align_corners=True)
        for branch in module.branches
    ]
    return module.fuse(torch.cat([x, *pooled], dim=1))
