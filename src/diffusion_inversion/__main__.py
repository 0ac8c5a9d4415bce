"""`python -m diffusion_inversion` is `dinv`."""

from .cli import main

if __name__ == "__main__":
    main()
