"""A warning where a network seems to want its images in another way than was declared."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.text import Text

from sfda.cli.source import Source
from sfda.data.images import read_image
from sfda.data.transforms import resize_image
from sfda.networks.preprocessing import Convention, clear_winner, declared, rank_preprocessing


def warn_of_preprocessing(source: Source, images: Sequence[Path], size: tuple[int, int], console: Console) -> None:
    """Rank the usual conventions on some images, and say so where another one than the declared one clearly wins."""
    pixels = np.stack([resize_image(read_image(path), size).transpose(2, 0, 1) for path in images])
    ranked = rank_preprocessing(source.segmenter, torch.from_numpy(pixels).float() / 255)
    own = declared(source.segmenter)
    console.print(f"preprocessing: {own.name}", highlight=False)
    if (winner := clear_winner(source.segmenter, ranked)) is not None:
        console.print(Text(_warning(own, winner), style="yellow"), soft_wrap=True)


def _warning(own: Convention, winner: Convention) -> str:
    options = [f"--channel-order {winner.channel_order}"]
    in_255 = max(winner.std) < 0.1
    factor, turn = (255 if in_255 else 1), (-1 if winner.channel_order == "bgr" else 1)
    options += ["--pixel-range 255"] if in_255 else []
    for name, values in (("mean", winner.mean), ("std", winner.std)):
        options.append(f"--{name} " + " ".join(f"{factor * value:g}" for value in values[::turn]))
    return (
        f"warning: on these images the network behaves as if it was trained with another preprocessing ({winner.name}) "
        f"than this one ({own.name}). If that is so, start again in another --out with {' '.join(options)}"
    )
