"""Train the embedded transformer encoder on scikit-learn's digits, and write its files.

Run from the project's root: ``python -m models.digits_transformer.train``. Writes model.onnx, calib.npz and
eval.npz beside this script. The card (README.md) tells what is needed and what comes out.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from models.common import export, report, save_samples, seed_everything, stratified_split

HERE = Path(__file__).resolve().parent
SEED = 7
CALIBRATION, EVALUATION = 200, 400
EPOCHS, BATCH = 150, 64
PEAK_RATE, WEIGHT_DECAY, LABEL_SMOOTHING, DROPOUT = 2e-3, 0.05, 0.05, 0.1
SIDE, PATCH, WIDTH, HEADS, HIDDEN, LAYERS = 8, 2, 64, 4, 128, 2


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al., 2017), spelled out in plain matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(WIDTH, WIDTH)
        self.key = nn.Linear(WIDTH, WIDTH)
        self.value = nn.Linear(WIDTH, WIDTH)
        self.output = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply self-attention to float32 ``[N, tokens, width]``."""

        def heads(y: torch.Tensor) -> torch.Tensor:
            return y.reshape(-1, (SIDE // PATCH) ** 2, HEADS, WIDTH // HEADS).transpose(1, 2)

        query, key, value = heads(self.query(x)), heads(self.key(x)), heads(self.value(x))
        scores = torch.matmul(query, key.transpose(2, 3)) * (WIDTH // HEADS) ** -0.5
        mixed = torch.matmul(torch.softmax(scores, dim=-1), value).transpose(1, 2)
        y: torch.Tensor = self.output(mixed.reshape(-1, (SIDE // PATCH) ** 2, WIDTH))
        return y


class Layer(nn.Module):
    """One pre-norm encoder layer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(WIDTH)
        self.attention = Attention()
        self.norm2 = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, HIDDEN)
        self.gelu = nn.GELU()
        self.down = nn.Linear(HIDDEN, WIDTH)
        self.drop = nn.Dropout(DROPOUT)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the layer to float32 ``[N, tokens, width]``."""
        x = x + self.drop(self.attention(self.norm1(x)))
        y: torch.Tensor = x + self.drop(self.down(self.gelu(self.up(self.norm2(x)))))
        return y


class DigitsTransformer(nn.Module):
    """16 patches of 2x2 pixels, learned positions, 2 encoder layers, mean over tokens, 10 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(PATCH * PATCH, WIDTH)
        self.position = nn.Parameter(torch.randn((SIDE // PATCH) ** 2, WIDTH) * 0.02)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH)
        self.classifier = nn.Linear(WIDTH, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Classify pictures.

        Args:
            image: float32 ``[N, 1, 8, 8]``, 0 (paper) to 1 (ink).

        Returns:
            Logits, float32 ``[N, 10]``.
        """
        cells = SIDE // PATCH
        patches = image.reshape(-1, cells, PATCH, cells, PATCH).transpose(2, 3)
        x = self.embed(patches.reshape(-1, cells * cells, PATCH * PATCH)) + self.position
        for layer in self.layers:
            x = layer(x)
        y: torch.Tensor = self.classifier(self.norm(x).mean(dim=1))
        return y


def augment(images: torch.Tensor) -> torch.Tensor:
    """Shift (±0.5 pixels), turn and scale (entries of the matrix ±0.1) each picture of a batch at random."""
    count = len(images)
    matrix = torch.eye(2, 3).repeat(count, 1, 1)
    matrix[:, :, :2] += (torch.rand(count, 2, 2) * 2 - 1) * 0.1
    matrix[:, :, 2] = (torch.rand(count, 2) * 2 - 1) * (1 / SIDE)
    grid = functional.affine_grid(matrix, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)


def train(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> None:
    """AdamW (Loshchilov and Hutter, 2019) with a one-cycle rate."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, weight_decay=WEIGHT_DECAY)
    steps = len(images) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=EPOCHS * steps, pct_start=0.2)
    model.train()
    for epoch in range(EPOCHS):
        order, total = torch.randperm(len(images)), 0.0
        for step in range(steps):
            batch = order[step * BATCH : (step + 1) * BATCH]
            logits = model(augment(images[batch]))
            loss = functional.cross_entropy(logits, labels[batch], label_smoothing=LABEL_SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        if (epoch + 1) % 10 == 0:
            print(f"epoch {epoch + 1}/{EPOCHS}: loss {total / steps:.4f}", flush=True)
    model.eval()


def load() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """The 1,797 pictures of scikit-learn: float32 ``[1797, 1, 8, 8]`` in 0..1, and their class ids."""
    pixels, labels = load_digits(return_X_y=True)
    return (pixels / 16).astype(np.float32).reshape(-1, 1, SIDE, SIDE), labels.astype(np.int64)


def main() -> None:
    """Split, train, export, check."""
    seed_everything(SEED)
    images, labels = load()
    calibration, evaluation, training = stratified_split(labels, (CALIBRATION, EVALUATION), SEED)
    save_samples(HERE / "calib.npz", "image", images[calibration], labels[calibration])
    save_samples(HERE / "eval.npz", "image", images[evaluation], labels[evaluation])
    model = DigitsTransformer()
    train(model, torch.from_numpy(images[training]), torch.from_numpy(labels[training]))
    path = HERE / "model.onnx"
    export(model, torch.from_numpy(images[:1]), path, input_name="image")
    report(path, "image", model, images[evaluation], labels[evaluation])


if __name__ == "__main__":
    main()
