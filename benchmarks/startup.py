"""CPU time of the commands that should answer at once.

``python benchmarks/startup.py`` starts each command several times in a fresh process and prints the smallest
and the median CPU time (user + system) in milliseconds, beside a bare ``python -c pass`` from the same run.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
from pathlib import Path

GRAPHOPT = str(Path(sys.executable).parent / "graphopt")
COMMANDS: dict[str, list[str]] = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "import graphopt": [sys.executable, "-c", "import graphopt"],
    "graphopt --help": [GRAPHOPT, "--help"],
    "graphopt --version": [GRAPHOPT, "--version"],
    "graphopt run --help": [GRAPHOPT, "run", "--help"],
    "graphopt passes": [GRAPHOPT, "passes"],
}


def cpu_ms(command: list[str]) -> float:
    """CPU time of one run of ``command``, in milliseconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return 1e3 * (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=9, help="runs per command (default 9)")
    runs = parser.parse_args().runs
    print(f"{'command':<22}{'min ms':>8}{'median ms':>11}   CPU time, {runs} runs")
    for name, command in COMMANDS.items():
        times = [cpu_ms(command) for _ in range(runs)]
        print(f"{name:<22}{min(times):>8.0f}{statistics.median(times):>11.0f}")


if __name__ == "__main__":
    main()
