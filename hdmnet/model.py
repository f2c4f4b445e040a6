"""HDMNet: the parts, composed."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self, overload

import torch
from einops import rearrange
from huggingface_hub import HfApi, ModelCard, PyTorchModelHubMixin
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hdmnet import fusion, hub, prediction, serialization
from hdmnet._layers import ConcatConv2d
from hdmnet._ops import foreground_box, nearest, no_autocast, upcast, upsample, widen_small
from hdmnet.attention import SupportTokens
from hdmnet.backbone import FeaturePyramid
from hdmnet.ensemble import BaseLearner, BaseMetaEnsemble, PyramidPooling
from hdmnet.images import ImageLike
from hdmnet.matching import CascadeMatching, MatchingStage
from hdmnet.model_card import make_model_card
from hdmnet.prediction import Segmentation
from hdmnet.priors import (
    foreground_features,
    gram_distance,
    gram_matrix,
    masked_average_pool,
    max_cosine,
)
from hdmnet.stages import HierarchicalEncoder, SelfAttentionStage
from hdmnet.supports import SupportSet

REDUCED_DIM = 256  # channels of the reduced features q and s
PSP_DIM = 512  # channels of f5
ARCHITECTURE = ("backbone", "base_classes", "shots", "dim", "heads", "shot_hidden_dim")
MOST_STAGES = 6  # each halves the grid: more would ask for images of thousands of pixels
PRIOR_SCALE = 10.0  # the prior enters the query tokens ten times as large as it is


class HDMNetOutput(NamedTuple):
    """What `HDMNet.forward` returns, for B queries of H × W whose feature grid is h × w."""

    final: Tensor
    """(B, 2, H, W) merged scores, background first; not logits: their argmax decides."""
    meta: Tensor
    """(B, 2, H, W) logits of the matching network."""
    base: Tensor | None
    """(B, 1 + base_classes, H, W) logits of the base learner; None when base_classes is 0."""
    correlations: tuple[Tensor, ...]
    """(B, h_s, w_s) per stage, coarsest first, in [-10, 10]."""
    prior: Tensor
    """(B, 2, h, w) cosines in [-1, 1], from f5 (f3 without base learner) and from f4."""


class _GridOutput(NamedTuple):
    """`HDMNetOutput` on the feature grid h × w."""

    final: Tensor | None  # without base learner, softmax(meta) is taken at full size
    meta: Tensor
    base: Tensor | None
    correlations: tuple[Tensor, ...]
    prior: Tensor


class HDMNet(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="hdmnet",
    paper_url="https://arxiv.org/abs/2303.14652",
    pipeline_tag="image-segmentation",
    tags=["few-shot-segmentation"],
):
    """Segments in a query image the class that K masked support images show.

    Args:
        backbone: `resnet50`, `resnet101` or `vgg16` as in the paper, or any timm model with a
            feature pyramid.
        base_classes: Number of base classes n of the base learner; 0 leaves out the base learner,
            its PSP head and the ensemble: `final` is then softmax(meta), and f3 takes the place of
            f5 in the prior.
        shots: Number of shots the weights are trained with. Any other K works as well.
        image_size: Height and width, in pixels, that `predict` resizes images to.
        dim: Channels of the tokens, even and a multiple of each of `heads`.
        heads: Attention heads of each stage, finest first; its length is the number of stages.
        dropout: Dropout probability in the transformer blocks.
        feature_dropout: Probability of dropping a channel of the reduced features.
        shot_hidden_dim: Hidden channels of the shot weighting; 0 for one layer without bias.
        frozen_norm: Whether every BatchNorm stays in eval mode in training, as in the paper.
        pretrained_backbone: Whether to download timm's ImageNet weights. Not part of the saved
            configuration: a reload never downloads a backbone.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: If an argument is out of its range, or timm has no such backbone.

    Source: HDMNet (arXiv 2303.14652); base learner and ensemble from BAM (arXiv 2203.07615).
    """

    def __init__(
        self,
        backbone: str = "resnet50",
        *,
        base_classes: int = 60,
        shots: int = 1,
        image_size: int = 473,
        dim: int = 64,
        heads: Sequence[int] = (2, 4, 8),
        dropout: float = 0.1,
        feature_dropout: float = 0.5,
        shot_hidden_dim: int = 2,
        frozen_norm: bool = True,
        pretrained_backbone: bool = False,
    ) -> None:
        super().__init__()
        arguments: dict[str, Any] = {
            "backbone": backbone,
            "base_classes": base_classes,
            "shots": shots,
            "image_size": image_size,
            "dim": dim,
            "heads": heads,
            "dropout": dropout,
            "feature_dropout": feature_dropout,
            "shot_hidden_dim": shot_hidden_dim,
            "frozen_norm": frozen_norm,
        }
        _check_arguments(arguments)
        self.image_size = image_size
        self.frozen_norm = frozen_norm
        self._backbone_frozen = False
        self._fused_fingerprint: str | None = None
        self._hashed: tuple[list[tuple[int, int]], str] | None = None

        self.backbone = FeaturePyramid(backbone, pretrained=pretrained_backbone)
        c2, c3, c4 = self.backbone.channels
        self.psp = PyramidPooling(c4, PSP_DIM) if base_classes else None
        self.base_learner = BaseLearner(PSP_DIM, base_classes) if base_classes else None

        self.query_reduce = _reduce(c3 + c2, feature_dropout)
        self.support_reduce = _reduce(c3 + c2, feature_dropout)
        self.query_merge = _merge(2 * REDUCED_DIM + 2, dim)
        self.support_merge = _merge(2 * REDUCED_DIM, dim)
        self.encoder = HierarchicalEncoder(dim, heads, dropout=dropout)
        self.cascade = CascadeMatching(dim, len(heads), shots=shots, dropout=dropout)
        self.ensemble = (
            BaseMetaEnsemble(shots, shot_hidden_dim=shot_hidden_dim) if base_classes else None
        )

        self.smallest_size = self.backbone.smallest_size(self.encoder.min_grid)
        if image_size < self.smallest_size:
            raise ValueError(
                f"image_size must be at least {self.smallest_size} for backbone {backbone!r} and "
                f"{len(heads)} stages, got {image_size}"
            )
        # The mixin would keep the arguments as they came; these are equal before and after JSON.
        self._hub_mixin_config: dict[str, Any] = arguments | {"heads": tuple(heads)}
        self.train()  # a new module is in training mode, but the frozen norms are not to be

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments: `HDMNet(**model.config)` has the same architecture."""
        return self._hub_mixin_config | {
            # These two may be changed on the model.
            "image_size": self.image_size,
            "frozen_norm": self.frozen_norm,
        }

    # Inference and training

    def forward(
        self, query: Tensor, supports: Tensor, masks: Tensor, base_class: Tensor | None = None
    ) -> HDMNetOutput:
        """Segment B queries, each with K supports of its own.

        Args:
            query: (B, 3, H, W) RGB, normalised with `backbone.mean` and `backbone.std`.
            supports: (B, K, 3, H', W') RGB, likewise.
            masks: (B, K, H', W') support masks: 1 = object, 255 = ignore, 0 = background.
            base_class: (B,) long, in 0 … base_classes - 1: in training, the base class that each
                episode asks for.

        Returns:
            Scores at H × W, correlation maps and priors.

        Raises:
            ValueError: If a shape does not fit, the images are too small, or `base_class` is out of
                range or given to a model without base learner.
        """
        if query.ndim == 4 and query.shape[0] != supports.shape[0]:
            raise ValueError(
                f"query and supports must hold the same number of episodes B, got {_shape(query)} "
                f"and {_shape(supports)}"
            )
        return self.match(query, self.encode(supports, masks), base_class)

    def encode(self, supports: Tensor, masks: Tensor) -> SupportSet:
        """Everything `match` needs of B episodes' supports, with gradients.

        Args:
            supports: (B, K, 3, H, W), as for `forward`.
            masks: (B, K, H, W), as for `forward`.

        Returns:
            The encoded supports of the B episodes.

        Raises:
            ValueError: If a shape does not fit, or the images are too small.
        """
        if supports.ndim != 5 or supports.shape[2] != 3 or supports.shape[1] < 1:
            raise ValueError(f"supports must be (B, K, 3, H, W) with K ≥ 1, got {_shape(supports)}")
        if masks.shape != supports.shape[:2] + supports.shape[3:]:
            raise ValueError(
                f"masks must be (B, K, H, W) of the supports {_shape(supports)}, "
                f"got {_shape(masks)}"
            )
        self._check_size(supports)
        if self._computes_at_once():
            images = rearrange(supports, "b k c h w -> (b k) c h w")
            features = self.backbone(_masked(images, masks.flatten(0, 1)))
            return self.encode_features(features, masks)
        # One shot at a time, so that memory grows little with K; also in training, where the
        # backward pass computes again what lies between the features and the tokens.
        first, *others = (
            self._encode_features(
                self.backbone(_masked(image, mask)), mask[:, None], recompute=supports.shape[1] > 1
            )
            for image, mask in zip(supports.unbind(dim=1), masks.unbind(dim=1), strict=True)
        )
        return first.merge(*others)

    def match(
        self, query: Tensor, supports: SupportSet, base_class: Tensor | None = None
    ) -> HDMNetOutput:
        """Segment B queries with encoded supports.

        Args:
            query: (B, 3, H, W), as for `forward`.
            supports: Made by this model's `encode` or, for inference, `encode_supports`. Of B
                episodes, or of a divisor of B: each is then shared by as many consecutive queries.
            base_class: (B,) long, as for `forward`.

        Returns:
            What `forward` returns.

        Raises:
            ValueError: As `forward`.
        """
        self._check_query(query)
        size = (query.shape[-2], query.shape[-1])
        return self.match_features(self.backbone(query), supports, size, base_class)

    def scores(self, query: Tensor, supports: SupportSet) -> Tensor:
        """The `final` scores of `match` alone, for inference: the rest is not resized to H × W.

        Supports of `encode_supports` need `torch.inference_mode()` or `no_grad()` around the call.

        Args:
            query: (B, 3, H, W), as for `forward`.
            supports: As for `match`.

        Returns:
            (B, 2, H, W) scores, background first.

        Raises:
            ValueError: As `forward`.
        """
        self._check_query(query)
        grid = self._match_on_grid(self.backbone(query), supports)
        return self._final(grid, query.shape[-2:])

    def encode_features(self, features: tuple[Tensor, Tensor, Tensor], masks: Tensor) -> SupportSet:
        """`encode` on features that are there already, as a frozen backbone allows.

        Args:
            features: `backbone` of the B · K supports, each multiplied by its mask.
            masks: (B, K, H, W), as for `forward`.

        Returns:
            What `encode` returns.

        Raises:
            ValueError: If the features are not of as many images as the masks, or the grid is too
                small for the coarsest stage.
        """
        if features[0].shape[0] != masks.shape[0] * masks.shape[1]:
            raise ValueError(
                f"features must be of the B · K supports of the masks {_shape(masks)}, got "
                f"{features[0].shape[0]} images"
            )
        return self._encode_features(features, masks)

    def match_features(
        self,
        features: tuple[Tensor, Tensor, Tensor],
        supports: SupportSet,
        size: tuple[int, int],
        base_class: Tensor | None = None,
    ) -> HDMNetOutput:
        """`match` on features that are there already, as a frozen backbone allows.

        Args:
            features: `backbone` of the B queries.
            supports: As for `match`.
            size: Height and width of the queries.
            base_class: (B,) long, as for `forward`.

        Returns:
            What `forward` returns.

        Raises:
            ValueError: If `base_class` or the number of episodes does not fit, the grid is too
                small for the coarsest stage, or the supports have the fingerprint of another model
                (not looked at in a compiled graph).
        """
        grid = self._match_on_grid(features, supports, base_class)
        return HDMNetOutput(
            final=self._final(grid, size),
            meta=upsample(grid.meta, size, align_corners=True),
            base=None if grid.base is None else upsample(grid.base, size, align_corners=True),
            correlations=grid.correlations,
            prior=grid.prior,
        )

    def encode_supports(
        self, supports: ImageLike | Sequence[ImageLike], masks: ImageLike | Sequence[ImageLike]
    ) -> SupportSet:
        """Encode one class once, for any number of `predict` calls.

        Args:
            supports: One image or a sequence of K: file paths, PIL images, (H, W, 3) uint8 arrays,
                or (3, H, W) tensors, uint8 or in [0, 1].
            masks: The mask of each, of its size: bool, {0, 1}, {0, 255}, or {0, 1, 255} where 255
                is ignored.

        Returns:
            The encoded supports, for inference only: no gradient flows to or through them.

        Raises:
            TypeError: If something is no image or mask.
            ValueError: If an image or mask cannot be read, or has other values or another size.
        """
        return prediction.encode_supports(self, supports, masks)

    @overload
    def predict(  # type: ignore[overload-overlap]  # a str is also a sequence of str
        self,
        query: ImageLike,
        supports: ImageLike | Sequence[ImageLike] | SupportSet,
        masks: ImageLike | Sequence[ImageLike] | None = None,
    ) -> Segmentation: ...

    @overload
    def predict(
        self,
        query: Sequence[ImageLike],
        supports: ImageLike | Sequence[ImageLike] | SupportSet,
        masks: ImageLike | Sequence[ImageLike] | None = None,
    ) -> list[Segmentation]: ...

    def predict(
        self,
        query: ImageLike | Sequence[ImageLike],
        supports: ImageLike | Sequence[ImageLike] | SupportSet,
        masks: ImageLike | Sequence[ImageLike] | None = None,
    ) -> Segmentation | list[Segmentation]:
        """Segment one image, or a list of images, at their own sizes.

        Images are resized to `image_size` × `image_size`, and the answer back to the query's size.
        The model computes in eval mode, and is left in the mode it was found in.

        Args:
            query: One image, or a list of images for a list of results.
            supports: As for `encode_supports`; or what that returned.
            masks: As for `encode_supports`; left out with an encoded set.

        Returns:
            The segmentation of the query, or a list of them.

        Raises:
            TypeError: If something is no image or mask.
            ValueError: If an image or mask cannot be read, or has other values or another size.
        """
        return prediction.predict(self, query, supports, masks)

    def fused(self) -> "HDMNet":
        """A copy for inference only: the same answers, faster.

        Norms are folded into convolutions, convolutions with nothing between them are collapsed,
        and the memory format suits the processor. The copy shares no tensor with this model. It
        cannot be trained or saved.

        Returns:
            A model in eval mode that accepts, and makes, the same encoded supports as this one.
        """
        return fusion.fuse(self)

    @property
    def is_fused(self) -> bool:
        """Whether this is a `fused` copy."""
        return self._fused_fingerprint is not None

    def fingerprint(self) -> str:
        """Short hash of architecture and weights, by which a model knows its encoded supports.

        A `fused` copy has that of its original. The same weights in another floating point type are
        others. What is written through `Tensor.data` goes unnoticed.
        """
        if self._fused_fingerprint is not None:
            return self._fused_fingerprint
        tensors = [*self.parameters(), *self.buffers()]
        # Hashed once, and again only after a tensor was replaced or written to.
        state = [(t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors]
        if self._hashed is None or self._hashed[0] != state:
            architecture = {key: self.config[key] for key in ARCHITECTURE}
            digest = hashlib.sha256(json.dumps(architecture, sort_keys=True).encode())
            for tensor in tensors:
                flat = tensor.detach().cpu().contiguous().flatten()
                digest.update(flat.view(torch.uint8).numpy().data)
            self._hashed = state, digest.hexdigest()[:16]
        return self._hashed[1]

    # Fine-tuning

    def train(self, mode: bool = True) -> Self:
        """Switch to training mode, but for what is frozen: it stays in eval mode.

        Raises:
            RuntimeError: If the model is a `fused` copy and `mode` is true.
        """
        if mode and self.is_fused:
            raise RuntimeError("a fused model has no norms to train: train the original")
        super().train(mode)
        if self.frozen_norm:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        if self._backbone_frozen:
            for module in self._frozen_modules():
                module.eval()
        return self

    def freeze_backbone(self) -> Self:
        """Freeze backbone, PSP head and base learner, as the paper does to train the rest."""
        self._backbone_frozen = True
        for module in self._frozen_modules():
            # Channels last: one eighth less time on CPUs, and what cuDNN likes best.
            module.requires_grad_(False).eval().to(memory_format=torch.channels_last)
        return self

    def param_groups(self, lr: float, *, head_multiplier: float = 10.0) -> list[dict[str, Any]]:
        """Groups of the trainable parameters for an optimiser.

        The transformer (`encoder` and `cascade`) and, where it is not frozen, what
        `freeze_backbone` would freeze, learn at `lr`; the rest at `lr * head_multiplier`.

        Args:
            lr: Learning rate of the transformer; the paper's is 1e-4, with AdamW and weight decay
                0.01.
            head_multiplier: Factor of the other parts' learning rate.

        Returns:
            Dicts of `params`, `lr` and `name` ("transformer", "backbone", "head"), none empty.
        """
        transformer = _trainable((self.encoder, self.cascade))
        backbone = _trainable(self._frozen_modules())
        taken = {id(p) for p in (*transformer, *backbone)}
        head = [p for p in _trainable((self,)) if id(p) not in taken]
        groups = (
            {"params": transformer, "lr": lr, "name": "transformer"},
            {"params": backbone, "lr": lr, "name": "backbone"},
            {"params": head, "lr": lr * head_multiplier, "name": "head"},
        )
        return [group for group in groups if group["params"]]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the transformer's activations in the backward pass instead of keeping them."""
        for module in self.modules():
            if isinstance(module, SelfAttentionStage | MatchingStage):
                module.grad_checkpointing = enable

    # Saving and loading

    @classmethod
    def from_pretrained(  # type: ignore[override]  # the mixin takes any keyword; this names them
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
        map_location: str = "cpu",
        strict: bool = True,
    ) -> Self:
        """Load a model in eval mode.

        Args:
            pretrained_model_name_or_path: A name of `list_pretrained` (bundled: no network), a
                folder that `save_pretrained` wrote, or a Hub repository "user/repo".
            force_download: Download even what is in the cache.
            token: Hub token, or whether to use the stored one.
            cache_dir: Folder of downloaded files.
            local_files_only: Never download.
            revision: Branch, tag or commit of the repository.
            map_location: Device to load to.
            strict: Whether missing or surplus tensors are an error.

        Raises:
            FileNotFoundError: If a folder holds no config.json and model.safetensors, there is no
                such folder, repository or revision, or it is not in the cache and must not be
                downloaded.
            PermissionError: If the repository is gated.
            ConnectionError: If the Hub cannot be reached, or fails.
            ValueError: If it is no model of hdmnet, of a newer version, damaged, or the tensors do
                not fit the configuration.
        """
        config_file, weights = hub.locate(
            pretrained_model_name_or_path,
            force_download=force_download,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            revision=revision,
        )
        return serialization.load(cls, config_file, weights, strict=strict).to(map_location)

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        repo_id: str | None = None,
        push_to_hub: bool = False,
        model_card_kwargs: dict[str, Any] | None = None,
        **push_to_hub_kwargs: Any,
    ) -> str | None:
        """Write model.safetensors, config.json and, if there is none, a model card README.md.

        Files that are there already are replaced only when all are written.

        Args:
            save_directory: The folder, made if need be.
            repo_id: Of `push_to_hub`; the folder's name if left out.
            push_to_hub: Whether to upload it as well.
            model_card_kwargs: Arguments of `generate_model_card`.
            **push_to_hub_kwargs: Arguments of the method `push_to_hub`.

        Returns:
            The URL of the commit, if it was uploaded.

        Raises:
            RuntimeError: If the model is a `fused` copy.
        """
        folder = Path(save_directory)
        card = {"repo_id": repo_id} | (model_card_kwargs or {})
        serialization.save(self, folder, self.generate_model_card(**card))
        if not push_to_hub:
            return None
        return self.push_to_hub(
            repo_id or folder.name, model_card_kwargs=model_card_kwargs, **push_to_hub_kwargs
        )

    def push_to_hub(
        self,
        repo_id: str,
        *,
        token: str | None = None,
        private: bool | None = None,
        model_card_kwargs: dict[str, Any] | None = None,
        **options: Any,
    ) -> str:
        """Upload what `save_pretrained` writes.

        Args:
            repo_id: The repository, "user/repo" or "repo"; made if need be.
            token: Hub token; the stored one if left out.
            private: Whether a new repository is private.
            model_card_kwargs: Arguments of `generate_model_card`.
            **options: As for `huggingface_hub.PyTorchModelHubMixin.push_to_hub`.

        Returns:
            The URL of the commit.
        """
        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        card = {"repo_id": repo_id} | (model_card_kwargs or {})
        return super().push_to_hub(repo_id, token=token, model_card_kwargs=card, **options)

    def generate_model_card(
        self,
        *,
        repo_id: str | None = None,
        license: str | None = None,
        trained_on: str | None = None,
        metric: str | None = None,
    ) -> ModelCard:
        """The page that `save_pretrained` writes; what is not given, it calls not stated.

        Args:
            repo_id: The Hub repository that its snippet loads, "user/repo".
            license: Of the weights, as the Hub abbreviates it, such as "apache-2.0".
            trained_on: The data.
            metric: The measured figure, with its protocol.
        """
        return make_model_card(
            self, repo_id=repo_id, license=license, trained_on=trained_on, metric=metric
        )

    def _frozen_modules(self) -> list[nn.Module]:
        parts = (self.backbone, self.psp, self.base_learner)
        return [part for part in parts if part is not None]

    def _encode_features(
        self, features: tuple[Tensor, Tensor, Tensor], masks: Tensor, *, recompute: bool = False
    ) -> SupportSet:
        f2, f3, f4 = features
        shots = masks.shape[1]
        mask = widen_small((masks == 1).to(f2.dtype), f4.shape[-2:])
        if recompute and torch.is_grad_enabled():
            encoded = checkpoint(self._encode_tokens, f2, f3, mask, use_reentrant=False)
        else:
            encoded = self._encode_tokens(f2, f3, mask)
        prototypes, tokens = encoded
        # Priors compare what the masks cover: f5 is needed nowhere else.
        grid_mask = nearest(mask, f4.shape[-2:])
        box = None if self._computes_at_once() else foreground_box(grid_mask)
        if box is not None:
            grid_mask, f3 = box.crop(grid_mask), box.crop(f3)
        f5 = f3 if self.psp is None else self.psp(f4, box)
        f4 = f4 if box is None else box.crop(f4)
        return SupportSet(
            prototypes=prototypes,
            tokens=tokens,
            prior_features=(
                foreground_features(_split_shots(f5, shots), grid_mask),
                foreground_features(_split_shots(f4, shots), grid_mask),
            ),
            gram=None if self.ensemble is None else gram_matrix(_split_shots(f2, shots)),
        )

    def _encode_tokens(
        self, f2: Tensor, f3: Tensor, mask: Tensor
    ) -> tuple[Tensor, tuple[SupportTokens, ...]]:
        shots = mask.shape[1]
        s = self.support_reduce([f3, f2])
        with no_autocast(s):  # see `_match_on_grid`
            s = s.to(_dtype(self.support_merge))
            prototypes = masked_average_pool(_split_shots(s, shots), mask).to(s.dtype)
            tokens = self.support_merge([s, prototypes.flatten(0, 1)[..., None, None]])
            levels = [_split_shots(level, shots) for level in self.encoder(tokens)]
            return prototypes, self.cascade.encode(levels, mask)

    def _match_on_grid(
        self,
        features: tuple[Tensor, Tensor, Tensor],
        supports: SupportSet,
        base_class: Tensor | None = None,
    ) -> _GridOutput:
        """`match_features` before its scores are resized."""
        known = supports.fingerprint is not None and not torch.compiler.is_compiling()
        if known and supports.fingerprint != self.fingerprint():
            raise ValueError(
                "the supports were encoded by another model, or this one has changed since: "
                "encode them again"
            )
        f2, f3, f4 = features
        if (supports.gram is None) != (self.ensemble is None):
            kind = "without" if supports.gram is None else "with"
            raise ValueError(
                f"the supports were encoded by a model {kind} base learner: encode them with this"
            )
        expected = self._support_channels(f2, f3, f4)
        if supports.channels != expected:
            raise ValueError(
                f"the supports have {supports.channels} channels, but this model's have "
                f"{expected}: encode them with this"
            )
        if supports.prototypes.device != f2.device:
            raise ValueError(
                f"the supports are on {supports.prototypes.device}, but the query is on "
                f"{f2.device}: move them with supports.to({str(f2.device)!r})"
            )
        if base_class is not None and self.ensemble is None:
            raise ValueError("base_class was given, but the model has base_classes=0")
        supports = supports.expand(f2.shape[0])
        f5 = f3 if self.psp is None else self.psp(f4)
        prior = torch.stack(
            [max_cosine(q, s) for q, s in zip((f5, f4), supports.prior_features, strict=True)],
            dim=1,
        )
        q = self.query_reduce([f3, f2])
        # What follows takes little time, and decides: its channels are few, and rounded they would
        # move the border of the mask.
        with no_autocast(q):
            q = q.to(_dtype(self.query_merge))
            prototype = supports.prototypes.mean(dim=1).to(q.dtype)[..., None, None]
            tokens = self.query_merge([q, prototype, (PRIOR_SCALE * prior).to(q.dtype)])
            meta, correlations = self.cascade.match(
                self.encoder(tokens), supports.tokens, prior, shots=supports.shots
            )
        if self.ensemble is None or self.base_learner is None or supports.gram is None:
            return _GridOutput(None, meta, None, correlations, prior)
        base = self.base_learner(f5)
        distances = gram_distance(gram_matrix(f2), supports.gram)
        final = self.ensemble(meta, base, distances, base_class)
        return _GridOutput(final, meta, base, correlations, prior)

    def _support_channels(self, f2: Tensor, f3: Tensor, f4: Tensor) -> tuple[int, ...]:
        """`SupportSet.channels` of this model."""
        f5 = f3.shape[1] if self.psp is None else PSP_DIM
        config = self._hub_mixin_config
        tokens = [config["dim"]] * len(config["heads"])
        return REDUCED_DIM, *tokens, f5, f4.shape[1], 0 if self.ensemble is None else f2.shape[1]

    def _final(self, grid: _GridOutput, size: Sequence[int]) -> Tensor:
        """`final` of `_match_on_grid`, resized to (B, 2, H, W)."""
        if grid.final is None:  # softmax comes after the resizing
            return upcast(upsample(grid.meta, size, align_corners=True)).softmax(dim=1)
        return upsample(grid.final, size, align_corners=True)

    def _computes_at_once(self) -> bool:
        """Whether features are to be of all shots and the whole grid in one go.

        So where a norm takes statistics of the batch; and in a compiled graph, which would hold the
        network K times, and must not depend on what the masks cover.
        """
        if torch.compiler.is_compiling():
            return True
        parts = (self.backbone, self.psp)
        modules = (m for part in parts if part is not None for m in part.modules())
        return any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training for m in modules)

    def _check_query(self, query: Tensor) -> None:
        if query.ndim != 4 or query.shape[1] != 3:
            raise ValueError(f"query must be (B, 3, H, W), got {_shape(query)}")
        self._check_size(query)

    def _check_size(self, images: Tensor) -> None:
        if min(images.shape[-2:]) < self.smallest_size:
            raise ValueError(
                f"images of {images.shape[-2]} × {images.shape[-1]} are too small for the coarsest "
                f"stage: height and width must be at least {self.smallest_size}"
            )


def _check_arguments(arguments: dict[str, Any]) -> None:
    """Refuse what would fail later, or take memory without bound."""
    backbone, heads, frozen = (arguments[x] for x in ("backbone", "heads", "frozen_norm"))
    if not isinstance(backbone, str):
        raise TypeError(f"backbone must be the name of a model, got {backbone!r}")
    if not isinstance(heads, list | tuple):
        raise TypeError(f"heads must be a sequence of int, got {heads!r}")
    if not isinstance(frozen, bool):
        raise TypeError(f"frozen_norm must be a bool, got {frozen!r}")
    for name, value, least, most in (
        ("number of heads", len(heads), 1, MOST_STAGES),
        *((f"heads[{i}]", value, 1, 2**14) for i, value in enumerate(heads)),
        ("base_classes", arguments["base_classes"], 0, 10**6),
        ("shots", arguments["shots"], 1, 10**4),
        ("shot_hidden_dim", arguments["shot_hidden_dim"], 0, 10**4),
        ("image_size", arguments["image_size"], 1, 2**14),
        ("dim", arguments["dim"], 2, 2**14),
    ):
        if not isinstance(value, int):
            raise TypeError(f"{name} must be an int, got {value!r}")
        if not least <= value <= most:
            bound = f"at least {least}" if value < least else f"at most {most}"
            raise ValueError(f"{name} must be {bound}, got {value}")
    for name in ("dropout", "feature_dropout"):
        value = arguments[name]
        if not isinstance(value, int | float):
            raise TypeError(f"{name} must be a probability, got {value!r}")
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be in [0, 1], got {value}")


def _reduce(in_channels: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        ConcatConv2d(in_channels, REDUCED_DIM),
        nn.ReLU(inplace=True),
        nn.Dropout2d(dropout),
    )


def _merge(in_channels: int, dim: int) -> nn.Sequential:
    return nn.Sequential(ConcatConv2d(in_channels, dim), nn.ReLU(inplace=True))


def _masked(images: Tensor, masks: Tensor) -> Tensor:
    """(B, 3, H, W) and (B, H, W) → the images, 0 outside of their masks."""
    return images * (masks == 1)[:, None].to(images.dtype)


def _split_shots(x: Tensor, shots: int) -> Tensor:
    return rearrange(x, "(b k) c h w -> b k c h w", k=shots)


def _dtype(module: nn.Module) -> torch.dtype:
    return next(module.parameters()).dtype


def _trainable(modules: Iterable[nn.Module]) -> list[nn.Parameter]:
    return [p for module in modules for p in module.parameters() if p.requires_grad]


def _shape(x: Tensor) -> str:
    return str(tuple(x.shape))
