"""The recipe of `mini`, the embedded latent diffusion model: vae -> latents -> unet -> export."""
