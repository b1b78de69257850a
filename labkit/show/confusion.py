"""Which classes a network takes for which."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from labkit.errors import LabkitError, in_words
from labkit.show.style import Figure, finished, subtitle, text
from labkit.training.metrics import logits_of, said_class


@torch.no_grad()
def confusion_matrix(model: nn.Module, x: Tensor, y: Tensor, classes: Sequence[str]) -> Figure:
    """Returns which share of each true class a network takes for which.

    Rows are true classes and add up to 1; columns are what the network says.

    Args:
        model: Maps `x` to logits `[rows, classes]`, or `[rows, 1]` of two classes. It is left in
            evaluation mode.
        x: `[rows, …]`.
        y: int64 `[rows]`, each an index into `classes`.
        classes: Their names.

    Raises:
        LabkitError: The network does not take these rows, or the labels are of other classes.

    Example:
        >>> plots.confusion_matrix(network, data.x_test, data.y_test, data.classes)
    """
    with in_words("model: it does not take these rows, or its logits do not fit the labels"):
        logits = logits_of(model.eval(), x)
        [said], n = said_class(logits), max(logits.shape[1], 2)
        counts = torch.bincount(y * n + said, minlength=n**2).view(n, n)
    if len(counts) != len(classes):
        raise LabkitError(f"classes: expected {len(counts)} names, got {len(classes)}")
    shares = counts / counts.sum(dim=1, keepdim=True).clamp(min=1)
    names = [text(name) for name in classes]
    figure = Figure()
    figure.add_heatmap(
        z=shares.tolist(), x=names, y=names, texttemplate="%{z:.2f}", textfont={"color": "black"},
        colorscale=[(0, "white"), (1, "#56B4E9")], zmin=0, zmax=1, showscale=False,
        hovertemplate="%{y} taken for %{x}: %{z:.1%}<extra></extra>",
    )  # fmt: skip
    right = f"accuracy {(said == y).double().mean():.3f} on {len(y):,} rows"
    return finished(
        figure,
        title={"text": "What each class is taken for", "subtitle": subtitle(right)},
        xaxis={"title": "predicted", "type": "category"},
        yaxis={"title": "true", "type": "category", "autorange": "reversed"},
    )
