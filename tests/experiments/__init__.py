"""Experiments behind figures in docs/. They take minutes to hours, and `make test` runs none.

guides     the table of docs/guides.md; guides_run is one training, guides_overfit its ceilings
peer_gan   a recipe of ours and a pix2pix colorizer, with the same CPU time
pretrained what ImageNet's weights in the encoder are worth
start      trains the model that ships as `start`, and writes its card
stages     which stages of the encoder tell colours
search     how soon `cc tune` finds what random search finds: docs/tuning.md
colored    how often `cc colorize` mistakes grey photos for coloured ones, and the reverse
upsampling what guidance by lightness gains at edges: docs/colorizing.md
killed     `cc colorize` of any folder, killed at random moments and run again
features   what KID and the perceptual distance see of changed colours: docs/training.md
published  what other programs say of LPIPS and FID: values in tests/colorcore
equal      the sides of all of these at equal colourfulness, with their spread over seeds
photos     the dataset and the held-out photos that they share
scale      the driver and the loader at 10⁹ photos: docs/scale.md

Each one is a command, ``python -m tests.experiments.NAME --help``. Those that train keep a file per
finished training, and the same command resumes after the last one.
"""
