"""The command `molnets`, for `python -m molnets` and for torchrun."""

from molnets.command import main

main()
