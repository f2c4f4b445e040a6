"""The demo as a Space of the Hugging Face Hub: the same page as `hdmnet demo`."""

from hdmnet import HDMNet
from hdmnet.demo import launch

NAME = "hdmnet-lite0"

if __name__ == "__main__":
    launch(HDMNet.from_pretrained(NAME).fused(), NAME, host="0.0.0.0", port=7860)
