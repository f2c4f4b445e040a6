"""The base class of networks that encode supports and score queries."""

import copy
import hashlib
import json
import multiprocessing
import os
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from functools import cache, partial
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hdmnet import fusion
from hdmnet.classes import Groups
from hdmnet.hub import HubMixin
from hdmnet.nn.backbone import FeaturePyramid
from hdmnet.output import Matches
from hdmnet.predictor import Predictor
from hdmnet.supports import SupportSet


class FewShotModel(Predictor, HubMixin):
    """Base class of networks that segment a query image, given masked support images.

    A subclass sets `backbone` and `image_size` in its constructor, whose arguments are JSON values.
    It implements `encode` and `scores`. It then has prediction on images, fused copies, freezing,
    parameter groups, saving, loading and the Hub. `examples/own_network.py` shows one in full.

    Attributes:
        backbone: Features, and the mean and std that images are normalised with.
        image_size: Height and width in pixels that `predict` resizes images to.
        frozen_norm: Whether every BatchNorm stays in eval mode in training.
        free_arguments: Names of constructor arguments that change no encoded support.
    """

    backbone: FeaturePyramid
    image_size: int
    frozen_norm: bool = False
    free_arguments: ClassVar[tuple[str, ...]] = ("image_size",)

    def __init__(self) -> None:
        super().__init__()
        self._backbone_frozen = False
        self._fused_fingerprint: str | None = None
        self._hashed: tuple[list[tuple[int, int]], str] | None = None
        _use_one_thread_after_forks()

    @abstractmethod
    def encode(self, supports: Tensor, masks: Tensor) -> SupportSet:
        """Encode the supports of B episodes.

        Args:
            supports: (B, K, 3, H, W) RGB, normalised with `backbone.mean` and `backbone.std`.
            masks: (B, K, H, W): 1 = object, 255 = ignore, 0 = background. 2 = background close to
                an object whose border is not exact, as annotations give: a backbone may see it.

        Returns:
            The encoded supports, without a fingerprint.
        """

    @abstractmethod
    def scores(self, query: Tensor, supports: SupportSet) -> Tensor:
        """Score the pixels of B queries.

        The supports may come from another model, and one episode may serve all queries. Call
        `supports.check_fits` and `supports.expand` first. If `encode_supports` made the supports,
        the caller must be in `torch.inference_mode()` or `no_grad()`.

        Args:
            query: (B, 3, H, W) RGB, normalised with `backbone.mean` and `backbone.std`.
            supports: The result of `encode` or `encode_supports`, of B episodes or of one.

        Returns:
            (B, 2, H, W) scores, at least 0, background first.
        """

    def look_at(self, query: Tensor) -> Any:
        """Compute what several calls of `match_sets` share. Without an override, the query itself.

        Args:
            query: (B, 3, H, W), as for `scores`.
        """
        return query

    def match_sets(
        self, query: Any, groups: Groups, *, competing: bool = False
    ) -> Iterator[Matches]:
        """Match one query with several sets, or several queries with one set.

        A network that can share work between the sets overrides this.

        Args:
            query: (B, 3, H, W), as for `scores`, or what `look_at` returns for it. B is 1 unless
                there is only one set.
            groups: Sets of one episode. Those of a group have the same number of shots: a network
                may compute them at once.
            competing: Whether the sets are different classes, which a network may set apart.

        Returns:
            An iterator of the matches of each group, N = sets · B.
        """
        for group in groups:
            yield Matches(torch.cat([self.scores(query, supports) for supports in group]))

    def encode_negative(self, image: Tensor, mask: Tensor | None, supports: SupportSet) -> Tensor:
        """Encode something that is not the class. A network that can use it overrides this.

        Args:
            image: (1, 3, H, W), as for `scores`.
            mask: (1, H, W) in {0, 1, 255}: 1 = something that is not the class. None: the image
                does not show the class.
            supports: The encoded supports of the class, of one episode.

        Returns:
            (1, C), a part of `SupportSet.negatives`.

        Raises:
            ValueError: If this network has no use of negatives.
        """
        raise ValueError(f"{type(self).__name__} has no use of negatives: leave them out")

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments: `type(model)(**model.config)` has the same architecture."""
        config = super().config
        # These two may change on the model.
        config |= {k: getattr(self, k) for k in ("image_size", "frozen_norm") if k in config}
        # JSON makes lists of tuples.
        return {k: tuple(v) if isinstance(v, list) else v for k, v in config.items()}

    # Inference

    def fused(self) -> Self:
        """Make a faster copy with the same answers, for inference only.

        Norms are folded into convolutions, and convolutions with nothing between them become one.
        The copy shares no tensor with this model. It cannot be trained or saved.

        Returns:
            A model in eval mode. It accepts the encoded supports of this model, and the reverse.

        Example:
            >>> fast = model.fused()
            >>> result = fast.predict("query.jpg", fish)
        """
        if self.is_fused:
            return copy.deepcopy(self)
        fused = fusion.fused_copy(self)
        fused._fused_fingerprint = self.fingerprint()
        return fused

    @property
    def is_fused(self) -> bool:
        """Whether this is a `fused` copy."""
        return self._fused_fingerprint is not None

    def fingerprint(self) -> str:
        """Return a short hash of architecture and weights.

        `encode_supports` stores it in the set, so that no other model uses the set. A `fused` copy
        has the fingerprint of its original. Casting changes the fingerprint. Writing through
        `Tensor.data` goes unnoticed.
        """
        if self._fused_fingerprint is not None:
            return self._fused_fingerprint
        tensors = [*self.parameters(), *self.buffers()]
        # The hash is computed again only after a tensor was replaced or written to.
        state = [(t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors]
        if self._hashed is None or self._hashed[0] != state:
            # Without None: a new argument keeps the fingerprints of older support sets.
            fixed = {
                k: v
                for k, v in self.config.items()
                if k not in self.free_arguments and v is not None
            }
            digest = hashlib.sha256(json.dumps(fixed, sort_keys=True).encode())
            for tensor in tensors:
                flat = tensor.detach().cpu().contiguous().flatten()
                digest.update(flat.view(torch.uint8).numpy().data)
            self._hashed = state, digest.hexdigest()[:16]
        return self._hashed[1]

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Unpickle, perhaps in a worker process."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        _use_one_thread_after_forks()

    # Training

    def pretrained_parts(self) -> list[nn.Module]:
        """List the modules that `freeze_backbone` freezes."""
        return [self.backbone]

    def transformer_parts(self) -> list[nn.Module]:
        """List the modules that `param_groups` trains at the learning rate of a transformer."""
        return []

    def train(self, mode: bool = True) -> Self:
        """Switch to training mode. Frozen parts and frozen norms stay in eval mode.

        Raises:
            RuntimeError: If the model is a `fused` copy and `mode` is true.
        """
        if mode and self.is_fused:
            raise RuntimeError("a fused model has no norms to train: train the original")
        super().train(mode)
        if self.frozen_norm:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        if self._backbone_frozen:
            for module in self.pretrained_parts():
                module.eval()
        return self

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Let the backward pass compute the transformer's activations again, to save memory."""
        for part in self.transformer_parts():
            for module in part.modules():
                if hasattr(module, "grad_checkpointing"):
                    module.grad_checkpointing = enable  # type: ignore[assignment]

    def freeze_backbone(self) -> Self:
        """Freeze the backbone and the other `pretrained_parts`, as the paper does.

        Example:
            >>> model = HDMNet.from_pretrained("hdmnet-lite0").freeze_backbone().train()
        """
        self._backbone_frozen = True
        for module in self.pretrained_parts():
            # Channels last saves a CPU one eighth of the time, and is the format of cuDNN.
            module.requires_grad_(False).eval().to(memory_format=torch.channels_last)
        return self

    def param_groups(self, lr: float, *, head_multiplier: float = 10.0) -> list[dict[str, Any]]:
        """Group the trainable parameters for an optimiser.

        The `transformer_parts` and the `pretrained_parts` learn at `lr`, the rest at
        `lr * head_multiplier`.

        Args:
            lr: Learning rate of the transformer. The paper uses 1e-4, with AdamW and weight decay
                0.01.
            head_multiplier: Factor of the other parts' learning rate.

        Returns:
            Dicts of `params`, `lr` and `name` ("transformer", "backbone", "head"). None is empty.

        Example:
            >>> optimiser = torch.optim.AdamW(model.param_groups(1e-4), weight_decay=0.01)
        """
        transformer = _trainable(self.transformer_parts())
        backbone = _trainable(self.pretrained_parts())
        taken = {id(p) for p in (*transformer, *backbone)}
        head = [p for p in _trainable([self]) if id(p) not in taken]
        groups = (
            {"params": transformer, "lr": lr, "name": "transformer"},
            {"params": backbone, "lr": lr, "name": "backbone"},
            {"params": head, "lr": lr * head_multiplier, "name": "head"},
        )
        return [group for group in groups if group["params"]]


@cache
def _use_one_thread_after_forks() -> None:
    """Let forked processes compute with one thread, as torch's own data loaders do.

    The other threads of OpenMP do not survive a fork, and torch would wait for them forever. This
    covers every fork of a process that has made a model, and every worker that `multiprocessing`
    forked before.
    """
    if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
        os.register_at_fork(after_in_child=partial(torch.set_num_threads, 1))
    if _is_forked_worker():
        torch.set_num_threads(1)


def _is_forked_worker() -> bool:
    """Whether `multiprocessing` made this process by a fork."""
    if multiprocessing.parent_process() is None:
        return False
    if "fork" not in multiprocessing.get_all_start_methods():
        return False
    worker = multiprocessing.current_process()
    if isinstance(worker, multiprocessing.get_context("fork").Process):
        return True
    is_default = type(worker) is multiprocessing.Process
    return is_default and multiprocessing.get_start_method() == "fork"


def _trainable(modules: Iterable[nn.Module]) -> list[nn.Parameter]:
    return [p for module in modules for p in module.parameters() if p.requires_grad]
