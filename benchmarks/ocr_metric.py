"""Character accuracy of a CTC text recogniser, for ``graphopt run --metric ocr_metric:char_accuracy``.

The alphabet is read from the model's own metadata (``character``, one per line); the true texts from the JSON list
that the environment variable ``OCR_LABELS`` names, one per evaluation sample.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def char_accuracy(outputs: Sequence[Mapping[str, Array]], samples: object, metadata: Mapping[str, str]) -> float:
    """1 - edit distance / length, over all texts; in (-inf, 1].

    Args:
        outputs: per sample, output name → scores float32 [1, T, C].
        samples: the evaluation samples (unused: the labels are texts).
        metadata: the model's metadata.
    """
    truth = json.loads(Path(os.environ["OCR_LABELS"]).read_text())
    table = ["", *metadata["character"].splitlines(), " "]
    read = [_greedy(next(iter(out.values())), table) for out in outputs]
    errors = sum(_distance(a, b) for a, b in zip(read, truth, strict=True))
    return 1 - errors / sum(map(len, truth))


def _greedy(scores: Array, table: list[str]) -> str:
    best = scores[0].argmax(-1)
    keep = (best != 0) & np.concatenate([[True], best[1:] != best[:-1]])
    return "".join(table[i] for i in best[keep])


def _distance(a: str, b: str) -> int:
    """Levenshtein's distance, one row at a time."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
    return row[-1]
