"""Benchmark of a model that is no Zamba: a Llama in 4 bits, with the import and without, on a CPU.

python tools/bench_other_models.py [--kinds nf4 fp4] [--tokens 1 4 16 128] [--threads 1 2] [--rounds 7]

Two processes, one with the import, hold the same model and take turns forward by forward: drift hits both alike.
Prints medians of both and of the ratios of each turn: 1.00 is as fast, more is slower with the import. Where logits
differ, that is said, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

DTYPES = ("bfloat16", "float32")


def write_model(directory: str, hidden: int, layers: int) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": hidden, "intermediate_size": 4 * hidden, "num_hidden_layers": layers}
    config = LlamaConfig(vocab_size=1024, num_attention_heads=hidden // 64, **sizes)
    LlamaForCausalLM(config).bfloat16().save_pretrained(directory)


def work(mode: str, directory: str, kind: str, dtype: str) -> None:
    """Answer each line "tokens threads" with the milliseconds of a forward pass and a sum of its logits."""
    if mode == "import":
        import zamba_compat  # noqa: F401
    import torch
    from transformers import BitsAndBytesConfig, LlamaForCausalLM

    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=kind, bnb_4bit_compute_dtype=dtype)
    model = LlamaForCausalLM.from_pretrained(
        directory, quantization_config=config, torch_dtype=getattr(torch, dtype)
    ).eval()
    print("ready", flush=True)
    for line in sys.stdin:
        tokens, threads = map(int, line.split())
        torch.set_num_threads(threads)
        ids = (torch.arange(tokens) % 1000 + 3)[None]
        with torch.inference_mode():
            start = time.perf_counter()
            logits = model(ids, use_cache=False).logits
            spent = time.perf_counter() - start
        print(1e3 * spent, float(logits.double().abs().sum()), flush=True)


class Worker:
    """A process of its own: `mode` is "stock" or "import"."""

    def __init__(self, mode: str, directory: str, kind: str, dtype: str) -> None:
        command = [sys.executable, __file__, "--work", mode, directory, kind, dtype]
        # Threads that wait actively after a forward pass would take the cores from the other process's.
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},
        )  # fmt: skip
        self._read()

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("a process with the model has ended; run it by hand with --work to see why")
        return line

    def ask(self, tokens: int, threads: int) -> tuple[float, float]:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{tokens} {threads}\n")
        self._process.stdin.flush()
        milliseconds, total = map(float, self._read().split())
        return milliseconds, total

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def compare(stock: Worker, armed: Worker, tokens: int, threads: int, rounds: int) -> tuple[float, float, float, bool]:
    """Median milliseconds of both, the median of the ratios, and whether the logits are the same."""
    times: list[tuple[float, float]] = []
    same = True
    for number in range(rounds + 1):
        order = (stock, armed) if number % 2 else (armed, stock)
        found = {worker: worker.ask(tokens, threads) for worker in order}
        times.append((found[stock][0], found[armed][0]))
        same = same and found[stock][1] == found[armed][1]
    theirs, ours = zip(*times[1:], strict=True)  # the first forward may pack
    ratio = statistics.median(our / their for their, our in times[1:])
    return statistics.median(theirs), statistics.median(ours), ratio, same


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add: Any = parser.add_argument
    add("--kinds", nargs="+", default=["nf4", "fp4"], choices=["nf4", "fp4"])
    add("--dtype", default="bfloat16", choices=DTYPES, help="of the model and of its products")
    add("--tokens", nargs="+", type=int, default=[1, 4, 16, 128])
    add("--threads", nargs="+", type=int, default=[1, 2])
    add("--rounds", type=int, default=7)
    add("--hidden", type=int, default=2048)
    add("--layers", type=int, default=2)
    add("--work", nargs=4, metavar=("MODE", "DIRECTORY", "KIND", "DTYPE"), help=argparse.SUPPRESS)
    options = parser.parse_args(given)
    if options.work:
        work(*options.work)
        return 0

    from _bench.speed_report import processor

    about = f"bitsandbytes {version('bitsandbytes')}, torch {version('torch')}; {processor()}"
    print(f"A Llama's forward pass, {options.layers} layers of {options.hidden}, {options.dtype}; {about}.\n")
    print("| | threads | tokens | stock, ms | with the import, ms | ratio | bits |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | --- |")
    differ = 0
    with tempfile.TemporaryDirectory() as directory:
        write_model(directory, options.hidden, options.layers)
        for kind in options.kinds:
            workers = [Worker(mode, directory, kind, options.dtype) for mode in ("stock", "import")]
            for threads in options.threads:
                for tokens in options.tokens:
                    theirs, ours, ratio, same = compare(*workers, tokens, threads, options.rounds)
                    differ += not same
                    cells = kind, threads, tokens, f"{theirs:.1f}", f"{ours:.1f}", f"{ratio:.2f}"
                    print(f"| {' | '.join(map(str, cells))} | {'the same' if same else 'differ'} |", flush=True)
            for worker in workers:
                worker.close()
    return int(differ > 0)


if __name__ == "__main__":
    sys.exit(main())
