"""The pretext task: original images and their augmentations, with the class of each."""

from collections.abc import Callable, Sequence
from typing import Any

try:
    import torch
    from torch.utils.data import Dataset
    from torchvision.transforms import v2
except ImportError as error:
    raise ImportError(
        "anatpaste_aug.pretext needs torch and torchvision: pip install 'anatpaste-aug[torch]'"
    ) from error

__all__ = ["PretextDataset", "pretext_collate"]


class PretextDataset(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Views of each normal image: itself (class 0) and one per augmentation (classes 1, 2, ...).

    With one augmentation this is the two-class task of AnatPaste; with ``[CutPaste(p=1),
    CutPasteScar(p=1)]`` CutPaste's three-way task. Use it with `pretext_collate`.

    Parameters
    ----------
    dataset : map-style dataset
        Of normal images, or of tuples that begin with one (as `torchvision.datasets.ImageFolder`).
    augment : callable or sequence of callables
        One transform for each class above 0, with ``p=1``: the label says that it was applied.
    before : callable, optional
        Applied once to each image, before the views part ways: sizes, and the paper's color jitter
        of 0.1.
    after : callable, optional
        Applied to each view; must return a tensor. By default a float32 image in [0, 1].

    Raises
    ------
    TypeError, ValueError
        If an argument is not callable where it must be, there is no augmentation, or one has
        another `p` than 1 or returns masks.

    References
    ----------
    Sato et al., arXiv:2205.04282; the 3-way task: Li et al., arXiv:2104.04015.

    Examples
    --------
    >>> from PIL import Image
    >>> from torch.utils.data import DataLoader
    >>> from anatpaste_aug.data import phantom_radiograph
    >>> from anatpaste_aug.pretext import PretextDataset, pretext_collate
    >>> from anatpaste_aug.transforms import AnatPaste
    >>> normals = [Image.fromarray(phantom_radiograph(64, rng=i)) for i in range(4)]
    >>> views = PretextDataset(normals, AnatPaste(p=1))
    >>> images, labels = next(iter(DataLoader(views, batch_size=4, collate_fn=pretext_collate)))
    >>> tuple(images.shape), labels.tolist()
    ((8, 1, 64, 64), [0, 1, 0, 1, 0, 1, 0, 1])
    """

    def __init__(
        self,
        dataset: Any,
        augment: Callable[[Any], Any] | Sequence[Callable[[Any], Any]],
        *,
        before: Callable[[Any], Any] | None = None,
        after: Callable[[Any], Any] | None = None,
    ):
        self.dataset = dataset
        self.augment = list(augment) if isinstance(augment, Sequence) else [augment]
        self.before = before
        self.after = after or v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
        if not self.augment:
            raise ValueError("augment must hold at least one transform, got none")
        for step in self.augment:
            if not callable(step):
                raise TypeError(f"augment must be callable, got {step!r}")
            # The label says that the view was augmented, and the view is one image.
            for option, value in (("p", 1), ("return_mask", False)):
                if (got := getattr(step, option, value)) != value:
                    raise ValueError(f"augment must have {option}={value}, got {got} in {step}")
        for name, other in (("before", before), ("after", after)):
            if not (other is None or callable(other)):
                raise TypeError(f"{name} must be callable, got {other!r}")

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the views (K, C, H, W) of one image, and their classes (K,)."""
        image = self.dataset[index]
        if isinstance(image, (tuple, list)):
            image = image[0]
        if self.before is not None:
            image = self.before(image)
        views = [image, *(augment(image) for augment in self.augment)]
        return torch.stack([self.after(view) for view in views]), torch.arange(len(views))


def pretext_collate(
    samples: Sequence[tuple[torch.Tensor, torch.Tensor]],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Join the views of a batch: (B * K, C, H, W) images and their (B * K,) classes."""
    images, labels = zip(*samples, strict=True)
    return torch.cat(images), torch.cat(labels)
