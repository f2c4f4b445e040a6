"""A few-shot network of your own on `FewShotModel`: prototypes and cosines on any timm backbone.

    python own_network.py
    hdmnet evaluate folders MY_DATA --network own_network:PrototypeNet --model FOLDER

The class implements `encode` and `scores`. It inherits `predict`, `encode_supports`, `fused`,
`save_pretrained`, `from_pretrained` and the rest.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from torch import Tensor

from hdmnet import FeaturePyramid, FewShotModel, HDMNet, SupportSet, masked_average_pool

HERE = Path(__file__).parent


class PrototypeNet(FewShotModel):
    """Compares each query position with the mean features of object and background."""

    def __init__(self, backbone: str = "tf_efficientnet_lite0", *, image_size: int = 257) -> None:
        super().__init__()
        self.image_size = image_size
        self.backbone = FeaturePyramid(backbone)

    def encode(self, supports: Tensor, masks: Tensor) -> SupportSet:
        """(B, K, 3, H, W) and (B, K, H, W) → prototypes of background and object of each shot."""
        features = self.backbone(rearrange(supports, "b k c h w -> (b k) c h w"))[1]
        features = rearrange(features, "(b k) c h w -> b k c h w", k=supports.shape[1])
        sides = [masked_average_pool(features, (masks == side).float()) for side in (0, 1)]
        return SupportSet(torch.cat(sides, dim=-1))

    def scores(self, query: Tensor, supports: SupportSet) -> Tensor:
        """(B, 3, H, W) → softmax(20 · cosine) of background and object, (B, 2, H, W)."""
        supports.check_fits(self.fingerprint, (2 * self.backbone.channels[1], 0), query.device)
        prototypes = supports.expand(len(query)).prototypes.mean(dim=1)
        p = F.normalize(rearrange(prototypes, "b (side c) -> b side c", side=2), dim=-1)
        q = F.normalize(self.backbone(query)[1], dim=1)
        cosine = einsum(q, p.to(q.dtype), "b c h w, b side c -> b side h w")
        return F.interpolate((20 * cosine).softmax(dim=1), query.shape[-2:], mode="bilinear")


def main() -> None:
    """Take the bundled model's ImageNet features, segment a fish, and save the network."""
    model = PrototypeNet().eval()
    model.backbone = HDMNet.from_pretrained("hdmnet-lite0").backbone
    fish, out = HERE / "data" / "fish", HERE / "output"
    result = model.predict(fish / "query_1.jpg", fish / "support_1.jpg", fish / "support_1.png")
    model.save_pretrained(out / "prototype_net")
    result.overlay(fish / "query_1.jpg").save(out / "own_network.png")


if __name__ == "__main__":
    main()
