"""Save while no file may exceed 1000 bytes, as on a full disk: the old files must not change."""

import resource
import signal
import sys
from pathlib import Path

from hostile import FILES, MODEL, photograph, pixels

from hdmnet import HDMNet

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    MODEL.save_pretrained(folder / "model")
    supports = MODEL.encode_supports(photograph(), pixels(1, 1, 1))
    supports.save(folder / "set")
    before = [path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()]
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    errors = set()
    for save in (
        lambda: HDMNet(**MODEL.config).save_pretrained(folder / "model"),
        lambda: supports.save(folder / "set"),
        lambda: MODEL.predict(photograph((400, 400)), supports).save(folder / "mask.png"),
    ):
        try:
            save()
        except OSError as error:
            errors.add(type(error).__name__)
    after = [path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()]
    assert before == after
    assert {path.name for path in (folder / "model").iterdir()} == FILES
    print(f"{', '.join(errors)}: the old files are unchanged")
