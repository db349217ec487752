"""`python -m tests.fuzz --minutes 5 safetensors keras`: read changed files until one is a fault.

With atheris installed the changes are guided by the lines of code that they reach; without it they
are random. Files that are new to atheris, and the one of a fault, go to the folder --out. A fault
ends the run with its traceback.
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib
import importlib.util
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from .mutations import mutated
from .seeds import FOLDER, read

SLOW = 20  # seconds after which a file counts as a hang
LONGEST = 100_000  # bytes of a file that atheris makes


def guided(name: str, seconds: int, out: Path) -> None:
    """Run atheris in this process; it ends the process."""
    import atheris

    with atheris.instrument_imports(include=["fastrnn", "json", "zipfile", "torch.serialization",
                                             "torch._weights_only_unpickler", "onnx"]):
        from .loaders import NEEDS, check

        if name in NEEDS:  # what a loader imports when it is called
            importlib.import_module(NEEDS[name])
            importlib.import_module("fastrnn.formats.onnx")
    number = 0

    def read_one(data: bytes) -> None:
        nonlocal number
        number += 1
        check(name, data, memory=number % 16 == 0)

    files = list(read(name).values())

    def change(data: bytes, longest: int, seed: int) -> bytes:
        """Let half of the changes be ours, which keep lengths and checksums right."""
        if seed % 2:
            return bytes(atheris.Mutate(data, longest))
        return mutated(data, files, random.Random(seed))[:longest]

    atheris.Setup([sys.argv[0], str(out), str(FOLDER / name), f"-max_total_time={seconds}",
                   f"-artifact_prefix={out}/fault-", f"-max_len={LONGEST}", f"-timeout={SLOW}",
                   "-rss_limit_mb=4096", "-print_final_stats=1", "-verbosity=1"], read_one,
                  custom_mutator=change)
    atheris.Fuzz()


def blind(name: str, seconds: int, out: Path, seed: int) -> None:
    """Change files of the corpus at random."""
    from .loaders import check

    rng, files, read_in_all, whole = random.Random(seed), list(read(name).values()), 0, 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        data = mutated(rng.choice(files), files, rng)
        (out / "last").write_bytes(data)  # stays if the process crashes
        faulthandler.dump_traceback_later(SLOW, exit=True)
        try:
            whole += check(name, data, memory=read_in_all % 4 == 0)
        except BaseException:
            (out / "last").rename(out / "fault-last")
            raise
        read_in_all += 1
    faulthandler.cancel_dump_traceback_later()
    print(f"{name}: {read_in_all} files in {seconds} s, {whole} of them whole, no fault")


def main() -> int:
    """Fuzz one loader in this process, or each of several in a process of its own."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("loaders", nargs="+", choices=sorted(p.name for p in FOLDER.iterdir()
                                                             if p.is_dir()))
    parser.add_argument("--minutes", type=float, default=1, help="for each loader")
    parser.add_argument("--out", type=Path, help="a folder; by default a new one")
    parser.add_argument("--seed", type=int, default=0, help="of the random changes")
    parser.add_argument("--blind", action="store_true", help="without atheris")
    args = parser.parse_args()
    out = args.out or Path(tempfile.mkdtemp(prefix="fastrnn-fuzz-"))
    seconds = round(60 * args.minutes)
    failed = []
    for name in args.loaders:
        if len(args.loaders) > 1:
            done = subprocess.run([sys.executable, "-m", "tests.fuzz", name, "--out", str(out),
                                   "--minutes", str(args.minutes), "--seed", str(args.seed),
                                   *["--blind"][: args.blind]])
            failed += [name] * (done.returncode != 0)
            continue
        own = out / name
        own.mkdir(parents=True, exist_ok=True)
        print(f"{name}: {seconds} s, into {own}", flush=True)
        if args.blind or importlib.util.find_spec("atheris") is None:
            blind(name, seconds, own, args.seed)
        else:
            guided(name, seconds, own)
    if failed:
        print(f"faults in {', '.join(failed)}: see {out}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
