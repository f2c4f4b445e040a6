"""`python -m hdmnet.integrations.label_studio`: serve predictions to Label Studio."""

import logging
from pathlib import Path

import click

from hdmnet.integrations.label_studio import BackendServer, FewShotBackend
from hdmnet.model import HDMNet


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--model", default="hdmnet-lite0", help="A bundled model, a folder, or a Hub name.")
@click.option("--device", default="cpu", help="cpu, cuda, cuda:1 or mps.")
@click.option("--shots", default=10, help="Annotations of a class that are used, the newest ones.")
@click.option("--host", default="127.0.0.1", help="0.0.0.0 is open to other computers.")
@click.option("--port", default=9090)
def main(folder: Path, model: str, device: str, shots: int, host: str, port: int) -> None:
    """Serve predictions to Label Studio. The supports are kept in FOLDER."""
    logging.basicConfig(level=logging.INFO)
    network = HDMNet.from_pretrained(model).to(device).fused()
    backend = FewShotBackend(network, folder, shots=shots)
    with BackendServer(backend, (host, port)) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()
