"""Runs `python run.py all emoji32` from an empty folder once per seed, and prints time and numbers as medians.

    python benchmarks/emoji.py [--runs 3] [--recipe emoji32] [--picture emoji32.png] [--quick]

Each run is a process of its own on all cores. Fréchet distances are of samples to training pictures, in pixels and in
the features of a classifier that was trained on them; beside each stands that of the held-out pictures. `--picture`
names a file for the first samples of each class of the first seed, in the order of their numbers, not chosen.
"""

from pathlib import Path

from digits import create_parser, run_seeds

PIXELS = {  # numbers of the report that the digits' table leaves out
    "Fréchet distance, pixels": ("fd_pixels", "value"),
    "the same, of held-out pictures": ("fd_pixels", "held_out"),
    "ratio of the two distances, pixels": ("fd_pixels", "ratio"),
    "near copies, pixels, held-out images": ("near_copies_pixels", "held_out"),
}


def draw(samples: Path, picture: Path) -> None:
    """A row of each class: its first samples, without margins or names."""
    import numpy as np

    from pipeline.images.grids import columns, grid

    with np.load(samples) as stored:
        images, labels = stored["arr_0"], stored["arr_1"]
    grid([images[labels == label][: columns(images.shape[1:3])] for label in np.unique(labels)], []).save(picture)


def main() -> None:
    parser = create_parser(__doc__, "emoji32")
    parser.add_argument("--picture", type=Path)
    arguments = parser.parse_args()

    def measure(seed: int, folder: Path, numbers: dict) -> dict[str, float]:
        if arguments.picture and not seed:
            draw(folder / "samples" / "samples.npz", arguments.picture)
        return {title: numbers[key][part] for title, (key, part) in PIXELS.items()}

    run_seeds(arguments, measure)


if __name__ == "__main__":
    main()
