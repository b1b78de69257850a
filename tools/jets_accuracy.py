"""Train the network that the field uses on the jets, and say how well they can be told apart.

    python tools/jets_accuracy.py labkit/data/assets/jets.npz --seeds 0 1 2

The network is the one of hls4ml (arXiv:1804.06913): Linear 16-64-32-32-5 with ReLU between, on
standardised features. It is trained for a fixed number of epochs and measured once, on the test
split. This script needs PyTorch, NumPy and scikit-learn, and nothing from the package.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, confusion_matrix, roc_auc_score
from sklearn.model_selection import train_test_split
from torch import nn

BATCH = 1024
LEARNING_RATE = 2e-3


def network() -> nn.Sequential:
    """16 features to 5 logits."""
    return nn.Sequential(
        nn.Linear(16, 64),
        nn.ReLU(),
        nn.Linear(64, 32),
        nn.ReLU(),
        nn.Linear(32, 32),
        nn.ReLU(),
        nn.Linear(32, 5),
    )


def train(x: torch.Tensor, y: torch.Tensor, epochs: int, seed: int) -> nn.Sequential:
    """Adam with one cycle of the learning rate.

    Args:
        x: standardised features, shape (n, 16).
        y: labels, shape (n,).
        epochs: passes over the data.
        seed: of the initial weights and of the order of the rows.
    """
    torch.manual_seed(seed)
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=True)
    steps = epochs * -(-len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(BATCH):
            loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model


def probabilities(model: nn.Module, x: torch.Tensor) -> NDArray[np.float32]:
    """Class probabilities, shape (n, 5)."""
    with torch.inference_mode():
        return model(x).softmax(dim=1).numpy()


def main() -> None:
    """Print accuracy, areas under the ROC curves and the confusion matrix of each seed."""
    parser = argparse.ArgumentParser(description="Train the hls4ml network on a file of jets.")
    parser.add_argument("jets", type=Path)
    parser.add_argument("--epochs", type=int, default=80)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--train-size", type=int, help="use only so many jets of the train split")
    args = parser.parse_args()

    with np.load(args.jets, allow_pickle=False) as file:
        x, y, classes = file["x"], file["y"].astype(np.int64), file["classes"]
    # 80 : 10 : 10. The validation split is left alone: nothing is tuned on this data here.
    x_train, x_rest, y_train, y_rest = train_test_split(
        x, y, test_size=0.2, stratify=y, random_state=0
    )
    _, x_test, _, y_test = train_test_split(
        x_rest, y_rest, test_size=0.5, stratify=y_rest, random_state=0
    )
    x_train, y_train = x_train[: args.train_size], y_train[: args.train_size]
    mean, std = x_train.mean(axis=0), x_train.std(axis=0)
    inputs, test_inputs = (torch.from_numpy((rows - mean) / std) for rows in (x_train, x_test))
    labels = torch.from_numpy(y_train)
    print(f"train {len(x_train):,} jets, test {len(x_test):,} jets, {args.epochs} epochs")

    for seed in args.seeds:
        model = train(inputs, labels, args.epochs, seed)
        p, p_train = probabilities(model, test_inputs), probabilities(model, inputs)
        areas = roc_auc_score(y_test, p, multi_class="ovr", average=None)
        accuracy = accuracy_score(y_test, p.argmax(axis=1))
        train_accuracy = accuracy_score(y_train, p_train.argmax(axis=1))
        print(f"\nseed {seed}: accuracy test {accuracy:.4f}, train {train_accuracy:.4f}")
        print("AUC      ", *(f"{name} {area:.4f}" for name, area in zip(classes, areas)))
        print("confusion", *(f"{name:>6}" for name in classes), "(columns: predicted)")
        matrix = confusion_matrix(y_test, p.argmax(axis=1), normalize="true")
        for name, row in zip(classes, matrix):
            print(f"        {name}", *(f"{share:6.3f}" for share in row))


if __name__ == "__main__":
    main()
