"""Segment a picture with an exported class, without PyTorch and without hdmnet.

    pip install onnxruntime numpy pillow
    python onnx_without_torch.py fish/segment.onnx query.jpg --out mask.png

With hdmnet, this writes the file of a class, which this program needs:

    from hdmnet import HDMNet
    from hdmnet.onnx import export_onnx

    model = HDMNet.from_pretrained("hdmnet-lite0")
    fish = model.encode_supports("support_1.jpg", "support_1.png")
    export_onnx(model, "fish", fish)
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import Image, ImageOps


def read_image(path: Path) -> NDArray[np.uint8]:
    """Read a picture as (H, W, 3) uint8 RGB, upright."""
    with Image.open(path) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def segment(session: Any, image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Compute the probability of the class at each pixel: (H, W) in [0, 1]."""
    (probability,) = session.run(["probability"], {"image": image})
    result: NDArray[np.float32] = probability
    return result


def main() -> None:
    """Write the mask of one picture."""
    parser = argparse.ArgumentParser(description="Segment a picture with an exported class.")
    parser.add_argument("model", type=Path, help="the ONNX file of the class")
    parser.add_argument("query", type=Path, help="the picture")
    parser.add_argument("--out", type=Path, default=Path("mask.png"), help="the mask, a PNG file")
    parser.add_argument("--threshold", type=float, default=0.5, help="probability of the object")
    parser.add_argument("--threads", type=int, default=0, help="0: one for each core")
    options = parser.parse_args()

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = options.threads
    session = onnxruntime.InferenceSession(
        options.model, settings, providers=["CPUExecutionProvider"]
    )
    mask = segment(session, read_image(options.query)) > options.threshold
    Image.fromarray(mask.astype(np.uint8) * 255).save(options.out)
    print(f"{options.out}: {mask.mean():.1%} of the picture shows the class")


if __name__ == "__main__":
    main()
