"""The page of a model on the Hub."""

from typing import TYPE_CHECKING

from huggingface_hub import ModelCard, ModelCardData

if TYPE_CHECKING:
    from hdmnet.model import HDMNet

TEXT = """\
---
{data}
---

# {title}

Few-shot semantic segmentation: shown one or more images with masks of a class it was never trained
on, this network segments that class in other images. It is an HDMNet, loaded by
[hdmnet](https://pypi.org/project/hdmnet/) (`pip install hdmnet`).

```python
from hdmnet import HDMNet

model = HDMNet.from_pretrained({source!r})
result = model.predict("query.jpg", ["support.jpg"], ["support_mask.png"])
result.save("mask.png")
```

| | |
|---|---|
| backbone | `{backbone}` |
| trained with | {shots} |
| base classes | {base_classes} |
| input | {image_size} × {image_size} pixels |
| parameters | {parameters:.1f} million |
| trained on | {trained_on} |
| measured | {metric} |
| licence | {licence} |

## Citation

```bibtex
@inproceedings{{peng2023hierarchical,
  title     = {{Hierarchical Dense Correlation Distillation for Few-Shot Segmentation}},
  author    = {{Peng, Bohao and Tian, Zhuotao and Wu, Xiaoyang and Wang, Chengyao and Liu, Shu
               and Su, Jingyong and Jia, Jiaya}},
  booktitle = {{CVPR}},
  year      = {{2023}}
}}
```
"""
NOT_STATED = "not stated: ask whoever published these weights"


def make_model_card(
    model: "HDMNet",
    *,
    repo_id: str | None,
    license: str | None,
    trained_on: str | None,
    metric: str | None,
) -> ModelCard:
    """See `HDMNet.generate_model_card`."""
    config = model.config
    data = ModelCardData(
        license=license,
        library_name="hdmnet",
        pipeline_tag="image-segmentation",
        tags=["few-shot-segmentation"],
    )
    return ModelCard(
        TEXT.format(
            data=data.to_yaml(),
            title=repo_id.split("/")[-1] if repo_id else "HDMNet",
            source=repo_id or ".",
            backbone=config["backbone"],
            shots="1 shot" if config["shots"] == 1 else f"{config['shots']} shots",
            base_classes=config["base_classes"] or "none: no base learner",
            image_size=config["image_size"],
            parameters=sum(p.numel() for p in model.parameters()) / 1e6,
            trained_on=trained_on or NOT_STATED,
            metric=metric or NOT_STATED,
            licence=license or NOT_STATED,
        )
    )
