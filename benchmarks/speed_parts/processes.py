"""Two processes of one thread each against one: training on CPUs, and what the machine gives.

Waiting counts here, so the machine should do nothing else. The matrix product is the ceiling: its
processes never wait for each other, and two threads of one core share what one would have.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import median

from speed_parts.commands import end, run, start
from speed_parts.measuring import Found, Setting
from vidtwin_lab.studio.curves import read_log

COUNTS = (1, 2)
PRODUCT = """
import time, torch
factors = torch.randn(2, 1024, 1024)
factors[0] @ factors[1]
begun, done = time.perf_counter(), 0
while time.perf_counter() - begun < {seconds}:
    factors[0] @ factors[1]
    done += 1
print(done / (time.perf_counter() - begun))
"""


def products(count: int, setting: Setting) -> float:
    """Matrix products a second of all processes."""
    script = PRODUCT.format(seconds=0.2 if setting.small else 10)
    started = [start(["-c", script]) for _ in range(count)]
    return sum(float(end(process).output) for process in started)


def trained(count: int, setting: Setting) -> float:
    """Clips a second of all processes that train the shapes' autoencoder together."""
    config, steps, every = ("shapes_debug", 4, 2) if setting.small else ("shapes", 60, 10)
    output = Path(tempfile.mkdtemp(dir=setting.scratch))
    run([
        "-m", "torch.distributed.run", "--nproc_per_node", str(count), "train_ae.py",
        "--config", f"configs/ae/{config}.yaml", f"output={output}", f"steps={steps}",
        f"log_every={every}", f"validate_every={steps}", f"save_every={steps}",
        "optimizer.warmup_steps=1", "discriminator_optimizer.warmup_steps=1",
    ])  # fmt: skip
    _, rates = read_log(output)["samples_per_second"]
    return float(median(rates[1:]))


def measure(setting: Setting) -> Found:
    """A row for each, in turns of one and two processes."""
    rows = []
    for what, call in {"matrix products": products, "clips trained on": trained}.items():
        rates: dict[int, list[float]] = {count: [] for count in COUNTS}
        for _ in range(setting.rounds):
            for count, found in rates.items():
                found.append(call(count, setting))
        ratios = [two / one for one, two in zip(*rates.values(), strict=True)]
        row: dict[str, str | float] = {"a second": what}
        row |= {f"{count} process(es)": median(found) for count, found in rates.items()}
        rows.append(row | {"×": median(ratios)})
    return Found(rows=rows, protocol={"threads_of_a_process": 1, "time": "seconds that passed"})
